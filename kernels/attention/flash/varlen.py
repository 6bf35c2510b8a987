"""Packed causal documents, with or without a window, by varlen kernels.

All B * T tokens are one sequence, cut where documents begin (`documents.py`), and each document sees itself causally,
its last `max_visible_keys` keys at most. Four packages have such kernels, with functions below autograd that give lse
and take out and lse back; they differ in arguments alone, and are called as of flash-attn 2.8, flash-attn-3 3.0.0b1,
flash-attn-4 4.0.0b36 and torch 2.11 to 2.13. Documents of one token come in groups that a kernel computes as one
document; their queries are then corrected here: a query that sees itself alone has its value as output.

Legend: B batch, T queries and keys, H query heads, K KV heads, G = H / K, D head dim, N documents, n singletons.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brine.kernels.attention.documents import VarlenDocuments
from brine.kernels.attention.spans import AttentionRequest, Mask, documents_of, host_documents, span_stats
from brine.kernels.selection.choice_log import announce

ORDER = {8: ("flash-attn", "torch"), 9: ("flash-attn-3", "flash-attn-4", "flash-attn", "torch")}
ORDER |= dict.fromkeys((10, 11), ("flash-attn-4", "flash-attn", "torch")) | {12: ("flash-attn", "torch")}
"""Packages to try on a GPU, by major compute capability, the best first. flash-attn-4 has no backward on sm_80."""
MODULES = {
    "flash-attn-4": "flash_attn.cute.interface",
    "flash-attn-3": "flash_attn_interface",
    "flash-attn": "flash_attn.flash_attn_interface",
    "torch": "torch",
}
MAX_DOCUMENTS = dict.fromkeys(("flash-attn", "torch"), 65535)
"""Documents that a package takes, one to a block of the launch's second axis; no limit for the others."""


@functools.cache
def load(package: str) -> Any:
    """A package's module, or None where it is not installed, or does not load, which is logged."""
    reason: Exception
    try:
        return importlib.import_module(MODULES[package])
    except ModuleNotFoundError as error:
        if MODULES[package].startswith(error.name or ""):
            return None
        reason = error
    # one built for another torch fails in any way
    except Exception as error:
        reason = error
    announce("brine.kernels.attention", f"{package} is installed but does not load, so it is skipped: {reason}")
    return None


def package_for(q: Tensor) -> str | None:
    """The package that serves q (B, T, H, D) here, None where none does."""
    major, dim = torch.cuda.get_device_capability(q.device)[0], q.shape[3]
    for package in ORDER.get(major, ("flash-attn", "torch")):
        if package == "flash-attn-4" and major > 9 and 128 < dim < 256:
            continue
        if package == "torch" and not torch.backends.cuda.is_flash_attention_available():
            continue
        if load(package) is not None:
            return package
    return None


def unsupported_mask_reason(q: Tensor, mask: Mask) -> str | None:
    """Why the package for q (B, T, H, D) cannot serve this mask, as far as the host knows."""
    package = package_for(q) or ""
    # a document holds a token at least
    if q.shape[0] * q.shape[1] <= MAX_DOCUMENTS.get(package, q.numel()):
        return None
    documents = host_documents(mask.serial)
    return None if documents is None else _too_many(package, documents)


def _too_many(package: str, documents: VarlenDocuments) -> str | None:
    count = len(documents.cu_seqlens) - 1
    if count <= MAX_DOCUMENTS.get(package, count):
        return None
    return f"{package} takes up to {MAX_DOCUMENTS[package]:,} documents at once, but this batch holds {count:,}"


def forward(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """q: (B, T, H, D); k, v: (B, T, K, D) -> out (B, T, H, D), lse (B, H, T) float32, without the sink."""
    batch, num_queries, heads, _ = q.shape
    documents, left, package = _documents(q, request.mask)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out, lse = _FORWARD[package](q, k, v, documents, request.scale, left)
    singletons = documents.singletons
    if len(singletons):
        score, value = _singleton_forward(q, k, v, singletons, request.scale)
        out.index_copy_(0, singletons, value.to(out.dtype))
        lse.index_copy_(1, singletons, score.T.contiguous())
    return out.unflatten(0, (batch, num_queries)), lse.view(heads, batch, num_queries).transpose(0, 1)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, request: AttentionRequest
) -> tuple[Tensor, ...]:
    """-> dq, dk, dv, shapes as in `forward`, given out and lse over all keys and the sink."""
    shape, scale = q.shape[:2], request.scale
    documents, left, package = _documents(q, request.mask)
    grad_out, out, q, k, v = (x.flatten(0, 1).contiguous() for x in (grad_out, out, q, k, v))
    lse = lse.transpose(0, 1).flatten(1).contiguous()
    grads = _BACKWARD[package](grad_out, q, k, v, out, lse, documents, scale, left)
    singletons = documents.singletons
    if len(singletons):
        right = _singleton_backward(grad_out, q, k, v, out, lse, singletons, scale)
        grads = [grad.index_copy_(0, singletons, x.to(grad.dtype)) for grad, x in zip(grads, right, strict=True)]
    return tuple(grad.unflatten(0, shape) for grad in grads)


def _documents(q: Tensor, mask: Mask) -> tuple[VarlenDocuments, int, str]:
    """(documents, keys that a query sees to its left at most or -1, package)"""
    documents, package = documents_of(mask), package_for(q)
    assert package is not None
    if (why := _too_many(package, documents)) is not None:
        raise ValueError(f'{why}; use backend="triton", or shorter sequences')
    left = span_stats(mask).max_visible_keys - 1 if mask.kind == "window" else -1
    return documents, left, package


