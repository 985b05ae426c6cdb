"""Whole steps of the real loop: seconds and rates by phase, memory; what the sync of weights takes of them; rewards."""

import os
import shutil
import sys
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch

import train_grpo
from configs import Config, UserError
from configs._model import resolve_model
from grader.pool import RewardPool
from model import DTYPES
from problems.prompts import ChatTokenizer, Prompt, load_prompts
from schedule import read_metrics
from speed.measure import Section, Spread, rates, repeated
from training import predict as prediction
from training.hardware import matmul_flops

STEPS = 4  # the first one is not counted
PHASES = ("rollout", "tail", "reward", "logprobs", "train", "sync", "probe")
# Few steps that leave nothing behind; without checkpoints a stage cannot go on from its best one.
OVERRIDES = (
    f"--run_name=bench --max_steps={STEPS} --resume=false --smoke=false --save_every=0 --save_rollouts_every=0 "
    "--eval_every=0 --stage_from=last --stage_gpus="
)


@cache
def measure(argv: tuple[str, ...]) -> list[dict]:
    """Train for a few steps, once for all sections; on rank 0 the rows of metrics.jsonl that count, on other ranks
    none. Raises UserError."""
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
    rows = measure(tuple(argv))
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


def sync(cfg: Config, argv: list[str]) -> Section | None:
    """Of the same steps, weights from the trainer to the sampler, and the probe that finds them there; None on ranks
    that do not report. Raises UserError."""
    rows = measure(tuple(argv))
    if not rows:
        return None
    figures = []
    for phase in ("sync", "probe"):
        seconds = [row[f"time_{phase}"] for row in rows]
        shares = [s / row["time_step"] for s, row in zip(seconds, rows, strict=True)]
        figures.append({"phase": phase, "ms": Spread.of([1e3 * s for s in seconds]), "share": Spread.of(shares)})
    speeds = [row["sync_bytes"] / 1e9 / row["time_sync"] for row in rows]
    figures[0]["GB/s"], figures[1]["GB/s"] = Spread.of(speeds), None
    return Section(f"sync: {rows[0]['sync_bytes']:,} bytes of {cfg.dtype} weights a step; share of the step", figures)


def predict(cfg: Config, argv: list[str]) -> Section | None:
    """The same steps beside what the plan's time model says of them. Raises UserError."""
    prediction.check(cfg)
    table, note = prediction.compared(cfg, measure(tuple(argv)))
    return Section("predict: seconds a step, measured and by the plan's time model", table, (note,))


def answers_to(prompts: list[Prompt], group_size: int, number: int) -> tuple[list[str], list[float]]:
    """Responses to each prompt, every other one right, and the reward that each must get. The wrong answers are others
    for each `number`, since a worker remembers what it has compared."""
    texts, expected = [], []
    for prompt in prompts:
        gold = prompt.problem.answer if isinstance(prompt.problem.answer, str) else prompt.problem.answer[0]
        for i in range(group_size):
            answer = gold if i % 2 == 0 else f"{1000 * number + i}.0625"
            texts.append(f"<think>\n{'wait ' * 100}</think>The answer is \\boxed{{{answer}}}.")
            expected.append(float(i % 2 == 0))
    return texts, expected


def reward(cfg: Config, argv: list[str]) -> Section | None:
    """The grading of a step's answers in the worker processes of one rank; None on other ranks. Raises UserError."""
    if os.environ.get("RANK", "0") != "0":
        return None
    prompts = load_prompts(cfg, ChatTokenizer(resolve_model(cfg.model), cfg.stop_tokens))[0][: cfg.prompts_per_step]
    problems = [prompt.problem for prompt in prompts for _ in range(cfg.group_size[0])]
    wrong, numbers = 0, count(1)
    with RewardPool(cfg.reward_workers, cfg.reward_timeout, rule=cfg.grading_rule) as pool:

        def grade() -> None:
            nonlocal wrong
            texts, expected = answers_to(prompts, cfg.group_size[0], next(numbers))
            wrong += sum(a != b for a, b in zip(pool.rewards(problems, texts), expected, strict=True))

        seconds = repeated(grade, torch.device("cpu"))
    speeds = {"ms": Spread.of([1e3 * s for s in seconds]), "answers/s": rates(len(problems), seconds)}
    title = f"reward: {cfg.reward_workers} workers, rule {cfg.grading_rule}, half of the answers right"
    return Section(title, [{"answers": len(problems), **speeds, "not as expected": wrong}])
