"""Environment and resources of a run: versions, processor, memory. Records for the report; nothing reads them back."""

import hashlib
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import brine
from brine.common.files import file_digest, read_json, write_json
from brine.common.plugins import installed_version
from brine.common.processes import processor, usable_cores
from brine.training.logging.device_specs import datasheet_peak
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime, peak_resident_gib

PACKAGES = ("torch", "numpy", "tokenizers", "torchaudio", "pillow", "soundfile", "av")


def environment(runtime: Runtime, world: World) -> dict[str, Any]:
    """Versions, processor, commit, and the runtime's choices with their reasons."""
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
        **code_version(),
        "versions": {name: installed_version(name) for name in PACKAGES},
    }


def commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it. In a copy without .git the variable BRINE_COMMIT or a
    file COMMIT at its root (`git rev-parse --short=12 HEAD > COMMIT` before copying); else None."""
    root = Path(brine.__file__).parents[1]
    if commit := os.environ.get("BRINE_COMMIT", "").strip():
        return commit
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--", ".", ":(exclude)COMMIT") else "")
    except (OSError, subprocess.SubprocessError):
        try:
            return (root / "COMMIT").read_text(encoding="utf-8").strip() or None
        except OSError:
            return None


def code_version() -> dict[str, str | None]:
    """{commit, diff}: `commit`, and where files differ from it the SHA-256 of the differences and of what git does not
    know; None for a tree that is clean, or that git cannot read."""
    found, root, diff = commit(), Path(brine.__file__).parents[1], None
    if found is not None and found.endswith("+"):
        try:
            text = hashlib.sha256(_git(root, "diff", "--binary", "HEAD").encode())
            for name in _git(root, "ls-files", "--others", "--exclude-standard").splitlines():
                text.update(f"{name}\0{file_digest(root / name)}\n".encode())
            diff = text.hexdigest()
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            pass
    return {"commit": found, "diff": diff}


def _git(root: Path, *args: str) -> str:
    command = ["git", "-C", str(root), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def peak_rss_gib(run: Path) -> float:
    """Peak resident memory of this run so far, GiB, over all its starts: this process's peak and that of its largest
    helper process, added. Kept in `run`/memory.json."""
    kept = read_json(run / "memory.json") or {}
    peak = round(max(peak_resident_gib() + peak_resident_gib(resource.RUSAGE_CHILDREN), kept.get("peak_rss_gib", 0)), 2)
    write_json(run / "memory.json", {"peak_rss_gib": peak, "process": os.getpid()})
    return peak
