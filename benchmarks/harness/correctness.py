"""Tests before measurements: results of an incorrect kernel are not recorded.

The operation's own tests run in a process of their own (`run_tests`); small cases are then compared with the
reference on the very device that is measured (`agree`, `verified`), where part of the tests may have run by
interpreter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.implementations import Implementation

ROOT = Path(__file__).parents[2]


class TestsFailedError(RuntimeError):
    """The operation's tests failed, so there is nothing to report."""

    __test__ = False


def run_tests(patterns: tuple[str, ...], *, processes: int = 0) -> dict[str, Any]:
    """Run the tests that match, seen from the repository's root -> {"command", "passed", "seconds"}.

    Raises TestsFailedError, with what the tests said last, where one fails or none is found.
    """
    files = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))
    if not files:
        raise TestsFailedError(f"found no tests at {', '.join(patterns)}")
    command = [sys.executable, "-m", "pytest", *files, "-q", "-n", str(processes), "-p", "no:cacheprovider"]
    shown = "python " + " ".join(command[1:])
    print(f"tests first: {shown}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TestsFailedError(f"{shown} failed:\n" + "\n".join(done.stdout.strip().splitlines()[-15:]))
    return {"command": shown, "passed": True, "seconds": round(time.perf_counter() - start, 1)}


def agree(what: str, ours: Implementation, truth: Implementation, tolerance: float) -> None:
    """Result and gradients of ours on this very device against the specification's.

    Raises TestsFailedError where they differ by more than `tolerance` of the largest value.
    """
    found = []
    for built in (ours, truth):
        out = built.forward()
        grads = torch.autograd.grad(out, built.leaves, built.grad) if built.leaves else ()
        found.append([x.detach().double() for x in (out, *grads)])
    for i, (mine, true) in enumerate(zip(*found, strict=True)):
        error = float((mine - true).abs().max() / true.abs().max())
        # written so that NaN fails
        if not error <= tolerance:
            name = f"gradient {i}" if i else "the result"
            raise TestsFailedError(f"on this device, {what}: {name} is off by {error:.2g} of the largest value")


def verified(record: dict[str, Any], options: argparse.Namespace, verify: Callable[[], None]) -> None:
    """Hold small cases against the specification on the GPU. Raises TestsFailedError; notes it for --tests report."""
    try:
        verify()
    except TestsFailedError as error:
        if options.tests == "gate":
            raise
        record["off_on_this_device"] = str(error)
    # children measure with nearly all of the GPU
    torch.cuda.empty_cache()
