"""Liger's fused linear cross-entropy (package `liger-kernel`) as a backend, for what it can express.

That is the labels' cross-entropy, with z-loss or with token weights. Token weights and per-token losses need its
`reduction="none"`, which recomputes the logits in the backward: four matmuls for three. It syncs with the device once
per pass. Read at 0.8.5; older versions got the gradients of `reduction="none"` wrong, which the self-check would see.

Legend: N tokens, n of them with a target, E width, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch
from torch import Tensor

from brine.kernels.linear_loss.autograd_function import LossRequest, target_positions

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unsupported_reason(request: LossRequest) -> str | None:
    """Why this backend cannot serve the call, or None."""
    if not _installed():
        return 'backend "liger" needs the package liger-kernel, which is not here; use backend="auto"'
    if request.device.type != "cuda":
        return f'backend "liger" needs CUDA tensors, and hidden is on {request.device}; use backend="auto"'
    if request.dtype not in DTYPES:
        return f'backend "liger" computes in fp32 and takes fp32, bf16 or fp16, not {request.dtype}; use "chunked"'
    if request.kind in ("dense", "sparse"):
        return 'backend "liger" has no loss that mixes labels with a teacher\'s in this way; use backend="auto"'
    if request.kind == "z" and request.token_loss:
        return 'backend "liger" cannot tell a token\'s loss from its z-loss; use backend="auto"'
    return None


def liger_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, token_weight: Tensor | None, z_loss: float,
    targets: Tensor | None, token_loss: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `linear_cross_entropy`; dtype of the matmuls. -> loss (), token_loss (N,) detached, zeros unless wanted."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    at = target_positions(labels) if targets is None else targets
    losses = torch.zeros(labels.shape, dtype=torch.float32, device=hidden.device)
    if not at.numel():
        return (hidden[:0].sum() + weight[:0].sum()).float(), losses
    if at.numel() < labels.numel():
        hidden, labels = hidden[at], labels[at]
        token_weight = None if token_weight is None else token_weight[at]
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    if weight.requires_grad and not hidden.requires_grad:
        # it makes no gradient at all where hidden wants none
        hidden = hidden.detach().requires_grad_()
    each = token_loss or token_weight is not None
    function = LigerFusedLinearCrossEntropyLoss(
        lse_square_scale=z_loss, reduction="none" if each else "sum", accum_dtype=torch.float32
    )
    # Triton launches on the current device
    with torch.cuda.device_of(hidden):
        loss = function(weight, hidden, labels)
    if token_loss:
        losses[at] = loss.detach().float()
    if token_weight is not None:
        loss = loss * token_weight.to(loss.dtype)
    return loss.sum(), losses


@lru_cache
def _installed() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None
