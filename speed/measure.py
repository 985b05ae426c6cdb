"""How a section of the bench measures and reports: repeats in alternation, spreads, errors against a reference, tables.

Times are seconds on the wall clock; a GPU is waited for at both ends.
"""

import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs import markdown_table
from training.packing import all_sum

MIN_REPEATS, MAX_REPEATS = 3, 30
SECONDS = 1.5  # after which no further repeat begins


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity, at least one."""

    median: float
    low: float  # the smallest
    high: float  # the largest
    repeats: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Section:
    """What a section found: a table, whose columns carry their units in their names, and remarks below it."""

    title: str
    rows: list[dict[str, Any]]  # text, numbers, `Spread`; None where a row has no such figure
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------------- measure


def now(device: torch.device) -> float:
    """Seconds, once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    start = now(device)
    function()
    return now(device) - start


def elapsed(since: float) -> float:
    """Seconds since a time, a mean over ranks, so that all of them stop repeating together."""
    seconds = time.perf_counter() - since
    return all_sum([seconds])[0] / dist.get_world_size() if dist.is_initialized() else seconds


def alternating(functions: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, list[float]]:
    """Seconds of every call of each function. Each is called once before, to warm up; then they take turns, forwards
    and backwards (ABBA), so that a machine that grows slower or faster does so for all of them alike."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    for repeat in range(MAX_REPEATS):
        if elapsed(began) > SECONDS * len(functions) and repeat >= MIN_REPEATS:
            break
        for name in list(functions)[:: -1 if repeat % 2 else 1]:
            seconds[name].append(seconds_of(functions[name], device))
    return seconds


def repeated(function: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds of every call of one function, after one that warms up."""
    return alternating({"": function}, device)[""]


def rates(work: float, seconds: list[float]) -> Spread:
    """`work` a second."""
    return Spread.of([work / s for s in seconds])


def ratios(seconds: list[float], bare: list[float]) -> Spread:
    """The speed of the first as a share of the second's, turn by turn."""
    return Spread.of([b / s for s, b in zip(seconds, bare, strict=True)])


def relative_error(result: Tensor, reference: Tensor) -> float:
    """The largest absolute difference, over the largest absolute value of the reference."""
    result, reference = result.detach().double(), reference.detach().double()
    return float((result - reference).abs().max() / reference.abs().max())


# -------------------------------------------------------------------------------------------------------------- report


def processor_name() -> str:
    """Of the CPU, as its system has it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        text = ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a figure has to be read with: machine, versions, threads, ranks."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }


def cell(value: Any) -> str:
    """A figure as a table has it."""
    if value is None:
        return ""
    if isinstance(value, Spread):
        return f"{cell(value.median)} ({cell(value.low)} - {cell(value.high)})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def section_text(section: Section) -> str:
    """A section as it is printed: of a spread the median, and the least and the most in brackets."""
    table = markdown_table(list(section.rows[0]), [[cell(value) for value in row.values()] for row in section.rows])
    return "\n".join([f"\n{section.title}", table, *section.notes])
