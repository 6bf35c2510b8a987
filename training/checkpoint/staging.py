"""Copies of tensors in host memory, from which a checkpoint is written while training continues.

From a GPU copies go to pinned memory on a separate stream; what the GPU computes after `copy` waits for them. Pinned
memory is allocated at the first copy, in buffers of 256 MiB that tensors share, and reused; so the checkpoint before
must have been written.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from brine.training.parallel.offload import BUFFER_BYTES, StreamCopyEngine

ALIGNMENT = 64


class HostStaging:
    """Host memory for the copies of the same tensors, again and again."""

    def __init__(self, link: StreamCopyEngine | None):
        self.link = link
        self._buffers: dict[str, Tensor] = {}
        self._shared, self._used = torch.empty(0, dtype=torch.uint8), 0

    def copy(self, tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """Begin to copy; earlier copies are gone. Tensors may be split over ranks (DTensor): this rank's parts. Returns
        a function that waits for the copies and gives them by name."""
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        if self.link is None:
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
            return lambda: copies
        link, held = self.link, {}
        link.wait_compute()
        for name, tensor in tensors.items():
            whole: Any = tensor
            part: Tensor = whole.to_local() if hasattr(whole, "to_local") else whole
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != part.shape or buffer.dtype != part.dtype:
                buffer = self._buffers[name] = self._buffer(part, link)
            if part.numel():
                link.copy(buffer, part)
            held[name] = buffer
            if part is not tensor:
                # DTensor.from_local would move it to the mesh's device; torch's own staging does it like this
                whole = held[name] = torch.empty_like(tensor, device="cpu")
                whole._local_tensor = buffer
        mark = link.mark()
        # what is computed from now on may write where is still being read
        link.wait(mark)

        def wait() -> dict[str, Tensor]:
            link.synchronize(mark)
            return held

        return wait

    def _buffer(self, tensor: Tensor, link: StreamCopyEngine) -> Tensor:
        size = tensor.nbytes
        if size > BUFFER_BYTES:
            buffer = link.take(size)
        else:
            if self._used + size > len(self._shared):
                self._shared, self._used = link.take(BUFFER_BYTES), 0
            # a separate storage over the same memory: a part of a larger one would be copied again to be written
            buffer = torch.from_numpy(self._shared.numpy()[self._used : self._used + size])
            self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return buffer.view(tensor.dtype).view(tensor.shape)
