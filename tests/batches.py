"""Batches from tensors, for tests that need no corpus."""

import torch
from torch import Tensor

from brine.data.batch import Batch
from brine.model.inputs import TENSORS, Inputs


def batch_of(
    token_ids: Tensor, labels: Tensor, *, segment: Tensor | None = None, position: Tensor | None = None,
    block: Tensor | None = None, kind: Tensor | None = None, modality_context: Tensor | None = None,
    media: dict | None = None, sequence_index: tuple[int, ...] = (),
) -> Batch:  # fmt: skip
    """A batch (B, T); what is left out is zero, so that each sequence is one document."""
    zeros = torch.zeros(token_ids.shape, dtype=torch.int32)
    segment = zeros if segment is None else segment
    position = torch.zeros(*token_ids.shape, 3) if position is None else position
    inputs = Inputs(token_ids, position, segment, zeros if block is None else block, media or {})
    return Batch(
        inputs, document=segment, labels=labels, kind=zeros.to(torch.int16) if kind is None else kind,
        modality_context=zeros.to(torch.uint8) if modality_context is None else modality_context, sequence_index=sequence_index,
    )  # fmt: skip


def field(batch: Batch, name: str) -> Tensor:
    """A tensor (B, T, ...) of a batch or of its inputs."""
    return getattr(batch.inputs if name in TENSORS else batch, name)


def followed_by(inputs: Inputs, token_ids: list[int]) -> Inputs:
    """A prompt of one sequence with text tokens behind it."""
    count = len(token_ids)
    place = inputs.position[0, -1].max() + 1 + torch.arange(count)
    zeros = torch.zeros(1, count, dtype=torch.int32)
    more = (torch.tensor([token_ids]), place.view(1, -1, 1).expand(1, -1, 3), zeros, zeros)
    tensors = (
        torch.cat([getattr(inputs, name), value.to(getattr(inputs, name).dtype)], dim=1)
        for name, value in zip(TENSORS, more, strict=True)
    )
    return Inputs(*tensors, inputs.media)
