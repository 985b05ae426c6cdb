"""What a step reports: seconds by phase, figures of its rollouts, the progress line, and wandb if asked for."""

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from configs import Config, UserError
from rollout import Rollout


class Timer:
    """Seconds by phase: `with timer("rollout"): ...`; waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def rollout_metrics(groups: list[list[Rollout]]) -> dict[str, float | None]:
    """Rewards, lengths (tokens) and shares of a step's samples; None where there is nothing to average."""
    samples = [r for g in groups for r in g]

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    return {
        "reward_mean": mean([r.reward for r in samples]),
        "response_len_mean": mean([len(r.response_ids) for r in samples]),
        "response_len_correct": mean([len(r.response_ids) for r in samples if r.reward == 1]),
        "response_len_incorrect": mean([len(r.response_ids) for r in samples if r.reward != 1]),
        "response_clip_ratio": mean([r.finish_reason == "length" for r in samples]),
        "solve_none": mean([all(r.reward == 0 for r in g) for g in groups]),
        "solve_all": mean([all(r.reward == 1 for r in g) for g in groups]),
        "tokens_generated": sum(len(r.response_ids) for r in samples),
    }


def json_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with null for what is not finite, which JSON cannot say."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def start_wandb(cfg: Config) -> Any:
    """A wandb run, the same one after a resume, or None if not asked for. Raises UserError where it cannot start."""
    if not cfg.wandb:
        return None
    import wandb

    try:
        return wandb.init(project="nanoscaler", id=cfg.run_name, config=dataclasses.asdict(cfg), resume="allow")
    except Exception as e:  # no login, no network, a bad name: wandb has an error of its own for each
        raise UserError(f"wandb: {e}") from None


def progress_line(row: dict[str, Any], cfg: Config, seconds_left: float) -> str:
    evals = "".join(f"  {k} {v:.3f}" for k, v in row.items() if k.startswith("eval_"))
    words = [f"step {row['step']}/{cfg.total_steps}", f"context {row['max_response_len']}",
             f"reward {row['reward_mean']:.3f}", f"length {row['response_len_mean']:.1f}",
             f"clipped {row['response_clip_ratio']:.3f}", f"{row['tokens_per_second']:,.0f} tokens/s",
             f"{seconds_left / 60:,.1f} min left"]  # fmt: skip
    return "  ".join(words) + evals
