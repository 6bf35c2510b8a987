"""What waits in host memory while the device computes: copied out beside the layers that follow, fetched ahead.

    away = Offload(StreamLink(device))
    with away.hooks(wanted=lambda tensor: tensor.dim() == 3):
        loss = model(x)                                   each such tensor that autograd saves goes to the host
    loss.backward()                                       and comes back just before it is needed

Copies run on a stream of their own. In the forward pass a tensor's copy begins when it has been computed, and the
layers that follow run beside it; its memory on the device is let go when `LEAVING` later tensors were sent, and only
then does the device's computation wait for the copy (which by then is done, unless the link to the host is slower than
the layers). In the backward pass the `AHEAD` tensors before the one that is asked for are fetched while its layer is
computed. So there are at most two tensors on their way at any time, whatever the host's thread is ahead of the device:
a tensor is kept by a reference until the computation waits for its copy, which is why nothing needs `record_stream`,
whose memory comes back at a moment that nobody chose.

Host memory is pinned, in pieces of powers of two up to 256 MiB (torch rounds pinned memory up to one), which are used
again in each pass; those that a pass did not need are let go at the next. All copies are in the order of one stream,
so a piece can be filled anew as soon as its tensor is forgotten.

`Link` is what the order of things is asked of: `StreamLink` for CUDA, and in tests one that copies as late as allowed.
Not measured on any GPU.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

PIECE_BYTES = 2**28
"""Most pinned memory that is taken at once."""
LEAST_BYTES = 2**16
"""Least of it."""
LEAVING = 2
"""Tensors whose copies may be on their way out."""
AHEAD = 2
"""Tensors that are fetched before they are asked for: a layer keeps its input, and seldom more than one more."""


class Link(Protocol):
    """A queue of copies between a device and its host, beside the device's computation."""

    def take(self, num_bytes: int) -> Tensor:
        """(num_bytes,) uint8 of host memory from where the device can copy by itself."""

    def follow(self) -> None:
        """Let the copies that are queued from now on wait for what was computed so far."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue one copy."""

    def mark(self) -> Any:
        """A mark behind what is queued so far."""

    def wait(self, mark: Any) -> None:
        """Let what is computed from now on wait for the copies before a mark. The host does not wait."""

    def arrive(self, mark: Any) -> None:
        """Return when the copies before a mark are done."""


class StreamLink:
    """Copies on a CUDA stream of their own."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def take(self, num_bytes: int) -> Tensor:
        """See `Link`."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def follow(self) -> None:
        """See `Link`."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `Link`."""
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """See `Link`."""
        event = torch.cuda.Event()
        event.record(self.stream)
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        """See `Link`."""
        torch.cuda.current_stream(self.device).wait_event(mark)

    def arrive(self, mark: torch.cuda.Event) -> None:
        """See `Link`."""
        mark.synchronize()


