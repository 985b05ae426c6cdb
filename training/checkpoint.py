"""Checkpoints that a crash cannot spoil: written aside, described by a manifest of sizes and hashes, then renamed.

`ckpt/step_000100/` holds the sharded model and optimizer (torch.distributed.checkpoint: any world size loads what any
other wrote), `state.json` (where the run stands: step, stage, its history, counters) and `manifest.json`. There is no
generator state to keep: every random number of a run is a function of its seed and the step. Every rank calls `save`,
`save_all`, `load` and `load_weights` together; what only looks at files or removes them is rank 0's.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from configs import Config, UserError
from model import DTYPES, Qwen2

# What a resumed run may change: it alters speed, memory, length and bookkeeping of the run, not the algorithm (but see
# open_run).
MAY_CHANGE = {"resume", "out_dir", "max_steps", "save_every", "keep_checkpoints", "save_rollouts_every", "wandb",
              "max_num_seqs", "vllm_gpu_memory_utilization", "vllm_sleep_level", "token_budget", "logprob_chunk",
              "activation_checkpointing", "reward_workers", "reward_timeout", "mismatch_limit", "smoke",
              "process_group_timeout", "world_size", "shard_size", "gpu_dollars_per_hour", "stage_gpus"}  # fmt: skip


def tensors(model: Qwen2, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that training changes, by name; the optimizer's moments are created where there are none yet."""
    found = {}
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        found[name] = p.detach()
        found.update({f"optimizer.{key}.{name}": value for key, value in state.items()})
    return found


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
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
    dcp.save(tensors(model, optimizer), checkpoint_id=aside)
    if rank == 0:
        (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
    dist.barrier()
    names = [sorted(p.name for p in aside.iterdir())]
    dist.broadcast_object_list(names)  # one listing for all: a network file system may show each rank another
    mine = {n: {"bytes": (aside / n).stat().st_size, "sha256": _hash_file(aside / n)} for n in names[0][rank::world]}
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
    missing = {"state.json", ".metadata"} - set(manifest)
    return f"{min(missing)} is not in the manifest" if missing else None


def find(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, naming each damaged one it skips; None where none was ever finished.

    Raises UserError if there are some and none is whole. Rank 0 looks for all.
    """
    folders = sorted((run_dir / "ckpt").glob("step_*[0-9]"), reverse=True)
    for folder in folders:
        problem = damage(folder)
        if problem is None:
            return folder
        print(f"skipping damaged checkpoint {folder}: {problem}", flush=True)
    if folders:
        raise UserError(f"{run_dir}/ckpt: no checkpoint is whole; to begin again, move {run_dir} away")
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a whole checkpoint."""
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def is_finished(run_dir: Path, step: int) -> bool:
    """Has the run's last evaluation, after `step`, been written? (An earlier one's is no answer.)"""
    try:
        return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["steps"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load(folder: Path, model: Qwen2, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimizer in place from a checkpoint of any world size. Raises UserError."""
    try:
        dcp.load(tensors(model, optimizer), checkpoint_id=folder)  # in place
    except CheckpointException as e:  # no Exception; it wraps whatever each rank met
        reason = str(next(iter(e.failures.values()))[0]).strip().splitlines()[0]
        raise UserError(f"{folder}: does not fit this model: {reason}") from None


def read_states(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The state of each checkpoint by name; those that cannot be read are left out."""
    states = {}
    for folder in (run_dir / "ckpt").glob("step_*[0-9]"):
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(state, dict):
            states[folder.name] = state
    return states


def scores(run_dir: Path) -> dict[int, list[tuple[float, str]]]:
    """(smoothed reward, name) of each stage's checkpoints that compete for the best, the best first."""
    found: dict[int, list[tuple[float, str]]] = {}
    for name, state in read_states(run_dir).items():
        if isinstance(state.get("score"), float):
            found.setdefault(state["stage"], []).append((state["score"], name))
    return {stage: sorted(entries, reverse=True) for stage, entries in found.items()}


def best(run_dir: Path, stage: int) -> str | None:
    """The name of the best whole checkpoint of a stage, naming each damaged one it skips."""
    for _, name in scores(run_dir).get(stage, []):
        problem = damage(run_dir / "ckpt" / name)
        if problem is None:
            return name
        print(f"skipping damaged checkpoint {run_dir}/ckpt/{name}: {problem}", flush=True)
    return None


def load_weights(folder: Path, model: Qwen2) -> None:
    """Fill a model of any parameter type from the weights in a checkpoint."""
    dcp.load({name: p.detach() for name, p in model.named_parameters()}, checkpoint_id=folder)  # in place


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints, the best of each stage and the KL references of all these; exports
    too."""
    states = read_states(run_dir)
    kept = {*sorted(folder.name for folder in (run_dir / "ckpt").glob("step_*[0-9]"))[-keep:]}
    kept |= {entries[0][1] for entries in scores(run_dir).values()}
    kept |= {states[name].get("reference") for name in kept if name in states}
    for folder in (run_dir / "ckpt").glob("step_*[0-9]"):
        if folder.name not in kept:
            _remove(run_dir, folder.name)


def _remove(run_dir: Path, name: str) -> None:
    for kind in ("ckpt", "hf"):
        shutil.rmtree(run_dir / kind / name, ignore_errors=True)


def rewind(run_dir: Path, step: int) -> None:
    """Bring a run folder back to `step`: later checkpoints (all of them damaged) and later metrics go."""
    for folder in (run_dir / "ckpt").glob("step_*[0-9]"):
        if folder.name > f"step_{step:06d}":
            _remove(run_dir, folder.name)
    truncate_metrics(run_dir / "metrics.jsonl", step)


def open_run(cfg: Config) -> None:
    """Check the run folder before anything loads. Raises UserError for one in use, or a resume that changes the run."""
    try:
        used = cfg.run_dir.is_dir() and any(cfg.run_dir.iterdir())
        if used and not cfg.resume:
            raise UserError(f"{cfg.run_dir} is not empty: add --resume=true to go on, or choose another --run_name")
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(cfg.run_dir, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as e:
        raise UserError(f"out_dir: cannot write {cfg.run_dir}: {e.strerror}") from None
    if not (cfg.run_dir / "config.json").is_file():
        return
    try:
        info = json.loads((cfg.run_dir / "config.json").read_text(encoding="utf-8"))
        before = info["config"] | {"world_size": info["world_size"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{cfg.run_dir}/config.json: cannot be read: {e}") from None
    now = json.loads(json.dumps(dataclasses.asdict(cfg))) | {"world_size": int(os.environ.get("WORLD_SIZE", "1"))}
    # "deepscaler" sums over micro-batches and averages over ranks: there, and only there, these change the gradient
    arithmetic = {"token_budget", "world_size", "stage_gpus"} if cfg.loss_agg == "deepscaler" else set()
    may_change = MAY_CHANGE - arithmetic - ({"save_every"} if cfg.stage_from == "best" else set())
    may_change |= {"world_size"} if cfg.stage_gpus else set()  # each stage is held to its own, see stages.check_gpus
    changed = sorted(k for k in now if k not in may_change and before.get(k) != now[k])
    if changed:
        key = changed[0]
        raise UserError(f"resume: {key} was {before.get(key)} and is now {now[key]}; a resumed run may change only "
                        f"{', '.join(sorted(may_change))}")  # fmt: skip


def write_config(cfg: Config) -> None:
    """Print every field, non-defaults marked, and write config.json."""
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        print(f"{'*' if value != f.default else ' '} {f.name} = {value!r}")
    folder = Path(__file__).parent
    try:
        git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git here
        commit = None
    versions = {name: version(name) for name in ("torch", "numpy", "safetensors", "tokenizers")}
    info = {"config": dataclasses.asdict(cfg), "git": commit, "python": sys.version.split()[0], "versions": versions,
            "world_size": dist.get_world_size()}  # fmt: skip
    aside = cfg.run_dir / "config.json.tmp"
    aside.write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    aside.rename(cfg.run_dir / "config.json")


def truncate_metrics(path: Path, step: int) -> None:
    """Drop rows after `step` and a torn last line, so that after a resume no step stands twice."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break  # torn by a crash; nothing follows it
        if row["step"] <= step:
            rows.append(line + "\n")
    aside = path.with_suffix(".tmp")
    aside.write_text("".join(rows), encoding="utf-8")
    aside.rename(path)


def save_all(cfg: Config, model: Qwen2, optimizer: torch.optim.Optimizer, step: int, state: dict[str, Any]) -> None:
    """hf/step_* first, ckpt/step_* last: a checkpoint that exists has its export."""
    name, write = f"step_{step:06d}", dist.get_rank() == 0
    hf = cfg.run_dir / "hf" / name
    model.save_pretrained(hf.with_suffix(".tmp"), DTYPES[cfg.export_dtype], write)
    if write:
        publish(hf.with_suffix(".tmp"), hf)
    save(cfg.run_dir / "ckpt" / name, model, optimizer, state)
    if write:
        prune(cfg.run_dir, cfg.keep_checkpoints)
