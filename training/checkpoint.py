"""Checkpoints that a crash cannot spoil: written aside, described by a manifest of sizes and hashes, then renamed.

`ckpt/step_000100/` holds the sharded model and optimizer (torch.distributed.checkpoint: any world size loads what any
other wrote), `state.json` (a `RunState`), what is carried over to the next step (`carried.*`) and `manifest.json`.
There is no generator state to keep: every random number of a run is a function of its seed and the step. Every rank
calls `save`, `save_all`, `load` and `load_weights` together; functions that only look at files or remove them are for
rank 0.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from configs import Config, UserError, check_regular, flush, read_json
from model import DTYPES, Qwen2, check_weights
from rollout import Rollout
from training import carried
from training.packing import create_moments, from_rank0


@dataclass(frozen=True)
class RunState:
    """Where a run stands: all of its progress beside weights and optimizer."""

    step: int = 0  # steps done
    stage: int = 0  # index of the context stage
    stage_began: int = 0  # the step after which the stage began
    epoch: int | None = 0  # of the data order; None: of an earlier version, which had another order
    position: int = 0  # prompts of the epoch's order that were drawn or left out
    # Of each prompt that the curriculum has seen, by index: the share of right samples at the last visit, and how many
    # visits in a row all samples were right. See training/groups.py.
    visits: dict[int, tuple[float, int]] = dataclasses.field(default_factory=dict)
    left_out: int = 0  # prompts that the last draw passed over, by the curriculum
    tokens: int = 0  # generated so far
    skipped: int = 0  # updates without a finite loss and gradient
    loss_scale: float = 2.0**16  # of a float16 run, see training/loss_scale.py
    good_updates: int = 0  # of a float16 run: in a row, at this scale
    timeouts: int = 0  # answers lost in the grader
    first_entropy: float | None = None  # of the first update's step, nats a token
    entropy: float | None = None  # of the last one's
    entropy_coef: float | None = None  # with entropy_target, as far as it has moved; None: the setting
    base: dict[str, Any] | None = None  # the base model's evaluation: {"first": results, "last": results}
    score: float | None = None  # smoothed reward, if this checkpoint competes for the best of its stage
    reference: str | None = None  # the checkpoint that is the KL reference; None: the model the run began with
    history: tuple[dict[str, Any], ...] = ()  # what schedule.py reads of each step of this stage
    decision: str | None = None  # of the schedule: "lengthen" | "collapsed"
    unreported: dict[str, Any] | None = None  # the row of the last step, as long as its validation is to come
    carried: tuple[list[Rollout], ...] = ()  # groups in flight, see training/partial.py; in files of their own

    def to_json(self) -> str:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "carried"}
        fields["verdict"] = fields.pop("decision")  # its name in files, which older versions wrote too
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "RunState":
        """A field that an older file lacks has its default, and `carried` too. Raises ValueError."""
        try:
            fields = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
        fields["decision"] = fields.pop("verdict", None)
        fields["history"] = tuple(fields.get("history", ()))
        fields.setdefault("epoch", None)
        fields["visits"] = {int(index): tuple(visit) for index, visit in fields.get("visits", {}).items()}
        return cls(**{f.name: fields[f.name] for f in dataclasses.fields(cls) if f.name in fields})


def step_name(step: int) -> str:
    return f"step_{step:06d}"


def step_of(path: Path) -> int | None:
    """The step of a checkpoint or an export; None if it is not called as one."""
    number = path.name.removeprefix("step_")
    return int(number) if number.isdecimal() and number.isascii() and path.name == step_name(int(number)) else None


def checkpoint_dirs(run_dir: Path) -> list[Path]:
    """The folders of finished checkpoints, the newest first; `damage` tells whether one is whole. Copies under other
    names and stray files are none."""
    folders = [path for path in (run_dir / "ckpt").glob("step_*") if step_of(path) is not None and path.is_dir()]
    return sorted(folders, key=step_of, reverse=True)


# ---------------------------------------------------------------------------------------------------------------- save


def tensors(model: Qwen2, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that training changes, by name."""
    create_moments(model, optimizer)
    by_name = {}
    for name, p in model.named_parameters():
        by_name[name] = p.detach()
        by_name.update({f"optimizer.{key}.{name}": value for key, value in optimizer.state[p].items()})
    return by_name


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(check_regular(path), "rb") as f:
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
        carried.write(aside, state.carried)
    dist.barrier()
    names = from_rank0(sorted_names, aside)  # one listing for all: a network file system may show each rank another
    entries = {name: manifest_entry(aside / name) for name in names[rank::world_size]}
    entries_of_ranks: list[Any] = [None] * world_size
    dist.all_gather_object(entries_of_ranks, entries)
    if rank == 0:
        write_manifest(aside, {name: entry for entries in entries_of_ranks for name, entry in entries.items()})
        publish(aside, folder)
    dist.barrier()


