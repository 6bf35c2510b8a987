"""Seconds of the device in phases of a step, measured without waiting for it.

    clock = PhaseTimer("cuda")
    with clock("teacher"):
        ...                        any number of times in a step; phases may nest
    times = clock.take()           the step is over
    times.read()                   a step later: {"teacher": 0.12}

On CUDA a phase lies between two events of the current stream; `read` waits for them. Elsewhere `time.perf_counter` is
used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _HostEvent:
    """A moment of the host's clock, like an event."""

    def __init__(self):
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """It is over."""

    def elapsed_time(self, later: _HostEvent) -> float:
        """Milliseconds until a later moment."""
        return 1e3 * (later.at - self.at)


class PhaseTimes:
    """Phases of one step; the device may not have got to them yet."""

    def __init__(self, phases: list[tuple[str, object, object]]):
        self._phases, self._seconds = phases, None

    def read(self) -> dict[str, float]:
        """Seconds by phase, those that came several times added up; waits where the device is not that far."""
        if self._seconds is None:
            self._seconds = {}
            for name, start, end in self._phases:
                end.synchronize()
                self._seconds[name] = self._seconds.get(name, 0.0) + start.elapsed_time(end) / 1e3
            # events go back to the driver
            self._phases = []
        return dict(self._seconds)


class PhaseTimer:
    """Times the phases of one step after another."""

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self._phases: list[tuple[str, object, object]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what is enqueued inside as the phase `name`; nothing is counted where it raises."""
        start = self._mark()
        yield
        self._phases.append((name, start, self._mark()))

    def take(self) -> PhaseTimes:
        """The phases since the last `take`: those of the step that ends here."""
        taken, self._phases = PhaseTimes(self._phases), []
        return taken

    def _mark(self):
        if self.device.type != "cuda":
            return _HostEvent()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