class Away:
    """One tensor whose numbers are in host memory; its pieces go back to the store when it is forgotten."""

    def __init__(self, tensor: Tensor, store: Offload):
        self.shape, self.stride = tensor.shape, tensor.stride()
        self.dtype, self.device = tensor.dtype, tensor.device
        self.store, self.pieces = store, store.take(tensor.numel() * tensor.element_size())
        self.here: Tensor | None = tensor.contiguous()
        """The tensor on the device, contiguous: not yet let go, or fetched."""
        self.mark: Any = None
        """Behind the copy that is on its way, in either direction."""
        self.asked = False
        """Was it asked for? Once is the rule, and it is not fetched ahead again."""
        self.before: weakref.ref[Away] | None = None
        """What was sent before it, and will be asked for after it."""

    def copies(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(piece in host memory, its place in the flat tensor)."""
        start = 0
        for piece in self.pieces:
            place = flat[start : start + piece.numel() // self.dtype.itemsize]
            yield piece[: place.numel() * self.dtype.itemsize].view(self.dtype), place
            start += place.numel()

    def __del__(self):
        if self.mark is not None:
            # fetched, and never asked for: its memory must not be used again before the copy is done
            self.store.link.wait(self.mark)
        self.store.give(self.pieces)


class Offload:
    """Sends tensors to host memory and fetches them, over one link; keeps the memory for the next pass."""

    def __init__(self, link: Link):
        self.link = link
        self.free: dict[int, list[Tensor]] = {}
        self.leaving: deque[Away] = deque()
        self.last: weakref.ref[Away] | None = None
        # pieces that the present pass took, by size
        self.taken: dict[int, int] = {}

    @contextmanager
    def hooks(self, wanted: Callable[[Tensor], bool]) -> Iterator[None]:
        """Context of a forward pass whose saved tensors go to the host, where `wanted`."""
        self.begin()

        def pack(tensor: Tensor) -> Tensor | Away:
            return self.send(tensor) if wanted(tensor) else tensor

        def unpack(kept: Tensor | Away) -> Tensor:
            return self.fetch(kept) if isinstance(kept, Away) else kept

        with saved_tensors_hooks(pack, unpack):
            yield

    def begin(self) -> None:
        """A new pass: nothing comes before its first tensor, and memory that the last one did not need is let go."""
        self.settle(0)
        self.last = None
        for size, pieces in self.free.items():
            del pieces[self.taken.get(size, 0) :]
        self.taken = {}

    def send(self, tensor: Tensor) -> Away:
        """Begin to copy a tensor to the host."""
        # without its history, which would keep it alive
        away = Away(tensor.detach(), self)
        self.link.follow()
        for piece, place in away.copies(away.here.view(-1)):
            self.link.copy(piece, place)
        away.mark = self.link.mark()
        away.before, self.last = self.last, weakref.ref(away)
        self.leaving.append(away)
        self.settle(LEAVING)
        return away

    def settle(self, leaving: int) -> None:
        """Let go of the oldest tensors that are on their way out, but for so many."""
        while len(self.leaving) > leaving:
            away = self.leaving.popleft()
            # its memory may be written from here on, by what is computed after the copy
            self.link.wait(away.mark)
            away.here = away.mark = None

    def fetch(self, away: Away) -> Tensor:
        """The tensor on its device again; those that are asked for next are on their way when this returns."""
        if away in self.leaving:
            # the last ones that were sent are still here, and need not be fetched
            self.leaving.remove(away)
        self._bring(away)
        self.link.wait(away.mark)
        found, away.here, away.mark, away.asked = away.here, None, None, True
        following = away.before
        for _ in range(AHEAD):
            coming = following() if following is not None else None
            if coming is None:
                break
            if not coming.asked:
                self._bring(coming)
            following = coming.before
        if found.stride() == away.stride:
            return found
        # compiled code insists on the strides that it was made for
        return torch.empty_strided(away.shape, away.stride, dtype=away.dtype, device=away.device).copy_(found)

    def _bring(self, away: Away) -> None:
        """Begin to fetch, unless it is here or on its way."""
        if away.here is not None:
            return
        # memory of the computation's own stream, which the copy must not touch before that has come here
        flat = torch.empty(away.shape.numel(), dtype=away.dtype, device=away.device)
        self.link.follow()
        for piece, place in away.copies(flat):
            self.link.copy(place, piece)
        away.here, away.mark = flat.view(away.shape), self.link.mark()

    def take(self, num_bytes: int) -> list[Tensor]:
        """Pieces of host memory that hold so many bytes between them, the last perhaps more."""
        pieces = []
        while num_bytes > 0:
            size = min(PIECE_BYTES, max(LEAST_BYTES, 1 << (num_bytes.bit_length() - 1)))
            self.taken[size] = self.taken.get(size, 0) + 1
            free = self.free.setdefault(size, [])
            pieces.append(free.pop() if free else self.link.take(size))
            num_bytes -= size
        return pieces

    def give(self, pieces: list[Tensor]) -> None:
        """Take pieces back."""
        for piece in pieces:
            self.free.setdefault(len(piece), []).append(piece)
