"""Attention over spans by FlexAttention, the compiler's kernel: backend "flex".

Its mask function reads lo and hi, and its `BlockMask` is made from four numbers per tile (`tiles.py`), never from T x S
as by torch's `create_block_mask`. Gradients come through autograd alone, so the backward recomputes the forward; with
o, l of these keys, O, L over all keys and the sink, and w_i = exp(l_i - L_i), the exact share is what it computes for
the gradients w_i g_i of o_i and w_i (g_i . o_i - g_i . O_i) of l_i. On CUDA the function is compiled for each head
layout, dtype and scale; on a CPU it runs dense, without a backward. Partial results take inputs widened to fp32, as
tf32, in twice the time. Legend: B batch, T queries, S keys, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

from brine.kernels.attention.merge import empty_backward, empty_forward, finish
from brine.kernels.attention.spans import AttentionRequest, Mask, cached_by_mask, host_of
from brine.kernels.attention.tiles import key_tiles_of_queries, query_tiles_of_keys

TILE = 128
MIN_DIM, MAX_DIM = 16, 256
MAX_CPU_PAIRS = 2048 * 2048  # (query, key) pairs that are computed on a CPU, where nothing is skipped


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str, sink: Tensor | None) -> str | None:
    """Why this backend cannot serve q (B, T, H, D) and k (B, S, K, D), in a sentence; None where it can."""
    if kind == "moving":
        return "a mask that is advanced in place would need its lists of tiles anew at every step"
    if q.device.type == "cpu":
        if q.shape[1] * k.shape[1] > MAX_CPU_PAIRS:
            return f"on a CPU FlexAttention takes T x S memory, too much for {q.shape[1]} queries and {k.shape[1]} keys"
        return _no_backward(q, k)
    if q.device.type != "cuda":
        return f"FlexAttention has no kernel for {q.device.type}"
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"FlexAttention takes float32, float16 or bfloat16 on a GPU, not {q.dtype}"
    if not MIN_DIM <= q.shape[3] <= MAX_DIM:
        return f"FlexAttention takes head dims from {MIN_DIM} to {MAX_DIM}, not {q.shape[3]}"
    if torch.cuda.get_device_capability(q.device)[0] < 8:
        return f"FlexAttention's kernels need sm_80 or newer; {torch.cuda.get_device_name(q.device)} is older"
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    result = request.result_dtype(q)
    if q.numel() == 0 or k.numel() == 0:
        out, lse = empty_forward(q)
    else:
        wide, (q_in, k_in, v_in) = result if request.partial else q.dtype, (x.detach() for x in (q, k, v))
        with torch.no_grad():
            out, lse = _attend(q_in.to(wide), k_in.to(wide), v_in.to(wide), request, q.dtype)
    return finish(out, lse.to(torch.promote_types(torch.float32, q.dtype)), request, result)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, request: AttentionRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`. Raises ValueError on a CPU."""
    result = request.result_dtype(q)
    if q.numel() == 0 or k.numel() == 0:
        return empty_backward(q, k, result)
    with _autograd():
        q_leaf, k_leaf, v_leaf = (x.detach().to(result).requires_grad_() for x in (q, k, v))
        why = _no_backward(q_leaf, k_leaf)
        if why is not None:
            raise ValueError(f'backend "flex": {why}; use backend="auto"')
        local, local_lse = _attend(q_leaf, k_leaf, v_leaf, request, q.dtype)
        # -inf where a query sees nothing, here or anywhere
        weight = torch.where(local_lse == -torch.inf, 0.0, (local_lse - lse).exp()).detach()
        grad = grad_out.to(lse.dtype) * weight.transpose(1, 2)[..., None]
        grad_lse = (grad * (local.detach().to(lse.dtype) - out.to(lse.dtype))).sum(-1).transpose(1, 2)
        grads = (grad.to(local.dtype), grad_lse.to(local_lse.dtype))
        dq, dk, dv = torch.autograd.grad((local, local_lse), (q_leaf, k_leaf, v_leaf), grads)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, given: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D) in the inputs' dtype, lse (B, H, T), -inf for empty queries. given: dtype before widening."""
    mask, scale = request.mask, request.scale
    precision = "ieee" if given == torch.float32 else "tf32"
    lists = cached_by_mask(mask.serial, "flex", lambda: _lists(mask, k.shape[1]))
    if q.device.type == "cpu":
        with torch.compiler.set_stance("force_eager"):
            return _function(scale, None)(q, k, v, mask.lo, mask.hi, *lists)
    training = torch.is_grad_enabled()
    function = _compiled(scale, precision, q.dtype, q.shape[2], k.shape[2], q.shape[3], training)
    return function(q, k, v, mask.lo, mask.hi, *lists)


def _lists(mask: Mask, num_keys: int) -> tuple[Tensor, ...]:
    """What a BlockMask holds, (B, 1, N) counts and (B, 1, N, W) tiles: partial and full by queries, then by keys."""
    (lo, hi), device, lists = host_of(mask), mask.lo.device, []
    for make in (key_tiles_of_queries, query_tiles_of_keys):
        found = make(lo, hi, num_keys, TILE, TILE, device)
        # of one width: the kernel steps through both with the strides of the first. At least two wide: the compiler
        # takes a size of one for a special case
        width = max(2, found.partial.shape[-1], found.full.shape[-1])
        partial, full = (pad(x, (0, width - x.shape[-1])) for x in (found.partial, found.full))
        lists += [x[:, None] for x in (found.partial_count, partial, found.full_count, full)]
    if device.type == "cuda":
        # their width changes with the documents, and must not compile a kernel anew
        for tiles in lists[1::2]:
            torch._dynamo.maybe_mark_dynamic(tiles, 3)
    return tuple(lists)


def _function(scale: float, options: dict | None) -> Callable[..., tuple[Tensor, Tensor]]:
    # importing it takes a second
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

    def attend(q, k, v, lo, hi, kv_num, kv, full_kv_num, full_kv, q_num, q_tiles, full_q_num, full_q_tiles):
        def visible(batch, head, query, key):
            return (lo[batch, query] <= key) & (key < hi[batch, query])

        mask = BlockMask(
            (q.shape[1], k.shape[1]), kv_num, kv, full_kv_num, full_kv, q_num, q_tiles, full_q_num, full_q_tiles,
            BLOCK_SIZE=(TILE, TILE), mask_mod=visible,
        )  # fmt: skip
        out, aux = flex_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, scale=scale, enable_gqa=True,
            return_aux=AuxRequest(lse=True), kernel_options=options,
        )  # fmt: skip
        return out.transpose(1, 2), aux.lse

    return attend


@functools.cache
def _compiled(
    scale: float, precision: str, dtype: torch.dtype, heads: int, key_heads: int, dim: int, training: bool
) -> Callable[..., tuple[Tensor, Tensor]]:
    attend = _function(scale, {"BACKEND": "TRITON", "FLOAT32_PRECISION": f"'{precision}'"})
    # the compiler counts a function's variants by its code, and gives up after some: each kind gets other code
    attend.__code__ = attend.__code__.replace()
    return torch.compile(attend, fullgraph=True)


def _no_backward(q: Tensor, k: Tensor) -> str | None:
    """Why FlexAttention has no gradients of q and k, as on a CPU, or None."""
    from torch.nn.attention import flex_attention

    try:
        flex_attention._validate_device(q, k, k)
    except (NotImplementedError, ValueError) as error:
        return str(error)
    return None


@contextmanager
def _autograd() -> Iterator[None]:
    """Autograd inside of an op: the dispatcher leaves it out below an op's gradient formula."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, name))
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield
