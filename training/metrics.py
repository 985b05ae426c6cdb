"""What a run reports: seconds and memory by phase, figures of a step's rollouts and their texts, the row and the
progress line of each step, and the summary at the end.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs import Config, UserError, write_whole
from model import Qwen2
from problems.prompts import ChatTokenizer, Prompt
from rollout import Rollout, response_text
from training.checkpoint import RunState, in_one_line, step_name
from training.hardware import peak_flops
from training.packing import all_sum, from_rank0, packed_length, print0

# ----------------------------------------------------------------------------------------------------- time and memory


def memory_in_use(device: torch.device) -> float:
    """GiB. GPU: what all processes use of it, including what torch's allocator keeps after a peak. CPU: this process's
    peak since the last call, which begins a new one; nan outside Linux."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**30
    try:
        with open("/proc/self/status", encoding="ascii") as f:
            peaks = [int(line.split()[1]) for line in f if line.startswith("VmHWM")]  # KiB
        with open("/proc/self/clear_refs", "w", encoding="ascii") as f:
            f.write("5")  # begin a new peak
    except OSError:  # not Linux, or a container that forbids it
        return math.nan
    return peaks[0] / 2**20 if peaks else math.nan


class Timer:
    """Seconds and peak memory by phase: `with timer("rollout"): ...`; waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}  # GiB

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block. Ends the run with one line if the GPU's memory does not suffice."""
        memory_in_use(self.device)  # begins a new peak
        start = self._now()
        try:
            yield
        except (RuntimeError, MemoryError) as e:
            # of GPUs, by torch or vLLM; of the CPU, by torch or the system
            is_memory = re.search("out of memory|(can't|Cannot) allocate memory", str(e))
            if not (is_memory or isinstance(e, MemoryError)):
                raise
            reason = in_one_line(e)
            advice = (
                "Lower token_budget or logprob_chunk (the trainer), vllm_gpu_memory_utilization (vLLM), or use more"
            )
            raise SystemExit(f"out of memory in phase {phase!r}: {reason} {advice} GPUs") from e
        self.seconds[phase] = self.seconds.get(phase, 0.0) + self._now() - start
        memory = memory_in_use(self.device)
        self.memory[phase] = max(self.memory.get(phase, memory), memory)

    def peak_memory(self, phases: tuple[str, ...]) -> dict[str, float]:
        """The most memory that any rank took, by phase, GiB (0 for a phase that did not happen)."""
        memory = torch.tensor([self.memory.get(phase, 0.0) for phase in phases])
        dist.all_reduce(memory, dist.ReduceOp.MAX)
        return dict(zip(phases, memory.tolist(), strict=True))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def time_columns(timer: Timer, seconds: float, tokens: int) -> dict[str, float]:
    """Of a step that has taken `seconds`: time by phase, tokens per second, memory by phase. Generation and its tail
    (the wait for the rank with the longest answers) become means over ranks, in `timer` too: their sum is equal on
    all."""
    waited = all_sum([timer.seconds["rollout"], timer.seconds["tail"]])
    timer.seconds["rollout"], timer.seconds["tail"] = (total / dist.get_world_size() for total in waited)
    phases = ("rollout", "tail", "reward", "logprobs", "train", "sync", "probe", "eval")
    columns = {f"time_{phase}": timer.seconds.get(phase, 0.0) for phase in phases}
    columns |= {"time_step": seconds, "tokens_per_second": tokens / seconds}
    memory = timer.peak_memory(("rollout", "logprobs", "train", "sync", "probe"))
    return columns | {f"memory_{phase}": gib for phase, gib in memory.items()}


def flops_columns(
    model: Qwen2, groups: list[list[Rollout]], trained: list[list[Rollout]], seconds: float
) -> dict[str, float | None]:
    """FLOPs of all ranks: one forward pass over all samples; forward and backward over those trained on, and these over
    `seconds` of training and the devices' peak (mfu)."""
    generated = model.flops(packed_length(r) for g in groups for r in g)
    forward_and_backward = 3 * model.flops(packed_length(r) for g in trained for r in g)
    device = next(model.parameters()).device
    peak = dist.get_world_size() * peak_flops(device, model.compute_dtype)
    mfu = forward_and_backward / (seconds * peak) if trained else None
    return {"flops_generated": generated, "flops_trained": forward_and_backward, "mfu": mfu}


# --------------------------------------------------------------------------------------------------- a step's responses


def rollout_metrics(groups: list[list[Rollout]]) -> dict[str, float | None]:
    """Rewards, lengths (tokens) and shares of a step's samples; None where there is nothing to average."""
    samples = [r for g in groups for r in g]

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    return {
        "groups_drawn": len(groups),
        "reward_mean": mean([r.reward for r in samples]),
        "response_len_mean": mean([len(r.response_ids) for r in samples]),
        "response_len_correct": mean([len(r.response_ids) for r in samples if r.reward >= 1]),
        "response_len_incorrect": mean([len(r.response_ids) for r in samples if r.reward < 1]),
        "answered_ratio": mean([r.answer is not None for r in samples]),
        "thinking_ratio": mean([r.thought for r in samples]),
        "response_clip_ratio": mean([r.finish_reason == "length" for r in samples]),
        "solve_none": mean([all(r.reward < 1 for r in g) for g in groups]),
        "solve_all": mean([all(r.reward >= 1 for r in g) for g in groups]),
        "tokens_generated": sum(len(r.response_ids) for r in samples),
    }


def is_hopeless(row: dict[str, Any]) -> bool:
    """Did a step earn nothing, and was there no answer that could have earned something?"""
    return row["reward_mean"] <= 0 and row["answered_ratio"] == 0


def warn_if_nothing_can_be_earned(row: dict[str, Any], tokenizer: ChatTokenizer, think: str) -> None:
    """Say what to look at after a step in which all responses were cut off, or none had an answer. think: the
    setting."""
    step, clipped = row["step"], row["response_clip_ratio"] == 1
    if clipped:
        stops = ", ".join(repr(tokenizer.tokenizer.id_to_token(eos_id)) for eos_id in tokenizer.eos_ids)
        limit = f"max_response_len={row['max_response_len']}"
        print0(
            f"step {step}: all responses were cut off: is {limit} too short, or {stops} not what the model ends with?"
        )
    if not is_hopeless(row) or clipped:
        return
    if think == "required" and step == 1 and row["thinking_ratio"] == 0:
        remedy = "--think=optional grades models that answer without"
        print0(f"step {step}: not one response has both <think> and </think>, which think=required asks for: {remedy}")
        return
    needed = "the answer in \\boxed{}" + (" after <think> and </think>" if think == "required" else "")
    print0(f"step {step}: no response has {needed}: look at prompt_suffix, the chat template, lr, and rollouts/")


def dump_rollouts(
    run_dir: Path,
    step: int,
    groups: list[list[Rollout]],
    prompts: list[Prompt],
    tokenizer: ChatTokenizer,
    differences: dict[tuple[int, int, int], list[float | None]],
) -> None:
    """rollouts/step_000010.jsonl: one line a response, in the order of the groups. Rank 0 writes it. differences: of
    those that were trained on, `watch.token_differences`."""
    if dist.get_rank():
        return
    with open(run_dir / "rollouts" / f"{step_name(step)}.jsonl", "w", encoding="utf-8") as f:
        for r in (r for g in groups for r in g):
            prompt = prompts[r.prompt_id]
            row = {
                "id": prompt.problem.id,
                "sample_id": r.sample_id,
                "prompt": prompt.problem.problem,
                "response": response_text(prompt, r, tokenizer),
                "answer": r.answer,
                "gold": prompt.problem.answer,
                "reward": r.reward,
                "advantage": r.advantage,
                "length": len(r.response_ids),
                "finish_reason": r.finish_reason,
            }
            d = differences.get((r.prompt_id, r.draw, r.sample_id))
            if d is not None:
                fresh = [x for x in d if x is not None]
                row["mismatch"] = sum(math.expm1(x) - x for x in fresh) / len(fresh) if fresh else None  # k3
                texts = [tokenizer.decode([t]) for t in r.response_ids]
                row["tokens"] = [[text, x and float(f"{x:.4g}")] for text, x in zip(texts, d, strict=True)]
            f.write(json.dumps(row) + "\n")


# ----------------------------------------------------------------------------------------------------- a step's updates


@dataclass(frozen=True)
class LossSums:
    """Sums over this rank's part of one or more minibatches, float64 scalars on the device."""

    loss: Tensor  # of the aggregated loss of each micro-batch; all others are sums over response tokens
    pg_loss: Tensor
    kl: Tensor
    entropy: Tensor
    clipped: Tensor
    tokens: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> "LossSums":
        return cls(*torch.zeros(6, dtype=torch.float64, device=device))

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)})

    def over_ranks(self) -> "LossSums":
        """The sums of all ranks, as numbers."""
        return LossSums(*all_sum(torch.stack([getattr(self, f.name) for f in dataclasses.fields(self)])))


def loss_columns(sums: LossSums, losses: list[float], norms: list[float | None]) -> dict[str, float | None]:
    """Of a step's updates: means over the response tokens of all ranks; means over updates of `losses` and of gradient
    norms (None: that update was skipped). All None if there was no update."""
    total = sums.over_ranks()
    tokens = max(1.0, total.tokens)
    finite_norms = [norm for norm in norms if norm is not None]
    columns = {"pg_loss": total.pg_loss, "kl": total.kl, "entropy": total.entropy, "pg_clip_frac": total.clipped}
    columns = {name: value / tokens if losses else None for name, value in columns.items()}
    columns["loss"] = sum(losses) / len(losses) if losses else None
    columns["grad_norm"] = sum(finite_norms) / len(finite_norms) if finite_norms else None
    return {**columns, "tokens_trained": int(total.tokens)}


