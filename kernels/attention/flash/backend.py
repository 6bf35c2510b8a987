"""Attention over spans by flash-attn packages: backend "flash".

Packed causal documents, with or without a window, go to varlen kernels (`varlen.py`) of the best package that is
installed; every other mask goes to flash-attn-4 (`masked.py`). README.md ("Flash packages") says which package serves
which GPU. A sink is merged afterwards by the log-sum-exp. The packages take fp16 and bf16; partial results are widened,
not computed wider. Their backward accumulates dq non-deterministically, and deterministically under torch's
deterministic algorithms.

Legend: B batch, T queries, S keys, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from brine.kernels.attention.flash import masked as flash_masked
from brine.kernels.attention.flash import varlen as flash_varlen
from brine.kernels.attention.merge import empty_backward, empty_forward, finish
from brine.kernels.attention.spans import AttentionRequest, Mask

VARLEN = ("causal", "window")  # kinds of masks that are nothing but documents and a window
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


def unsupported_mask_reason(q: Tensor, mask: Mask) -> str | None:
    """Why it cannot serve this very mask, where that can be known without a device sync."""
    return flash_varlen.unsupported_mask_reason(q, mask) if mask.kind in VARLEN else None


def package_for(q: Tensor, kind: str) -> str | None:
    """Name of the package that serves q (B, T, H, D) under a mask of this kind, for records."""
    return flash_varlen.package_for(q) if kind in VARLEN else "flash-attn-4"


def forward(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """As `reference.forward`; partial results are widened."""
    if q.numel() == 0 or k.numel() == 0:
        out, lse = empty_forward(q)
    else:
        out, lse = _module(request).forward(q.detach(), k.detach(), v.detach(), request)
    return finish(out, lse, request, request.result_dtype(q))


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, request: AttentionRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`; partial results are widened."""
    dtype = request.result_dtype(q)
    if q.numel() == 0 or k.numel() == 0:
        return empty_backward(q, k, dtype)
    given = (grad_out.to(q.dtype), q.detach(), k.detach(), v.detach(), out.to(q.dtype), lse)
    dq, dk, dv = _module(request).backward(*given, request)
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)


def _module(request: AttentionRequest) -> ModuleType:
    return flash_varlen if request.mask.kind in VARLEN else flash_masked
