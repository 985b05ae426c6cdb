"""Checkpoints that a crash cannot spoil: written aside, described by a manifest of sizes and hashes, then renamed.

`ckpt/step_000100/` holds the sharded model and optimizer (torch.distributed.checkpoint: any world size loads what any
other wrote), `state.json` (a `RunState`) and `manifest.json`. There is no generator state to keep: every random number
of a run is a function of its seed and the step. Every rank calls `save`, `save_all`, `load` and `load_weights`
together; functions that only look at files or remove them are for rank 0.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from configs import Config, UserError, write_whole
from model import DTYPES, Qwen2
from schedule import read_metrics
from training.packing import from_rank0

# What a resumed run may change: it alters speed, memory, length and bookkeeping of the run, not the algorithm (but see
# check_same_run).
MAY_CHANGE = set(
    """resume out_dir max_steps save_every keep_checkpoints save_rollouts_every wandb max_num_seqs
    vllm_gpu_memory_utilization vllm_sleep_level token_budget logprob_chunk activation_checkpointing reward_workers
    reward_timeout mismatch_limit smoke process_group_timeout world_size shard_size gpu_dollars_per_hour
    stage_gpus""".split()
)


@dataclass(frozen=True)
class RunState:
    """Where a run stands: all of its progress beside weights and optimizer."""

    step: int = 0  # steps done
    stage: int = 0  # index of the context stage
    stage_began: int = 0  # the step after which the stage began
    order_began: int = 0  # the step after which the data order began
    tokens: int = 0  # generated so far
    skipped: int = 0  # updates without a finite loss and gradient
    timeouts: int = 0  # answers lost in the grader
    base: dict[str, Any] | None = None  # the base model's evaluation: {"first": results, "last": results}
    score: float | None = None  # smoothed reward, if this checkpoint competes for the best of its stage
    reference: str | None = None  # the checkpoint that is the KL reference; None: the model the run began with
    history: tuple[dict[str, Any], ...] = ()  # what schedule.py reads of each step of this stage
    decision: str | None = None  # of the schedule: "lengthen" | "collapsed"

    def to_json(self) -> str:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["verdict"] = fields.pop("decision")  # its name in files, which older versions wrote too
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "RunState":
        """A field that an older file lacks has its default. Raises ValueError."""
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
        fields["decision"] = fields.pop("verdict", None)
        fields["history"] = tuple(fields.get("history", ()))
        return cls(**{f.name: fields[f.name] for f in dataclasses.fields(cls) if f.name in fields})


def step_name(step: int) -> str:
    return f"step_{step:06d}"


def checkpoint_dirs(run_dir: Path) -> list[Path]:
    """The folders of finished checkpoints, the newest first; `damage` tells whether one is whole."""
    return sorted((run_dir / "ckpt").glob("step_*[0-9]"), reverse=True)


# ---------------------------------------------------------------------------------------------------------------- save


def tensors(model: Qwen2, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that training changes, by name. Creates the optimizer's moments if there are none yet: `load` fills
    them."""
    by_name = {}
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        by_name[name] = p.detach()
        by_name.update({f"optimizer.{key}.{name}": value for key, value in state.items()})
    return by_name


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def save(folder: Path, model: Qwen2, optimizer: torch.optim.Optimizer, state: RunState) -> None:
    """Write `folder` (…/ckpt/step_000100) whole or not at all."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    aside = folder.with_suffix(".tmp")
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    dcp.save(tensors(model, optimizer), checkpoint_id=aside)
    if rank == 0:
        (aside / "state.json").write_text(state.to_json(), encoding="utf-8")
    dist.barrier()
    names = from_rank0(sorted_names, aside)  # one listing for all: a network file system may show each rank another
    entries = {}
    for name in names[rank::world_size]:
        entries[name] = {"bytes": (aside / name).stat().st_size, "sha256": hash_file(aside / name)}
    entries_of_ranks: list[Any] = [None] * world_size
    dist.all_gather_object(entries_of_ranks, entries)
    if rank == 0:
        manifest = {name: entry for entries in entries_of_ranks for name, entry in entries.items()}
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        publish(aside, folder)
    dist.barrier()


def sorted_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def publish(aside: Path, folder: Path) -> None:
    """Flush the finished folder `aside` to disk and give it its name, in place of an earlier one."""
    for path in aside.iterdir():
        with open(path, "rb") as f:
            os.fsync(f.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def save_all(cfg: Config, model: Qwen2, optimizer: torch.optim.Optimizer, state: RunState) -> None:
    """hf/step_* first, ckpt/step_* last: a checkpoint that exists has its export."""
    name, is_writer = step_name(state.step), dist.get_rank() == 0
    hf = cfg.run_dir / "hf" / name
    model.save_pretrained(hf.with_suffix(".tmp"), DTYPES[cfg.export_dtype], is_writer)
    if is_writer:
        publish(hf.with_suffix(".tmp"), hf)
    save(cfg.run_dir / "ckpt" / name, model, optimizer, state)
    if is_writer:
        prune(cfg.run_dir, cfg.keep_checkpoints)


# -------------------------------------------------------------------------------------------------------- find and load


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None if it is whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            if (folder / name).stat().st_size != entry["bytes"]:
                return f"{name} has {(folder / name).stat().st_size} bytes instead of {entry['bytes']}"
            if hash_file(folder / name) != entry["sha256"]:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return f"{type(e).__name__}: {e}"
    missing = {"state.json", ".metadata"} - set(manifest)
    return f"{min(missing)} is not in the manifest" if missing else None


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is whole; a damaged one is named on the terminal."""
    problem = damage(folder)
    if problem:
        print(f"skipping damaged checkpoint {folder}: {problem}", flush=True)
    return problem is None


