"""How fast this machine multiplies matrices: what the share of the peak (MFU) is measured against."""

import re
import time
from functools import cache

import torch

# Dense matrix-product peaks in FLOP/s, bfloat16 or float16 with float32 sums, from NVIDIA's data sheets (H100 and H200:
# SXM). The T4 has float16 alone. Other devices are measured.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "A10": 125e12,
    "L4": 121e12,
    "T4": 65e12,
}


def data_sheet_peak(device_name: str) -> float | None:
    """FLOP/s of a GPU, from its name as torch has it; None for one that is not listed.

    Behind the listed name may stand a form factor or a memory size ("A100-SXM4-80GB", "H100 80GB HBM3"), but no other
    word, which makes it another card: A10G, L40S, RTX 3090 Ti, H100 PCIe, GH200.
    """
    for name, peak in PEAK_FLOPS.items():
        if re.search(rf"\b{name}(-|$| \d+GB)", device_name):
            return peak
    return None


def matmul_flops(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a size^3 matrix product on this device (8192^3 on a GPU): the best of six tries, or of those that begin
    within a second (float16 is slow on many CPUs)."""
    repeats = 1
    if device.type == "cuda":
        size, repeats = 8192, 10  # enough work to hide the launches
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, first_start, tries = 0.0, time.perf_counter(), 0
    while tries == 0 or tries < 6 and time.perf_counter() < first_start + 1:
        start = time.perf_counter()
        for _ in range(repeats):
            c = a @ b
        c[0, 0].item()  # waits for the device
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - start))
        tries += 1
    return best


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What MFU is measured against, in FLOP/s: the data sheet of a known GPU, else a matrix product, measured once."""
    if device.type == "cuda" and dtype != torch.float32:
        peak = data_sheet_peak(torch.cuda.get_device_name(device))
        if peak:
            return peak
    return matmul_flops(device, dtype, 1024)
