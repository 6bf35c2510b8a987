"""Who computes attention in the benchmark, and how each is given the mask.

    brine         brine.kernels.attention over spans
    sdpa-flash    PyTorch's flash kernel: a whole causal sequence, nothing else
    sdpa-cudnn    the same by cuDNN
    torch-varlen  torch.nn.attention.varlen: packed documents, causal, with a window
    flex          FlexAttention, compiled, with a mask function that reads the same lo and hi
    fa2 fa3 fa4   the flash-attn packages where they are installed: as torch-varlen
    fa4-mask      flash-attn-4 with a mask function over lo and hi and lists of tiles: anything
    sdpa-mask     SDPA with a dense boolean mask: anything, T x S memory, skips nothing

Each gets the layout that it works in. On the CPU SDPA gets contiguous (B, H, T, D) tensors; on CUDA its kernels read
(B, T, H, D) through a transposed view as fast, so all implementations share one copy and a million tokens fit. Masks
are made before the clock starts. An implementation that cannot express a mask raises `SkippedError`, and so does one
whose package is missing; what else goes wrong in other people's code is caught by `benchmark_implementations`.

Legend: B batch, T queries, S keys, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness.implementations import OURS, Implementation
from benchmarks.harness.measure import SkippedError
from benchmarks.kernels.masks import BenchmarkMask
from brine.kernels.attention import attention

MASK_BYTES = 8 * 2**30
"""A dense mask is tried up to this size, in the inputs' dtype, as SDPA makes one of it."""
MASK_TOKENS = 8192
"""And on CUDA up to so many tokens: grouped heads under a mask have no fused kernel there, and all scores are held."""
COMPILED_SHAPES = 64
"""Shapes that one compiled FlexAttention may meet; beyond it, it would silently run eager, in T x S memory."""
SAMPLE_ROWS = 64

_compiled: dict[str, Callable] = {}


@dataclass
class AttentionProblem:
    """Inputs of one case, shared by all implementations."""

    mask: BenchmarkMask
    """The mask."""
    q: Tensor
    """(B, T, H, D)."""
    k: Tensor
    """(B, S, K, D)."""
    v: Tensor
    """(B, S, K, D)."""
    grad: Tensor | None
    """(B, T, H, D) gradient of the output; None for a forward alone."""
    backend: str = "auto"
    """Handed to `brine.kernels.attention`."""

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return self.q.device.type


def token_major(problem: AttentionProblem, function: Callable[..., Tensor]) -> Implementation:
    """For an operation over (B, T, H, D)."""
    leaves = _leaves(problem, (problem.q, problem.k, problem.v))
    return Implementation(
        forward=lambda: function(*leaves),
        leaves=leaves if problem.grad is not None else (),
        grad=problem.grad,
        sample=_some_rows,
    )


def head_major(problem: AttentionProblem, function: Callable[..., Tensor]) -> Implementation:
    """For an operation over (B, H, T, D)."""
    if problem.device == "cuda":
        built = token_major(problem, lambda q, k, v: function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)))
        built.grad = None if problem.grad is None else problem.grad.transpose(1, 2)
    else:
        moved = [x.transpose(1, 2).contiguous() for x in (problem.q, problem.k, problem.v)]
        leaves = _leaves(problem, moved)
        built = Implementation(
            forward=lambda: function(*leaves),
            leaves=leaves if problem.grad is not None else (),
            grad=None if problem.grad is None else problem.grad.transpose(1, 2).contiguous(),
        )
    built.sample = lambda out: _some_rows(out.transpose(1, 2))
    return built


def flat(problem: AttentionProblem, function: Callable[..., Tensor]) -> Implementation:
    """For an operation over the tokens of one packed sequence, (T, H, D)."""
    built = token_major(problem, lambda q, k, v: function(q[0], k[0], v[0]))
    built.grad = None if problem.grad is None else problem.grad[0]
    built.sample = lambda out: _some_rows(out[None])
    return built


def brine(problem: AttentionProblem) -> Implementation:
    """Ours."""
    spans, backend = problem.mask.spans, problem.backend
    return token_major(problem, lambda q, k, v: attention(q, k, v, spans, backend=backend))


