"""What the transformer reads, and the masks and rotary tables that follow from it, each made once.

    batch.inputs.make_masks(student.config, teacher.config)     on the host, where the batch was collated
    inputs = batch.inputs.to("cuda", non_blocking=True)         the masks travel along
    hidden = student(inputs)                                    and in the same step its teacher: teacher(inputs)

Masks follow from segment and block ids, rotary tables from positions; student, teacher and FLOP accounting share them.

B batch, T tokens, N patches of one modality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from brine.kernels.attention import Spans
    from brine.model.config import ModelConfig
    from brine.model.rotary import Rotary, Tables

Media = Mapping[str, tuple[Tensor, Tensor]]
"""Modality -> (patches (N, dim), media index (N,) int64, flat into B * T; padding points at B * T)."""
TENSORS = ("token_ids", "position", "segment", "block")


@dataclass
class Inputs:
    """The arguments of a forward pass."""

    token_ids: Tensor
    """(B, T) int64; media tokens hold their modality's id."""
    position: Tensor
    """(B, T, 3) float32 (t, h, w)."""
    segment: Tensor
    """(B, T) int32: attention stays within runs of equal ids; negative is padding."""
    block: Tensor
    """(B, T) int32: 0 outside media, else the id of the image, tubelet or second of audio."""
    media: Media = field(default_factory=dict)
    """Patches as they are stored (uint8 pixels, float16 mel) or float32, and where they belong."""
    _masks: dict[tuple[int | None, bool], Spans] = field(default_factory=dict, init=False, repr=False, compare=False)
    _tables: dict[tuple, Tables] = field(default_factory=dict, init=False, repr=False, compare=False)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Inputs:
        """The same on a device, with the masks that were made; tables are made there."""
        if self.token_ids.device == torch.device(device):
            return self
        return self.map(
            lambda x: x.to(device, non_blocking=non_blocking), lambda spans: spans.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> Inputs:
        """The same in pinned memory, without masks."""
        return self.map(Tensor.pin_memory)

    def map(
        self,
        change: Callable[[Tensor], Tensor],
        change_mask: Callable[[Spans], Spans] | None = None,
        *,
        media: Media | None = None,
    ) -> Inputs:
        """The same with each tensor changed, `media` too unless given. change_mask: of masks, else made anew."""
        if media is None:
            media = {name: (change(patches), change(index)) for name, (patches, index) in self.media.items()}
        changed = Inputs(change(self.token_ids), change(self.position), change(self.segment), change(self.block), media)
        if change_mask is not None:
            changed._masks = {key: change_mask(spans) for key, spans in self._masks.items()}
        return changed

    def with_media(self, media: Media) -> Inputs:
        """The same tokens, masks and tables with other patches."""
        changed = Inputs(self.token_ids, self.position, self.segment, self.block, media)
        changed._masks, changed._tables = self._masks, self._tables
        return changed

    def make_masks(self, *configs: ModelConfig) -> Inputs:
        """Itself, with the masks of these models made now, while the ids are on the host."""
        for config in configs:
            self.spans(config)
        return self

    def spans(self, config: ModelConfig) -> tuple[Spans, Spans]:
        """What local and what global layers see, in this order."""
        return self._mask(config.window, blocked=True), self._mask(None, blocked=False)

    def tables(self, rotary: Rotary) -> tuple[Tables, Tables]:
        """Rotary tables of local and of global layers, in this order."""
        missing = [key for key in rotary.keys if key not in self._tables]
        if missing:
            self._tables.update(zip(missing, rotary.tables(self.position, missing), strict=True))
        local, everywhere = rotary.keys
        return self._tables[local], self._tables[everywhere]

    def _mask(self, window: int | None, *, blocked: bool) -> Spans:
        key = (window, blocked)
        if key not in self._masks:
            # a loader's workers make no masks, and start without the kernels
            from brine.kernels.attention import Spans

            self._masks[key] = Spans.packed(self.segment, block=self.block if blocked else None, window=window)
        return self._masks[key]
