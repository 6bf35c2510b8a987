"""Attention over spans by FlexAttention, the compiler's own kernel: backend "flex".

Its mask function reads lo and hi, and its `BlockMask` is made from four numbers a tile (`tiles.py`), never from T x S:
torch's `create_block_mask` evaluates every pair, and its `from_kv_blocks` transposes by way of a dense matrix of tiles
and a sort. The lists are made once a mask and kept with it.

**Backward.** FlexAttention gives gradients through autograd alone, and its saved tensors cannot be handed in. So the
backward computes the forward again, about 1.4 times the work of a backward that is given them. That out and lse may be
over more keys than these, or over a sink, needs nothing more: with local softmax P, o, l and the given O, L,

    p_ij = w_i P_ij, w_i = exp(l_i - L_i)         ds_ij = p_ij (g_i . v_j - g_i . O_i)

is what FlexAttention computes for the gradients w_i g_i of o_i and w_i (g_i . o_i - g_i . O_i) of l_i.

**Devices.** On CUDA the function is compiled, once for each head layout, dtype and scale, again when a length first
changes, and from then on for all lengths. On a CPU it runs uncompiled, dense, for tests; FlexAttention refuses the
backward there, and so does this. On an H200 it was wrong before its lists had one width, and is right since.

**wide.** The kernel rounds its results to the inputs' dtype, so for fp32 results 16-bit inputs are widened first, and
multiplied as tf32, which holds them exactly; that takes twice the time and fp32 copies of q, k and v.

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

from brine.kernels.attention.merge import absorb_sink
from brine.kernels.attention.spans import cached_by_mask, host_of
from brine.kernels.attention.tiles import key_tiles_of_queries, query_tiles_of_keys

TILE = 128
MIN_DIM, MAX_DIM = 16, 256
MAX_CPU_PAIRS = 2048 * 2048
"""Rows times keys that are computed on a CPU, where all of them are."""


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str, sink: Tensor | None) -> str | None:
    """Why this backend cannot serve q (B, T, H, D) and k (B, S, K, D), in a sentence; None where it can."""
    if kind == "moving":
        return "a mask that is advanced in place would need its lists of tiles anew at every step"
    if q.device.type == "cpu":
        if q.shape[1] * k.shape[1] > MAX_CPU_PAIRS:
            return f"on a CPU FlexAttention takes T x S memory, too much for {q.shape[1]} rows and {k.shape[1]} keys"
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


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int,
    *, scale: float, sink: Tensor | None, wide: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32; sink: (H,) or None.

    -> out (B, T, H, D) in q's dtype, or with `wide` in lse's; lse (B, H, T) float32 (float64 for float64 inputs).
    """
    sums, mask = torch.promote_types(torch.float32, q.dtype), (lo, hi, serial, scale)
    if q.numel() == 0 or k.numel() == 0:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse = q.new_full((q.shape[0], q.shape[2], q.shape[1]), -torch.inf, dtype=sums)
    else:
        with torch.no_grad():
            out, lse = _attend(*(x.detach().to(sums if wide else x.dtype) for x in (q, k, v)), *mask, q.dtype)
    if sink is not None:
        out, rows = absorb_sink(out, lse.transpose(1, 2), sink)
        lse = rows.transpose(1, 2)
    return out.to(sums if wide else q.dtype).contiguous(), lse.to(sums).contiguous()


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, out: Tensor, lse: Tensor,
    *, scale: float, whole: bool, wide: bool = False, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients from these keys, given out and lse over *all* keys, sink included. Shapes as in `forward`.

    -> dq, dk, dv in q's dtype, or with `wide` in lse's. Raises ValueError on a CPU.
    """
    result = lse.dtype if wide else q.dtype
    if q.numel() == 0 or k.numel() == 0:
        return tuple(torch.zeros_like(x, dtype=result) for x in (q, k, v))
    with _autograd():
        leaves = [x.detach().to(result).requires_grad_() for x in (q, k, v)]
        why = _no_backward(*leaves[:2])
        if why is not None:
            raise ValueError(f'backend "flex": {why}; use backend="auto"')
        own, own_lse = _attend(*leaves, lo, hi, serial, scale, q.dtype)
        # -inf where a row sees nothing, here or anywhere
        weight = torch.where(own_lse == -torch.inf, 0.0, (own_lse - lse).exp()).detach()
        share = grad_out.to(lse.dtype) * weight.transpose(1, 2)[..., None]
        grad_lse = (share * (own.detach().to(lse.dtype) - out.to(lse.dtype))).sum(-1).transpose(1, 2)
        grads = torch.autograd.grad((own, own_lse), leaves, (share.to(own.dtype), grad_lse.to(own_lse.dtype)))
    return tuple(grad.contiguous() for grad in grads)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, scale: float, given: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D) in the inputs' dtype and lse (B, H, T), -inf for a row that sees nothing.

    given: the dtype that q, k and v had before they were widened.
    """
    precision = "ieee" if given == torch.float32 else "tf32"
    lists = cached_by_mask(serial, "flex", lambda: _lists(lo, hi, serial, k.shape[1]))
    if q.device.type == "cpu":
        with torch.compiler.set_stance("force_eager"):
            return _function(scale, None)(q, k, v, lo, hi, *lists)
    training = torch.is_grad_enabled()
    function = _compiled(scale, precision, q.dtype, q.shape[2], k.shape[2], q.shape[3], training)
    return function(q, k, v, lo, hi, *lists)


