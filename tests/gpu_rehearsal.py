"""What one GPU shows in ten minutes, before a node of eight is rented: a line a check, without vLLM and flash-attn.

    python tests/gpu_rehearsal.py [--device=cuda|cpu] [--size=real|toy] [--only=name,...]

A line says what was checked, its error beside the limit, its figures, and what was expected of them ("expected,
model": by arithmetic, never measured here). It begins with "ok", "FAILED", or "--" for what is not here. Below it
stands the same as `RESULT {json}`. Model and data are made up. The exit status is 1 if a check failed. Without a GPU
everything runs at toy size on the CPU, which tries the checks and says nothing about a GPU; with --device=cuda it ends
there with status 2 and the reason, an old driver, say. The checks are in gpu_kernels.py and gpu_training.py; the last
one needs pytest.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds the modules of its own folder only

from configs import HELP, UserError, parse_flags, run, show_help
from configs._shared import checked
from gpu_kernels import (
    REAL,
    TOY,
    Result,
    Sizes,
    check_add_product,
    check_attention,
    check_environment,
    check_head,
    first_line,
)
from gpu_training import check_gpu_tests, check_sampler, check_tiny, check_train
from runs import FORKS
from training.preflight import check_cuda

SILENCE = 300  # seconds without a result after which a check is ended
CHECKS: dict[str, Callable[[torch.device, Sizes], Iterator[Result]]] = {
    "environment": check_environment,
    "attention": check_attention,
    "attention_fa4": partial(check_attention, wanted="fa4"),
    "attention_fa3": partial(check_attention, wanted="fa3"),
    "head": check_head,
    "add_product": check_add_product,
    "train": check_train,
    "sampler": check_sampler,
    "tiny": check_tiny,
    "gpu_tests": check_gpu_tests,
}


@dataclass(frozen=True)
class Flags:
    # of the rehearsal
    device: Literal["auto", "cuda", "cpu"] = "auto"  # auto = a GPU where there is one
    size: Literal["auto", "real", "toy"] = "auto"  # auto = real on a GPU, toy on a CPU
    only: tuple[str, ...] = ()  # names of checks; () = all

    def __post_init__(self) -> None:
        for f in fields(self):
            checked(f"--{f.name}", f.type, getattr(self, f.name))


def run_check(name: str, device_type: str, size: str, writer: Connection) -> None:
    """The whole life of a check's process: send each result, the reason too if the check raises."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        if size == "real":  # compiling is to take what it takes on a new machine
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        try:
            device = torch.device(device_type, 0) if device_type == "cuda" else torch.device(device_type)
            for result in CHECKS[name](device, REAL if size == "real" else TOY):
                writer.send(replace(result, seconds=time.perf_counter() - start))
                start = time.perf_counter()
        except (Exception, SystemExit) as e:
            writer.send(Result(name, failed=first_line(e), seconds=time.perf_counter() - start))
        except KeyboardInterrupt:  # Ctrl-C is sent to the parent too, which says so
            pass
    writer.close()


def results_of(name: str, device_type: str, size: str, where: str) -> list[Result]:
    """Run a check in a process of its own and print its results as they come. A CUDA error ends all work of a process;
    attention's kernel and what torch.compile has made belong to one."""
    # The fork server imports everything once; on a GPU it must not be used, since an import may touch CUDA, which does
    # not survive a fork.
    context = multiprocessing.get_context("spawn") if device_type == "cuda" else FORKS
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=run_check, args=(name, device_type, size, writer))
    process.start()
    writer.close()
    results = []
    try:
        while reader.poll(SILENCE):
            results.append(reader.recv())
            report(results[-1], size, where)
        process.kill()
        results.append(Result(name, failed=f"ended after {SILENCE} s without a result", seconds=SILENCE))
        report(results[-1], size, where)
    except EOFError:  # it has closed its end of the pipe
        pass
    process.join()
    if process.exitcode and all(result.ok for result in results):
        results.append(Result(name, failed=f"its process ended with status {process.exitcode}"))
        report(results[-1], size, where)
    return results


def report(result: Result, size: str, where: str) -> None:
    """A line to read and a line to parse."""
    status = "--" if result.not_here else "ok" if result.ok else "FAILED"
    figures = [] if result.error is None else [f"error {result.error:.2g} (limit {result.limit:g})"]
    for name, (value, unit) in result.figures.items():
        figures.append(f"{name} {value if isinstance(value, str) else f'{value:.4g}'} {unit}".rstrip())
    figures += [f"not here: {result.not_here}"] if result.not_here else []
    figures += [result.failed] if result.failed else []
    expected = result.expected if size == "real" else ""
    print(f"{status:<7}{result.name}: {', '.join(figures)}" + (f" | expected, model: {expected}" if expected else ""))
    print("RESULT", json.dumps({**asdict(result), "ok": result.ok, "device": where, "size": size}), flush=True)


def main(argv: list[str]) -> None:
    """Run the checks. Raises UserError for bad flags, SystemExit with status 1 if a check failed."""
    if HELP & set(argv):
        return show_help(__doc__, Flags())
    values, others = parse_flags(argv, Flags)
    flags = Flags(**values)
    if others:
        raise UserError(f"{others[0]}: no such flag: --device, --size or --only")
    if values.get("only") == ():
        raise UserError("--only: write --only=NAME,...")
    unknown = [name for name in flags.only if name not in CHECKS]
    if unknown:
        raise UserError(f"--only: {unknown[0]!r} is not one of {', '.join(CHECKS)}")
    if flags.device == "cuda":
        check_cuda()  # it says why there is none, a driver too old, say
    has_gpu = torch.cuda.is_available()
    device_type = ("cuda" if has_gpu else "cpu") if flags.device == "auto" else flags.device
    size = ("real" if device_type == "cuda" else "toy") if flags.size == "auto" else flags.size
    where = torch.cuda.get_device_name() if device_type == "cuda" else "CPU"
    if device_type == "cpu":
        gpu = "used" if has_gpu else "here"
        print(f"No GPU is {gpu}: sizes are {size}, and no figure means anything for a GPU.")
    print(f"rehearsal on one {where}, torch {torch.__version__}, sizes {size}", flush=True)

    start, results = time.perf_counter(), []
    for name in flags.only or CHECKS:
        results += results_of(name, device_type, size, where)
    failed = [result.name for result in results if not result.ok]
    absent = sum(bool(result.not_here) for result in results)
    verdict = f"all {len(results) - absent} passed" + (f", {absent} not here" if absent else "")
    if failed:
        verdict = f"FAILED: {len(failed)} of {len(results)}: {'; '.join(failed)}"
    print(f"rehearsal on one {where}, sizes {size}, {time.perf_counter() - start:.0f} s: {verdict}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
