"""Copies of tensors in host memory, for a checkpoint to be written from while training goes on.

    staging = Staging(StreamLink(device))      None instead of a link: tensors are on the host, or on no card
    staged = staging.copy(tensors)             name -> tensor; they may be changed from here on
    staged.tensors()                           the copies, whole; in the thread that writes them

From a card copies go to pinned memory beside its computation, one after the other on the link's stream, and nobody on
the host waits for them but `tensors`. What the card computes after `copy` waits until they are done, so that weights
and moments are those of that moment: for 12 GB some 0.2 s of the card, by the link's 55 GB/s, once a checkpoint.

Pinned memory is taken at the first copy and used again by each, since to pin a gigabyte takes longer than to fill it.
So the one before must have been written. It is taken in pieces of 256 MiB that tensors share; a larger tensor has its
own, which torch rounds up to a power of two.

Cost: pinned memory as large as the tensors for the whole run; without a link as much pageable memory, while it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.offload import PIECE_BYTES, Link

ALIGNMENT = 64
"""Bytes at whose multiples tensors begin."""


@dataclass(frozen=True)
class Staged:
    """The copies of one moment."""

    held: dict[str, Tensor]
    arrive: Callable[[], None]

    def tensors(self) -> dict[str, Tensor]:
        """Name -> copy, on the host; waits for those on their way."""
        self.arrive()
        return self.held


class Staging:
    """Host memory for the copies of the same tensors, again and again."""

    def __init__(self, link: Link | None):
        self.link = link
        self._rooms: dict[str, Tensor] = {}
        self._piece, self._used = torch.empty(0, dtype=torch.uint8), 0

    def copy(self, tensors: Mapping[str, Tensor]) -> Staged:
        """Begin to copy; earlier copies are gone. Tensors may be split over ranks (DTensor): this rank's parts."""
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        if self.link is None:
            return Staged({name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}, lambda: None)
        link, held = self.link, {}
        link.follow()
        for name, tensor in tensors.items():
            part = _local(tensor)
            room = self._rooms.get(name)
            if room is None or room.shape != part.shape or room.dtype != part.dtype:
                room = self._rooms[name] = self._room(part)
            if part.numel():
                link.copy(room, part)
            held[name] = _like(tensor, room)
        mark = link.mark()
        # what is computed from now on may write where is still being read
        link.wait(mark)
        return Staged(held, lambda: link.arrive(mark))

    def _room(self, tensor: Tensor) -> Tensor:
        size = tensor.nbytes
        if size > PIECE_BYTES:
            room = self.link.take(size)
        else:
            if self._used + size > len(self._piece):
                self._piece, self._used = self.link.take(PIECE_BYTES), 0
            # a storage of its own over the same memory: a part of a larger one would be copied again to be written
            room = torch.from_numpy(self._piece.numpy()[self._used : self._used + size])
            self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return room.view(tensor.dtype).view(tensor.shape)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is split, or the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _like(tensor: Tensor, part: Tensor) -> Tensor:
    """`part` as this rank's part of a tensor split as `tensor` is."""
    if not hasattr(tensor, "to_local"):
        return part
    whole = torch.empty_like(tensor, device="cpu")
    # DTensor.from_local would move it to the mesh's device; torch's own staging does it like this
    whole._local_tensor = part
    return whole
