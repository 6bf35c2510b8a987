"""What devices can do by their makers' data sheets, and how much of that the planner expects.

    GPUS["h200"].matmul_flops        peak of dense bfloat16 products, FLOP/s

Sheets quote tensor-core rates with 2:4 sparsity and NVLink as the sum of both directions; both are halved here.
Assumed, as no sheet says it: one 400 Gbit/s port to a GPU between machines (200 for A100), PCIe's 16 lanes to the host,
2 TB of host memory to eight GPUs. `AssumedEfficiency` is a guess, in one place so that a measurement can replace it.
Nothing was measured here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class AssumedEfficiency:
    """Shares of a device's peaks that training code is expected to reach: assumptions."""

    matmul: float = 0.65
    """Of `matmul_flops`, by products as wide as a block's."""
    global_attention: float = 0.40
    """Of `matmul_flops`, by attention over wide masks; operations that are really done, those done again included."""
    local_attention: float = 0.20
    """Of `matmul_flops`, by attention over windows, whose tiles are partly masked."""
    memory: float = 0.75
    """Of `memory_bytes_per_s`, by norms, activations, sums and the optimiser."""
    network: float = 0.70
    """Of each link's rate, by collectives and the ring."""


@dataclass(frozen=True)
class DeviceSpec:
    """One kind of device and the machine that it sits in."""

    name: str
    kind: str
    """"cuda" or "cpu"."""
    matmul_flops: float
    """Dense bfloat16 FLOP/s with float32 sums."""
    memory_bytes: float
    """Memory of one device."""
    memory_bytes_per_s: float
    """Its bandwidth."""
    link_bytes_per_s: float
    """To the other devices of its machine, one direction."""
    network_bytes_per_s: float
    """To other machines, per device, one direction."""
    host_bytes_per_s: float
    """To host memory, one direction."""
    devices_per_machine: int
    source: str
    """Where the numbers are from."""
    host_memory_bytes: float = 250e9
    """Memory of the host for each of them."""
    reserve: float = 0.06
    """Share of the memory left alone: the driver's context, communication buffers, fragments of the allocator."""
    host_reserve: float = 0.1
    """Share of the host's memory left alone: the system, libraries, the loader."""
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
"""By the name that the command line takes."""
NAMES = (*GPUS, "cpu")
OTHER_VARIANTS = frozenset({"PCIE", "NVL", "MIG"})
"""Words in a card's name: it is another, with less of everything, than the sheet of its family is about."""


def datasheet_of(name: str) -> DeviceSpec | None:
    """The data sheet of a card by the name that its driver gives ("NVIDIA H100 80GB HBM3"); None for an unknown one,
    and for a version of a known one that has other rates (PCIe, NVL, a MIG part). Its memory may differ."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    if words & OTHER_VARIANTS:
        return None
    return next((sheet for key, sheet in GPUS.items() if key.split("-")[0].upper() in words), None)
