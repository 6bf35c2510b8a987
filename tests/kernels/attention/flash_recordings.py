"""Stand-ins for the flash packages: each checks how it is called, notes it, and answers from plain products in fp64.

Signatures are those of flash-attn 2.8, flash-attn-3 3.0.0b1, flash-attn-4 4.0.0b36 and torch 2.11, names and defaults
included, so that a wrong name or place fails here as it would there. Checks are those packages' own, and what their
kernels take for granted: starts that cover all tokens, the longest document, tile sizes of lists.
"""

import sys
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from brine.kernels.attention.flash import masked as flash_masked
from brine.kernels.attention.flash import varlen as flash_varlen

HALF = (torch.float16, torch.bfloat16)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One sequence: q (T, H, D), k and v (S, K, D), seen (T, S) -> out (T, H, D), lse (H, T)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1).double() for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q.double(), k) * scale
    scores = scores.masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(-1)
    chance = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return torch.einsum("hts,shd->thd", chance, v).to(q.dtype), lse.float()


def gradients(grad, q, k, v, out, lse, visible: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the same, given out and lse: what a flash backward computes."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(group, 1).double() for x in (k, v))
    grad, query, out, lse = (x.double() for x in (grad, q, out, lse))
    scores = torch.einsum("thd,shd->hts", query, keys) * scale
    chance = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp() * visible
    change = chance * (torch.einsum("thd,shd->hts", grad, values) - (grad * out).sum(-1).T[..., None]) * scale
    dq = torch.einsum("hts,shd->thd", change, keys)
    dk, dv = torch.einsum("hts,thd->shd", change, query), torch.einsum("hts,thd->shd", chance, grad)
    dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in (dk, dv))
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