def _singleton_forward(q: Tensor, k: Tensor, v: Tensor, singletons: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What queries that see themselves alone get: score (n, H) and value (n, H, D), both fp32."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.index_select(0, singletons).float() for x in (q, k, v))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return (q * k).sum(-1) * scale, v


def _singleton_backward(grad_out, q, k, v, out, lse, singletons: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Their gradients, (n, H, D) and twice (n, K, D). A sink takes its part of them through lse and out."""
    key_heads = k.shape[1]
    score, value = _singleton_forward(q, k, v, singletons, scale)
    weight = (score - lse.index_select(1, singletons).T).exp()[..., None]
    q, k, out, grad = (x.index_select(0, singletons).float() for x in (q, k, out, grad_out))
    change = weight * (grad * (value - out)).sum(-1, keepdim=True) * scale
    dq = change * k.repeat_interleave(q.shape[1] // key_heads, 1)
    dk, dv = (x.unflatten(1, (key_heads, -1)).sum(2) for x in (change * q, weight * grad))
    return dq, dk, dv


def _lengths(documents: VarlenDocuments) -> tuple[Tensor, Tensor, int, int]:
    return documents.cu_seqlens, documents.cu_seqlens, documents.max_seqlen, documents.max_seqlen


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _fa2_forward(q, k, v, documents: VarlenDocuments, scale: float, left: int) -> tuple[Tensor, Tensor]:
    out, lse, *_ = load("flash-attn")._flash_attn_varlen_forward(
        q, k, v, *_lengths(documents), 0.0, scale, True, window_size_left=left, window_size_right=0
    )
    return out, lse


def _fa2_backward(grad_out, q, k, v, out, lse, documents: VarlenDocuments, scale: float, left: int) -> list[Tensor]:
    grads = [torch.empty_like(x) for x in (q, k, v)]
    load("flash-attn")._flash_attn_varlen_backward(
        grad_out, q, k, v, out, lse, *grads, *_lengths(documents), 0.0, scale, True, left, 0, 0.0, None,
        _deterministic(),
    )  # fmt: skip
    return grads


def _fa3_forward(q, k, v, documents: VarlenDocuments, scale: float, left: int) -> tuple[Tensor, Tensor]:
    out, lse, *_ = load("flash-attn-3")._flash_attn_forward(
        q, k, v, cu_seqlens_q=documents.cu_seqlens, cu_seqlens_k=documents.cu_seqlens,
        max_seqlen_q=documents.max_seqlen, max_seqlen_k=documents.max_seqlen, softmax_scale=scale, causal=True,
        window_size_left=left, window_size_right=0,
    )  # fmt: skip
    return out, lse


def _fa3_backward(grad_out, q, k, v, out, lse, documents: VarlenDocuments, scale: float, left: int) -> list[Tensor]:
    grads = [torch.empty_like(x) for x in (q, k, v)]
    # by position: two of the names have changed between releases
    load("flash-attn-3")._flash_attn_backward(
        grad_out, q, k, v, out, lse, documents.cu_seqlens, documents.cu_seqlens, None, None, documents.max_seqlen,
        documents.max_seqlen, *grads, scale, True, left, 0, 0.0, _deterministic(),
    )  # fmt: skip
    return grads


def _fa4_options(documents: VarlenDocuments, scale: float, left: int) -> dict[str, Any]:
    return {
        "cu_seqlens_q": documents.cu_seqlens,
        "cu_seqlens_k": documents.cu_seqlens,
        "max_seqlen_q": documents.max_seqlen,
        "max_seqlen_k": documents.max_seqlen,
        "softmax_scale": scale,
        "causal": True,
        "window_size_left": None if left < 0 else left,
    }


def _fa4_forward(q, k, v, documents: VarlenDocuments, scale: float, left: int) -> tuple[Tensor, Tensor]:
    out, lse, *_ = load("flash-attn-4")._flash_attn_fwd(
        q, k, v, **_fa4_options(documents, scale, left), return_lse=True
    )
    return out, lse


def _fa4_backward(grad_out, q, k, v, out, lse, documents: VarlenDocuments, scale: float, left: int) -> list[Tensor]:
    options = _fa4_options(documents, scale, left)
    return list(
        load("flash-attn-4")._flash_attn_bwd(q, k, v, out, grad_out, lse, **options, deterministic=_deterministic())[:3]
    )


def _torch_forward(q, k, v, documents: VarlenDocuments, scale: float, left: int) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *_lengths(documents), 0.0, left < 0, False, scale=scale, window_size_left=left, window_size_right=0
    )
    return out, lse


def _torch_backward(grad_out, q, k, v, out, lse, documents: VarlenDocuments, scale: float, left: int) -> list[Tensor]:
    # nothing is dropped out, so its random state is not read
    state, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0)
    return list(
        torch.ops.aten._flash_attention_backward(
            grad_out, q, k, v, out, lse, *_lengths(documents), 0.0, left < 0, state, unused, scale=scale,
            window_size_left=left, window_size_right=0,
        )
    )  # fmt: skip


_FORWARD: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "flash-attn-4": _fa4_forward,
    "flash-attn-3": _fa3_forward,
    "flash-attn": _fa2_forward,
    "torch": _torch_forward,
}
_BACKWARD: dict[str, Callable[..., list[Tensor]]] = {
    "flash-attn-4": _fa4_backward,
    "flash-attn-3": _fa3_backward,
    "flash-attn": _fa2_backward,
    "torch": _torch_backward,
}
