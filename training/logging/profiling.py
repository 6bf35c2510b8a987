"""Time within a step: seconds of the device by phase, without waiting for it, and traces of torch's profiler.

On CUDA a phase lies between two events of the current stream, elsewhere between two times of `time.perf_counter`; the
times of a step are read a step later. `--runtime.profile 20 22` records the steps 20 to 22, counted from 1: every rank
writes `trace/rank_<r>_steps_20_22.json` for Perfetto. Keep the range short, and past the first steps, which compile.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from brine.training.runtime import Runtime


class _HostEvent:
    """A time of the host's clock, with the methods of an event."""

    def __init__(self):
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: "_HostEvent") -> float:
        return 1e3 * (later.at - self.at)


class PhaseTimes:
    """Phases of one step; the device may not have reached them yet."""

    def __init__(self, phases: list[tuple[str, Any, Any]]):
        self._phases = phases
        self._seconds: dict[str, float] = {}

    def read(self) -> dict[str, float]:
        """Seconds by phase, repeated ones added up; waits where the device is not that far."""
        for name, start, end in self._phases:
            end.synchronize()
            self._seconds[name] = self._seconds.get(name, 0.0) + start.elapsed_time(end) / 1e3
        # events return to the driver
        self._phases = []
        return dict(self._seconds)


class PhaseTimer:
    """Times the phases of one step after another."""

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self._phases: list[tuple[str, Any, Any]] = []

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


class StepProfiler:
    """Records the steps that `runtime.profile` names; does nothing without."""

    def __init__(self, folder: Path, *, runtime: Runtime, rank: int):
        self.folder, self.runtime, self.rank = Path(folder), runtime, rank
        self._open: torch.profiler.profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Context of one step, numbered from 1."""
        first, last = self.runtime.profile or (0, -1)
        if first <= number <= last and self._open is None:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.runtime.device == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._open = torch.profiler.profile(activities=activities, record_shapes=True)
            self._open.start()
        yield
        if self._open is not None and number >= last:
            self._open.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open.export_chrome_trace(str(self.folder / f"rank_{self.rank}_steps_{first}_{last}.json"))
            self._open = None
