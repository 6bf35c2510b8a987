"""The host side of the Triton backend: what it can do, and the launches.

Refused, with one sentence (`unsupported_reason`): fp64, devices other than CUDA, architectures before sm_80, head dims
above 256, more than 65,535 heads in a batch. Under Triton's interpreter (`TRITON_INTERPRET=1`, for tests) CPU tensors
are taken, and bf16 is refused, since the interpreter's bf16 products are wrong without a word.

Tiles come from `triton/tiles.py`. On sm_90 the kernels read through tensor descriptors where the table says so and the
inputs' strides allow it (`triton/tma.py`). Launches go to the inputs' card, whichever is current. Nothing here waits
for the card, but for one reading of how many keys a mask's rows see (`is_narrow`).

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim, BD = D rounded up to a power of two.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache

import torch
import triton
from torch import Tensor

from brine.kernels.attention.spans import cached_by_mask, kind_of, span_stats
from brine.kernels.attention.triton import backward as triton_backward
from brine.kernels.attention.triton import decode as triton_decode
from brine.kernels.attention.triton import forward as triton_kernels
from brine.kernels.attention.triton import tiles as triton_tiles
from brine.kernels.attention.triton import tma as triton_tma
from brine.kernels.attention.triton.tiles import PADDED_ROWS, TileConfig

LOG2E = triton_kernels.LOG2E.value
MAX_DIM = 256
MAX_HEADS = 65535
"""B * H: the second axis of a grid."""
NARROW_KEYS = 1024
"""A mask is narrow where every row sees fewer keys than this. It follows the window and the longest document, and not
how much padding or which short documents lie beside it."""
MAX_TOKEN_STRIDE = 2**23
"""Elements from one token to the next; a tile has at most 128 tokens."""
DELTA_ROWS = 64


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def unsupported_reason(q: Tensor, k: Tensor, *, kind: str = "any", sink: Tensor | None = None) -> str | None:
    """One sentence that says why this backend cannot serve q (B, T, H, D) and k (B, S, K, D), or None.

    Every kind of mask and a sink are served. Cheap, and waits for nothing.
    """
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f'backend "triton" takes float32, float16 or bfloat16, not {q.dtype}'
    if q.shape[3] > MAX_DIM:
        return f'backend "triton" takes head dims up to {MAX_DIM}; got {q.shape[3]}'
    if q.shape[0] * q.shape[2] > MAX_HEADS:
        return (
            f'backend "triton" takes at most {MAX_HEADS} heads in a batch; got {q.shape[0]} x {q.shape[2]}: '
            "give the batch in parts"
        )
    if interpreted():
        if q.dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 products wrongly; give float32 or float16"
        return None
    if q.device.type != "cuda":
        return (
            f'backend "triton" needs CUDA tensors, but q is on {q.device} (TRITON_INTERPRET=1, set before Python '
            "starts, runs the kernels slowly on the CPU)"
        )
    if _capability(q.device.index)[0] < 8:
        return f'backend "triton" needs sm_80 or newer; {torch.cuda.get_device_name(q.device)} is older'
    return None


def check(q: Tensor, k: Tensor) -> None:
    """Raises ValueError where this backend cannot serve q and k."""
    why = unsupported_reason(q, k)
    if why is not None:
        raise ValueError(f'{why}; use backend="auto" or "reference"')


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, *, scale: float, sink: Tensor | None,
    wide: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32; sink: (H,) or None.

    wide: out is fp32, written from the accumulators, without a rounding to q's dtype in between.
    -> out (B, T, H, D) in q's dtype, or fp32; lse (B, H, T) float32. Both are new and contiguous. Raises ValueError
    where `check` does.
    """
    check(q, k)
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    out = q.new_empty(q.shape, dtype=torch.float32 if wide else q.dtype)
    lse = q.new_empty((batch, heads, num_queries), dtype=torch.float32)
    if q.numel() == 0:
        return out, lse
    if scale <= 0:
        q, scale = flipped(q, scale)
    q, k, v, lo, hi = whole_heads(q), whole_heads(k), whole_heads(v), lo.contiguous(), hi.contiguous()
    group = heads // key_heads
    with card_of(q):
        if num_queries * group <= triton_decode.MAX_ROWS and num_keys >= triton_decode.MIN_KEYS:
            triton_decode.forward(q, k, v, lo, hi, out, lse, scale=scale, sink=sink)
            return out, lse
        width = padded(dim)
        tile, tma = _tile("fwd", q, lo, hi, serial, _tma_suits(q, k, v))
        rows, keys = (q,), (k, v)
        if tma:
            rows, keys = _described(rows, tile.rows, width), _described(keys, tile.keys, width)
        triton_kernels.span_attention_fwd_kernel[triton.cdiv(num_queries, tile.rows), batch * heads](
            *rows, *keys, lo, hi, sink, out, lse,
            q.stride(0), k.stride(0), v.stride(0), q.stride(1), k.stride(1), v.stride(1),
            q.stride(2), k.stride(2), v.stride(2), num_queries, num_keys, scale * LOG2E,
            H=heads, GROUP=group, D=dim, BD=width, BM=tile.rows, BN=tile.keys, SINK=sink is not None, TMA=tma,
            PRECISION=_precision(q), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, out: Tensor, lse: Tensor,
    *, scale: float, whole: bool = False, wide: bool = False, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients from these keys, given out and lse over *all* keys, sink included. Shapes as in `forward`.

    whole: these are all keys. In fp32 delta is then summed over them, which is closer than grad_out . out (out was
    rounded, and what should cancel leaves a rest), and divided by the sum of their weights and that of the sink, (H,)
    or None; 16-bit inputs have larger errors than that.
    wide: gradients are fp32, written from the accumulators; out may be fp32 in any case.
    -> dq, dk, dv in q's dtype, or fp32, new and contiguous.
    """
    batch, num_queries, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    dtype = torch.float32 if wide else q.dtype
    dq, dk, dv = (q.new_empty(x.shape, dtype=dtype) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    given = scale
    if scale <= 0:
        q, scale = flipped(q, scale)
    q, k, v, out, grad_out = (whole_heads(x) for x in (q, k, v, out, grad_out.to(q.dtype)))
    lo, hi = lo.contiguous(), hi.contiguous()
    width, padded_rows = padded(dim), triton.cdiv(num_queries, PADDED_ROWS) * PADDED_ROWS
    delta, lse2 = lse.new_empty(2, batch, heads, padded_rows)
    numbers = (
        *(x.stride(i) for i in (0, 1, 2) for x in (q, k, v, grad_out)), num_queries, num_keys, padded_rows,
    )  # fmt: skip
    shared = {"GROUP": heads // key_heads, "D": dim, "BD": width, "PRECISION": _precision(q)}
    suits = _tma_suits(q, k, v, grad_out)
    with card_of(q):
        row_lo, row_hi = cached_by_mask(serial, "columns", lambda: columns(lo, hi, num_keys))
        triton_backward.span_attention_bwd_delta_kernel[padded_rows // DELTA_ROWS, batch * heads](
            out, grad_out, lse, delta, lse2, out.stride(0), grad_out.stride(0), out.stride(1), grad_out.stride(1),
            out.stride(2), grad_out.stride(2), num_queries, padded_rows, H=heads, D=dim, BD=width, BM=DELTA_ROWS,
            num_warps=8 if q.dtype == torch.float32 and width <= 64 else 4,
        )  # fmt: skip
        tile, tma = _tile("bwd_queries", q, lo, hi, serial, suits)
        options = {"BM": tile.rows, "BN": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}
        grid = triton.cdiv(num_queries, tile.rows), batch * heads
        if whole and q.dtype == torch.float32:
            triton_backward.span_attention_bwd_exact_delta_kernel[grid](
                q, k, v, lo, hi, sink, grad_out, lse2, delta, *numbers, scale * LOG2E,
                H=heads, SINK=sink is not None, **shared, **options,
            )  # fmt: skip
        rows, keys = (q, grad_out), (k, v)
        if tma:
            rows, keys = _described(rows, tile.rows, width), _described(keys, tile.keys, width)
        triton_backward.span_attention_bwd_queries_kernel[grid](
            rows[0], *keys, lo, hi, rows[1], lse2, delta, dq, *numbers, scale, scale * LOG2E,
            H=heads, TMA=tma, **shared, **options,
        )  # fmt: skip
        tile, tma = _tile("bwd_keys", q, lo, hi, serial, suits)
        options = {"BM": tile.rows, "BN": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}
        rows, keys = (q, grad_out), (k, v)
        if tma:
            rows, keys = _described(rows, tile.rows, width), _described(keys, tile.keys, width)
        triton_backward.span_attention_bwd_keys_kernel[triton.cdiv(num_keys, tile.keys), batch * key_heads](
            rows[0], *keys, row_lo, row_hi, rows[1], lse2, delta, dk, dv, *numbers, scale, scale * LOG2E,
            K=key_heads, TMA=tma, **shared, **options,
        )  # fmt: skip
        if given <= 0:
            # of q as it was given
            dq = dq.neg_() if given < 0 else dq.zero_()
    return dq, dk, dv


def columns(lo: Tensor, hi: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """(row_lo, row_hi), each (B, S) int32: key j is seen by the rows row_lo[j] <= i < row_hi[j].

    Row i sees j where hi[i] > j and lo[i] <= j; as both ends never decrease, the first holds from some row on, the
    second up to some row. An empty row in between has lo = hi and fails one of them, so it ends the range.
    """
    key = torch.arange(num_keys, device=lo.device, dtype=torch.int32).expand(lo.shape[0], -1).contiguous()
    row_lo = torch.searchsorted(hi, key, right=True, out_int32=True)
    row_hi = torch.searchsorted(lo, key, right=True, out_int32=True)
    return row_lo, row_hi


def capability_of(q: Tensor) -> tuple[int, int]:
    """Compute capability that tiles are chosen for; Hopper's under the interpreter."""
    return (9, 0) if interpreted() else _capability(q.device.index)


@lru_cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _tile(name: str, q: Tensor, lo: Tensor, hi: Tensor, serial: int, suits: bool) -> tuple[TileConfig, bool]:
    """-> the pass's tile and whether it is read through descriptors."""
    tile = triton_tiles.tile_config_of(
        name, padded(q.shape[3]), narrow=is_narrow(lo, hi, serial), itemsize=q.element_size(),
        capability=capability_of(q), tma=suits,
    )  # fmt: skip
    return tile, tile.tma and suits


def is_narrow(lo: Tensor, hi: Tensor, serial: int) -> bool:
    """Whether rows see few keys. Waits for the card once a mask, unless the host knows its spans; never while a graph
    is captured or where the spans are written to in place: those masks count as wide."""
    if kind_of(serial) == "moving" or (lo.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    return span_stats(serial, lo, hi).max_visible_keys < NARROW_KEYS


def _tma_suits(*tensors: Tensor) -> bool:
    return capability_of(tensors[0])[0] == 9 and triton_tma.suits(*tensors)


def _described(tensors: tuple[Tensor, ...], block: int, dim: int) -> tuple:
    return tuple(triton_tma.describe(x, block, dim) for x in tensors)


def flipped(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """The same scores with a scale above 0: the kernels take the largest score for the largest scaled one."""
    return (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)


def card_of(q: Tensor):
    """Launches go to the current card, which need not be q's."""
    return torch.cuda.device_of(q) if q.is_cuda else nullcontext()


@lru_cache
def padded(dim: int) -> int:
    """BD: matrix products want 16 and a power of two."""
    return max(16, triton.next_power_of_2(dim))


def _precision(q: Tensor) -> str:
    """fp32 products stay fp32; the default, tf32, would round their inputs to 10 bits."""
    return "ieee" if q.dtype == torch.float32 else "tf32"


def whole_heads(x: Tensor) -> Tensor:
    """Kernels read D consecutive numbers, and offsets within a tile are int32; other strides are free."""
    return x if x.stride(3) == 1 and x.stride(1) <= MAX_TOKEN_STRIDE else x.contiguous()