class Recorder:
    """The calls of all stand-ins, by name."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.deterministic: list[bool] = []
        self.visible: list[Tensor] = []

    def varlen(
        self, name, q, k, v, starts, longest, left, right, causal, *rest: Tensor
    ) -> list[tuple[int, int, Tensor]]:
        """Checks what all kernels over documents are given; -> (first, end, mask) of each document."""
        self.calls.append(name)
        total, heads, dim = q.shape
        assert k.shape == v.shape == (total, k.shape[1], dim) and heads % k.shape[1] == 0 and dim % 8 == 0
        assert all(x.dtype == q.dtype and x.dtype in HALF and x.stride(-1) == 1 for x in (q, k, v))
        for x in rest:
            assert x.shape == q.shape and x.dtype == q.dtype and x.stride(-1) == 1
        (a, b) = starts
        assert a is b and a.dtype == torch.int32 and a.is_contiguous() and a[0] == 0 and a[-1] == total
        sizes = a.diff()
        assert (sizes > 0).all() and longest == (sizes.max(), sizes.max()) and type(longest[0]) is int
        assert (causal and right in (0, -1, None)) or (not causal and right == 0 and left >= 0)
        ends = []
        for first, end in zip(a.tolist(), a.tolist()[1:], strict=False):
            row, key = torch.arange(end - first)[:, None], torch.arange(end - first)
            near = True if left in (-1, None) else row - key <= left
            ends.append((first, end, (key <= row) & near))
        return ends

    def forward(self, name, q, k, v, starts, longest, scale, left, right, causal):
        """-> out (total, H, D), lse (H, total)."""
        documents = self.varlen(name, q, k, v, starts, longest, left, right, causal)
        parts = [attend(q[a:b], k[a:b], v[a:b], visible, scale) for a, b, visible in documents]
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts], 1)

    def backward(self, name, grad, q, k, v, out, lse, starts, longest, scale, left, right, causal, deterministic):
        """-> dq, dk, dv."""
        documents = self.varlen(name, q, k, v, starts, longest, left, right, causal, grad, out)
        assert lse.shape == (q.shape[1], q.shape[0]) and lse.dtype == torch.float32 and lse.is_contiguous()
        self.deterministic.append(deterministic)
        parts = [
            gradients(*(x[a:b] for x in (grad, q, k, v, out)), lse[:, a:b], visible, scale)
            for a, b, visible in documents
        ]
        return [torch.cat(grads) for grads in zip(*parts, strict=True)]


class BlockSparseTensorsTorch(NamedTuple):
    """As in flash-attn-4."""

    mask_block_cnt: Tensor
    mask_block_idx: Tensor
    full_block_cnt: Tensor | None = None
    full_block_idx: Tensor | None = None
    cu_total_m_blocks: Tensor | None = None
    cu_block_idx_offsets: Tensor | None = None
    block_size: tuple[int, int] | None = None
    dq_write_order: Tensor | None = None
    dq_write_order_full: Tensor | None = None
    spt: bool | None = None


def fits(block_size, capability, dim: int, num_queries: int, *, backward: bool) -> bool:
    """Whether the kernels of flash-attn-4 take lists of this tile size, by its interface.py."""
    rows, keys = block_size
    if capability[0] > 9:
        return keys % 128 == 0 and rows % (256 if num_queries > 128 or backward else 128) == 0
    if backward:
        return keys == (128 if dim <= 128 else 96 if dim <= 192 else 64) and rows % (128 if dim <= 64 else 64) == 0
    tile = 128 if dim <= 128 else 112 if dim <= 192 else 80
    tile = keys if keys < tile and keys % 16 == 0 else tile
    return keys == tile and rows % 128 == 0


def walk(lists, mask_mod, aux, num_queries: int, num_keys: int, *, by_keys: bool) -> Tensor:
    """(B, T, S) bool: the pairs that kernels over these lists compute, with the mask function asked where it is."""
    rows, keys = lists.block_size
    batch = aux[0].shape[0]
    own, other = (keys, rows) if by_keys else (rows, keys)
    sizes = (num_keys, num_queries) if by_keys else (num_queries, num_keys)
    count = -(-sizes[0] // own)
    visible = torch.zeros(batch, num_queries, num_keys, dtype=torch.bool)
    for counts, tiles, full in (
        (lists.mask_block_cnt, lists.mask_block_idx, False),
        (lists.full_block_cnt, lists.full_block_idx, True),
    ):
        assert counts.shape == (batch, 1, count) and tiles.shape[:3] == (batch, 1, count)
        assert counts.dtype == tiles.dtype == torch.int32 and tiles.shape[3] <= -(-sizes[1] // other)
        for b in range(batch):
            for n in range(count):
                for tile in tiles[b, 0, n, : counts[b, 0, n]].tolist():
                    mine = range(n * own, min((n + 1) * own, sizes[0]))
                    theirs = range(tile * other, min((tile + 1) * other, sizes[1]))
                    at = (theirs, mine) if by_keys else (mine, theirs)
                    row, key = torch.tensor(list(at[0]))[:, None], torch.tensor(list(at[1]))
                    found = mask_mod([b], [0], [row], key, None, aux)
                    assert bool(mask_mod([b], [0], [at[0][0]], at[1][0], None, aux)) == bool(found[0, 0])
                    assert not full or found.all()
                    assert not visible[b, row, key].any(), "a tile is listed twice"
                    visible[b, row, key] = found
    return visible


def install(monkeypatch, capability: tuple[int, int], packages: tuple[str, ...]) -> Recorder:
    """Puts stand-ins of these packages where the backend finds them, on a card of this capability."""
    record = Recorder()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: "torch" in packages)
    for name in ("flash_attn", "flash_attn_interface", "flash_attn.flash_attn_interface", "flash_attn.cute.interface"):
        # None: importing it fails
        monkeypatch.setitem(sys.modules, name, None)
    for cached in (flash_varlen.load, flash_masked._visible):
        cached.cache_clear()
    if packages:
        monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    if "flash-attn" in packages:
        module = _flash_attn_2(record)
        monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)
    if "flash-attn-3" in packages:
        monkeypatch.setitem(sys.modules, "flash_attn_interface", _flash_attn_3(record))
    if "flash-attn-4" in packages:
        for name, module in _flash_attn_4(record, capability).items():
            monkeypatch.setitem(sys.modules, name, module)
    if "torch" in packages:
        forward, backward = _torch(record)
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)
    return record


def _module(name: str, **members) -> ModuleType:
    module = ModuleType(name)
    for member, value in members.items():
        setattr(module, member, value)
    return module


def _flash_attn_2(record: Recorder) -> ModuleType:
    def _flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False,
    ):  # fmt: skip
        assert dropout_p == 0.0 and softcap == 0.0
        starts, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        window = (window_size_left, window_size_right, causal)
        out, lse = record.forward("flash-attn forward", q, k, v, starts, longest, softmax_scale, *window)
        return out, lse, torch.empty(0), torch.empty(2)

    def _flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic,
        rng_state=None, zero_tensors=False,
    ):  # fmt: skip
        assert dropout_p == 0.0 and softcap == 0.0 and alibi_slopes is None
        given = (dout, q, k, v, out, softmax_lse, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k))
        window = (softmax_scale, window_size_left, window_size_right, causal, deterministic)
        for into, grad in zip((dq, dk, dv), record.backward("flash-attn backward", *given, *window), strict=True):
            into.copy_(grad)
        return torch.empty(0)

    members = (_flash_attn_varlen_forward, _flash_attn_varlen_backward)
    return _module("flash_attn.flash_attn_interface", **{f.__name__: f for f in members})


def _flash_attn_3(record: Recorder) -> ModuleType:
    def _flash_attn_forward(
        q, k, v, k_new=None, v_new=None, qv=None, out_=None, cu_seqlens_q=None, cu_seqlens_k=None,
        cu_seqlens_k_new=None, seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None, page_table=None,
        kv_batch_idx=None, leftpad_k=None, rotary_cos=None, rotary_sin=None, seqlens_rotary=None, q_descale=None,
        k_descale=None, v_descale=None, softmax_scale=None, causal=False, window_size_left=-1, window_size_right=-1,
        attention_chunk=0, softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, num_splits=1, pack_gqa=None,
        sm_margin=0,
    ):  # fmt: skip
        starts, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        window = (window_size_left, window_size_right, causal)
        out, lse = record.forward("flash-attn-3 forward", q, k, v, starts, longest, softmax_scale, *window)
        return out, lse, torch.empty(0), torch.empty(0)

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, sequed_q=None, sequed_k=None,
        max_seqlen_q=None, max_seqlen_k=None, dq=None, dk=None, dv=None, softmax_scale=None, is_causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, deterministic=False, sm_margin=0,
    ):  # fmt: skip
        assert sequed_q is None and sequed_k is None and softcap == 0.0
        given = (dout, q, k, v, out, softmax_lse, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k))
        window = (softmax_scale, window_size_left, window_size_right, is_causal, deterministic)
        for into, grad in zip((dq, dk, dv), record.backward("flash-attn-3 backward", *given, *window), strict=True):
            into.copy_(grad)
        return torch.empty(0)

    members = (_flash_attn_forward, _flash_attn_backward)
    return _module("flash_attn_interface", **{f.__name__: f for f in members})


def _flash_attn_4(record: Recorder, capability: tuple[int, int]) -> dict[str, ModuleType]:
    def masked(q, k, lists, mask_mod, aux, *, backward: bool) -> Tensor:
        assert all(x.dtype == torch.int32 and x.shape == q.shape[:2] and x.is_contiguous() for x in aux)
        assert fits(lists.block_size, capability, q.shape[3], q.shape[1], backward=backward)
        visible = walk(lists, mask_mod, aux, q.shape[1], k.shape[1], by_keys=backward)
        record.visible.append(visible)
        return visible

    def _flash_attn_fwd(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None,
        max_seqlen_k=None, min_seqlen_k=None, page_table=None, softmax_scale=None, causal=False, softcap=None,
        window_size_left=None, window_size_right=None, learnable_sink=None, tile_mn=None, mma_pv_is_rs=None,
        intra_wg_overlap=None, num_threads=384, num_splits=1, pack_gqa=None, _arch=None, score_mod=None, mask_mod=None,
        block_sparse_tensors=None, return_lse=False, out=None, lse=None, aux_tensors=None, aux_scalars=None,
    ):  # fmt: skip
        assert return_lse
        if mask_mod is None:
            starts, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
            window = (window_size_left, window_size_right, causal)
            found = record.forward("flash-attn-4 forward", q, k, v, starts, longest, softmax_scale, *window)
            return *found, None, None, None
        record.calls.append("flash-attn-4 masked forward")
        assert q.dtype in HALF and q.dtype == k.dtype == v.dtype and not causal and cu_seqlens_q is None
        visible = masked(q, k, block_sparse_tensors, mask_mod, aux_tensors, backward=False)
        parts = [attend(*one, softmax_scale) for one in zip(q, k, v, visible, strict=True)]
        return *(torch.stack(x) for x in zip(*parts, strict=True)), None, None, None

    def _flash_attn_bwd(
        q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0, window_size_left=None,
        window_size_right=None, m_block_size=64, n_block_size=128, num_threads=256, pack_gqa=False, num_stages_Q=2,
        num_stages_dO=2, SdP_swapAB=False, dKV_swapAB=False, dQ_swapAB=False, AtomLayoutMSdP=2, AtomLayoutNdKV=2,
        AtomLayoutMdQ=2, V_in_regs=False, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None,
        max_seqlen_q=None, max_seqlen_k=None, deterministic=False, dq=None, dk=None, dv=None, score_mod=None,
        score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None, dlse=None,
        learnable_sink=None,
    ):  # fmt: skip
        if mask_mod is None:
            given = (dout, q, k, v, out, lse, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k))
            window = (softmax_scale, window_size_left, window_size_right, causal, deterministic)
            return record.backward("flash-attn-4 backward", *given, *window)
        record.calls.append("flash-attn-4 masked backward")
        record.deterministic.append(deterministic)
        assert q.dtype in HALF and q.dtype == k.dtype == v.dtype == out.dtype == dout.dtype
        assert lse.dtype == torch.float32 and lse.shape == (q.shape[0], q.shape[2], q.shape[1])
        lists = block_sparse_tensors
        if deterministic:
            assert capability[0] > 9 and lists.spt is False
            assert lists.dq_write_order.shape == lists.mask_block_idx.shape
            assert lists.dq_write_order_full.shape == lists.full_block_idx.shape
        visible = masked(q, k, lists, mask_mod, aux_tensors, backward=True)
        parts = [gradients(*one, softmax_scale) for one in zip(dout, q, k, v, out, lse, visible, strict=True)]
        return [torch.stack(x) for x in zip(*parts, strict=True)]

    cute = _module("cutlass.cute", jit=lambda function: function)
    utils = _module("flash_attn.cute.utils", scalar_to_ssa=lambda value, dtype: torch.as_tensor(value))
    sparsity = _module("flash_attn.cute.block_sparsity", BlockSparseTensorsTorch=BlockSparseTensorsTorch)
    interface = _module("flash_attn.cute.interface", _flash_attn_fwd=_flash_attn_fwd, _flash_attn_bwd=_flash_attn_bwd)
    return {
        "cutlass": _module("cutlass", cute=cute, Int32=int),
        "cutlass.cute": cute,
        "flash_attn.cute": _module("flash_attn.cute", utils=utils),
        "flash_attn.cute.utils": utils,
        "flash_attn.cute.block_sparsity": sparsity,
        "flash_attn.cute.interface": interface,
    }


def _torch(record: Recorder):
    def forward(
        query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None,
        window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None,
    ):  # fmt: skip
        assert dropout_p == 0.0 and not return_debug_mask
        given = (query, key, value, (cum_seq_q, cum_seq_k), (max_q, max_k), scale)
        out, lse = record.forward("torch forward", *given, window_size_left, window_size_right, is_causal)
        return out, lse, torch.empty(2), torch.empty(0), torch.empty(0)

    def backward(
        grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
        rng_state, unused, *, scale=None, window_size_left=None, window_size_right=None,
    ):  # fmt: skip
        assert dropout_p == 0.0 and rng_state.dtype == torch.uint64
        given = (grad_out, query, key, value, out, logsumexp, (cum_seq_q, cum_seq_k), (max_q, max_k), scale)
        return record.backward("torch backward", *given, window_size_left, window_size_right, is_causal, False)

    return forward, backward
