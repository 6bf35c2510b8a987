"""The host side of the Triton backend: what it can do, tile sizes, and the launches.

Tile sizes come from a table over (pass, head dim, mask class, architecture) and nothing else, so that no length and no
packing ever compiles a kernel anew. The mask class is "narrow" where rows see few keys on average: there, large tiles
would be mostly mask. The table was filled from compile reports (registers, spills, shared memory; `python -m
benchmarks.compile_report` prints them); no entry has been timed on a card yet.

Refused, with a ValueError that says what to do: fp64, devices other than CUDA, architectures before sm_80, head dims
above 256. Under Triton's interpreter (`TRITON_INTERPRET=1`, for tests) CPU tensors are taken, and bf16 is refused,
since the interpreter's bf16 products are wrong without a word.

Legend: B batch, T query rows, S keys, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kernels.attention import triton_decode
from kernels.attention import triton_kernels as device
from kernels.attention.spans import recall

LOG2E = device.LOG2E.value
MAX_DIM = 256
NARROW_KEYS = 512
"""Mean keys of a row below which a mask is narrow."""
MAX_TOKEN_STRIDE = 2**23
"""Elements from one token to the next; a tile has at most 128 tokens."""
DELTA_ROWS = 64
PADDED_ROWS = 128
"""Row sums of the backward are laid out in multiples of this, the largest BM, so that tiles of them need no check."""


@dataclass(frozen=True)
class Tile:
    """How one pass is cut and compiled."""

    rows: int
    """BM, query rows of a tile."""
    keys: int
    """BN, keys of a tile."""
    warps: int
    stages: int
    """Depth of the software pipeline: tiles of keys (or rows) in flight."""


# (pass, BD) -> (tile for wide masks, tile for narrow ones), 16-bit inputs; passes are fwd, bwd_keys (dk and dv) and
# bwd_rows (dq)
_HOPPER = {
    ("fwd", 32): (Tile(128, 128, 8, 3), Tile(64, 64, 4, 3)),
    ("fwd", 64): (Tile(128, 128, 8, 3), Tile(64, 64, 4, 3)),
    ("fwd", 128): (Tile(128, 64, 8, 3), Tile(64, 32, 4, 3)),
    ("fwd", 256): (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("bwd_keys", 32): (Tile(64, 128, 8, 3), Tile(64, 64, 4, 3)),
    ("bwd_keys", 64): (Tile(64, 128, 8, 3), Tile(64, 64, 4, 3)),
    ("bwd_keys", 128): (Tile(32, 128, 8, 2), Tile(32, 64, 8, 2)),
    ("bwd_keys", 256): (Tile(32, 64, 8, 2), Tile(32, 64, 8, 2)),
    ("bwd_rows", 32): (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    ("bwd_rows", 64): (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    ("bwd_rows", 128): (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)),
    ("bwd_rows", 256): (Tile(128, 32, 8, 1), Tile(64, 64, 8, 2)),
}
_AMPERE = _HOPPER | {
    ("fwd", 64): (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    ("bwd_keys", 64): (Tile(64, 128, 8, 3), Tile(32, 64, 4, 3)),
    ("fwd", 128): (Tile(128, 32, 8, 2), Tile(64, 64, 4, 2)),
    ("fwd", 256): (Tile(64, 32, 8, 2), Tile(64, 32, 8, 2)),
    ("bwd_keys", 128): (Tile(32, 64, 8, 2), Tile(32, 64, 8, 2)),
    ("bwd_keys", 256): (Tile(32, 64, 8, 1), Tile(32, 64, 8, 1)),
    ("bwd_rows", 128): (Tile(64, 64, 8, 2), Tile(64, 32, 4, 2)),
    ("bwd_rows", 256): (Tile(64, 32, 8, 1), Tile(64, 32, 8, 1)),
}
_BLACKWELL = _HOPPER | {
    ("fwd", 128): (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2)),
    ("bwd_keys", 128): (Tile(64, 128, 8, 2), Tile(64, 64, 8, 2)),
    ("bwd_keys", 256): (Tile(32, 64, 8, 1), Tile(32, 64, 8, 1)),
    ("bwd_rows", 256): (Tile(64, 32, 8, 1), Tile(64, 32, 8, 1)),
}
TILES = {8: _AMPERE, 9: _HOPPER, 10: _BLACKWELL}
"""By major compute capability; a newer one takes the last."""
# fp32 takes twice the shared memory and no tensor cores: small tiles, for any mask and card, up to D = 64 and above
_FP32 = {
    "fwd": (Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    "bwd_keys": (Tile(32, 32, 8, 1), Tile(16, 32, 8, 1)),
    "bwd_rows": (Tile(32, 32, 8, 1), Tile(16, 16, 8, 2)),
}


def tile_of(name: str, dim: int, *, narrow: bool, itemsize: int, capability: tuple[int, int]) -> Tile:
    """The tile of a pass. dim: BD, a power of two; itemsize: bytes of an input element."""
    if itemsize == 4:
        return _FP32[name][dim > 64]
    return TILES[min(max(capability[0], min(TILES)), max(TILES))][name, max(dim, 32)][narrow]


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def check(q: Tensor) -> None:
    """Raises ValueError where this backend cannot serve q (B, T, H, D)."""
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f'backend "triton" takes float32, float16 or bfloat16, not {q.dtype}; use "reference"')
    if q.shape[3] > MAX_DIM:
        raise ValueError(f'backend "triton" takes head dims up to {MAX_DIM}; got {q.shape[3]}; use "reference"')
    if interpreted():
        if q.dtype == torch.bfloat16:
            raise ValueError("Triton's interpreter computes bfloat16 products wrongly; give float32 or float16")
        return
    if q.device.type != "cuda":
        raise ValueError(
            f'backend "triton" needs CUDA tensors, but q is on {q.device}; use backend="auto", or set '
            "TRITON_INTERPRET=1 before Python starts to run the kernels slowly on the CPU"
        )
    if torch.cuda.get_device_capability(q.device)[0] < 8:
        raise ValueError(f'backend "triton" needs sm_80 or newer; {torch.cuda.get_device_name(q.device)} is older')


def forward(
    q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, *, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q: (B, T, H, D); k, v: (B, S, K, D); lo, hi: (B, T) int32; sink: (H,) or None.

    -> out (B, T, H, D) in q's dtype; lse (B, H, T) float32. Both are new and contiguous. Raises ValueError where
    `check` does.
    """
    check(q)
    batch, num_rows, heads, dim = q.shape
    out = q.new_empty(q.shape)
    lse = q.new_empty((batch, heads, num_rows), dtype=torch.float32)
    if q.numel() == 0:
        return out, lse
    q, k, v, lo, hi = _whole_heads(q), _whole_heads(k), _whole_heads(v), lo.contiguous(), hi.contiguous()
    group = heads // k.shape[2]
    if num_rows * group <= triton_decode.MAX_ROWS and k.shape[1] >= triton_decode.MIN_KEYS:
        triton_decode.forward(q, k, v, lo, hi, out, lse, scale=scale, sink=sink)
        return out, lse
    tile = _tile("fwd", q, lo, hi, serial)
    device.span_attention_fwd_kernel[triton.cdiv(num_rows, tile.rows), batch * heads](
        q, k, v, lo, hi, sink, out, lse,
        q.stride(0), k.stride(0), v.stride(0), q.stride(1), k.stride(1), v.stride(1),
        q.stride(2), k.stride(2), v.stride(2), num_rows, k.shape[1], scale * LOG2E,
        H=heads, GROUP=group, D=dim, BD=_padded(dim), BM=tile.rows, BN=tile.keys,
        SINK=sink is not None, PRECISION=_precision(q), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor, serial: int, out: Tensor, lse: Tensor,
    *, scale: float, whole: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients from these keys, given out and lse over *all* keys, sink included. Shapes as in `forward`.

    whole: these are all keys. In fp32 delta is then summed over them, which is closer than grad_out . out (out was
    rounded, and what should cancel leaves a rest); 16-bit inputs have larger errors than that.
    -> dq, dk, dv in q's dtype, new and contiguous.
    """
    batch, num_rows, heads, dim = q.shape
    num_keys, key_heads = k.shape[1:3]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    q, k, v, out, grad_out = (_whole_heads(x) for x in (q, k, v, out, grad_out))
    lo, hi = lo.contiguous(), hi.contiguous()
    row_lo, row_hi = recall(serial, "columns", lambda: columns(lo, hi, num_keys))
    padded_rows = triton.cdiv(num_rows, PADDED_ROWS) * PADDED_ROWS
    delta, lse2 = lse.new_empty(2, batch, heads, padded_rows)
    device.span_attention_bwd_delta_kernel[padded_rows // DELTA_ROWS, batch * heads](
        out, grad_out, lse, delta, lse2, out.stride(0), grad_out.stride(0), out.stride(1), grad_out.stride(1),
        out.stride(2), grad_out.stride(2), num_rows, padded_rows, H=heads, D=dim, BD=_padded(dim), BM=DELTA_ROWS,
    )  # fmt: skip
    strides = (
        *(x.stride(0) for x in (q, k, v, grad_out)), *(x.stride(1) for x in (q, k, v, grad_out)),
        *(x.stride(2) for x in (q, k, v, grad_out)),
    )  # fmt: skip
    shared = {"GROUP": heads // key_heads, "D": dim, "BD": _padded(dim), "PRECISION": _precision(q)}
    tile = _tile("bwd_rows", q, lo, hi, serial)
    if whole and q.dtype == torch.float32:
        device.span_attention_bwd_exact_delta_kernel[triton.cdiv(num_rows, tile.rows), batch * heads](
            q, k, v, lo, hi, grad_out, lse2, delta, *strides, num_rows, num_keys, padded_rows, scale * LOG2E,
            H=heads, BM=tile.rows, BN=tile.keys, **shared, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    device.span_attention_bwd_rows_kernel[triton.cdiv(num_rows, tile.rows), batch * heads](
        q, k, v, lo, hi, grad_out, lse2, delta, dq, *strides, num_rows, num_keys, padded_rows,
        scale, scale * LOG2E, H=heads, BM=tile.rows, BN=tile.keys,
        **shared, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    tile = _tile("bwd_keys", q, lo, hi, serial)
    device.span_attention_bwd_keys_kernel[triton.cdiv(num_keys, tile.keys), batch * key_heads](
        q, k, v, row_lo, row_hi, grad_out, lse2, delta, dk, dv, *strides, num_rows, num_keys, padded_rows,
        scale, scale * LOG2E, K=key_heads, BM=tile.rows, BN=tile.keys, **shared,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
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


def _tile(name: str, q: Tensor, lo: Tensor, hi: Tensor, serial: int) -> Tile:
    # one synchronisation per mask, not per layer
    narrow = recall(serial, "narrow", lambda: bool((hi - lo).float().mean() < NARROW_KEYS))
    return tile_of(name, _padded(q.shape[3]), narrow=narrow, itemsize=q.element_size(), capability=capability_of(q))


def capability_of(q: Tensor) -> tuple[int, int]:
    """Compute capability that tiles are chosen for; Hopper's under the interpreter."""
    return (9, 0) if interpreted() else torch.cuda.get_device_capability(q.device)


def _padded(dim: int) -> int:
    """BD: matrix products want 16 and a power of two."""
    return max(16, triton.next_power_of_2(dim))


def _precision(q: Tensor) -> str:
    """fp32 products stay fp32; the default, tf32, would round their inputs to 10 bits."""
    return "ieee" if q.dtype == torch.float32 else "tf32"


def _whole_heads(x: Tensor) -> Tensor:
    """Kernels read D consecutive numbers, and offsets within a tile are int32; other strides are free."""
    return x if x.stride(3) == 1 and x.stride(1) <= MAX_TOKEN_STRIDE else x.contiguous()
