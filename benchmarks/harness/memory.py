"""Peak memory of one call on the CPU, measured in its own process.

    python -m benchmarks.harness.memory benchmarks.kernels.attention:memory_call '{"num_tokens": 32768}'

What is reported is the growth of resident memory: the most that the process held while the call ran, minus what it
held when the inputs were ready. The child runs the same call on a toy problem first, so that imports and thread pools
are there before; then it makes the inputs, hands freed memory back, sets the kernel's high-water mark to the present
(`/proc/self/clear_refs`), runs the call, and reads the mark (`VmHWM`). Resident memory counts what any library takes,
scratch of matmuls included, which a count of tensors would miss; freed memory leaves it immediately, since the
child's allocator is set to map every block of 64 KiB and more.

Where there is no /proc the growth of the process's own maximum (`ru_maxrss`) is taken instead, which is too low when
making the inputs took more than the call; "method" in the result says which it was. It says nothing about GPUs
(`CallTimer.peak_bytes`), nor about page cache.

A target is a function `call(tiny: bool, **arguments) -> run`, where calling `run()` does the work and returns the
tensors that remain.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}


def peak_growth(target: str, arguments: dict[str, Any], *, timeout_s: float = 900.0, ranks: int = 1) -> dict[str, Any]:
    """Run `target` ("module:function") in a child -> {"growth_bytes", "kept_bytes", "inputs_bytes", "method"}.

    kept_bytes: the tensors that the call returned. inputs_bytes: resident memory before the call, interpreter and
    libraries included. A child that fails or is killed gives {"skipped": reason}. ranks: children that find each other
    as torchrun's do (`brine.training.parallel.distributed.init_distributed`); given is the one that grew most.
    """
    command = [sys.executable, "-m", "benchmarks.harness.memory", target, json.dumps(arguments)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        meet = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        env = os.environ | MAPPED | (meet if ranks > 1 else {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        children.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
    # pipes are read side by side: a child that waits to be heard keeps the others waiting
    with ThreadPoolExecutor(ranks) as readers:
        try:
            spoken = list(readers.map(lambda child: child.communicate(timeout=timeout_s), children))
        except subprocess.TimeoutExpired:
            return {"skipped": f"took longer than {timeout_s:.0f} s"}
        finally:
            for child in children:
                child.kill()
    for child, (_, stderr) in zip(children, spoken, strict=True):
        if child.returncode:
            last = (stderr.strip().splitlines() or ["no message"])[-1][:300]
            return {"skipped": f"its process ended with {child.returncode}: {last}"}
    return max((json.loads(stdout.splitlines()[-1]) for stdout, _ in spoken), key=lambda each: each["growth_bytes"])


def measure(call: Callable[..., Callable[[], Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    """What `peak_growth` gives, for a call in this process; meant for a fresh one."""
    call(tiny=True, **arguments)()
    run = call(tiny=False, **arguments)
    gc.collect()
    _trim()
    marked = _reset_high_water()
    before = _status("VmRSS") if marked else _max_rss()
    kept = run()
    after = _status("VmHWM") if marked else _max_rss()
    return {
        "growth_bytes": max(0, after - before),
        "kept_bytes": sum(tensor.numel() * tensor.element_size() for tensor in kept),
        "inputs_bytes": before,
        "method": "VmHWM" if marked else "ru_maxrss",
    }


def _trim() -> None:
    """Hand freed memory back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    """A size in bytes from this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {name}")


def _max_rss() -> int:
    # Linux counts KiB, macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure the target named on the command line and print the result as JSON."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.harness.memory", description=__doc__.splitlines()[0])
    made.add_argument("target", metavar="MODULE:FUNCTION", help="called as function(tiny=.., **arguments)")
    made.add_argument("arguments", type=json.loads, help="as JSON")
    options = made.parse_args()
    module, _, name = options.target.partition(":")
    print(json.dumps(measure(getattr(importlib.import_module(module), name), options.arguments)))


if __name__ == "__main__":
    main()