def find(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where none was ever finished. Raises UserError if there are some and
    none is whole."""
    folders = checkpoint_dirs(run_dir)
    newest = next(filter(is_whole, folders), None)
    if folders and newest is None:
        raise UserError(f"{run_dir}/ckpt: no checkpoint is whole; to begin again, move {run_dir} away")
    return newest


def read_state(folder: Path) -> RunState:
    """The state of a whole checkpoint."""
    return RunState.from_json((folder / "state.json").read_text(encoding="utf-8"))


def load(folder: Path, model: Qwen2, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimizer in place from a checkpoint of any world size. Raises UserError."""
    try:
        dcp.load(tensors(model, optimizer), checkpoint_id=folder)  # in place
    except CheckpointException as e:  # a BaseException that holds each rank's error and its traceback
        error, _ = next(iter(e.failures.values()))
        raise UserError(f"{folder}: does not fit this model: {str(error).strip().splitlines()[0]}") from None


def load_weights(folder: Path, model: Qwen2) -> None:
    """Fill a model of any parameter type from the weights in a checkpoint."""
    dcp.load({name: p.detach() for name, p in model.named_parameters()}, checkpoint_id=folder)  # in place


# ------------------------------------------------------------------------------------------- the best, and what is kept


def read_states(run_dir: Path) -> dict[str, RunState]:
    """The state of each checkpoint by name; those that cannot be read are left out."""
    states = {}
    for folder in checkpoint_dirs(run_dir):
        try:
            states[folder.name] = read_state(folder)
        except (OSError, ValueError):
            continue
    return states


def ranking(run_dir: Path) -> dict[int, list[tuple[float, str]]]:
    """(smoothed reward, name) of each stage's checkpoints that compete for the best, the best first."""
    by_stage: dict[int, list[tuple[float, str]]] = {}
    for name, state in read_states(run_dir).items():
        if isinstance(state.score, float):
            by_stage.setdefault(state.stage, []).append((state.score, name))
    return {stage: sorted(entries, reverse=True) for stage, entries in by_stage.items()}


def best(run_dir: Path, stage: int) -> str | None:
    """The name of the best whole checkpoint of a stage."""
    names = [name for _, name in ranking(run_dir).get(stage, [])]
    return next((name for name in names if is_whole(run_dir / "ckpt" / name)), None)


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints, the best of each stage and the KL references of all these; exports
    too."""
    states = read_states(run_dir)
    kept = {folder.name for folder in checkpoint_dirs(run_dir)[:keep]}
    kept |= {entries[0][1] for entries in ranking(run_dir).values()}
    kept |= {states[name].reference for name in kept if name in states}
    for folder in checkpoint_dirs(run_dir):
        if folder.name not in kept:
            remove(run_dir, folder.name)


def remove(run_dir: Path, name: str) -> None:
    for kind in ("ckpt", "hf"):
        shutil.rmtree(run_dir / kind / name, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------- the run folder


def open_run(cfg: Config) -> None:
    """Check the run folder before anything loads. Raises UserError for one in use, or a resume that changes the run."""
    try:
        in_use = cfg.run_dir.is_dir() and any(cfg.run_dir.iterdir())
        if in_use and not cfg.resume:
            raise UserError(f"{cfg.run_dir} is not empty: add --resume=true to go on, or choose another --run_name")
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(cfg.run_dir, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as e:
        raise UserError(f"out_dir: cannot write {cfg.run_dir}: {e.strerror}") from None
    path = cfg.run_dir / "config.json"
    if path.is_file():
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            before = {**info["config"], "world_size": info["world_size"]}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}: cannot be read: {e}") from None
        check_same_run(before, cfg)


def check_same_run(before: dict[str, Any], cfg: Config) -> None:
    """Raises UserError where a setting differs that a resumed run may not change. One that `before`, being of an older
    version, does not have is taken to have had the default."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    now = {**json.loads(json.dumps(dataclasses.asdict(cfg))), "world_size": world_size}  # tuples as lists, as in files
    before = {**json.loads(json.dumps(dataclasses.asdict(Config()))), **before}
    may_change = set(MAY_CHANGE)
    if cfg.loss_agg == "deepscaler":  # it sums over micro-batches and averages over ranks: these change the gradient
        may_change -= {"token_budget", "world_size", "stage_gpus"}
    if cfg.stage_from == "best":  # the cadence decides which checkpoints compete
        may_change -= {"save_every"}
    if cfg.stage_gpus:  # each stage is held to its own, see stages.check_gpus
        may_change |= {"world_size"}
    for name in sorted(set(now) - may_change):
        if before[name] != now[name]:
            allowed = ", ".join(sorted(may_change))
            change = f"{name} was {before[name]} and is now {now[name]}"
            raise UserError(f"resume: {change}; a resumed run may change only {allowed}")


def write_config(cfg: Config) -> None:
    """Print every field, non-defaults marked, and write config.json."""
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        print(f"{'*' if value != f.default else ' '} {f.name} = {value!r}")
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git here
        commit = None
    info = {
        "config": dataclasses.asdict(cfg),
        "git": commit,
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("torch", "numpy", "safetensors", "tokenizers")},
        "world_size": dist.get_world_size(),
    }
    write_whole(cfg.run_dir / "config.json", json.dumps(info, indent=1) + "\n")


def rewind(run_dir: Path, step: int) -> None:
    """Bring a run folder back to `step`: remove later rows of metrics and later checkpoints, which are damaged, or the
    run would resume from them."""
    for folder in checkpoint_dirs(run_dir):
        if folder.name > step_name(step):
            remove(run_dir, folder.name)
    path = run_dir / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))


def is_finished(run_dir: Path, step: int) -> bool:
    """Has the evaluation after `step` been written? (A summary of an earlier step does not count.)"""
    try:
        return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["steps"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False
