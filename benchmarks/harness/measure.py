"""Clocks: how long a call takes, fairly, and what the machine could do at best.

Machines drift: they warm up, clock down, and run other people's work. So implementations are not measured one after the
other but in turn, A B C B A C .., and ratios are taken within a round, where all have met the same machine; the median
of the rounds' ratios is what a target is compared with. Medians come with the 20th and 80th percentile, since a mean
would let one hiccup decide.

Every implementation is warmed up before the rounds. Where a sample takes more than `LONG_S` its warmup is counted as
its first round: at that length caches and page faults change nothing, and a third of an hour is saved. Short calls are
repeated within a sample until it lasts `MIN_SAMPLE_S`.

On CUDA the time is between two events on the stream, and a buffer larger than the level-2 cache is overwritten before
each call, as triton's `do_bench` does; on the CPU it is wall-clock time. Not measured: energy, clocks, and launch gaps
that several streams could hide.
"""

from __future__ import annotations

import functools
import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Phases = dict[str, float]
"""Seconds by phase of one sample; "total" is always among them."""

LONG_S = 10.0
MIN_SAMPLE_S = {"cpu": 0.05, "cuda": 0.005}
MAX_CALLS = 50
FLUSH_BYTES = 256 * 2**20
PERCENTILES = {"median": 0.5, "p20": 0.2, "p80": 0.8}


class SkippedError(Exception):
    """An implementation does not take part; the message says why."""


def reason_of(error: BaseException) -> str:
    """One line that says why an implementation failed."""
    if isinstance(error, SkippedError):
        return str(error)
    words = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {words[0][:300]}"


def release(device: str) -> None:
    """Give back what an implementation that failed may still hold."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


class CallTimer:
    """Times `forward()` and the gradients of its result with respect to `leaves`; without leaves the forward alone.

    Calling it gives one sample: the mean over `calls` calls of "forward", "backward" and "total" seconds.
    """

    def __init__(
        self, forward: Callable[[], Tensor], leaves: tuple[Tensor, ...] = (), grad: Tensor | None = None, *, device: str
    ):
        self.forward, self.leaves, self.grad, self.device = forward, leaves, grad, device
        self.calls = 1

    def __call__(self) -> Phases:
        clock = self._on_cuda if self.device == "cuda" else self._on_cpu
        samples = clock()
        phases = {"forward": 0.0, "backward": 0.0, "total": 0.0} if self.leaves else {"total": 0.0}
        for forward_s, backward_s in samples:
            if self.leaves:
                phases["forward"] += forward_s / len(samples)
                phases["backward"] += backward_s / len(samples)
            phases["total"] += (forward_s + backward_s) / len(samples)
        return phases

    def calibrate(self, seconds: float) -> None:
        """Set the calls of a sample, given how long one takes."""
        self.calls = int(np.clip(np.ceil(MIN_SAMPLE_S[self.device] / max(seconds, 1e-9)), 1, MAX_CALLS))

    def peak_bytes(self) -> int | None:
        """Peak GPU memory that one call holds beyond what was there before it; None on the CPU (see `memory.py`)."""
        if self.device != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._once()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _once(self) -> None:
        with torch.set_grad_enabled(bool(self.leaves)):
            out = self.forward()
        if self.leaves:
            torch.autograd.grad(out, self.leaves, self.grad)

    def _on_cpu(self) -> list[tuple[float, float]]:
        samples = []
        for _ in range(self.calls):
            start = time.perf_counter()
            with torch.set_grad_enabled(bool(self.leaves)):
                out = self.forward()
            middle = time.perf_counter()
            if self.leaves:
                torch.autograd.grad(out, self.leaves, self.grad)
            samples.append((middle - start, time.perf_counter() - middle))
            del out
        return samples

    def _on_cuda(self) -> list[tuple[float, float]]:
        marks = []
        for _ in range(self.calls):
            _flush_buffer().zero_()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
            events[0].record()
            with torch.set_grad_enabled(bool(self.leaves)):
                out = self.forward()
            events[1].record()
            if self.leaves:
                torch.autograd.grad(out, self.leaves, self.grad)
            events[2].record()
            marks.append(events)
            del out
        torch.cuda.synchronize()
        return [(a.elapsed_time(b) / 1e3, b.elapsed_time(c) / 1e3 if self.leaves else 0.0) for a, b, c in marks]


@dataclass
class InterleavedTimings:
    """What the implementations took, round by round."""

    times: dict[str, list[Phases]] = field(default_factory=dict)
    """times[name][r]; all that finished have the same number of rounds."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why an implementation did not finish."""


