"""What a benchmark's record says of the machine: processor, GPU, versions, commit, and what it does at best."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.measure import copy_rate, matmul_rate
from brine.training.logging.environment import commit, environment
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime

ROOT = Path(__file__).parents[2]
PEERS = ("triton", "flash-attn", "flash-attn-3", "flash-attn-4", "liger-kernel", "nvidia-cudnn-cu13", "transformers")


def hardware(device: str, threads: int, load: float) -> dict[str, Any]:
    """What `brine.training.logging.environment` records of the machine, with the GPU, the peers' versions and the
    load."""
    kind = torch.device(device).type
    found = environment(Runtime(device=kind, num_threads=threads, dtype="by case", deterministic=False), World())
    for unused in ("reasons", "ranks", "dtype", "compile"):
        del found[unused]
    for package in PEERS:
        try:
            found["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found["versions"][package] = None
    found["versions"]["torch"] = torch.__version__
    found["load_before"] = round(load, 2)
    found["commit"] = (commit() or "").rstrip("+") or None
    found["dirty"] = is_dirty()
    if kind == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found["gpu"] = {
            "name": gpu.name,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "multiprocessors": gpu.multi_processor_count,
            "capability": f"{gpu.major}.{gpu.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver_and_limits": _nvidia_smi(),
        }
    return found


def is_dirty() -> bool | None:
    """Do files of the commit differ from it, `benchmarks/results` apart? None outside a checkout."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", "."]
    command += [":(exclude)benchmarks/results"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return bool(done.stdout.strip())


def roofline(device: str, dtypes: dict[str, torch.dtype], quick: bool, *, copies: bool = False) -> dict[str, float]:
    """What this device does at best, measured now and printed -> {"<dtype>_flops_per_s", "copy_bytes_per_s"}."""
    budget_s = 0.02 if quick else 1.0
    found = {
        f"{name}_flops_per_s": matmul_rate(device, dtype, size=256 if quick else None, budget_s=budget_s)
        for name, dtype in sorted(dtypes.items())
    }
    if copies:
        found["copy_bytes_per_s"] = copy_rate(device, size=2**20 if quick else 2**28, budget_s=budget_s)
    for key, rate in found.items():
        print(f"roofline, measured now: {key} = {rate:.3g}", flush=True)
    return found


def _nvidia_smi() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader", "-i", "0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
