"""Page-locked memory, as marks on host tensors: which copies need not be waited for hangs on it."""

from __future__ import annotations

import weakref

from torch import Tensor

_pinned: dict[int, int] = {}


def pin(tensor: Tensor) -> Tensor:
    """Mark a host tensor's memory as page-locked."""
    address = tensor.untyped_storage().data_ptr()
    _pinned[address] = _pinned.get(address, 0) + 1

    def forget() -> None:
        _pinned[address] -= 1
        if not _pinned[address]:
            del _pinned[address]

    weakref.finalize(tensor, forget)
    return tensor


def is_pinned(tensor: Tensor, device=None) -> bool:
    """Was its memory marked?"""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _pinned


def pin_memory(tensor: Tensor, device=None) -> Tensor:
    """`Tensor.pin_memory`: a copy in page-locked memory, or the tensor itself where it is."""
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin '{tensor.device}' only dense CPU tensors can be pinned")
    return tensor if is_pinned(tensor) else pin(tensor.clone())
