"""A torch profiler trace of a few steps: `--runtime.profile 20 22` records those, counted from 1.

Every rank writes `trace/rank_<r>_steps_20_22.json` for chrome://tracing and Perfetto. Keep the range short, and past
the first steps, which compile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from brine.training.runtime import Runtime


class Profiler:
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
