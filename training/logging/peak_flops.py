"""The peak that model FLOP utilisation is quoted against, and where it is from.

    find_peak("cuda", "bfloat16")      989.5 TFLOP/s (data sheet of h200)

For bfloat16 on a GPU of `device_specs` it is the data sheet's rate of dense products. Elsewhere it is measured: on CUDA
the median product of two square matrices of up to 8,192, on a CPU the best product of 1,024 in 0.3 s; a CPU may have
been busy then, so a run that beats its peak has it measured again (`throughput.py`). Nothing that reaches the weights
depends on it.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass

import torch

from brine.common.formatting import count
from brine.training.logging.device_specs import AssumedEfficiency, DeviceSpec, datasheet_of

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
MEASURED = "measured"
SMALLEST, LARGEST = 1024, 8192
"""Sides of the matrices that are multiplied on a card."""
LONGEST_S = 0.2
"""Most seconds that one product should take there."""


@dataclass(frozen=True)
class PeakFlops:
    """A rate of matrix products and its origin."""

    flops_per_s: float
    source: str
    """"data sheet of h200", "measured", or why there is none."""

    def __str__(self) -> str:
        return f"{count(self.flops_per_s)}FLOP/s ({self.source})"


NO_PEAK = PeakFlops(0.0, "not asked for")
"""No peak: MFU is 0."""


def find_peak(device: torch.device | str, dtype: str) -> PeakFlops:
    """The peak of products in `dtype` ("bfloat16", "float32", "float64"), measured now where no data sheet has it."""
    return datasheet_peak(device, dtype) or PeakFlops(measure(device, dtype), MEASURED)


def datasheet_peak(device: torch.device | str, dtype: str) -> PeakFlops | None:
    """What the data sheet of this very card says; None for CPUs, other dtypes than bfloat16, and unknown cards."""
    device = torch.device(device)
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    sheet = datasheet_of(torch.cuda.get_device_name(device))
    return None if sheet is None else PeakFlops(sheet.matmul_flops, f"data sheet of {sheet.name}")


def measure(device: torch.device | str, dtype: str) -> float:
    """FLOP per second of a square matrix product."""
    device = torch.device(device)
    if device.type != "cuda":
        return _best_on_host(device, DTYPES[dtype])
    size, seconds = SMALLEST, _product_s(device, DTYPES[dtype], SMALLEST)
    try:
        # twice the side is eight times the work
        while size < LARGEST and 8 * seconds < LONGEST_S:
            seconds = _product_s(device, DTYPES[dtype], 2 * size)
            size *= 2
    except torch.OutOfMemoryError:
        # the last one that fitted stands
        pass
    torch.cuda.empty_cache()
    return 2.0 * size**3 / seconds


def measure_cpu(dtype: str = "float32") -> DeviceSpec:
    """This machine as one device: its matrix products timed for 0.3 s, its memory read. Several ranks count as
    machines."""
    flops = measure("cpu", dtype)
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return DeviceSpec(
        "cpu", "cpu", flops, memory, 20e9, 10e9, 1.25e9, 20e9, 1,
        "this machine: a matrix product timed now, memory as the system reports it; bandwidths assumed", memory,
        efficiency=AssumedEfficiency(matmul=0.7, global_attention=0.45, local_attention=0.3),
    )  # fmt: skip


def _product_s(device: torch.device, dtype: torch.dtype, size: int, *, warmup: int = 2, rounds: int = 9) -> float:
    """Seconds of one product on a card: the median of a few. Random numbers: ones would draw less power."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, dtype=dtype, device=device, generator=generator) for _ in range(2))
    out = torch.empty_like(a)
    for _ in range(warmup):
        torch.mm(a, b, out=out)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in pairs:
        start.record()
        torch.mm(a, b, out=out)
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


def _best_on_host(device: torch.device, dtype: torch.dtype, *, size: int = 1024, budget_s: float = 0.3) -> float:
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, start = 0.0, time.perf_counter()
    while time.perf_counter() - start < budget_s:
        before = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2.0 * size**3 / (time.perf_counter() - before))
    return best
