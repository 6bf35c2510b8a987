"""A process that does some items of a stage, one after the other; `benchmarks.gpu` starts it.

    python -m benchmarks.gpu.child --machine-info                      what this machine is, as JSON on the last line
    python -m benchmarks.gpu.child --stage S --items a b ..     for the parent; see `benchmarks.gpu`

Before each item, and whenever another implementation is at work, it says so in the file `--now`, where the parent looks
when this process dies or hangs. An item that raises is noted and the next one begins, unless the GPU's context is
broken: then this process ends with code 3, and the parent starts another.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import ResultsLog, error_of, forget_choices
from benchmarks.gpu.stage import STAGES, StageContext

PACKAGES = (
    "torch", "triton", "torchaudio", "numpy", "safetensors", "tokenizers", "transformers", "flash-attn", "flash-attn-3",
    "flash-attn-4", "nvidia-cutlass-dsl", "liger-kernel", "nvidia-cudnn-cu13", "tyro", "av", "soundfile",
    "datasketch", "pytest", "pytest-xdist",
)  # fmt: skip
BROKEN = 3
"""Exit code of a process whose GPU answers no longer."""


def machine_info(device: str = "auto") -> dict[str, Any]:
    """GPU, driver, versions, commit. Nothing in here raises for what is missing."""
    import importlib.metadata
    import platform

    import torch

    from benchmarks.harness.machine import is_dirty
    from brine.common.processes import processor
    from brine.training.logging.environment import commit

    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    versions["torch"] = torch.__version__
    on_gpu = torch.cuda.is_available() and device != "cpu"
    found = {
        "device": "cuda" if on_gpu else "cpu",
        "gpu": None,
        "driver": None,
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "commit": (commit() or "").rstrip("+") or None,
        "dirty": is_dirty(),
        "versions": versions,
    }
    if on_gpu:
        gpu = torch.cuda.get_device_properties(0)
        found["gpu"] = gpu.name
        found["capability"] = f"{gpu.major}.{gpu.minor}"
        found["gpu_gib"] = round(gpu.total_memory / 2**30, 1)
        found["num_gpus"] = torch.cuda.device_count()
        found["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0")
        found["versions"]["cudnn"] = torch.backends.cudnn.version()
    return found


def machine() -> dict[str, Any]:
    """Compilers and memory, which some things need: gcc and Python.h for Triton's launcher, g++ for CPU code."""
    memory = {}
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith(("MemTotal", "MemAvailable")):
            memory[line.split(":")[0]] = round(int(line.split()[1]) / 2**20, 1)
    shared = shutil.disk_usage("/dev/shm").total / 2**30 if Path("/dev/shm").exists() else None
    return {
        "gcc": (_said("gcc", "--version") or "").partition("\n")[0] or None,
        "g++": (_said("g++", "--version") or "").partition("\n")[0] or None,
        "python_h": (Path(sysconfig.get_path("include")) / "Python.h").exists(),
        "memory_gib": memory,
        "shm_gib": shared,
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "nvidia_smi": _said(
            "nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.sm",
            "--format=csv,noheader",
        ),
    }  # fmt: skip


def work(options: argparse.Namespace) -> int:
    """Do the items -> exit code."""
    stage = STAGES[options.stage]
    module = stage.module(options.module)
    known = {item.name: item for item in module.items(options.toy)}
    without = json.loads(options.without)

    began, device_error = 0.0, []

    def now(item: str, implementation_name: str = "", ended: bool = False) -> None:
        partial = options.now.with_suffix(".partial")
        partial.write_text(
            json.dumps(
                {
                    "item": item,
                    "implementation_name": implementation_name,
                    "began": began,
                    "ended": ended,
                    "device_error": device_error,
                }
            )
        )
        os.replace(partial, options.now)

    for name in options.items:
        context = StageContext(
            stage=stage.name, toy=options.toy, device=options.device, out=options.out, work=options.work,
            corpus=options.corpus, host_gib=options.host_gib, gpu_gib=options.gpu_gib, end=options.end,
            item=known[name],
            without=frozenset(without.get(name, ())) | frozenset(without.get("", ())),
            on_work=lambda implementation_name, name=name: now(name, implementation_name),
        )  # fmt: skip
        began = time.time()
        now(name)
        forget_choices()
        if context.left_s() < known[name].least_s:
            context.record(skipped=f"wants {known[name].least_s:.0f} s, {context.left_s():.0f} s are left")
            device_error.append(name)
            now(name, ended=True)
            continue
        broken = False
        try:
            module.run(known[name], context)
        except Exception as error:
            ResultsLog(options.out).write(
                stage=stage.name, case=name, toy=options.toy, **error_of(error), s=round(time.time() - began, 1)
            )
            device_error.append(name)
            broken = _broken(options.device)
        if broken:
            # not ended: whoever was at work is left out, and the item is done again
            return BROKEN
        now(name, ended=True)
        if options.device == "cuda":
            _release()
    return 0


def _release() -> None:
    """Give back what the last item held: the next may want all of the GPU."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _broken(device: str) -> bool:
    """After an error: does the GPU still answer?"""
    if device != "cuda":
        return False
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.ones(1, device="cuda").item()
    except Exception:
        return True
    return False


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _end_with_parent() -> None:
    """A child of a parent that was killed would hold the GPU: it ends itself, and what it started."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str] | None = None) -> int:
    """Run the command -> exit code."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu.child", description=__doc__.splitlines()[0])
    made.add_argument("--machine-info", action="store_true")
    made.add_argument("--stage", choices=sorted(STAGES))
    made.add_argument("--items", nargs="+", default=[])
    made.add_argument("--toy", action="store_true")
    made.add_argument("--device", default="auto")
    made.add_argument("--module", default="")
    for name in ("--out", "--work", "--now", "--corpus"):
        made.add_argument(name, type=Path)
    made.add_argument("--host-gib", type=float, default=0.0)
    made.add_argument("--gpu-gib", type=float, default=0.0)
    made.add_argument("--end", type=float, default=0.0)
    made.add_argument("--without", default="{}")
    options = made.parse_args(arguments)
    if options.machine_info:
        print(json.dumps(machine_info(options.device)))
        return 0
    _end_with_parent()
    # the parent asks where it is before it ends it
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    return work(options)


if __name__ == "__main__":
    sys.exit(main())
