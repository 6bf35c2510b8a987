"""What a device can do: by its maker's data sheet, or as measured; and how much of that the planner expects.

Sheets quote tensor-core rates with 2:4 sparsity and NVLink as the sum of both directions; both are halved here.
Assumed, as no sheet says it: one 400 Gbit/s port per GPU between machines (200 for A100), PCIe's 16 lanes to the host,
2 TB of host memory per eight GPUs. `AssumedEfficiency` is an estimate that a measurement can replace.
Peaks that no sheet has are measured: on CUDA the median matmul of two square matrices of up to 8,192, on a CPU the
best matmul of up to 1,024 in 0.3 s. Nothing that reaches the weights depends on any of this.
"""

import os
import re
import statistics
import time
from dataclasses import dataclass

import torch

from brine.common.formatting import count

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
MEASURED = "measured"
SMALLEST, LARGEST = 1024, 8192
LONGEST_S = 0.2


@dataclass(frozen=True)
class AssumedEfficiency:
    """Fractions of a device's peaks that training code is expected to reach: assumptions.

    matmul, global_attention, local_attention: of `matmul_flops`. memory: of `memory_bytes_per_s`, by norms,
    activations, sums and the optimizer. network: of each link's rate, by collectives and the ring."""

    matmul: float = 0.65
    global_attention: float = 0.40
    local_attention: float = 0.20
    memory: float = 0.75
    network: float = 0.70


@dataclass(frozen=True)
class DeviceSpec:
    """One device type, of kind "cuda" or "cpu", and the machine that it sits in.

    matmul_flops: dense bfloat16 FLOP/s with float32 sums. Bytes per second are per device, links' in one direction: to
    its machine's other devices, to other machines, to host memory. source: of the numbers. reserve, host_reserve:
    fractions of both memories that no plan fills: the driver's context, communication buffers, fragmentation; the
    system, libraries, the loader."""

    name: str
    kind: str
    matmul_flops: float
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    host_bytes_per_s: float
    devices_per_machine: int
    source: str
    host_memory_bytes: float = 250e9
    reserve: float = 0.06
    host_reserve: float = 0.1
    efficiency: AssumedEfficiency = AssumedEfficiency()

    @property
    def usable_bytes(self) -> float:
        """What a plan may fill."""
        return self.memory_bytes * (1 - self.reserve)

    @property
    def usable_host_bytes(self) -> float:
        """What a plan may fill of the host's."""
        return self.host_memory_bytes * (1 - self.host_reserve)


GPUS = {
    "h200": DeviceSpec(
        "h200", "cuda", 989.5e12, 141e9, 4.8e12, 450e9, 50e9, 64e9, 8,
        "NVIDIA H200 Tensor Core GPU data sheet (SXM): 1,979 TFLOPS with sparsity, 141 GB, 4.8 TB/s, NVLink 900 GB/s",
    ),
    "h100": DeviceSpec(
        "h100", "cuda", 989.5e12, 80e9, 3.35e12, 450e9, 50e9, 64e9, 8,
        "NVIDIA H100 Tensor Core GPU data sheet (SXM): 1,979 TFLOPS with sparsity, 80 GB, 3.35 TB/s, NVLink 900 GB/s",
    ),
    "a100-80": DeviceSpec(
        "a100-80", "cuda", 312e12, 80e9, 2.039e12, 300e9, 25e9, 32e9, 8,
        "NVIDIA A100 Tensor Core GPU data sheet (80 GB SXM): 312 TFLOPS dense, 2,039 GB/s, NVLink 600 GB/s",
    ),
    "b200": DeviceSpec(
        "b200", "cuda", 2250e12, 180e9, 8e12, 900e9, 50e9, 64e9, 8,
        "NVIDIA DGX B200 data sheet, by 8: 1,440 GB, 64 TB/s, NVLink 14.4 TB/s; 2.25 PFLOPS dense bfloat16 a GPU from "
        "the Blackwell architecture brief",
    ),
}  # fmt: skip
NAMES = (*GPUS, "cpu")
OTHER_VARIANTS = frozenset({"PCIE", "NVL", "MIG"})
"""Words in a GPU's name: it is slower than the one that the sheet of its family is about."""


@dataclass(frozen=True)
class PeakFlops:
    """A rate of matmuls and its origin."""

    flops_per_s: float
    source: str
    """"data sheet of h200", "measured", or why there is none."""

    def __str__(self) -> str:
        return f"{count(self.flops_per_s)}FLOP/s ({self.source})"


NO_PEAK = PeakFlops(0.0, "not asked for")


def datasheet_of(name: str) -> DeviceSpec | None:
    """The data sheet of a GPU by the name that its driver gives ("NVIDIA H100 80GB HBM3"); None for an unknown one,
    and for a variant with other rates (PCIe, NVL, a MIG part). Its memory may differ."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    if words & OTHER_VARIANTS:
        return None
    return next((sheet for key, sheet in GPUS.items() if key.split("-")[0].upper() in words), None)


def find_peak(device: torch.device | str, dtype: str) -> PeakFlops:
    """The peak of matmuls in `dtype` ("bfloat16", "float32", "float64"), measured now where no data sheet has it."""
    return datasheet_peak(device, dtype) or PeakFlops(measure(device, dtype), MEASURED)


def datasheet_peak(device: torch.device | str, dtype: str) -> PeakFlops | None:
    """What the data sheet of this GPU says; None for CPUs, other dtypes than bfloat16, and unknown GPUs."""
    device = torch.device(device)
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    sheet = datasheet_of(torch.cuda.get_device_name(device))
    return None if sheet is None else PeakFlops(sheet.matmul_flops, f"data sheet of {sheet.name}")


def measure(device: torch.device | str, dtype: str) -> float:
    """FLOP per second of a square matmul."""
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
    """This machine as one device: a matmul timed now, memory as the system reports it. Ranks count as machines."""
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return DeviceSpec(
        "cpu", "cpu", measure("cpu", dtype), memory, 20e9, 10e9, 1.25e9, 20e9, 1,
        "this machine: a matmul timed now, memory as the system reports it; bandwidths assumed", memory,
        efficiency=AssumedEfficiency(matmul=0.7, global_attention=0.45, local_attention=0.3),
    )  # fmt: skip


def _product_s(device: torch.device, dtype: torch.dtype, size: int, *, warmup: int = 2, rounds: int = 9) -> float:
    """Seconds of one matmul on a GPU: the median of a few. Random numbers: ones would draw less power."""
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
    best, start, side = 0.0, time.perf_counter(), min(128, size)
    a = torch.ones(size, size, dtype=dtype, device=device)
    while time.perf_counter() - start < budget_s:
        before = time.perf_counter()
        float((a[:side, :side] @ a[:side, :side])[0, 0])
        seconds = time.perf_counter() - before
        best = max(best, 2.0 * side**3 / seconds)
        # where a product is slow, one of twice the side, eight times the work, would not end in time
        if 8 * seconds < budget_s:
            side = min(2 * side, size)
    return best
