"""Who else computed while something was timed: the share of this machine's CPU time that other processes took.

Reads Linux's /proc. Imports the standard library alone, since `trl_side` runs in another environment.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reading:
    """The clocks at one moment, in seconds."""

    wall: float
    busy: float  # CPU time that the CPUs this process may use have worked, for whomever
    available: float  # CPU time that they have had, worked or idle
    own: float  # CPU time of this process and of those it started that still run


@dataclass(frozen=True)
class Stretch:
    """What was timed, between two readings."""

    seconds: float
    others: float  # share of the available CPU time that neither this process nor those it started took, 0 to 1


def cpu_seconds(stat: str, cpus: set[int], ticks: float) -> tuple[float, float]:
    """(busy, available) seconds of these CPUs, from the text of /proc/stat, which counts `ticks` a second.

    The columns are user, nice, system, idle, iowait, irq, softirq, steal (time that a hypervisor gave to others, busy
    here), and two that the first two contain (proc_stat(5)).
    """
    busy = available = 0.0
    for line in stat.splitlines():
        name, *columns = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cpus:
            counts = [int(column) for column in columns[:8]]
            idle = counts[3] + counts[4]
            busy, available = busy + (sum(counts) - idle) / ticks, available + sum(counts) / ticks
    return busy, available


def tree_seconds(stats: list[str], root: int, ticks: float) -> float:
    """CPU seconds of process `root` and its descendants, from the texts of all /proc/PID/stat, with those of children
    that have ended and were waited for.

    After the program's name, which stands in parentheses and may hold any character, the columns are from the third on:
    state, parent, ..., and utime, stime, cutime and cstime as 14th to 17th (proc_pid_stat(5)).
    """
    parents, seconds = {}, {}
    for stat in stats:
        pid = int(stat.partition(" ")[0])
        columns = stat.rpartition(")")[2].split()
        parents[pid], seconds[pid] = int(columns[1]), sum(map(int, columns[11:15])) / ticks
    total, generation = 0.0, {root}
    while generation:
        total += sum(seconds.get(pid, 0.0) for pid in generation)
        generation = {pid for pid, parent in parents.items() if parent in generation}
    return total


def read_clocks() -> Reading:
    """Now, of this process. Raises OSError where there is no /proc."""
    ticks, stats = os.sysconf("SC_CLK_TCK"), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stats.append((folder / "stat").read_text(encoding="utf-8", errors="replace"))
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
    stat = Path("/proc/stat").read_text(encoding="ascii")
    busy, available = cpu_seconds(stat, os.sched_getaffinity(0), ticks)
    return Reading(time.perf_counter(), busy, available, tree_seconds(stats, os.getpid(), ticks))


def stretch(before: Reading, after: Reading) -> Stretch:
    """The time between two readings. (Ticks of a hundredth of a second may make the others' time a little negative.)"""
    others = (after.busy - before.busy) - (after.own - before.own)
    share = others / max(after.available - before.available, 1e-9)
    return Stretch(after.wall - before.wall, min(1.0, max(0.0, share)))