def sdpa_flash(problem: AttentionProblem) -> Implementation:
    """PyTorch's flash kernel in its causal mode."""
    return _sdpa_causal(problem, SDPBackend.FLASH_ATTENTION)


def sdpa_cudnn(problem: AttentionProblem) -> Implementation:
    """cuDNN's in its causal mode."""
    return _sdpa_causal(problem, SDPBackend.CUDNN_ATTENTION)


def _sdpa_causal(problem: AttentionProblem, backend: SDPBackend) -> Implementation:
    if problem.mask.kind != "causal":
        raise SkippedError("its causal mode expresses no other mask than a whole causal sequence")
    grouped = problem.q.shape[2] != problem.k.shape[2]

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # one backend and no other: a fall-back would be measured under a wrong name
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    return head_major(problem, function)


def sdpa_mask(problem: AttentionProblem) -> Implementation:
    """SDPA with the mask spelled out, on whichever of its backends takes masks."""
    if problem.mask.kind == "causal":
        raise SkippedError("flash attention expresses this mask without one")
    spans = problem.mask.spans
    size = spans.lo.numel() * spans.num_keys * problem.q.element_size()
    if size > MASK_BYTES:
        raise SkippedError(f"a dense mask takes {size / 2**30:.0f} GiB, more than the {MASK_BYTES / 2**30:.0f} allowed")
    if problem.device == "cuda" and spans.num_queries > MASK_TOKENS:
        raise SkippedError(f"beyond {MASK_TOKENS} tokens its math backend would hold T x S scores of every head")
    grouped = problem.q.shape[2] != problem.k.shape[2]
    dense = spans.dense()[:, None]
    return head_major(
        problem,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=grouped),
    )


