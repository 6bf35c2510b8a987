"""Attention over spans by the card's own packages: backend "flash".

Packed causal documents, with or without a window, go to kernels for rows of unequal lengths (`flash/varlen.py`), the
best that is installed: flash-attn-3, flash-attn-4, flash-attn 2, or the one inside of torch, which always is. Every
other mask goes to flash-attn-4 (`flash/masked.py`), which takes a mask function and lists of tiles; without it this
backend says so. Which package serves what is a matter of the card:

    sm_80 .. sm_89    flash-attn 2, torch                          documents and windows
    sm_90             flash-attn-3, flash-attn-4, flash-attn 2, torch; flash-attn-4 for every other mask
    sm_100, sm_110    flash-attn-4, flash-attn 2, torch;               flash-attn-4 for every other mask

A sink is folded in afterwards by the log-sum-exp. The backward gets out and lse over all keys, sink included, from
which each package's formula gives the right share, so that a ring and selective checkpointing work as elsewhere.

The packages take fp16 and bf16 and round their results to that: with `wide` these are widened, not computed wider.
Their backward adds dq up in any order; under `torch.use_deterministic_algorithms(True)` it is asked for a fixed one.
None of these kernels runs on a CPU: tests replace the packages by recordings that check each call and answer it from
the reference. On an H200 flash-attn-4 and torch's own have run.

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brine.kernels.attention.flash import masked as flash_masked
from brine.kernels.attention.flash import varlen as flash_varlen
from brine.kernels.attention.merge import absorb_sink
from brine.kernels.attention.spans import kind_of

VARLEN = ("causal", "window")
"""Kinds of masks that are nothing but documents and a window."""
MAX_DIM, DIM_MULTIPLE = 256, 8


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str, sink: Tensor | None) -> str | None:
    """Why this backend cannot serve q (B, T, H, D) and k (B, S, K, D), in a sentence; None where it can."""
    if kind == "moving":
        return "a mask that is advanced in place would need its lists of tiles anew at every step"
    if q.device.type != "cuda":
        return f"flash packages need a CUDA device, but q is on {q.device}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"flash packages take float16 or bfloat16, not {q.dtype}"
    if q.shape[3] > MAX_DIM or q.shape[3] % DIM_MULTIPLE:
        return f"flash packages take head dims up to {MAX_DIM} in multiples of {DIM_MULTIPLE}, not {q.shape[3]}"
    capability = torch.cuda.get_device_capability(q.device)
    if capability[0] < 8:
        return f"flash packages need sm_80 or newer; {torch.cuda.get_device_name(q.device)} is older"
    if kind in VARLEN:
        return None if flash_varlen.package_for(q) else f"no flash package serves sm_{capability[0]}{capability[1]}"
    return flash_masked.unsupported_reason(q, capability)


def unsupported_mask_reason(q: Tensor, serial: int) -> str | None:
    """Why it cannot serve this very mask, where that can be known without waiting for the device."""
    return flash_varlen.unsupported_mask_reason(q, serial) if kind_of(serial) in VARLEN else None


def package_for(q: Tensor, kind: str) -> str | None:
    """Name of the package that serves q (B, T, H, D) under a mask of this kind, for records."""
    return flash_varlen.package_for(q) if kind in VARLEN else "flash-attn-4"


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int,
    *, scale: float, sink: Tensor | None, wide: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32; sink: (H,) or None.

    -> out (B, T, H, D) in q's dtype, with `wide` widened to fp32; lse (B, H, T) float32.
    """
    if q.numel() == 0 or k.numel() == 0:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse = q.new_full((q.shape[0], q.shape[2], q.shape[1]), -torch.inf, dtype=torch.float32)
    else:
        q, k, v = (x.detach() for x in (q, k, v))
        out, lse = _module(serial).forward(q, k, v, lo, hi, serial, scale=scale)
    if sink is not None:
        out, rows = absorb_sink(out, lse.transpose(1, 2), sink)
        lse = rows.transpose(1, 2)
    return out.to(torch.float32 if wide else q.dtype).contiguous(), lse.contiguous()


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, out: Tensor, lse: Tensor,
    *, scale: float, whole: bool, wide: bool = False, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients from these keys, given out and lse over *all* keys, sink included. Shapes as in `forward`.

    -> dq, dk, dv in q's dtype, with `wide` widened to fp32.
    """
    if q.numel() == 0 or k.numel() == 0:
        grads = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    else:
        given = (grad_out.to(q.dtype), q.detach(), k.detach(), v.detach(), lo, hi, serial, out.to(q.dtype), lse)
        grads = _module(serial).backward(*given, scale=scale)
    return tuple(grad.to(torch.float32 if wide else q.dtype) for grad in grads)


def _module(serial: int):
    return flash_varlen if kind_of(serial) in VARLEN else flash_masked
