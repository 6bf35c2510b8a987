"""Batches on the device before they are asked for.

    for batch in DevicePrefetch(loader, "cuda"):
        ...

While a step computes, the next batch is copied on a separate stream; the stream that computes waits for the copy on the
device, the host for nothing (from pinned memory, `Loader(pin_memory=True)`). One batch is ahead, so a device holds
two, and one more for each step that the host has run ahead: memory of a batch is kept until the device has done the
work enqueued until the next was asked for. Other devices get batches when they are asked for.
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
        """batches: such as a `Loader`, opened when iterated.

        prepare(batch): host work meanwhile; gives what has `to`.
        """
        self.batches, self.device = batches, torch.device(device)
        self._prepare = prepare or (lambda batch: batch)
        self.state: int | None = getattr(batches, "state", None)
        """The loader's state after the batch handed out last, to resume from: the loader itself may be one ahead."""

    def __iter__(self) -> Iterator[Any]:
        return self._iter_prefetched() if self.device.type == "cuda" else self._iter_synchronous()

    def _iter_synchronous(self) -> Iterator[Any]:
        for batch in self.batches:
            moved = self._prepare(batch).to(self.device, non_blocking=True)
            self.state = getattr(self.batches, "state", None)
            yield moved

    def _iter_prefetched(self) -> Iterator[Any]:
        copying = torch.cuda.Stream(self.device)
        source = iter(self.batches)
        # handed out, with the event after which the device has no more use for it
        in_flight: deque[tuple[Any, torch.cuda.Event]] = deque()
        try:
            following = self._copy(source, copying)
            while following is not None:
                moved, copied, state = following
                following = self._copy(source, copying)
                torch.cuda.current_stream(self.device).wait_event(copied)
                self.state = state
                yield moved
                while in_flight and in_flight[0][1].query():
                    in_flight.popleft()
                used = torch.cuda.Event()
                used.record(torch.cuda.current_stream(self.device))
                in_flight.append((moved, used))
                # only `in_flight` keeps it now
                del moved
        finally:
            # whoever copies on this stream next does so after the device's work
            copying.wait_stream(torch.cuda.current_stream(self.device))

    def _copy(self, source: Iterator[Any], copying: "torch.cuda.Stream") -> tuple[Any, Any, int | None] | None:
        """The next batch, the event of its arrival and the loader's state after it; None at the end."""
        batch = next(source, None)
        if batch is None:
            return None
        prepared = self._prepare(batch)
        with torch.cuda.stream(copying):
            moved = prepared.to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(copying)
        return moved, copied, getattr(self.batches, "state", None)
