"""FLOPs of one forward pass over a batch; training costs three (the backward has two matmuls for each)."""

from __future__ import annotations

from brine.model.flops import forward_flops
from brine.model.inputs import Inputs
from brine.model.transformer import Transformer

TRAINING_PASSES = 3


def batch_flops(model: Transformer, inputs: Inputs) -> int:
    """FLOPs of a forward pass, head included: visible pairs, embedded patches, padding where it was computed."""
    local_spans, global_spans = inputs.spans(model.config)
    return forward_flops(
        model.config,
        num_tokens=inputs.token_ids.numel(),
        local_pairs=local_spans.area(),
        global_pairs=global_spans.area(),
        num_patches={name: len(patches) for name, (patches, _) in inputs.media.items()},
    )
