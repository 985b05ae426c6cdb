"""The run folder `out/<run_name>/`: one run at a time, what a resume may change, and what it takes back.

Nothing that could not be read is deleted: it is renamed to `*.unreadable-1` and said.
"""

import dataclasses
import errno
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from configs import PER_STAGE, Config, UserError, dataset_name, read_json, write_whole
from kernels.cpu import num_cores
from problems.files import data_files
from training import checkpoint
from training.checkpoint import RunState, checkpoint_dirs, hash_file, in_bytes, step_of
from training.packing import from_rank0

# What a resumed run may change: it alters speed, memory, length and bookkeeping of the run, not the algorithm (but see
# check_same_run).
MAY_CHANGE = set(
    """resume out_dir max_steps save_every keep_checkpoints save_rollouts_every save_rollouts_tokens wandb
    max_num_seqs vllm_gpu_memory_utilization vllm_sleep_level token_budget logprob_chunk activation_checkpointing
    attention compile reward_workers reward_timeout mismatch_limit smoke process_group_timeout preempt_seconds
    world_size shard_size gpu_dollars_per_hour stage_gpus threads max_staleness""".split()
)


MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


# ------------------------------------------------------------------------------------------------- one run in a folder


class RunLock:
    """One run folder, one run. Every rank holds a shared lock on its file `lock` until its process ends, however it
    ends and on whatever node of a shared file system; a run may begin when nobody holds one.

    Raises UserError on every rank if another run lives there, or if a rank does not see the folder of rank 0.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path, self.file = run_dir / "lock", None
        dist.barrier()  # all have looked at the folder (`open_run`) before anything is written to it
        token = from_rank0(self._begin)
        if not (run_dir / token).is_file():
            problem = f"rank {dist.get_rank()} on {socket.gethostname()} does not see the folder of rank 0"
        else:
            problem = self._hold(fcntl.LOCK_SH)
        problems: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        from_rank0((run_dir / token).unlink)
        for problem in filter(None, problems):
            raise UserError(f"out_dir: {run_dir}: {problem}; all ranks need one folder, and a run its own")

    def _begin(self) -> str:
        """On rank 0: nobody else may hold the lock. Returns the name of a new file, which all ranks must see."""
        problem = self._hold(fcntl.LOCK_EX)
        if problem:
            raise UserError(f"{self.path.parent}: {problem}; stop that run, or choose another --run_name")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.file.truncate(0)
        self.file.write(json.dumps(owner))
        self.file.flush()
        self._hold(fcntl.LOCK_SH)  # so that the other ranks may hold it too
        token = f".rank0-{secrets.token_hex(8)}"
        self.path.with_name(token).touch()
        return token

    def _hold(self, kind: int) -> str | None:
        """Take the lock or change its kind. Returns who has it, if it cannot be had."""
        try:
            self.file = self.file or open(self.path, "a+", encoding="utf-8")
            fcntl.flock(self.file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            return f"a run is under way here: {self.file.read(200) or 'it has not said where'}"
        except OSError as e:  # a file system without locks: two runs in one folder will not be noticed there
            print(f"{self.path}: cannot be locked: {e.strerror}", flush=True)
        return None

    def release(self) -> None:
        """At the end of a run; rank 0 removes the file."""
        if dist.get_rank() == 0:
            self.path.unlink(missing_ok=True)
        if self.file:
            self.file.close()


def set_aside(path: Path, why: str) -> None:
    """Rename what could not be read, and say so."""
    number = 1
    while path.with_name(f"{path.name}.unreadable-{number}").exists():
        number += 1
    kept = path.with_name(f"{path.name}.unreadable-{number}")
    path.rename(kept)
    print(f"{path}: {why}; it is kept as {kept.name}", flush=True)


# ---------------------------------------------------------------------------------------------------------- the disk

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.EACCES}


def check_disk(cfg: Config, num_params: int) -> None:
    """Say what checkpoints will take; 28.4 GB each at 1.5 B. Raises UserError if not one fits."""
    if not cfg.save_every:
        return
    save, there = checkpoint.save_bytes(num_params, cfg), 0
    for folder in [*cfg.run_dir.glob("ckpt/step_*"), *cfg.run_dir.glob("hf/step_*")]:
        if step_of(folder) is not None and folder.is_dir():
            there += sum(path.stat().st_size for path in folder.iterdir())
    most, free = checkpoint.most_saves(cfg) * save, shutil.disk_usage(cfg.run_dir).free
    sizes = f"a save takes {in_bytes(save)}, all that are kept {in_bytes(most)}, {in_bytes(free)} are free"
    if free < save:
        raise UserError(f"out_dir: {cfg.run_dir}: {sizes}: make room, or save elsewhere with --out_dir")
    print(f"{cfg.run_dir}: {sizes}", flush=True)
    if free < most - there:
        print("the disk will be full before the run's end: make room, or lower keep_checkpoints", flush=True)


@contextmanager
def disk_errors(cfg: Config) -> Iterator[None]:
    """Around a run: what cannot be written ends it with one line, and it can be resumed."""
    try:
        yield
    except OSError as e:
        if e.errno not in DISK_ERRORS:
            raise
        failed = f"{e.filename or cfg.run_dir}: {e.strerror}; {checkpoint.free_bytes(cfg.run_dir)}"
        raise SystemExit(f"{failed}; when that is mended, start with --resume=true") from None


# ------------------------------------------------------------------------------------------------------ the same run?


def open_run(cfg: Config) -> None:
    """Check the run folder before anything loads. Raises UserError for one in use, or a resume that changes the run."""
    try:
        names = [path.name for path in cfg.run_dir.iterdir()] if cfg.run_dir.is_dir() else []
        in_use = any(name != "lock" and not name.startswith(".") for name in names)  # .: other ranks' trials
        if in_use and not cfg.resume:
            raise UserError(f"{cfg.run_dir} is not empty: add --resume=true to go on, or choose another --run_name")
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(prefix=".trial-", dir=cfg.run_dir).close()  # raises why it cannot be written
        check_kinds(cfg.run_dir)
    except OSError as e:
        raise UserError(f"out_dir: cannot write {cfg.run_dir}: {e.strerror}") from None
    info = read_info(cfg.run_dir)
    if info:
        check_same_run(info, cfg)


def check_kinds(run_dir: Path) -> None:
    """Raises UserError where a pipe, a folder or a dangling link has the name of a file or folder of a run."""
    for name in ("config.json", "metrics.jsonl", "ledger.json", "summary.json", "lock"):
        if os.path.lexists(run_dir / name) and not (run_dir / name).is_file():
            raise UserError(f"{run_dir / name}: not a regular file: move it away")
    for name in ("ckpt", "hf", "rollouts"):
        if os.path.lexists(run_dir / name) and not (run_dir / name).is_dir():
            raise UserError(f"{run_dir / name}: not a folder: move it away")


def read_info(run_dir: Path) -> dict[str, Any]:
    """What config.json says; {} if there is none, or none that can be read."""
    try:
        info = read_json(run_dir / "config.json")
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) and isinstance(info.get("config"), dict) else {}


def check_same_run(info: dict[str, Any], cfg: Config) -> None:
    """Raises UserError if a setting differs that a resumed run may not change. One that an older config.json lacks is
    taken to have had the default. Files are compared by their contents, see `check_identity`, if it has these."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    now = {**json.loads(json.dumps(dataclasses.asdict(cfg))), "world_size": world_size}  # tuples as lists, as in files
    before = {**json.loads(json.dumps(dataclasses.asdict(Config()))), "world_size": world_size, **info["config"]}
    before["world_size"] = info.get("world_size", world_size)
    may_change = set(MAY_CHANGE)
    if "identity" in info:
        may_change |= {"model", "reference", "train_data", "eval_data"}
    if cfg.loss_agg == "deepscaler":  # it sums over micro-batches and averages over ranks: these change the gradient
        may_change -= {"token_budget", "world_size", "stage_gpus"}
    if cfg.stage_from == "best":  # the cadence decides which checkpoints compete
        may_change -= {"save_every"}
    if cfg.stage_gpus:  # each stage is held to its own, see stages.check_gpus
        may_change |= {"world_size"}
    for name in sorted(set(now) - may_change):
        if of_stages(name, before[name], cfg) != of_stages(name, now[name], cfg):
            allowed = ", ".join(sorted(may_change - {"model", "reference", "train_data", "eval_data"}))
            change = f"{name} was {before[name]} and is now {now[name]}"
            raise UserError(f"resume: {change}; a resumed run may change only {allowed}")


def of_stages(name: str, value: Any, cfg: Config) -> Any:
    """A setting of config.json; one that may differ by stage as a list of what each stage has."""
    return [value] * len(cfg.stage_steps) if name in PER_STAGE and not isinstance(value, list) else value


def hashes_of(files: dict[str, Path]) -> dict[str, str]:
    """{what: SHA-256}. Raises UserError."""
    hashes, of_path = {}, {}
    for what, path in files.items():
        try:
            of_path[path] = of_path.get(path) or hash_file(path)
        except OSError as e:
            raise UserError(f"{what.partition(':')[0]}: cannot read {path}: {e.strerror}") from None
        hashes[what] = of_path[path]
    return hashes


def data_hashes(cfg: Config) -> dict[str, str]:
    """Of the files of each stage's training data, and of the validation's. Raises UserError."""
    by_stage, files = cfg.entries("train_data"), {}
    data = {f"train_data of stage {i}": path for i, path in enumerate(by_stage, 1)}
    data = {"train_data": by_stage[0]} if len(set(by_stage)) == 1 else data
    if cfg.eval_every:
        data |= {f"eval_data: {dataset_name(path)}": path for path in cfg.eval_data}
    for what, spec in data.items():
        paths = data_files(spec)
        files |= {what if len(paths) == 1 else f"{what}, file {i}": path for i, path in enumerate(paths)}
    return hashes_of(files)


def identity(cfg: Config, model: Path, teacher: Path | None) -> dict[str, str]:
    """{what: SHA-256} of all files that a run learns from: data, base weights, tokenizer, template, those of a teacher;
    and the commit of a model from the hub. Raises UserError for a model folder that is damaged by its own manifest."""
    checkpoint.check_model_folder(model)
    files = {}
    for what, folder in (("model", model), ("reference", teacher)):
        if folder:
            of_folder = [folder / name for name in MODEL_FILES if (folder / name).is_file()]
            files |= {f"{what}: {path.name}": path for path in [*of_folder, *sorted(folder.glob("*.safetensors"))]}
    hashes = hashes_of(files) | data_hashes(cfg)
    if model.parent.name == "snapshots":  # in the hub's cache, whose folders are called by their commits
        hashes["hub commit"] = model.name
    return hashes


def check_identity(cfg: Config, model: Path, teacher: Path | None) -> dict[str, str]:
    """The identity of the run's files, the same as when it began. Raises UserError that names what changed."""
    now, before = identity(cfg, model, teacher), read_info(cfg.run_dir).get("identity")
    before = before if isinstance(before, dict) else now
    changed = sorted(what for what in {**before, **now} if before.get(what) != now.get(what))
    changed.sort(key="hub commit".__eq__)  # last, since it alone says little
    if changed == ["hub commit"]:
        print(f"the hub's commit was {before['hub commit']}, now {now.get('hub commit')}; the model is the same")
    elif changed:
        raise UserError(f"resume: {changed[0]} is not what the run began with (by its SHA-256); use another --run_name")
    return now


