"""Where the tokens of a micro-batch stand and what each of them may see: masks and rotary tables, each made once.

    geometry = Geometry.of(batch, student, teacher)    on the host, from the batch as it was loaded
    geometry = geometry.to("cuda", non_blocking=True)
    hidden = model(..., geometry=geometry)         the student, and in the same step its teacher

Masks follow from segment and block ids, rotary tables from positions; neither depends on weights. Student, teacher and
the FLOP accounting of a step read one `Geometry`, which makes what is asked for at the first question and keeps it:
masks by window, tables by head dim and base. Masks that are made on the host take what a backend wants to know of them
along to the device (`kernels.Spans`), so that nothing there is waited for.

B batch, T tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kernels import Spans

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.rotary import Rotary, Tables


class Geometry:
    """Masks and rotary tables of one micro-batch, for any number of models."""

    def __init__(self, segment: Tensor, block: Tensor, position: Tensor | None = None):
        """segment: (B, T) int32, attention stays within equal ids, negative is padding. block: (B, T) int32, 0 is none.
        position: (B, T, 3) float32; without, there are no tables."""
        self.segment, self.block, self.position = segment, block, position
        self._spans: dict[tuple[int | None, bool], Spans] = {}
        self._tables: dict[tuple, Tables] = {}

    @classmethod
    def of(cls, batch, *models: nn.Module) -> Geometry:
        """That of a batch (anything with `position`, `block`, and `segment` or, where there is none, `document`), with
        the masks of these models made now, while the ids are on the host."""
        segment = batch.segment if hasattr(batch, "segment") else batch.document
        geometry = cls(segment, batch.block, batch.position)
        for model in models:
            # a stand-in for a model may have no attention
            if hasattr(model, "rotary"):
                geometry.spans(model.config)
        return geometry

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Geometry:
        """The same on a device: masks that were made go along, tables are made there."""
        if self.segment.device == torch.device(device):
            return self
        moved = Geometry(*(x.to(device, non_blocking=non_blocking) for x in (self.segment, self.block, self.position)))
        moved._spans = {key: spans.to(device, non_blocking=non_blocking) for key, spans in self._spans.items()}
        return moved

    def at(self, segment: Tensor, block: Tensor, position: Tensor, mask: Callable[[Spans], Spans]) -> Geometry:
        """That of other tokens, such as a rank's part of the rows: `mask` of the masks that were made."""
        part = Geometry(segment, block, position)
        part._spans = {key: mask(spans) for key, spans in self._spans.items()}
        return part

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
        if key not in self._spans:
            self._spans[key] = Spans.packed(self.segment, block=self.block if blocked else None, window=window)
        return self._spans[key]
