"""What a run ran on and what it took: versions, processor, memory. Records for the report; nothing reads them back."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import brine
from brine.common.files import read_json, write_json
from brine.training.logging.device_specs import datasheet_peak
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime, usable_cores

PACKAGES = ("torch", "numpy", "tokenizers", "torchaudio", "pillow", "soundfile", "av")


def environment(runtime: Runtime, world: World) -> dict[str, Any]:
    """Versions, processor, commit, and the runtime's choices with their reasons."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": usable_cores(),
        "threads": runtime.num_threads,
        "ranks": world.size,
        "device": runtime.device,
        "dtype": runtime.dtype,
        "compile": runtime.compile,
        "reasons": runtime.reasons,
        "mfu_peak": str(datasheet_peak(runtime.device, runtime.dtype) or "measured when training begins"),
        "commit": commit(),
        "versions": versions,
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it. A copy without .git tells by the variable
    BRINE_COMMIT or a file COMMIT at its root (`git rev-parse --short=12 HEAD > COMMIT` before copying); else None."""
    root = Path(brine.__file__).parents[1]
    if told := os.environ.get("BRINE_COMMIT", "").strip():
        return told
    try:
        words = [
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", ".", ":(exclude)COMMIT"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        try:
            return (root / "COMMIT").read_text(encoding="utf-8").strip() or None
        except OSError:
            return None
    return words[0] + ("+" if words[1] else "")


def peak_rss_gib(run: Path) -> float:
    """Most resident memory of this run so far, GiB, over all its starts: this process's peak and that of its largest
    helper process, added. Kept in `run`/memory.json."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    peaks = [resource.getrusage(who).ru_maxrss / unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    kept = read_json(run / "memory.json") or {}
    peak = round(max(sum(peaks), kept.get("peak_rss_gib", 0.0)), 2)
    write_json(run / "memory.json", {"peak_rss_gib": peak, "process": os.getpid()})
    return peak
