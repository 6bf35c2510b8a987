"""Tensor descriptors for the Triton kernels on sm_90: tiles are copied by the TMA unit and not by the threads.

A descriptor is made on the host, in a few microseconds, and says where (batch, head, token, dim) lies. The copy needs
no addresses in registers and fills with zeros what lies beyond the last token or beyond D. The hardware wants addresses
and strides in multiples of 16 bytes; inputs that have others go through pointers.
"""

from __future__ import annotations

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

ALIGNMENT = 16  # bytes


def suits(*tensors: Tensor) -> bool:
    """Whether descriptors can describe all of these (B, tokens, heads, D) tensors."""
    for x in tensors:
        unit = ALIGNMENT // x.element_size()
        (batch, tokens, heads, _), (per_batch, per_token, per_head, _) = x.shape, x.stride()
        # a stride of 0 repeats one token, and one along an extent of 1 is never taken
        if (
            not x.numel()
            or x.data_ptr() % ALIGNMENT
            or (batch > 1 and (per_batch <= 0 or per_batch % unit))
            or (tokens > 1 and (per_token <= 0 or per_token % unit))
            or (heads > 1 and (per_head <= 0 or per_head % unit))
        ):
            return False
    return True


def strides_of(x: Tensor) -> list[int]:
    """Of x (B, tokens, heads, D), as (B, heads, tokens, D); along an extent of 1 one that the unit accepts."""
    (batch, tokens, heads, _), (per_batch, per_token, per_head, _) = x.shape, x.stride()
    return [
        per_batch if batch > 1 else ALIGNMENT, per_head if heads > 1 else ALIGNMENT,
        per_token if tokens > 1 else ALIGNMENT, 1,
    ]  # fmt: skip


def describe(x: Tensor, block: int, dim: int) -> TensorDescriptor:
    """x (B, tokens, heads, D) as (B, heads, tokens, D), in tiles, without the slow checks of Triton's constructor."""
    batch, tokens, heads, width = x.shape
    described = TensorDescriptor.__new__(TensorDescriptor)
    described.base = x
    described.shape = [batch, heads, tokens, width]
    described.strides = strides_of(x)
    described.block_shape = [1, 1, block, dim]
    return described
