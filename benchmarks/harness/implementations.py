"""One case: build each implementation, see that all compute the same thing, time them in turn.

An implementation that cannot be built, fails, runs out of memory or disagrees is left out *with its reason in the
record*, and the others continue; a comparison that silently drops a peer is no comparison. Agreement is checked on a
sample of the result before anything is timed, against the reference where a caller has it, else against the first
implementation that ran, ours: a peer under a wrong mask would be fast for nothing.

Times to get ready are kept separate from the rounds: `prepare_s` makes the mask in the implementation's own form,
`first_forward_s` is its first forward, imports and compilation included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.measure import CallTimer, SkippedError, reason_of, release, summarize, time_interleaved

OURS = "brine"


@dataclass
class Implementation:
    """An implementation that is ready to run."""

    forward: Callable[[], Tensor]
    """The operation."""
    leaves: tuple[Tensor, ...] = ()
    """What gradients are taken of; none for a forward alone."""
    grad: Tensor | None = None
    """Gradient of the result; None where it is a scalar."""
    sample: Callable[[Tensor], Tensor] = lambda out: out
    """Some numbers of the result, in an order that all implementations share."""


@dataclass(frozen=True)
class TimingLimits:
    """How long a case may take and how closely results must agree."""

    budget_s: float = 20.0
    """Seconds for the rounds of a case, warmups not counted."""
    min_rounds: int = 3
    """Rounds in any case."""
    max_rounds: int = 30
    """Rounds at most."""
    tolerance: float = 0.05
    """Largest difference between results, as a share of the largest number in the sample."""
    peak: bool = True
    """On CUDA, run each once more to measure its memory."""


def benchmark_implementations(
    builders: Mapping[str, Callable[[], Implementation]],
    *,
    device: str,
    timing_limits: TimingLimits,
    on_stage: Callable[[str], None] = lambda name: None,
    expected: Tensor | None = None,
) -> dict[str, dict[str, Any]]:
    """expected: the sample that a right result gives, where it is known; else the first implementation's is taken for
    it. -> {name: {"skipped": reason}} or {name: {"prepare_s", "first_forward_s", "difference", "peak_bytes", "rounds",
    "seconds", "over"}}, the last three as in `measure.summarize`."""
    results: dict[str, dict[str, Any]] = {}
    watches: dict[str, CallTimer] = {}
    expected = None if expected is None else expected.double().cpu()
    for name, build in builders.items():
        on_stage(name)
        failed = False
        try:
            results[name], watches[name], seen = _make_ready(build, device, expected, timing_limits.tolerance)
            expected = seen if expected is None else expected
        except SkippedError as error:
            results[name] = {"skipped": str(error)}
        except Exception as error:
            results[name] = {"skipped": reason_of(error)}
            failed = True
        if failed:
            # outside of the handler, where the trace no longer holds what failed
            release(device)
            # raises where the device answers no longer: the others would be blamed for it
            _wait(device)
    turns = time_interleaved(
        watches,
        device=device,
        budget_s=timing_limits.budget_s,
        min_rounds=timing_limits.min_rounds,
        max_rounds=timing_limits.max_rounds,
        on_implementation=on_stage,
    )
    for name, summary in summarize(turns.times, reference=OURS).items():
        results[name] |= summary
    for name, reason in turns.failures.items():
        results[name] = {"skipped": reason}
    if device == "cuda" and timing_limits.peak:
        for name in turns.times:
            on_stage(name)
            results[name]["peak_bytes"] = watches[name].peak_bytes()
    return results


def _make_ready(
    build: Callable[[], Implementation], device: str, expected: Tensor | None, tolerance: float
) -> tuple[dict[str, Any], CallTimer, Tensor]:
    start = time.perf_counter()
    built = build()
    _wait(device)
    built_at = time.perf_counter()
    with torch.set_grad_enabled(bool(built.leaves)):
        out = built.forward()
    _wait(device)
    result = {"prepare_s": built_at - start, "first_forward_s": time.perf_counter() - built_at, "difference": None}
    seen = built.sample(out.detach()).double().cpu()
    if not bool(seen.isfinite().all()):
        raise SkippedError("its result is not finite")
    if expected is not None:
        difference = float((seen - expected).abs().max() / expected.abs().max())
        if difference > tolerance:
            raise SkippedError(f"its result differs by {difference:.2g} of the largest value: not the same operation")
        result["difference"] = difference
    return result, CallTimer(built.forward, built.leaves, built.grad, device=device), seen


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
