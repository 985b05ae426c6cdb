"""`bench.py --against=trl`: seconds a token of train_grpo and of TRL's GRPOTrainer, on the same job and machine.

The job is 16 prompts x 8 samples of at most 128 tokens on a random model, one update a step, no KL penalty, random
rewards, on the CPU. Each run is a process of its own; a round is ours, TRL's, TRL's, ours (ABBA), so that a machine
that grows slower or faster does so for both alike. A run beside which others took too much of the machine is thrown
away and repeated.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from configs import UserError, load_config
from model import ModelConfig, Qwen2
from problems import tiny
from speed.measure import Section

ROOT = Path(__file__).parents[1]
SMALL = tiny.MODEL | dict(hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4,
                          num_key_value_heads=2, tie_word_embeddings=False)  # fmt: skip
LARGE = SMALL | dict(hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8)
ORDER = ("ours", "trl", "trl", "ours")
MOST_SHARED = 0.05  # of the machine's CPU time that others may take beside a run that counts
ATTEMPTS = 3  # of a run
RUN_SECONDS = 600  # after which a run is given up


@dataclass(frozen=True)
class Job:
    """What both sides do."""

    shape: dict[str, Any]  # of the model, as its config.json has it
    has_stop: bool  # a response may end by itself; else each has max_response_len tokens
    warm_up: int  # steps that are not timed, at least 1
    steps: int  # that are
    prompts_per_step: int = 16
    group_size: int = 8
    max_response_len: int = 128


JOBS = {
    "full": Job(SMALL, has_stop=False, warm_up=1, steps=3),
    "ragged": Job(SMALL, has_stop=True, warm_up=1, steps=3),
    "large": Job(LARGE, has_stop=False, warm_up=1, steps=1),
}


# ------------------------------------------------------------------------------------------------------------- the job


def write_model(path: Path, shape: dict[str, Any]) -> None:
    """A model folder with random weights of standard deviation 0.02, under which all 51 tokens are about equally likely
    at each position."""
    tokenizer = tiny.make_tokenizer(path)
    torch.manual_seed(0)
    raw = shape | dict(vocab_size=tokenizer.get_vocab_size(), bos_token_id=0, eos_token_id=1)
    model = Qwen2(ModelConfig.from_dict(raw))
    for name, p in model.named_parameters():
        if p.dim() == 2:
            nn.init.normal_(p, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
    model.save_pretrained(path)


def our_flags(job: Job, folder: Path, others: list[str]) -> list[str]:
    """The arguments of train_grpo for a job in `folder`. others: the user's, which may change how the job is computed,
    but not the job. Raises UserError."""
    fixed: dict[str, Any] = dict(model=folder / "model", train_data=folder / "train.jsonl", out_dir=folder / "out")
    fixed |= dict(run_name="ours", prompts_per_step=job.prompts_per_step, group_size=job.group_size, minibatches=1)
    fixed |= dict(max_response_len=job.max_response_len, stage_steps=job.warm_up + job.steps, max_prompt_len=40)
    fixed |= dict(prompt_suffix="", temperature=1.0, kl_coef=0, entropy_coef=0, lr=1e-6, weight_decay=0, device="cpu")
    fixed |= dict(save_every=0, save_rollouts_every=0, eval_every=0, resume="false", smoke="false")
    open_ = dict(dtype="float32", token_budget=8192, logprob_chunk=8192, max_num_seqs=128, reward_workers=1)
    open_ |= dict(activation_checkpointing="false", compile="none")
    for argument in others:
        name = argument.removeprefix("--").partition("=")[0]
        if name not in open_:
            raise UserError(f"{argument}: --against=trl takes only {', '.join(open_)}; leave it out")
    flags = [*(f"--{name}={value}" for name, value in (open_ | fixed).items()), *others]
    load_config(flags)
    return flags


def write_job(job: Job, folder: Path, others: list[str], threads: int) -> dict[str, Any]:
    """The job as both sides read it; model and problems are written into `folder`."""
    flags = our_flags(job, folder, others)
    write_model(folder / "model", job.shape)
    tiny.write_problems(folder, train_rows=8 * job.prompts_per_step, test_rows=1, seed=0)
    return {
        "model": str(folder / "model"),
        "train_data": str(folder / "train.jsonl"),
        "out_dir": str(folder / "out"),
        "result": str(folder / "result.json"),
        "our_flags": flags,
        "threads": threads,
        "has_stop": job.has_stop,
        "warm_up": job.warm_up,
        "steps": job.steps,
        "prompts_per_step": job.prompts_per_step,
        "group_size": job.group_size,
        "max_response_len": job.max_response_len,
    }


# --------------------------------------------------------------------------------------------------------------- a run


def trl_versions(python: Path) -> dict[str, str]:
    """Of TRL and what it stands on, in its environment. Raises UserError where there is none."""
    names = ["trl", "transformers", "torch", "accelerate"]
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    make = "python3 -m venv .venv-trl && .venv-trl/bin/python -m pip install -r requirements-trl.txt"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(f"--trl_python: {python} is no Python with TRL; to make one: {make}") from None
    return json.loads(done.stdout)


def run_once(side: str, job: dict[str, Any], folder: Path, python: Path) -> dict[str, Any]:
    """The figures of one run of a side, in a process of its own. Ends the comparison if it fails."""
    result, file = Path(job["result"]), folder / "job.json"
    result.unlink(missing_ok=True)
    file.write_text(json.dumps(job), encoding="utf-8")
    shutil.rmtree(job["out_dir"], ignore_errors=True)
    room = {"ours": "our_side", "trl": "trl_side"}[side]
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1"}
    command = [str(python if side == "trl" else sys.executable), "-m", f"speed.{room}", str(file)]
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": RUN_SECONDS}
    try:
        done = subprocess.run(command, **options)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{side}: a run took more than {RUN_SECONDS} s and was ended") from None
    if done.returncode or not result.is_file():
        last_words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise SystemExit(f"{side}: the run ended with status {done.returncode}:\n{last_words}")
    return json.loads(result.read_text(encoding="utf-8"))


def quiet_run(side: str, job: dict[str, Any], folder: Path, python: Path) -> dict[str, Any]:
    """A run that had the machine to itself; after ATTEMPTS, the least disturbed one, which its "others" tell."""
    runs: list[dict[str, Any]] = []
    while len(runs) < ATTEMPTS and not any(run["others"] <= MOST_SHARED for run in runs):
        if runs:
            share = runs[-1]["others"]
            print(f"{side}: others took {share:.0%} of the machine: run again", file=sys.stderr, flush=True)
        runs.append(run_once(side, job, folder, python))
    return min(runs, key=lambda run: run["others"]) | {"side": side}


# ------------------------------------------------------------------------------------------------------------- compare


def seconds_a_token(runs: list[dict[str, Any]], side: str) -> float:
    """Of all runs of a side together."""
    own = [run for run in runs if run["side"] == side]
    return sum(run["seconds"] for run in own) / sum(run["tokens"] for run in own)


def round_figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A round: its runs, seconds a token of both, how much faster we are, whether the machine was ours."""
    ours, theirs = seconds_a_token(runs, "ours"), seconds_a_token(runs, "trl")
    quiet = all(run["others"] <= MOST_SHARED for run in runs)
    return {"runs": runs, "ours": ours, "trl": theirs, "ratio": theirs / ours, "quiet": quiet}


