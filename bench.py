"""How fast a config runs here: `python bench.py configs/tiny.py [--key=value ...]`, or the same under torchrun.

With --predict (a CPU, one process) the plan's time model says the same seconds, see training/predict.py.
What it would need elsewhere: `python bench.py configs/16k.py --plan --gpu=a100-80 --gpus=32`, see training/plan.py.
What is measured says "measured"; what the plan computes says "model".

Runs a few real steps of train_grpo in a temporary run folder (nothing is saved or evaluated), and prints tokens/s of
generation and of training, the share of each phase, peak memory, and the FLOP rate against this machine's own matrix
product, measured in the same run. The first step warms up and is left out. `python train_grpo.py --help` lists the
config's settings.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import train_grpo
from configs import HELP, Config, UserError, load_config, run, show_help
from model import DTYPES
from schedule import read_metrics
from training import plan, predict
from training.hardware import matmul_flops

STEPS = 4  # the first one is not counted
PHASES = ("rollout", "tail", "reward", "logprobs", "train", "sync", "probe")
# Few steps that leave nothing behind; without checkpoints a stage cannot go on from its best one.
OVERRIDES = (
    f"--run_name=bench --max_steps={STEPS} --resume=false --smoke=false --save_every=0 --save_rollouts_every=0 "
    "--eval_every=0 --stage_from=last --stage_gpus="
)


def measure(argv: list[str]) -> list[dict]:
    """Train for a few steps; on rank 0 the rows of metrics.jsonl that count, on other ranks none."""
    is_first = os.environ.get("RANK", "0") == "0"
    folder = Path(tempfile.gettempdir()) / f"nanoscaler-bench-{os.getppid()}"  # the same for all ranks of a node
    try:
        train_grpo.main([*argv, f"--out_dir={folder}", *OVERRIDES.split()])
        return read_metrics(folder / "bench" / "metrics.jsonl")[1:] if is_first else []
    finally:
        if is_first:
            shutil.rmtree(folder, ignore_errors=True)


def peak_memory(device: torch.device) -> str:
    """The most this process ever held, in GiB: on its GPU, or resident on the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    import resource  # Unix has it: on Windows, `configs` is to say so

    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB resident"


def table(rows: list[dict], cfg: Config, world_size: int, peak: float) -> str:
    """The report on the steps in `rows`; rates are those of all ranks together, `peak` is one rank's FLOP/s."""
    total = {key: sum(row[key] or 0 for row in rows) for key in rows[0] if key not in ("step", "stage")}
    forward = total["flops_trained"] / 3
    passes = (cfg.minibatches - 1) / cfg.minibatches + bool(cfg.kl_coef)  # old and reference log-probabilities
    flops = {"rollout": total["flops_generated"], "logprobs": passes * forward, "train": total["flops_trained"]}
    tokens = {"rollout": total["tokens_generated"], "train": total["tokens_trained"], "step": total["tokens_generated"]}
    seconds = {phase: max(total[f"time_{phase}"], 1e-9) for phase in PHASES}
    seconds["rest"] = total["time_step"] - sum(total[f"time_{phase}"] for phase in PHASES)
    seconds["step"] = total["time_step"]
    lines = [f"{'phase':<10}{'s/step':>9}{'share':>8}{'tokens/s':>12}{'GFLOP/s':>10}{'of peak':>9}"]
    for phase, time in seconds.items():
        line = f"{phase:<10}{time / len(rows):>9.3f}{time / total['time_step']:>8.1%}"
        if phase in tokens:
            line += f"{tokens[phase] / time:>12,.0f}"
        if phase in flops:
            rate = flops[phase] / time
            line = f"{line:<39}{rate / 1e9:>10,.1f}{rate / (peak * world_size):>9.1%}"
        lines.append(line)
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if HELP & set(argv):
        return show_help(__doc__, plan.Flags())
    if "--plan" in argv:
        plan.main([a for a in argv if a != "--plan"])
        return
    wants_prediction, argv = "--predict" in argv, [a for a in argv if a != "--predict"]
    cfg = load_config(argv)
    if wants_prediction:
        predict.check(cfg)
    rows = measure(argv)
    if os.environ.get("RANK", "0") != "0":
        return
    if not rows:
        raise UserError(f"stage_steps: the bench needs at least 2 steps, {cfg.total_steps} asked for")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda" if cfg.device == "auto" else "cpu")
    peak = matmul_flops(device, DTYPES[cfg.dtype])
    samples = f"{cfg.prompts_per_step} prompts x {cfg.group_size[0]} samples, context {cfg.max_response_len[0]}"
    machine = f"{world_size} x {device.type}, {cfg.dtype}, {torch.get_num_threads()} threads"
    print(f"\nmeasured: {len(rows)} steps of {samples}, {machine}")
    print(table(rows, cfg, world_size, peak))
    print(f"measured peak: {peak / 1e9:,.0f} GFLOP/s a rank, the best {cfg.dtype} matrix product here, just now")
    print(f"measured peak memory of rank 0: {peak_memory(device)}")
    if wants_prediction:
        print("\n" + predict.report(cfg, rows))


if __name__ == "__main__":
    run(main)