def time_interleaved(
    samples: Mapping[str, Callable[[], Phases]],
    *,
    device: str = "cpu",
    budget_s: float,
    min_rounds: int = 3,
    max_rounds: int = 30,
    on_implementation: Callable[[str], None] = lambda name: None,
) -> InterleavedTimings:
    """Warm all up, then let them run in turn for about `budget_s`, but at least `min_rounds` rounds.

    Each round has its own order, the same in every run: in a fixed order one and the same kernel took up to 9 %
    longer at one position than at another on an H200, whose clock follows what it did just before.
    One that raises is left out from there on, with the reason, and the others continue.
    """
    turns = InterleavedTimings()

    def turn(name: str) -> Phases | None:
        on_implementation(name)
        try:
            return samples[name]()
        except Exception as error:
            turns.failures[name] = reason_of(error)
        release(device)
        return None

    warm = {name: turn(name) for name in samples}
    warm = {name: phases for name, phases in warm.items() if phases is not None}
    long = any(phases["total"] > LONG_S for phases in warm.values())
    round_s = 0.0
    for name, phases in warm.items():
        if hasattr(samples[name], "calibrate"):
            samples[name].calibrate(phases["total"])
        round_s += phases["total"] * getattr(samples[name], "calls", 1)
        turns.times[name] = [phases] if long else []
    rounds = int(np.clip(budget_s / max(round_s, 1e-9), min_rounds, max(min_rounds, max_rounds))) - long
    for number in range(rounds):
        for name in random.Random(number).sample(list(turns.times), len(turns.times)):
            phases = turn(name)
            if phases is None:
                del turns.times[name]
            else:
                turns.times[name].append(phases)
    return turns


def spread(values: list[float]) -> dict[str, float]:
    """{"median", "p20", "p80"} of some numbers."""
    return {name: float(np.quantile(values, at)) for name, at in PERCENTILES.items()}


def summarize(times: Mapping[str, list[Phases]], *, reference: str) -> dict[str, dict]:
    """Seconds of each implementation by phase, with "rounds", and its time over the reference's, taken within rounds.

    -> {name: {"rounds", "seconds": {phase: spread}, "over": {phase: spread}}}; no "over" for the reference itself, nor
    where it did not finish.
    """
    results = {}
    for name, rounds in times.items():
        result = {"rounds": len(rounds)}
        phases = rounds[0] if rounds else {}
        result["seconds"] = {phase: spread([r[phase] for r in rounds]) for phase in phases}
        if name != reference and times.get(reference):
            pairs = list(zip(rounds, times[reference], strict=True))
            shared = [phase for phase in phases if phase in times[reference][0]]
            result["over"] = {phase: spread([r[phase] / ours[phase] for r, ours in pairs]) for phase in shared}
        results[name] = result
    return results


def matmul_rate(device: str, dtype: torch.dtype, *, size: int | None = None, budget_s: float = 1.0) -> float:
    """FLOP/s of the best of several square matmuls of normal numbers: the roofline of what multiplies.

    Normal numbers, because a GPU fed with ones draws less power and clocks higher than it will at work.
    """
    size = size or (8192 if device == "cuda" else 2048)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / _best(lambda: a @ b, device, budget_s)


def copy_rate(device: str, *, size: int = 2**28, budget_s: float = 0.5) -> float:
    """Bytes/s of the best of several copies, bytes read and bytes written added: the roofline of what only reads."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * size / _best(lambda: target.copy_(source), device, budget_s)


def _best(call: Callable[[], Tensor], device: str, budget_s: float) -> float:
    watch = CallTimer(call, device=device)
    watch()
    best, end = float("inf"), time.perf_counter() + budget_s
    while time.perf_counter() < end:
        best = min(best, watch()["total"])
    return best


@functools.cache
def _flush_buffer() -> Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
