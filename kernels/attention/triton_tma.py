"""Tensor descriptors for the Triton kernels on sm_90: tiles are copied by the TMA unit and not by the threads.

The kernels are the same (`load_tile` has both forms); only what they are handed differs. A descriptor is made on the
host, a few microseconds each, and says where (batch, head, token, dim) lies. The copy needs no addresses in registers,
and it fills with zeros whatever lies beyond the last token or beyond D, so that no load has a mask. Compiled for sm_90
by Triton 3.6.0, the forward at D = 128 in tiles of 128 x 64 takes 164 registers a thread instead of 236.

The hardware wants addresses and strides in multiples of 16 bytes; inputs that have others go through pointers. Nothing
here has run on a card yet; the interpreter runs it.
"""

from __future__ import annotations

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

ALIGNMENT = 16
"""Bytes."""
MAX_STRIDE = 2**40
"""Bytes."""


def suits(*tensors: Tensor) -> bool:
    """Whether descriptors can describe all of these (B, tokens, heads, D) tensors."""
    for x in tensors:
        size = x.element_size()
        if not x.numel() or x.data_ptr() % ALIGNMENT:
            return False
        for stride, extent in zip(x.stride()[:3], x.shape, strict=False):
            # a stride of 0 repeats one token, and one along an extent of 1 is never taken
            if extent > 1 and not (stride > 0 and stride * size % ALIGNMENT == 0 and stride * size < MAX_STRIDE):
                return False
    return True


def describe(x: Tensor, block: int, dim: int) -> TensorDescriptor:
    """Of x (B, tokens, heads, D), as (B, heads, tokens, D), read in tiles of `block` tokens and dim >= D numbers."""
    batch, tokens, heads, width = x.shape
    strides = [
        s if n > 1 else ALIGNMENT for s, n in ((x.stride(0), batch), (x.stride(2), heads), (x.stride(1), tokens))
    ]
    return TensorDescriptor(x, [batch, heads, tokens, width], [*strides, 1], [1, 1, block, dim])