def manifest_entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def write_manifest(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    (folder / "manifest.json").write_text(json.dumps(entries, indent=1, sort_keys=True), encoding="utf-8")


def sorted_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def publish(aside: Path, folder: Path) -> None:
    """Flush the finished folder `aside` to disk and give it its name, in place of an earlier one. Its files get the
    permissions that the umask allows (safetensors makes them readable by their owner alone)."""
    umask = os.umask(0)
    os.umask(umask)
    for path in aside.iterdir():
        path.chmod(0o666 & ~umask)
        flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    flush(folder.parent)  # the new name


def save_bytes(num_params: int, cfg: Config) -> int:
    """Bytes of a checkpoint with its export: weights and Adam's two moments in float32, weights in `export_dtype`."""
    return (4 + 8 + DTYPES[cfg.export_dtype].itemsize) * num_params


def most_saves(cfg: Config) -> int:
    """How many checkpoints may stand beside each other: the newest, each stage's best, KL references, a new one."""
    resets = cfg.uses_reference and cfg.stage_reference == "reset" and not cfg.reference
    references = len(cfg.stage_steps) - 1 if resets else 0
    at_most = sum(steps // cfg.save_every + 1 for steps in cfg.stage_steps) if cfg.save_every else 0
    return min(at_most, cfg.keep_checkpoints + len(cfg.stage_steps) + references + 1)


def in_bytes(number: float) -> str:
    """As 28.4 GB or 2.1 MB."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def save_all(cfg: Config, model: Qwen2, optimizer: torch.optim.Optimizer, state: RunState) -> None:
    """Checkpoint and export of a step, and removal of those that are no longer kept. What cannot be written ends the
    run with one line; what was there before stays."""
    try:
        _save_all(cfg, model, optimizer, state)
    except (OSError, SafetensorError, CheckpointException) as e:
        if not isinstance(rank_error(e), Exception):  # Ctrl-C
            raise rank_error(e) from None
        for aside in cfg.run_dir.glob(f"*/{step_name(state.step)}.tmp"):
            shutil.rmtree(aside, ignore_errors=True)
        needed = in_bytes(save_bytes(sum(p.numel() for p in model.parameters()), cfg))
        failed = f"{cfg.run_dir}: step {state.step} cannot be saved: {in_one_line(rank_error(e))}"
        sizes = f"a save takes {needed}, {free_bytes(cfg.run_dir)}"
        raise SystemExit(f"{failed}; {sizes}; when that is mended, start with --resume=true") from None


def free_bytes(folder: Path) -> str:
    """How much room its disk has, in words."""
    try:
        return f"{in_bytes(shutil.disk_usage(folder).free)} are free now"
    except OSError as e:  # the disk that has just failed
        return f"and its disk does not answer ({e.strerror})"


def rank_error(e: BaseException) -> BaseException:
    """What went wrong on a rank, of torch's CheckpointException, which holds the errors of all."""
    return next(iter(e.failures.values()))[0] if isinstance(e, CheckpointException) else e


def in_one_line(e: BaseException) -> str:
    return str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__


def _save_all(cfg: Config, model: Qwen2, optimizer: torch.optim.Optimizer, state: RunState) -> None:
    """hf/step_* first, ckpt/step_* last: a checkpoint that exists has its export."""
    name, is_writer = step_name(state.step), dist.get_rank() == 0
    hf = cfg.run_dir / "hf" / name
    aside = hf.with_suffix(".tmp")
    model.save_pretrained(aside, DTYPES[cfg.export_dtype], is_writer)
    if is_writer:
        write_manifest(aside, {path: manifest_entry(aside / path) for path in sorted_names(aside)})
        publish(aside, hf)
    save(cfg.run_dir / "ckpt" / name, model, optimizer, state)
    if is_writer:
        prune(cfg.run_dir, cfg.keep_checkpoints)


# -------------------------------------------------------------------------------------------------------- find and load


def check_model_folder(folder: Path, setting: str = "model") -> None:
    """Raises UserError for one whose tensors are not those of its config, or that is damaged by its own manifest, which
    our exports have."""
    problem = damage(folder, needed=("config.json",)) if (folder / "manifest.json").exists() else None
    if problem:
        raise UserError(f"{setting}: {folder} is damaged: {problem}")
    check_weights(folder)


def damage(folder: Path, needed: tuple[str, ...] = ("state.json", ".metadata")) -> str | None:
    """What is wrong with a checkpoint (or another folder with a manifest), in a few words, or None if it is whole."""
    try:
        manifest = read_json(folder / "manifest.json")
        for name, entry in manifest.items():
            if (folder / name).stat().st_size != entry["bytes"]:
                return f"{name} has {(folder / name).stat().st_size} bytes instead of {entry['bytes']}"
            if hash_file(folder / name) != entry["sha256"]:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return f"{type(e).__name__}: {e}"
    missing = set(needed) - set(manifest)
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
    """The state of a whole checkpoint, but for the groups in flight: `training.carried.read`."""
    return RunState.from_json((folder / "state.json").read_text(encoding="utf-8"))


def load(folder: Path, model: Qwen2, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimizer in place from a checkpoint of any world size. Raises UserError."""
    load_tensors(folder, tensors(model, optimizer))


def load_weights(folder: Path, model: Qwen2) -> None:
    """Fill a model of any parameter type from the weights in a checkpoint. Raises UserError."""
    load_tensors(folder, {name: p.detach() for name, p in model.named_parameters()})


def load_tensors(folder: Path, named_tensors: dict[str, Tensor]) -> None:
    """In place. Raises UserError where the checkpoint has others, or cannot be read."""
    try:
        dcp.load(named_tensors, checkpoint_id=folder)
    except CheckpointException as e:
        error = rank_error(e)
        if not isinstance(error, Exception):  # Ctrl-C, or a scheduler's signal
            raise error from None
        raise UserError(f"{folder}: does not fit this model: {in_one_line(error)}") from None


# ------------------------------------------------------------------------------------------- the best, and what is kept


def read_states(run_dir: Path) -> dict[str, RunState]:
    """The state of each checkpoint by name; damaged ones are left out. Raises OSError for one that is there and cannot
    be read, which may be otherwise tomorrow."""
    states = {}
    for folder in checkpoint_dirs(run_dir):
        try:
            states[folder.name] = read_state(folder)
        except (FileNotFoundError, ValueError):
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
    too. Nothing goes while the state of one cannot be read, since it may be the best."""
    try:
        states = read_states(run_dir)
    except OSError as e:
        print(f"{e.filename}: {e.strerror}: no checkpoint is removed this time", flush=True)
        return
    kept = {folder.name for folder in checkpoint_dirs(run_dir)[:keep]}
    kept |= {entries[0][1] for entries in ranking(run_dir).values()}
    kept |= {states[name].reference for name in kept if name in states}
    for folder in checkpoint_dirs(run_dir):
        if folder.name not in kept:
            remove(run_dir, folder.name)


def remove(run_dir: Path, name: str) -> None:
    """Checkpoint and export. They lose their names first: a kill leaves none half removed, or one without the other."""
    folders = [run_dir / kind / name for kind in ("hf", "ckpt") if (run_dir / kind / name).exists()]
    for folder in folders:
        folder.rename(folder.with_suffix(".tmp"))
    for folder in folders:
        shutil.rmtree(folder.with_suffix(".tmp"), ignore_errors=True)