def summary(rounds: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """Medians over the quiet rounds; None where there is none."""
    quiet = [r for r in rounds if r["quiet"]]
    medians = {name: median(r[name] for r in quiet) if quiet else None for name in ("ours", "trl", "ratio")}
    return {**medians, "quiet_rounds": len(quiet)}


def compare(python: Path, rounds: int, jobs: tuple[str, ...], others: list[str], threads: int) -> dict[str, Any]:
    """All rounds of all jobs: {job: {"rounds": [...], "median": {...}}}. Raises UserError before anything runs."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="nanoscaler-against-") as root:
        written = {}
        for name in jobs:
            (Path(root) / name).mkdir()
            written[name] = write_job(JOBS[name], Path(root) / name, others, threads)
        for name, job in written.items():
            all_rounds = []
            for number in range(rounds):
                runs = [quiet_run(side, job, Path(root) / name, python) for side in ORDER]
                all_rounds.append(round_figures(runs))
                ratio = all_rounds[-1]["ratio"]
                print(f"{name}, round {number + 1}: {ratio:.2f} times TRL's speed", file=sys.stderr, flush=True)
            found[name] = {"rounds": all_rounds, "median": summary(all_rounds)}
    return found


def section_of(name: str, figures: dict[str, Any]) -> Section:
    """A job's runs as a table, its ratios and medians below."""
    job, rows, notes = JOBS[name], [], []
    for number, figures_of_round in enumerate(figures["rounds"], 1):
        for run in figures_of_round["runs"]:
            row = {"round": f"{number} {run['side']}", "s/step": run["step"]}
            row |= {phase: run[phase] for phase in ("generate", "train", "rest")}
            tokens = run["tokens"] / job.steps
            row |= {"tokens/step": tokens, "us/token": 1e6 * run["seconds"] / run["tokens"]}
            rows.append(row | {"others": f"{run['others']:.1%}"})
        shared = "" if figures_of_round["quiet"] else "; NOT QUIET, left out of the medians"
        notes.append(f"round {number}: {figures_of_round['ratio']:.2f} times TRL's tokens a second{shared}")
    middle = figures["median"]
    if middle["quiet_rounds"]:
        per_token = f"{1e6 * middle['ours']:.1f} us a token, TRL {1e6 * middle['trl']:.1f}"
        notes.append(f"median of {middle['quiet_rounds']} quiet rounds: ours {per_token}, ratio {middle['ratio']:.2f}")
    else:
        notes.append(f"no quiet round in {ATTEMPTS} attempts a run: others used this machine, the figures mean little")
    size = "every response has" if not job.has_stop else "responses end by themselves, with at most"
    title = f"{name}: {job.prompts_per_step} prompts x {job.group_size} samples, {size} {job.max_response_len} tokens"
    return Section(title, rows, tuple(notes))
