"""One timed run of train_grpo for the comparison with TRL: `python -m speed.our_side JOB.json`.

The real loop, with random rewards instead of grading. Reads a job (see `against`), writes its figures where that says.
"""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import train_grpo
from configs import run, write_whole
from speed import machine
from training import smoke
from training.begin import Run


class Timed(smoke.NoHook):
    """The hook: replaces the rewards, and reads the clocks after the last step of the warm-up and the last of all."""

    def __init__(self, has_stop: bool, warm_up: int, steps: int) -> None:
        self.has_stop, self.warm_up, self.steps = has_stop, warm_up, steps
        self.rng = random.Random(0)
        self.rows: list[dict[str, Any]] = []  # of the steps, as metrics.jsonl has them
        self.readings: list[machine.Reading] = []
        self.threads = 0

    def before_training(self, run: Run, backward: Any, optimizer_step: Any) -> None:
        self.write = run.log.write
        run.log.write = self.after_step
        run.pool.rewards = self.random_rewards
        if not self.has_stop:  # every response is as long as it may be
            run.sampler.eos_ids = torch.tensor([-1])
        self.threads = torch.get_num_threads()

    def random_rewards(self, problems: list[Any], responses: list[str], progress: str = "") -> list[float]:
        return [float(self.rng.random() < 0.5) for _ in responses]

    def after_step(self, row: dict[str, Any], last_step: int) -> None:
        self.write(row, last_step)
        self.rows.append(row)
        if len(self.rows) in (self.warm_up, self.warm_up + self.steps):
            self.readings.append(machine.read_clocks())


def figures(hook: Timed) -> dict[str, Any]:
    """Of the timed steps: seconds a step, in all and by phase, tokens, and who else computed."""
    timed, stretch = hook.rows[hook.warm_up :], machine.stretch(*hook.readings)
    step = stretch.seconds / len(timed)
    generate = sum(row["time_rollout"] for row in timed) / len(timed)
    train = sum(row["time_train"] for row in timed) / len(timed)
    parts = {"generate": generate, "train": train, "rest": step - generate - train}
    tokens = sum(row["tokens_generated"] for row in timed)
    return {"step": step, **parts, "tokens": tokens, **asdict(stretch), "threads": hook.threads}


def main(argv: list[str]) -> None:
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    hook = Timed(job["has_stop"], job["warm_up"], job["steps"])
    train_grpo.main(job["our_flags"], hook)
    write_whole(Path(job["result"]), json.dumps(figures(hook)))


if __name__ == "__main__":
    run(main)
