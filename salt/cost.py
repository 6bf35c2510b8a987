"""What one forward pass over a batch costs, in FLOPs, from what was really in it.

Attention is billed for the (query, key) pairs inside the spans, patches for those embedded, padding included in
both where it was computed. A pass for training costs three forward passes (the backward has two products for each).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from model.flops import forward_flops
from model.geometry import Geometry

if TYPE_CHECKING:
    from data.batch import Batch

TRAINING_PASSES = 3


def batch_flops(model: nn.Module, batch: Batch, geometry: Geometry | None = None) -> int:
    """FLOPs of `model`'s forward pass over `batch`, head included.

    geometry: the batch's, where it was made already; its masks on the host cost no wait. Models without attention over
    spans are billed their `flops_per_token` of a full row.
    """
    num_rows, row_tokens = batch.token_ids.shape
    if not hasattr(model, "rotary"):
        return int(model.flops_per_token(row_tokens) * num_rows * row_tokens)
    local_spans, global_spans = (geometry or Geometry.of(batch)).spans(model.config)
    return int(
        forward_flops(
            model.config,
            num_tokens=num_rows * row_tokens,
            local_area=local_spans.area(),
            global_area=global_spans.area(),
            num_patches={name: len(patches) for name, (patches, _slot) in batch.media.items()},
        )
    )
