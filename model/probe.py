"""Looking inside: capture, edit and explain activations by the name of their hook point (`brine.model.transformer`).

    with capture(model, "blocks.*.resid_out") as found:
        hidden = model(inputs)
    logits = logit_lens(model, found["blocks.2.resid_out"])

Any tool that attaches to modules by name works without this file. Hooks are removed when the `with` block ends. Probe
uncompiled blocks: a hook that is attached after compilation may not run.

B batch, T tokens, S keys, E width, H query heads, K KV heads, D head dim, R chosen queries, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from brine.kernels.attention import Spans
from brine.model.transformer import Transformer


def hook_names(model: Transformer, pattern: str = "*") -> list[str]:
    """Names of the hook points that match a shell-style pattern, in the order of the modules."""
    return [
        name for name, module in model.named_modules()
        # a "linear" patch embedder has Identity instead of its norms, which is not a hook point
        if isinstance(module, nn.Identity) and not name.startswith("embed.") and fnmatchcase(name, pattern)
    ]  # fmt: skip


def _find(model: Transformer, patterns: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        names = hook_names(model, pattern)
        if not names:
            raise ValueError(f"no hook point matches {pattern!r}; there are {', '.join(hook_names(model))}")
        found += [name for name in names if name not in found]
    return found


@contextmanager
def edit(model: Transformer, edits: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Replace activations while the block runs: pattern -> function of the activation (None leaves it as it is).

    Ablation is `lambda x: torch.zeros_like(x)`, patching is `lambda x: other`. Raises ValueError for a pattern
    that matches no hook point.
    """
    handles = []
    try:
        for pattern, function in edits.items():
            for name in _find(model, (pattern,)):
                module = model.get_submodule(name)
                handles.append(module.register_forward_hook(lambda _module, _inputs, out, run=function: run(out)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture(model: Transformer, *patterns: str, gradients: bool = False) -> Iterator[dict[str, Tensor]]:
    """Collect activations by name while the block runs; a later forward overwrites an earlier one.

    Detached, unless `gradients`: then each keeps its `.grad` after a backward.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def store(out: Tensor) -> None:
            if gradients and out.requires_grad:
                out.retain_grad()
            found[name] = out if gradients else out.detach()

        return store

    with edit(model, {name: keep(name) for name in _find(model, patterns or ("*",))}):
        yield found


def attention_pattern(q: Tensor, k: Tensor, spans: Spans, *, queries: Tensor | None = None) -> Tensor:
    """What each query attends to, recomputed as the reference would.

    q: (B, T, H, D) and k: (B, S, K, D) as captured at `attn.q` and `attn.k`; spans: of that layer, see
    `Inputs.spans`. queries: (R,) int64, those wanted; None is all, which takes B * H * T * S numbers.
    Returns (B, H, R, S) float32, zero outside the spans; queries that see something sum to 1.
    """
    queries = torch.arange(q.shape[1], device=q.device) if queries is None else queries.to(q.device)
    visible = rearrange(spans.dense()[:, queries], "b r s -> b 1 r s").to(q.device)
    k = repeat(k, "b s k d -> b s (k group) d", group=q.shape[2] // k.shape[2])
    scores = torch.einsum("brhd,bshd->bhrs", q[:, queries].float(), k.float()) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)


@torch.no_grad()
def logit_lens(model: Transformer, resid: Tensor) -> Tensor:
    """Logits (..., V) float32 that the head would read from the stream (..., E) after any layer."""
    return torch.nn.functional.linear(model.norm(resid), model.head_weight).float()
