"""A process on a CPU: how many threads it takes, how it keeps memory, and which library multiplies its matrices."""

import ctypes
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

WATCHED = 0.2  # seconds over which the cores are watched
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def prepare(threads: int = 0) -> str:
    """Make torch fast in this process, and say how, as the end of a line.

    threads: 0 = OMP_NUM_THREADS where that is set (torchrun sets it to 1), else this process's share of the free cores.
    """
    cores, free = num_cores(), None
    if not threads and "OMP_NUM_THREADS" in os.environ:
        threads = torch.get_num_threads()
    elif not threads:
        free = free_cores()
        threads = max(1, math.floor(free / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + 0.3))
    torch.set_num_threads(threads)
    keep_memory()
    library = "oneDNN" if use_onednn() else "torch's default"
    of_cores = f"of {cores} cores" + ("" if free is None else f", {free:.1f} of them free")
    return f", {threads} threads ({of_cores}), products by {library}"


@contextmanager
def gloo_without_teams() -> Iterator[None]:
    """Around the making of a process group: gloo's threads copy what they send, and each would have a team of OpenMP
    threads for that. With more such threads than cores libgomp no longer lets a team wait awake between two
    operations, and sends it to sleep: whatever the process computes then takes a third longer (measured on 2 cores).

    A thread asks for its number of threads once, at its first large copy; here every thread of gloo makes one while
    that number is 1.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
        copies, block = 32, torch.zeros(1 << 18)  # enough of both that each of its two threads takes some
        output = [torch.zeros_like(block) for _ in range(dist.get_world_size())]  # for all copies, which are the same
        for work in [dist.all_gather(output, block, async_op=True) for _ in range(copies)]:
            work.wait()
    finally:
        torch.set_num_threads(threads)


def num_cores() -> int:
    """Cores that this process may use, by its affinity and its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such group, or no quota: "max 100000"
        return cores


def free_cores() -> float:
    """Cores of this process that nobody uses just now. Two threads beside another process on two cores can be ten times
    slower than one, since each waits for the other at the end of every operation."""
    before = core_times()
    time.sleep(WATCHED)
    shares = []
    for core, (idle, total) in core_times().items():
        if core in before and total > before[core][1]:
            shares.append((idle - before[core][0]) / (total - before[core][1]))
    return min(num_cores(), sum(shares)) if shares else num_cores()


def core_times() -> dict[int, tuple[int, int]]:
    """{core: (idle, total)} of the cores that this process may use, in ticks since the machine's start; {} where the
    system does not say."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    times = {}
    for line in lines:
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in os.sched_getaffinity(0):
            user, nice, system, idle, iowait, *interrupts = map(int, ticks[:8])
            times[int(name[3:])] = idle + iowait, user + nice + system + idle + iowait + sum(interrupts)
    return times


def keep_memory() -> None:
    """Have malloc keep what is freed for the next tensor. By itself glibc gives large blocks back to the system, which
    clears every page anew for the next one: up to a third of a decoding step."""
    if os.uname().sysname == "Linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(M_MMAP_THRESHOLD, 2**30)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def use_onednn() -> bool:
    """Have oneDNN multiply float32 matrices on AMD's CPUs with AVX-512, where MKL is 2.4 times slower (measured on a
    Zen 5): it takes its AVX2 kernels there.

    torch asks oneDNN only where products of lower precision are allowed. oneDNN makes use of that on CPUs with matrix
    units (AMX) alone; that it does not is checked on three shapes. Returns whether it is used.
    """
    if not (is_amd() and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()):
        return False
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    generator = torch.Generator().manual_seed(0)
    for left, right in (((512, 512), (512, 512)), ((8, 512), (512, 64)), ((64, 2, 32), (64, 32, 96))):
        a, b = torch.randn(left, generator=generator), torch.randn(right, generator=generator)
        exact = a.double() @ b.double()
        if ((a @ b).double() - exact).norm() > 1e-6 * exact.norm():
            torch.backends.mkldnn.matmul.fp32_precision = "none"
            return False
    return True


def few_shapes(n: int) -> int:
    """The size n of a tensor, or up to a 32nd more (up to 7 where it is small), so that a loop sees few sizes. oneDNN
    makes machine code for each new shape of a product, which takes 0.2 to 1 ms, and keeps that of the last 1,024."""
    multiple = max(8, 2 ** (n.bit_length() - 6))
    return math.ceil(n / multiple) * multiple


def is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")[:1000]
    except OSError:
        return False