def count_skips(norms: list[float | None], in_a_row: int, step: int) -> int:
    """How many updates in a row were skipped, `in_a_row` before this step's. Ends the run at the third."""
    if None in norms:
        print0(f"step {step}: loss or gradient not finite: {norms.count(None)} of {len(norms)} updates skipped")
    for norm in norms:
        in_a_row = 0 if norm is not None else in_a_row + 1
        if in_a_row == 3:
            message = "three updates in a row were not finite; the run stops, its last checkpoint is intact"
            raise SystemExit(f"step {step}: {message}")
    return in_a_row


# ------------------------------------------------------------------------------------------------- rows and the summary


def check_wandb(cfg: Config) -> None:
    """Raises UserError where wandb is asked for and not installed."""
    if cfg.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb: not installed; pip install wandb, or leave --wandb=false")


def validation_settings(cfg: Config) -> str:
    """A line on how validation samples."""
    limit = f"{cfg.eval_max_len} tokens" if cfg.eval_max_len else "the stage's own length"
    settings = f"temperature {cfg.eval_temperature}, top_p {cfg.eval_top_p}, {limit}"
    return f"validation: {cfg.eval_k} samples a problem, {settings}: not comparable with eval.py's 32,768"


class StepLog:
    """Where the steps are reported, on rank 0: metrics.jsonl, the terminal, and wandb if asked."""

    def __init__(self, cfg: Config, run_id: str) -> None:
        """Raises UserError where wandb cannot start."""
        self.path, self.wandb = cfg.run_dir / "metrics.jsonl", None
        self.recent_seconds: list[float] = []  # of the last steps, for the estimate of what is left
        if cfg.wandb:
            from_rank0(self._start_wandb, cfg, run_id)

    def _start_wandb(self, cfg: Config, run_id: str) -> None:
        """Go on with the run of this id, or begin it."""
        import wandb

        try:
            name, settings = f"{cfg.run_name}-{run_id}", dataclasses.asdict(cfg)
            self.wandb = wandb.init(project="nanoscaler", id=name, config=settings, resume="allow")
        except Exception as e:  # no login, no network, a bad name: wandb has an error of its own for each
            raise UserError(f"wandb: {in_one_line(e)}") from None

    def write(self, row: dict[str, Any], last_step: int) -> None:
        """Append the row, flushed, and print the step's line; `last_step` is the run's, as far as is known."""
        if dist.get_rank():
            return
        self.recent_seconds = [*self.recent_seconds[-19:], row["time_step"]]
        seconds_left = (last_step - row["step"]) * sum(self.recent_seconds) / len(self.recent_seconds)
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(json_row(row), allow_nan=False) + "\n")
            f.flush()
            os.fsync(f.fileno())
        print(progress_line(row, last_step, seconds_left), flush=True)
        if self.wandb:
            self.wandb.log(row, step=row["step"])

    def close(self) -> None:
        if self.wandb:
            self.wandb.finish()


def json_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with null for inf and nan, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def progress_line(row: dict[str, Any], last_step: int, seconds_left: float) -> str:
    parts = [
        f"step {row['step']}/{last_step}",
        f"context {row['max_response_len']}",
        f"reward {row['reward_mean']:.3f}",
        f"length {row['response_len_mean']:.1f}",
        f"clipped {row['response_clip_ratio']:.3f}",
        f"{row['tokens_per_second']:,.0f} tokens/s",
        f"{seconds_left / 60:,.1f} min left",
    ]
    parts += [f"{name} {value:.3f}" for name, value in row.items() if name.startswith("eval_")]
    return "  ".join(parts)


def write_summary(cfg: Config, state: RunState, final: dict[str, dict], costs: dict[str, float]) -> None:
    """summary.json: base and final over all benchmarks' problems at the first and the last context, and `costs`."""
    contexts, summary = cfg.end_contexts, {}
    for model, results in (("base", state.base), ("final", final)):
        for when in contexts:
            overall = results[when]["all"]
            summary[f"{model}_{when}"] = {"accuracy": overall["accuracy"], "stderr": overall["stderr"]}
            summary[f"{model}_{when}_benchmarks"] = results[when]
    summary |= {f"{when}_context": context for when, context in contexts.items()}
    summary |= {"steps": state.step, "tokens": state.tokens, "verdict": state.decision}
    summary |= {"world_size": dist.get_world_size(), **costs}
    if dist.get_rank() == 0:
        for when, context in contexts.items():
            texts = []
            for figures in (summary[f"base_{when}"], summary[f"final_{when}"]):
                error = "-" if figures["stderr"] is None else f"{figures['stderr']:.3f}"
                texts.append(f"{figures['accuracy']:.3f} +- {error}")
            print(f"accuracy at context {context}: {' -> '.join(texts)}")
        write_whole(cfg.run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
