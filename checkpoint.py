"""Checkpoints that a crash cannot spoil: written aside, described by a manifest of sizes and hashes, then renamed.

`ckpt/step_000100/` holds the sharded model and optimizer (torch.distributed.checkpoint: any world size loads what any
other wrote), `state.json` (step, counters) and `manifest.json`. There is no generator state to keep: every random
number of a run is a function of its seed and the step. All functions are called by every rank together, except `find`.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from configs import UserError
from model import Qwen2


def _tensors(model: Qwen2, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that training changes, by name; the optimizer's moments are created where there are none yet."""
    tensors = {}
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        tensors[name] = p.detach()
        tensors.update({f"optimizer.{key}.{name}": value for key, value in state.items()})
    return tensors


def _hash_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(f)


def _sha256(f: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := f.read(1 << 24):
        digest.update(block)
    return digest.hexdigest()


def save(folder: Path, model: Qwen2, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write `folder` (…/ckpt/step_000100) whole or not at all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    aside = folder.with_suffix(".tmp")
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    dcp.save(_tensors(model, optimizer), checkpoint_id=aside)
    if rank == 0:
        (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
    dist.barrier()
    files = sorted(p for p in aside.iterdir() if p.name != "manifest.json")
    mine = {p.name: {"bytes": p.stat().st_size, "sha256": _hash_file(p)} for p in files[rank::world]}
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, mine)
    if rank == 0:
        manifest = {name: entry for part in parts for name, entry in part.items()}
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        publish(aside, folder)
    dist.barrier()


def publish(aside: Path, folder: Path) -> None:
    """Flush the finished folder `aside` to disk and give it its name, in place of an earlier one."""
    for path in aside.iterdir():
        with open(path, "rb") as f:
            os.fsync(f.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None if it is whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            if (folder / name).stat().st_size != entry["bytes"]:
                return f"{name} has {(folder / name).stat().st_size} bytes instead of {entry['bytes']}"
            if _hash_file(folder / name) != entry["sha256"]:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return f"{type(e).__name__}: {e}"
    return None if "state.json" in manifest else "state.json is not in the manifest"


def find(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, naming each damaged one it skips. Rank 0 looks for all."""
    for folder in sorted((run_dir / "ckpt").glob("step_*[0-9]"), reverse=True):
        problem = damage(folder)
        if problem is None:
            return folder
        print(f"skipping damaged checkpoint {folder}: {problem}", flush=True)
    return None


def load(folder: Path, model: Qwen2, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill model and optimizer in place from a checkpoint of any world size; returns its state. Raises UserError."""
    try:
        dcp.load(_tensors(model, optimizer), checkpoint_id=folder)  # in place
    except Exception as e:  # dcp wraps whatever a rank met; each of them means: not this model's checkpoint
        raise UserError(f"{folder}: does not fit this model: {str(e).strip().splitlines()[0]}") from None
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints and the best one (highest `score` in state.json), exports too."""
    folders = sorted((run_dir / "ckpt").glob("step_*[0-9]"))
    scores = {f: json.loads((f / "state.json").read_text(encoding="utf-8"))["score"] for f in folders}
    best = max(folders, key=lambda f: scores[f], default=None)
    for folder in folders[:-keep]:
        if folder != best:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(run_dir / "hf" / folder.name, ignore_errors=True)
