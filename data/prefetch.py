"""Batches on the device before they are asked for.

    for batch in DevicePrefetch(loader, "cuda"):
        ...

While a step computes, the next batch is taken from the loader and copied on a stream of its own; the stream that
computes waits for the copy on the device, the host for nothing. One batch is ahead, so a device holds two, and one more
for each step that the host has run ahead. `prepare` does what else a batch needs on the host (a rank's share of its
rows, its masks), at the same time.

What was handed out belongs to the stream that was current, and to the work enqueued there until the next was asked
for: its memory is kept until the device has done that work. On the CPU, and on devices that are not CUDA's, nothing is
ahead: batches are made and moved when they are asked for. Order and contents are those of the loader everywhere.

A copy does not wait only from page-locked memory (`Loader(pin_memory=True)`); from any other the host waits for the
copy, not for the step. Not run on a GPU so far; the order of events is tested with a device that is made up.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch


class DevicePrefetch:
    """Iterates what `prepare` makes of each batch, on a device; see the module."""

    def __init__(
        self, batches: Iterable[Any], device: torch.device | str, *, prepare: Callable[[Any], Any] | None = None
    ):
        """batches: such as a `Loader`, opened when iteration begins. prepare(batch): gives anything that has
        `to(device, non_blocking=)`; the batch itself by default."""
        self.batches, self.device = batches, torch.device(device)
        self._prepare = prepare or (lambda batch: batch)
        self.state: int | None = getattr(batches, "state", None)
        """The loader's state after the batch that was handed out last, which is what to resume from: the loader itself
        may be one ahead."""

    def __iter__(self) -> Iterator[Any]:
        return self._ahead() if self.device.type == "cuda" else self._when_asked()

    def _when_asked(self) -> Iterator[Any]:
        for batch in self.batches:
            moved = self._prepare(batch).to(self.device, non_blocking=True)
            self.state = getattr(self.batches, "state", None)
            yield moved

    def _ahead(self) -> Iterator[Any]:
        copying = torch.cuda.Stream(self.device)
        source = iter(self.batches)
        # handed out, with the event after which the device has no more use for it
        lent: deque[tuple[Any, torch.cuda.Event]] = deque()
        try:
            following = self._copy(source, copying)
            while following is not None:
                moved, copied, state = following
                following = self._copy(source, copying)
                torch.cuda.current_stream(self.device).wait_event(copied)
                self.state = state
                yield moved
                while lent and lent[0][1].query():
                    lent.popleft()
                used = torch.cuda.Event()
                used.record(torch.cuda.current_stream(self.device))
                lent.append((moved, used))
                # only `lent` keeps it now
                del moved
        finally:
            # what is lent is let go: whoever copies on this stream next does so after the device's work
            copying.wait_stream(torch.cuda.current_stream(self.device))

    def _copy(self, source: Iterator[Any], copying: "torch.cuda.Stream") -> tuple[Any, Any, int | None] | None:
        """The next batch, on its way to the device, the event of its arrival, and the loader's state after it; None at
        the end."""
        batch = next(source, None)
        if batch is None:
            return None
        prepared = self._prepare(batch)
        with torch.cuda.stream(copying):
            moved = prepared.to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(copying)
        return moved, copied, getattr(self.batches, "state", None)
