"""How long the device spent in phases of a step, asked without waiting for it.

    clock = StepClock("cuda")
    with clock("teacher"):
        ...                        any number of times in a step; phases may lie within each other
    times = clock.take()           the step is over
    ...                            a step later
    times.read()                   {"teacher": 0.12}, seconds

A device is told what to do long before it does it, so the host's clock sees how long the telling took. On CUDA a phase
lies between two events in the stream that was current, and their distance is read when the device has passed them:
`read` waits for it, so read a step one step late, or after something else that waited for the step. Time in which
the device had nothing to do within a phase counts as the phase's. Elsewhere, where work is done when the call returns,
`time.perf_counter` is the clock.

Not run on a card so far; tested with events that are made up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _HostMark:
    """A moment of the host's clock, like an event."""

    def __init__(self):
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """It is over."""

    def elapsed_time(self, later: _HostMark) -> float:
        """Milliseconds until a later moment."""
        return 1e3 * (later.at - self.at)


class StepTimes:
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


class StepClock:
    """Times the phases of one step after another."""

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self._phases: list[tuple[str, object, object]] = []
        self._before: StepTimes | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what is enqueued inside as the phase `name`; nothing is counted where it raises."""
        start = self._mark()
        yield
        self._phases.append((name, start, self._mark()))

    def take(self) -> StepTimes:
        """The phases since the last `take`: those of the step that ends here."""
        taken, self._phases = StepTimes(self._phases), []
        return taken

    def read(self) -> dict[str, float]:
        """End a step and tell of the one before: seconds by phase, {} at first."""
        before, self._before = self._before, self.take()
        return before.read() if before is not None else {}

    def _mark(self):
        if self.device.type != "cuda":
            return _HostMark()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