def flex(problem: AttentionProblem) -> Implementation:
    """FlexAttention, compiled, under a mask function over the spans' own lo and hi."""
    if problem.device == "cpu" and problem.grad is not None:
        raise SkippedError("FlexAttention has no backward on the CPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    spans = problem.mask.spans
    lo, hi = spans.lo, spans.hi

    def seen(b: Tensor, _h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return (key >= lo[b, row]) & (key < hi[b, row])

    # uncompiled it would hold all T x S pairs
    block_mask = create_block_mask(
        seen, spans.batch_size, None, spans.num_queries, spans.num_keys, device=problem.device,
        _compile=problem.device == "cuda",
    )  # fmt: skip
    if "flex" not in _compiled:
        torch._dynamo.config.recompile_limit = COMPILED_SHAPES
        _compiled["flex"] = torch.compile(flex_attention, dynamic=False)
    grouped = problem.q.shape[2] != problem.k.shape[2]
    return head_major(problem, lambda q, k, v: _compiled["flex"](q, k, v, block_mask=block_mask, enable_gqa=grouped))


def torch_varlen(problem: AttentionProblem) -> Implementation:
    """PyTorch's own flash attention over packed documents."""
    _needs_documents(problem)
    from torch.nn.attention.varlen import varlen_attn

    return _varlen(problem, varlen_attn, cu_seq_q="cu", cu_seq_k="cu", max_q="longest", max_k="longest")


def fa2(problem: AttentionProblem) -> Implementation:
    """The flash-attn package, version 2."""
    return _flash_attn(problem, "flash_attn", "flash-attn")


def fa3(problem: AttentionProblem) -> Implementation:
    """flash-attn's build for Hopper."""
    return _flash_attn(problem, "flash_attn_interface", "flash-attn-3")


def fa4(problem: AttentionProblem) -> Implementation:
    """flash-attn in CuTe."""
    return _flash_attn(problem, "flash_attn.cute", "flash-attn-4")


def fa4_mask(problem: AttentionProblem) -> Implementation:
    """flash-attn in CuTe under a mask function that reads lo and hi, with the lists of tiles that it walks."""
    if problem.device != "cuda" or problem.mask.kind == "decode":
        raise SkippedError("needs a GPU, and a query for each key")
    try:
        from flash_attn.cute import flash_attn_func

        from brine.kernels.attention.flash import masked as flash_masked
    except ImportError as error:
        raise SkippedError(f"flash-attn-4 is not installed ({error})") from None
    spans = problem.mask.spans
    given = problem.q, problem.k, spans.mask
    lists = {
        f"block_sparse_tensors{'_bwd' * backward}": flash_masked._lists(*given, backward=backward)
        for backward in (False, True)
    }
    # the package's own autograd; the mask function and the lists are those of our backend
    options = {"mask_mod": flash_masked._visible(), "aux_tensors": [spans.lo, spans.hi], "pack_gqa": False, **lists}

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(q, k, v, **options)
        return out[0] if isinstance(out, tuple) else out

    return token_major(problem, call)


def _flash_attn(problem: AttentionProblem, module: str, package: str) -> Implementation:
    _needs_documents(problem)
    try:
        function = __import__(module, fromlist=["flash_attn_varlen_func"]).flash_attn_varlen_func
    except (ImportError, AttributeError) as error:
        raise SkippedError(f"{package} is not installed ({error})") from None
    return _varlen(
        problem, function, cu_seqlens_q="cu", cu_seqlens_k="cu", max_seqlen_q="longest", max_seqlen_k="longest",
        causal=True,
    )  # fmt: skip


def _needs_documents(problem: AttentionProblem) -> None:
    if problem.device != "cuda":
        raise SkippedError("needs a GPU")
    if problem.mask.blocks or problem.mask.kind == "decode":
        raise SkippedError("cannot express this mask: causal documents and windows only")


def _varlen(problem: AttentionProblem, function: Callable, **names: str | bool) -> Implementation:
    """Call a variable-length function; the versions differ in which arguments they know."""
    mask = problem.mask
    ends = torch.tensor([0, *mask.lengths], device=problem.device).cumsum(0).int()
    values = {"cu": ends, "longest": max(mask.lengths)}
    given = {name: values.get(value, value) for name, value in names.items()}
    # a window of W keys, the query itself included, is W - 1 to the left and none to the right
    given["window_size"] = (-1 if mask.window is None else mask.window - 1, 0)
    known = inspect.signature(function).parameters
    if mask.window is None and "causal" in known:
        del given["window_size"]
    given["enable_gqa"] = problem.q.shape[2] != problem.k.shape[2]
    given = {name: value for name, value in given.items() if name in known}

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q, k, v, **given)
        return out[0] if isinstance(out, tuple) else out

    return flat(problem, call)


CPU = {OURS: brine, "sdpa-flash": sdpa_flash, "flex": flex, "sdpa-mask": sdpa_mask}
CUDA = {
    OURS: brine,
    "sdpa-flash": sdpa_flash,
    "sdpa-cudnn": sdpa_cudnn,
    "torch-varlen": torch_varlen,
    "flex": flex,
    "fa2": fa2,
    "fa3": fa3,
    "fa4": fa4,
    "fa4-mask": fa4_mask,
    "sdpa-mask": sdpa_mask,
}


def truth(problem: AttentionProblem) -> Tensor:
    """The reference's sample, (B, rows, H, D) float32: the sampled queries alone, every pair of theirs."""
    rows = _sampled(problem.q.shape[1], problem.q.device)
    spans, q = problem.mask.spans, problem.q[:, rows].float()
    group = q.shape[2] // problem.k.shape[2]
    key = torch.arange(problem.k.shape[1], device=q.device)
    seen = (key >= spans.lo[:, rows, None]) & (key < spans.hi[:, rows, None])
    out = torch.empty_like(q)
    # head by head: all heads' scores of 64 queries and a million keys would not fit
    for head in range(q.shape[2]):
        k, v = (x[:, :, head // group].float() for x in (problem.k, problem.v))
        scores = torch.einsum("bth,bsh->bts", q[:, :, head], k) * q.shape[-1] ** -0.5
        out[:, :, head] = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num() @ v
    return out


def _leaves(problem: AttentionProblem, tensors: tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_(problem.grad is not None) for x in tensors)


def _some_rows(out: Tensor) -> Tensor:
    """Rows at even distances of a (B, T, H, D) result."""
    return out[:, _sampled(out.shape[1], out.device)]


def _sampled(num_queries: int, device: torch.device) -> Tensor:
    return torch.linspace(0, num_queries - 1, min(SAMPLE_ROWS, num_queries), device=device).long()
