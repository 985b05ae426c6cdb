"""How fast a config runs here: `python bench.py configs/tiny.py [--key=value ...]`, or the same under torchrun.

What it would need elsewhere: `python bench.py configs/16k.py --plan --gpu=a100-80 --gpus=32`, see plan.py.

Runs a few real steps of train_grpo in a temporary run folder (nothing is saved or evaluated), and prints tokens/s of
generation and of training, the share of each phase, peak memory, and the FLOP rate against this machine's own matrix
product, measured in the same run. The first step warms up and is left out.
"""

import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import train_grpo
from configs import Config, UserError, load_config, run
from model import DTYPES, matmul_flops
from schedule import read_metrics
from training import plan

STEPS = 4  # the first one is not counted
PHASES = ("rollout", "tail", "reward", "logprobs", "train", "sync", "probe")


def peak_memory(device: torch.device) -> str:
    """The most this process ever held, in GiB: on its GPU, or resident on the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB resident"


def table(rows: list[dict], cfg: Config, world: int, peak: float) -> str:
    """The report on the steps in `rows`; rates are those of all ranks together, `peak` is one rank's FLOP/s."""
    total = {key: sum(row[key] or 0 for row in rows) for key in rows[0] if key not in ("step", "stage")}
    forward = total["flops_trained"] / 3
    passes = (cfg.minibatches - 1) / cfg.minibatches + bool(cfg.kl_coef)  # old and reference log-probabilities
    flops = {"rollout": total["flops_generated"], "logprobs": passes * forward, "train": total["flops_trained"]}
    tokens = {"rollout": total["tokens_generated"], "train": total["tokens_trained"]}
    lines = [f"{'phase':<10}{'s/step':>9}{'share':>8}{'tokens/s':>12}{'GFLOP/s':>10}{'of peak':>9}"]
    for phase in PHASES:
        seconds = max(total[f"time_{phase}"], 1e-9)
        line = f"{phase:<10}{seconds / len(rows):>9.3f}{seconds / total['time_step']:>8.1%}"
        line += f"{tokens[phase] / seconds:>12,.0f}" if phase in tokens else " " * 12
        if phase in flops:
            line += f"{flops[phase] / seconds / 1e9:>10,.1f}{flops[phase] / seconds / peak / world:>9.1%}"
        lines.append(line)
    rest = total["time_step"] - sum(total[f"time_{phase}"] for phase in PHASES)
    lines.append(f"{'rest':<10}{rest / len(rows):>9.3f}{rest / total['time_step']:>8.1%}")
    lines.append(f"{'step':<10}{total['time_step'] / len(rows):>9.3f}{1:>8.1%}"
                 f"{total['tokens_generated'] / total['time_step']:>12,.0f}")  # fmt: skip
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if "--plan" in argv:
        return plan.main([a for a in argv if a != "--plan"])
    cfg = load_config(argv)
    folder = Path(tempfile.gettempdir()) / f"nanoscaler-bench-{os.getppid()}"  # the same for all ranks of a node
    overrides = dict(out_dir=folder, run_name="bench", max_steps=STEPS, resume="false", smoke="false")
    overrides |= dict.fromkeys(("eval_every", "save_every", "save_rollouts_every"), 0)
    overrides |= dict(stage_from="last", stage_gpus="")  # without checkpoints
    try:
        train_grpo.main([*argv, *(f"--{key}={value}" for key, value in overrides.items())])
        if os.environ.get("RANK", "0") != "0":
            return
        rows = read_metrics(folder / "bench" / "metrics.jsonl")[1:]
    finally:
        if os.environ.get("RANK", "0") == "0":
            shutil.rmtree(folder, ignore_errors=True)
    if not rows:
        raise UserError(f"stage_steps: the bench needs at least 2 steps, {cfg.total_steps} asked for")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.device == "auto" else "cpu")
    peak = matmul_flops(device, DTYPES[cfg.dtype])
    samples = f"{cfg.prompts_per_step} prompts x {cfg.group_size[0]} samples, context {cfg.max_response_len[0]}"
    print(f"\n{len(rows)} steps of {samples}, {world} x {device.type}, {cfg.dtype}, {torch.get_num_threads()} threads")
    print(table(rows, cfg, world, peak))
    print(f"peak: {peak / 1e9:,.0f} GFLOP/s a rank, the best {cfg.dtype} matrix product here, just now")
    print(f"peak memory of rank 0: {peak_memory(device)}")


if __name__ == "__main__":
    run(main)