def _lists(lo: Tensor, hi: Tensor, serial: int, num_keys: int) -> tuple[Tensor, ...]:
    """What a BlockMask holds, (B, 1, N) counts and (B, 1, N, W) tiles: partial and full by rows, then by keys."""
    ends = host_of(serial, lo, hi)
    lists = []
    for make in (key_tiles_of_queries, query_tiles_of_keys):
        found = make(*ends, num_keys, TILE, TILE, lo.device)
        # of one width: the kernel steps through both with the strides of the first. At least two wide: the compiler
        # takes a size of one for a special case
        width = max(2, found.partial.shape[-1], found.full.shape[-1])
        partial, full = (pad(x, (0, width - x.shape[-1])) for x in (found.partial, found.full))
        lists += [x[:, None] for x in (found.partial_count, partial, found.full_count, full)]
    if lo.device.type == "cuda":
        # their width changes with the documents, and must not compile a kernel anew
        for tiles in lists[1::2]:
            torch._dynamo.maybe_mark_dynamic(tiles, 3)
    return tuple(lists)


def _function(scale: float, options: dict | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """FlexAttention over spans as a function of tensors alone."""
    # importing it takes a second
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

    def attend(q, k, v, lo, hi, kv_num, kv, full_kv_num, full_kv, q_num, rows, full_q_num, full_rows):
        def visible(batch, head, row, key):
            return (lo[batch, row] <= key) & (key < hi[batch, row])

        mask = BlockMask(
            (q.shape[1], k.shape[1]), kv_num, kv, full_kv_num, full_kv, q_num, rows, full_q_num, full_rows,
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
    # the compiler counts a function's variants by its code, and gives up after some: each kind has code of its own
    attend.__code__ = attend.__code__.replace()
    return torch.compile(attend, fullgraph=True)


def _no_backward(q: Tensor, k: Tensor) -> str | None:
    """FlexAttention's own word on whether gradients of q and k can be had; it has none on a CPU."""
    from torch.nn.attention import flex_attention

    try:
        flex_attention._validate_device(q, k, k)
    except (NotImplementedError, ValueError) as error:
        return str(error)
    return None


@contextmanager
def _autograd() -> Iterator[None]:
    """Autograd inside of an op: the dispatcher leaves it out below an op's own gradient formula."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, name))
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield
