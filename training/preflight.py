"""What is refused before anything is downloaded or loaded, the cheapest check first: device, sampler, compute type,
data, disk. Every function raises UserError, in one line that says what to do.
"""

import importlib.util
import os
import shutil

import torch

from configs import Config, UserError
from problems.files import data_files
from training.checkpoint import in_bytes, save_bytes
from training.plan import known_shape, num_params, without_weights

BENCHMARKS = ("aime24", "amc23", "math500", "minerva", "olympiad")  # the paper's
MADE_BY = (  # what makes the files under a path
    ("data/tiny/", "`python data_prep.py tiny` makes it"),
    ("data/gsm8k/", "`hf download openai/gsm8k --repo-type=dataset --local-dir=data/gsm8k` fetches it"),
    ("data/train.jsonl", "`python data_prep.py train --source=deepscaler` makes it"),
    ("data/parametric.jsonl", "`python data_prep.py parametric` makes it"),
    *((f"data/{name}.jsonl", "`python data_prep.py bench` makes it") for name in BENCHMARKS),
)


def check(cfg: Config) -> None:
    """Of a training run."""
    check_machine(cfg, (cfg.dtype,), trains=True)
    check_data(cfg)
    check_disk(cfg)


def check_machine(cfg: Config, dtypes: tuple[str, ...], trains: bool) -> None:
    """Is there the device that the config asks for, the sampler, and on a GPU what the compute types need?"""
    if cfg.device == "auto" and not torch.cuda.is_available():
        remedy = "configs/tiny.py is for the CPU, and --device=cpu runs any config there, slowly"
        raise UserError(f"device: torch {torch.__version__} sees no CUDA GPU here; {remedy}")
    if cfg.sampler == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError("sampler: vllm is not installed: pip install -r requirements-gpu.txt, or --sampler=torch")
    if cfg.device == "cpu":
        return
    rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= gpus:
        raise UserError(f"device: process {rank + 1} of this machine, which has {gpus} GPUs: --nproc_per_node={gpus}")
    major, minor = torch.cuda.get_device_capability(rank)
    if "bfloat16" in dtypes and major < 8:
        gpu = f"{torch.cuda.get_device_name(rank)} (compute capability {major}.{minor})"
        raise UserError(f"dtype: {gpu} has no bfloat16, which needs 8.0: --dtype=float16")
    if "float32" in dtypes and (trains or cfg.sampler == "torch"):
        remedy = f"use {'bfloat16' if major >= 8 else 'float16'}{'' if trains else ', --sampler=vllm'} or --device=cpu"
        raise UserError(f"dtype: float32 does not run through FlashAttention on a GPU: {remedy}")


def check_data(cfg: Config) -> None:
    """Are the files of problems there?"""
    specs = [("train_data", cfg.train_data)]
    if cfg.eval_every:
        specs += [("eval_data", spec) for spec in cfg.eval_data]
    for name, spec in specs:
        try:
            paths = data_files(spec)
        except UserError as e:
            raise UserError(f"{name}: {e}") from None
        for path in paths:
            if not os.path.lexists(path):
                remedies = [remedy for where, remedy in MADE_BY if str(path).startswith(where)]
                raise UserError(f"{name}: no file {path}" + (f": {remedies[0]}" if remedies else ""))
            if not path.is_file() or not os.access(path, os.R_OK):
                raise UserError(f"{name}: {path} is not a regular file, or you may not read it")


def check_disk(cfg: Config) -> None:
    """Is there room for one checkpoint? Only where the model's size is known by now; `run_folder.check_disk` counts
    again when it is loaded. (A run that is over saves nothing, so a resumed one is left to it too.)"""
    shape = known_shape(cfg.model)
    if shape is None or cfg.resume or not cfg.save_every:
        return
    needed, folder = save_bytes(num_params(without_weights(shape)), cfg), cfg.run_dir.absolute()
    try:
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
    except OSError:  # `run_folder.open_run` says what is wrong with it
        return
    if free < needed:
        sizes = f"a save takes {in_bytes(needed)}, {in_bytes(free)} are free"
        raise UserError(f"out_dir: {cfg.run_dir}: {sizes}: make room, or save elsewhere with --out_dir")