def threads(cfg: Config) -> int:
    """The setting. Where it leaves the choice, a resumed run's number stays, since sums would round otherwise; but
    not on other numbers of ranks or cores, and OMP_NUM_THREADS comes first."""
    info = read_info(cfg.run_dir) if cfg.resume and "OMP_NUM_THREADS" not in os.environ else {}
    before, world_size = info.get("threads"), int(os.environ.get("WORLD_SIZE", "1"))
    is_usable = isinstance(before, int) and 0 < before <= num_cores() and info.get("world_size") == world_size
    return cfg.threads or (before if is_usable else 0)


def run_id(cfg: Config) -> str:
    """Tells a run from another of its name, for wandb; a resumed one keeps it."""
    return read_info(cfg.run_dir).get("run_id") or secrets.token_hex(4)


def write_config(cfg: Config, files: dict[str, str], run_id: str) -> None:
    """Print every field, non-defaults marked, and write config.json. files: see `identity`."""
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
        "command": shlex.join(["python", *sys.argv]),
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("torch", "numpy", "safetensors", "tokenizers")},
        "world_size": dist.get_world_size(),
        "threads": torch.get_num_threads(),
        "identity": files,
        "run_id": run_id,
    }
    path = cfg.run_dir / "config.json"
    if path.exists() and not read_info(cfg.run_dir):
        set_aside(path, "cannot be read, so this run's settings were compared with nothing")
    write_whole(path, json.dumps(info, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------ back to a checkpoint


def begin(cfg: Config, files: dict[str, str], run_id: str, state: RunState) -> None:
    """Make the folder ready for the step after `state`. files: see `identity`. Rank 0 calls it."""
    (cfg.run_dir / "rollouts").mkdir(exist_ok=True)
    rewind(cfg.run_dir, state)
    write_config(cfg, files, run_id)


def rewind(run_dir: Path, state: RunState) -> None:
    """Bring a run folder back to `state`: rows of later steps go, they will come again. Checkpoints after it are
    damaged, or the run would resume from them: they and their exports are set aside. What a crash left half-written
    goes."""
    step, reported = state.step, state.step - bool(state.unreported)
    for folder in checkpoint_dirs(run_dir):
        if step_of(folder) > step:
            set_aside(folder, "damaged")
            if (run_dir / "hf" / folder.name).exists():
                set_aside(run_dir / "hf" / folder.name, "the export of a damaged checkpoint")
    for path in run_dir.glob("hf/step_*"):
        if (step_of(path) or 0) > step:
            set_aside(path, "an export without a checkpoint")
    for path in [*run_dir.glob("ckpt/step_*.tmp"), *run_dir.glob("hf/step_*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in run_dir.glob("*.json.tmp"):
        path.unlink()
    path = run_dir / "metrics.jsonl"
    rows, unreadable = read_rows(path)
    if rows and step == 0:
        set_aside(path, "there is no checkpoint of these steps, the run begins again")
    elif unreadable:
        set_aside(path, f"{unreadable} of its lines cannot be read and are left out")
    rows = {row["step"]: row for row in rows if row["step"] <= reported}  # no step stands twice
    if len(rows) < reported:
        print(f"{path}: has {len(rows)} of {reported} steps", flush=True)
    write_whole(path, "".join(json.dumps(rows[number]) + "\n" for number in sorted(rows)))


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a metrics.jsonl that can be read, and how many lines cannot, but for a last one that a crash tore."""
    lines = path.read_bytes().rstrip(b"\n").split(b"\n") if path.is_file() else []
    rows, unreadable = [], 0
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if type(row["step"]) is not int:
                raise TypeError("step is not an integer")
            rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            unreadable += number < len(lines)
    return rows, unreadable


def is_finished(run_dir: Path, step: int) -> bool:
    """Has the evaluation after `step` been written? (A summary of an earlier step does not count.)"""
    try:
        return read_json(run_dir / "summary.json")["steps"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False
