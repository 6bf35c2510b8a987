"""Saved activations in host memory: sent there in the forward pass, fetched just before the backward pass needs them.

Copies run on a separate stream; at most `MAX_PENDING_COPIES` tensors are on their way out and `PREFETCH_TENSORS` on
their way back. A tensor is kept by reference until the computation waits for its copy, so `record_stream` is not
needed. Pinned memory comes in powers of two up to 256 MiB and is reused by each pass. Torch's `save_on_cpu` waits for
each copy and allocates anew. Not measured on a GPU.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

BUFFER_BYTES = 2**28
MIN_BUFFER_BYTES = 2**16
MAX_PENDING_COPIES = 2
"""Tensors whose copies may be on their way out."""
PREFETCH_TENSORS = 2
"""Tensors that are fetched before they are needed: a layer keeps its input, and seldom more than one more."""


class StreamCopyEngine:
    """Copies between a GPU and its host on a CUDA stream beside the computation."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def take(self, num_bytes: int) -> Tensor:
        """(num_bytes,) uint8 of pinned host memory."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def wait_compute(self) -> None:
        """Let the copies that are queued from now on wait for what was computed so far."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue one copy."""
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """A mark behind what is queued so far."""
        event = torch.cuda.Event()
        event.record(self.stream)
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        """Let what is computed from now on wait for the copies before a mark. The host does not wait."""
        torch.cuda.current_stream(self.device).wait_event(mark)

    def synchronize(self, mark: torch.cuda.Event) -> None:
        """Return when the copies before a mark are done."""
        mark.synchronize()


class OffloadedTensor:
    """One tensor whose numbers are in host memory; its buffers return to the store when it is freed."""

    def __init__(self, tensor: Tensor, store: "ActivationOffload"):
        self.shape, self.stride = tensor.shape, tensor.stride()
        self.dtype, self.device = tensor.dtype, tensor.device
        self.store, self.pieces = store, store.take(tensor.numel() * tensor.element_size())
        self.on_device: Any = tensor.contiguous()
        # `on_device`: not yet freed, or fetched; `mark`: behind the copy on its way, either way; `asked`: was it
        # used? it is not prefetched again; `before`: what was sent before it, and will be needed after it
        self.mark: Any = None
        self.asked = False
        self.before: weakref.ref[OffloadedTensor] | None = None

    def copies(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(part of a host buffer, the matching part of the flat tensor)."""
        start = 0
        for piece in self.pieces:
            part = flat[start : start + piece.numel() // self.dtype.itemsize]
            yield piece[: part.numel() * self.dtype.itemsize].view(self.dtype), part
            start += part.numel()

    def __del__(self):
        if self.mark is not None:
            # fetched and never used: its memory must not be reused before the copy is done
            self.store.link.wait(self.mark)
        for piece in self.pieces:
            self.store.free.setdefault(len(piece), []).append(piece)


class ActivationOffload:
    """Sends tensors to host memory and fetches them, over one link; keeps the memory for the next pass."""

    def __init__(self, link: StreamCopyEngine):
        self.link = link
        self.free: dict[int, list[Tensor]] = {}
        self.pending_copies: deque[OffloadedTensor] = deque()
        self.last: weakref.ref[OffloadedTensor] | None = None
        # buffers that the present pass took, by size
        self.taken: dict[int, int] = {}

    @contextmanager
    def hooks(self, wanted: Callable[[Tensor], bool]) -> Iterator[None]:
        """Context of a forward pass whose saved tensors go to the host, where `wanted`."""
        self.begin()

        def pack(tensor: Tensor) -> Tensor | OffloadedTensor:
            return self.send(tensor) if wanted(tensor) else tensor

        def unpack(kept: Tensor | OffloadedTensor) -> Tensor:
            return self.fetch(kept) if isinstance(kept, OffloadedTensor) else kept

        with saved_tensors_hooks(pack, unpack):
            yield

    def begin(self) -> None:
        """A new pass: nothing comes before its first tensor, and memory that the last one did not need is freed."""
        self.settle(0)
        self.last = None
        for size, pieces in self.free.items():
            del pieces[self.taken.get(size, 0) :]
        self.taken = {}

    def send(self, tensor: Tensor) -> OffloadedTensor:
        """Begin to copy a tensor to the host."""
        # without its history, which would keep it alive
        offloaded = OffloadedTensor(tensor.detach(), self)
        self.link.wait_compute()
        for piece, part in offloaded.copies(offloaded.on_device.view(-1)):
            self.link.copy(piece, part)
        offloaded.mark = self.link.mark()
        offloaded.before, self.last = self.last, weakref.ref(offloaded)
        self.pending_copies.append(offloaded)
        self.settle(MAX_PENDING_COPIES)
        return offloaded

    def settle(self, pending_copies: int) -> None:
        """Free the oldest tensors that are on their way out, until so many are left."""
        while len(self.pending_copies) > pending_copies:
            offloaded = self.pending_copies.popleft()
            # its memory may be written from here on, by what is computed after the copy
            self.link.wait(offloaded.mark)
            offloaded.on_device = offloaded.mark = None

    def fetch(self, offloaded: OffloadedTensor) -> Tensor:
        """The tensor on its device again; those that are needed next are on their way when this returns."""
        if offloaded in self.pending_copies:
            # the last ones that were sent are still here, and need not be fetched
            self.pending_copies.remove(offloaded)
        found, mark = self._prefetch(offloaded)
        self.link.wait(mark)
        offloaded.on_device, offloaded.mark, offloaded.asked = None, None, True
        following = offloaded.before
        for _ in range(PREFETCH_TENSORS):
            coming = following() if following is not None else None
            if coming is None:
                break
            if not coming.asked:
                self._prefetch(coming)
            following = coming.before
        if found.stride() == offloaded.stride:
            return found
        # compiled code insists on the strides that it was made for
        return torch.empty_strided(
            offloaded.shape, offloaded.stride, dtype=offloaded.dtype, device=offloaded.device
        ).copy_(found)

    def _prefetch(self, offloaded: OffloadedTensor) -> tuple[Tensor, Any]:
        """Begin to fetch, unless it is here or on its way; (tensor, mark behind its copy)."""
        if offloaded.on_device is None:
            # memory of the computation's stream, which the copy must not touch before the computation is done with it
            flat = torch.empty(offloaded.shape.numel(), dtype=offloaded.dtype, device=offloaded.device)
            self.link.wait_compute()
            for piece, part in offloaded.copies(flat):
                self.link.copy(part, piece)
            offloaded.on_device, offloaded.mark = flat.view(offloaded.shape), self.link.mark()
        return offloaded.on_device, offloaded.mark

    def take(self, num_bytes: int) -> list[Tensor]:
        """Buffers of host memory that hold so many bytes together, the last perhaps more."""
        pieces = []
        while num_bytes > 0:
            size = min(BUFFER_BYTES, max(MIN_BUFFER_BYTES, 1 << (num_bytes.bit_length() - 1)))
            self.taken[size] = self.taken.get(size, 0) + 1
            free = self.free.setdefault(size, [])
            pieces.append(free.pop() if free else self.link.take(size))
            num_bytes -= size
        return pieces
