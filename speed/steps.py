"""Whole steps of the real loop: seconds and rates by phase, memory."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import train_grpo
from configs import Config, UserError
from model import DTYPES
from schedule import read_metrics
from speed.measure import Section, Spread
from training.hardware import matmul_flops

STEPS = 4  # the first one is not counted
PHASES = ("rollout", "tail", "reward", "logprobs", "train", "sync", "probe")
# Few steps that leave nothing behind; without checkpoints a stage cannot go on from its best one.
OVERRIDES = (
    f"--run_name=bench --max_steps={STEPS} --resume=false --smoke=false --save_every=0 --save_rollouts_every=0 "
    "--eval_every=0 --stage_from=last --stage_gpus="
)


def measure(argv: list[str]) -> list[dict]:
    """Train for a few steps; on rank 0 the rows of metrics.jsonl that count, on other ranks none. Raises UserError."""
    is_first = os.environ.get("RANK", "0") == "0"
    folder = Path(tempfile.gettempdir()) / f"nanoscaler-bench-{os.getppid()}"  # the same for all ranks of a node
    try:
        train_grpo.main([*argv, f"--out_dir={folder}", *OVERRIDES.split()])
        if not is_first:
            return []
        rows = read_metrics(folder / "bench" / "metrics.jsonl")[1:]
    finally:
        if is_first:
            shutil.rmtree(folder, ignore_errors=True)
    if not rows:
        raise UserError("stage_steps: the bench needs at least 2 steps, 1 asked for")
    return rows


def peak_memory(device: torch.device) -> float:
    """The most this process ever held, in GiB: on its GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # Unix has it: on Windows, `configs` is to say so

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def phase_figures(rows: list[dict], cfg: Config, world_size: int, peak: float) -> list[dict[str, Any]]:
    """A row a phase of the steps in `rows`; rates are those of all ranks together, `peak` is one rank's FLOP/s."""
    total = {key: sum(row[key] or 0 for row in rows) for key in rows[0] if key not in ("step", "stage")}
    forward = total["flops_trained"] / 3
    passes = (cfg.minibatches - 1) / cfg.minibatches + bool(cfg.kl_coef)  # old and reference log-probabilities
    flops = {"rollout": total["flops_generated"], "logprobs": passes * forward, "train": total["flops_trained"]}
    tokens = {"rollout": total["tokens_generated"], "train": total["tokens_trained"], "step": total["tokens_generated"]}
    seconds = {phase: [max(row[f"time_{phase}"], 1e-9) for row in rows] for phase in PHASES}
    seconds["rest"] = [row["time_step"] - sum(row[f"time_{phase}"] for phase in PHASES) for row in rows]
    seconds["step"] = [row["time_step"] for row in rows]
    figures = []
    for phase, times in seconds.items():
        rate = flops[phase] / sum(times) if phase in flops else None
        figures.append(
            {
                "phase": phase,
                "seconds": Spread.of(times),
                "share": sum(times) / total["time_step"],
                "tokens/s": tokens[phase] / sum(times) if phase in tokens else None,
                "GFLOP/s": None if rate is None else rate / 1e9,
                "of peak": None if rate is None else rate / (peak * world_size),
            }
        )
    return figures


def table(figures: list[dict[str, Any]]) -> str:
    """The phases as text: of the seconds a step the median, and at the end of a line the fastest and the slowest."""
    head = f"{'phase':<10}{'s/step':>9}{'share':>8}{'tokens/s':>12}{'GFLOP/s':>10}{'of peak':>9}"
    lines = [f"{head}{'fastest':>10}{'slowest':>9}"]
    for row in figures:
        seconds = row["seconds"]
        line = f"{row['phase']:<10}{seconds.median:>9.3f}{row['share']:>8.1%}"
        line += f"{'' if row['tokens/s'] is None else format(row['tokens/s'], ',.0f'):>12}"
        line += f"{'' if row['GFLOP/s'] is None else format(row['GFLOP/s'], ',.1f'):>10}"
        line += f"{'' if row['of peak'] is None else format(row['of peak'], '.1%'):>9}"
        lines.append(line + f"{seconds.low:>10.3f}{seconds.high:>9.3f}")
    return "\n".join(lines)


def step(cfg: Config, argv: list[str]) -> Section | None:
    """A few real steps of a config, whose arguments are `argv`; None on ranks that do not report. Raises UserError."""
    rows = measure(argv)
    if not rows:
        return None
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda" if cfg.device == "auto" else "cpu")
    peak = matmul_flops(device, DTYPES[cfg.dtype])
    samples = f"{cfg.prompts_per_step} prompts x {cfg.group_size[0]} samples, context {cfg.max_response_len[0]}"
    machine = f"{world_size} x {device.type}, {cfg.dtype}, {torch.get_num_threads()} threads"
    held = "on the GPU" if device.type == "cuda" else "resident"
    notes = (
        f"measured peak: {peak / 1e9:,.0f} GFLOP/s a rank, the best {cfg.dtype} matrix product here, just now",
        f"measured peak memory of rank 0: {peak_memory(device):.2f} GiB {held}",
    )
    title = f"measured: {len(rows)} steps of {samples}, {machine}"
    return Section(title, phase_figures(rows, cfg, world_size, peak), notes)
