"""The peak that model FLOP utilisation is quoted against, and where it is from.

    find_peak("cuda", "bfloat16")      989.5 TFLOP/s (data sheet of h200)

For bfloat16 on a card that `training.gpus` knows it is the data sheet's rate of dense products: what others quote MFU
against, and what no run can beat. Elsewhere it is measured: on CUDA the median product of two square matrices, the
largest up to 8,192 whose product takes no more than about 0.2 s, timed by events after a warm-up; on a CPU the best of
a few products of 1,024 in 0.3 s. A CPU may have been busy with something else then, so there, and only there, a run
that beats its peak has it measured anew (`training.pace`).

Nothing that reaches the weights depends on it. The measurement on CUDA has not run on a card so far.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from training.console import count
from training.gpus import sheet_named

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
MEASURED = "measured"
SMALLEST, LARGEST = 1024, 8192
"""Sides of the matrices that are multiplied on a card."""
LONGEST_S = 0.2
"""Most seconds that one product should take there."""


@dataclass(frozen=True)
class Peak:
    """A rate of matrix products and its origin."""

    flops_per_s: float
    source: str
    """"data sheet of h200", "measured", or why there is none."""

    def __str__(self) -> str:
        return f"{count(self.flops_per_s)}FLOP/s ({self.source})"


NONE = Peak(0.0, "not asked for")
"""No peak: MFU is 0."""


def find_peak(device: torch.device | str, dtype: str) -> Peak:
    """The peak of products in `dtype` ("bfloat16", "float32", "float64"), measured now where no data sheet has it."""
    return sheet_peak(device, dtype) or Peak(measure(device, dtype), MEASURED)


def sheet_peak(device: torch.device | str, dtype: str) -> Peak | None:
    """What the data sheet of this very card says; None for CPUs, other dtypes than bfloat16, and unknown cards."""
    device = torch.device(device)
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    sheet = sheet_named(torch.cuda.get_device_name(device))
    return None if sheet is None else Peak(sheet.matmul_flops, f"data sheet of {sheet.name}")


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
