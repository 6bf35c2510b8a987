"""Stored patches to numbers that a model computes with: the one place that knows the map.

    pixels, uint8        x / 127.5 - 1, float32, in -1 .. 1
    mel, float16         as it is, mapped when it was made (`data.decode_audio`)
    anything else        as it is

Patches stay what the store holds until a model embeds them. A batch is then laid out by copying bytes, and a quarter of
the bytes (a half for mel) goes from a worker to the training process and from the host to a device, where the map costs
three passes over memory. Division and subtraction each round once, in this order, on every device.
"""

import torch


def floats(patches: torch.Tensor) -> torch.Tensor:
    """Patches (N, dim) as floats, where they lie; see the module."""
    if patches.dtype != torch.uint8:
        return patches
    found = patches.to(torch.float32)
    # CUDA makes a division by a number of the host a product with its inverse, whose last bit may differ
    return found.div_(found.new_full((), 127.5)).sub_(1.0)
