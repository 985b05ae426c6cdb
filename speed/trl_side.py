"""One timed run of TRL's GRPOTrainer: `PYTHON -m speed.trl_side JOB.json`, with the Python of TRL's own environment.

The settings are the fastest that were found for TRL on a CPU: float32, SDPA, micro-batches of 32, no KL reference.
Reads a job (see `against`), writes its figures where that says. Nothing of this project is imported but `machine`.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from speed import machine

MICRO_BATCH = 32  # sequences
# How it generates: TRL's settings of each way that it has on a CPU. With TRL 1.16.0 and transformers 5.24.0, continuous
# batching took eight times as long as plain `generate`.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "static cache": {"cache_implementation": "static"},
    "continuous batching": {"use_transformers_continuous_batching": True},
}
GENERATION = "plain"


class TimedTrainer(GRPOTrainer):
    """Adds up the seconds and the tokens of generation, and the seconds of all that prepares a batch."""

    generating = preparing = 0.0
    tokens = 0

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        completions, logprobs = super()._generate_single_turn(*args, **kwargs)
        self.generating += time.perf_counter() - start
        self.tokens += sum(map(len, completions))
        return completions, logprobs

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Generates, computes rewards and advantages, at the first micro-batch of a step."""
        start = time.perf_counter()
        inputs = super()._prepare_inputs(*args, **kwargs)
        self.preparing += time.perf_counter() - start
        return inputs


class Clocks(TrainerCallback):
    """Reads the clocks after the last step of the warm-up and after the last of all."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.trainer: TimedTrainer | None = None
        self.marks: list[tuple[machine.Reading, float, float, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.warm_up, state.max_steps):
            trainer = self.trainer
            self.marks.append((machine.read_clocks(), trainer.generating, trainer.preparing, trainer.tokens))


def settings(job: dict[str, Any]) -> GRPOConfig:
    samples = job["prompts_per_step"] * job["group_size"]
    # TRL forbids a stop token only by way of transformers' own settings of `generate`.
    never_stop = {} if job["has_stop"] else {"min_new_tokens": job["max_response_len"]}
    return GRPOConfig(
        output_dir=job["out_dir"],
        max_steps=job["warm_up"] + job["steps"],
        per_device_train_batch_size=min(MICRO_BATCH, samples),
        gradient_accumulation_steps=max(1, samples // MICRO_BATCH),
        num_generations=job["group_size"],
        max_completion_length=job["max_response_len"],
        generation_kwargs=never_stop,
        temperature=1.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        beta=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **WAYS[GENERATION],
    )


def random_reward() -> Callable[..., list[float]]:
    rng = random.Random(0)

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(rng.random() < 0.5) for _ in completions]

    return reward


def main(argv: list[str]) -> None:
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    rows = [json.loads(line) for line in Path(job["train_data"]).read_text(encoding="utf-8").splitlines()]
    prompts = [[{"role": "user", "content": row["problem"]}] for row in rows]
    clocks = Clocks(job["warm_up"])
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa"),
        processing_class=AutoTokenizer.from_pretrained(job["model"], padding_side="left"),
        reward_funcs=random_reward(),
        args=settings(job),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        callbacks=[clocks],
    )
    clocks.trainer = trainer
    trainer.train()
    (before, *old), (after, *new) = clocks.marks
    stretch = machine.stretch(before, after)
    generating, preparing, tokens = (b - a for a, b in zip(old, new, strict=True))
    step, parts = stretch.seconds / job["steps"], {"generate": generating / job["steps"]}
    parts |= {"train": step - preparing / job["steps"], "rest": (preparing - generating) / job["steps"]}
    figures = {"step": step, **parts, "tokens": tokens, **asdict(stretch), "threads": torch.get_num_threads()}
    Path(job["result"]).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
