"""Packed rows as tensors, every batch of a plan with one and the same shapes.

    token_ids (B, T) int64        document (B, T) int32, negative is padding       labels (B, T) int64, -100 is none
    position  (B, T, 3) float32   block    (B, T) int32, 0 is none                 media  modality -> (patches, slots)

labels[i] is token i + 1 where that token is a target of the same piece. A row inside a media block sees its block's
later slots, but what follows a slot is a slot or a closing token, never a target, so no label leaks.

Media of a batch are padded to a budget, since a compiled model wants fixed shapes: padding patches are zeros and their
slot is B * T, one past the last, where nothing is read. Patches become float32 here, in about [-1, 1]: x / 127.5 - 1
for pixels, as stored for mel.

B rows, T tokens, N patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.document import MODALITIES
from data.sequence import Sequence
from data.tokenizer import PAD_ID


@dataclass(frozen=True)
class Batch:
    """B packed rows of T tokens."""

    token_ids: Tensor
    """(B, T) int64."""
    position: Tensor
    """(B, T, 3) float32."""
    document: Tensor
    """(B, T) int32: 0, 1, ... in each row; -1 is padding."""
    block: Tensor
    """(B, T) int32; 0 is none."""
    labels: Tensor
    """(B, T) int64: the next token where it is a target, else -100."""
    kind: Tensor
    """(B, T) int16 index into the corpus's kinds; 0 for padding."""
    context: Tensor
    """(B, T) uint8: the medium last seen before the label (`data.sequence.CONTEXT`)."""
    media: dict[str, tuple[Tensor, Tensor]]
    """modality -> (patches (N, dim) float32, slot (N,) int64 flat index into B * T; B * T for padding)."""

    def to(self, device: torch.device | str) -> Batch:
        """The same with every tensor on a device."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in dataclasses.fields(self)
            if field.name != "media"
        }
        media = {name: (patches.to(device), slot.to(device)) for name, (patches, slot) in self.media.items()}
        return Batch(**moved, media=media)


@dataclass(frozen=True)
class Piece:
    """One document, or a slice of one, as it lies in a row."""

    sequence: Sequence | None
    """None for a document that could not be loaded: its place is padded."""
    length: int
    """Tokens that the plan gave it."""
    kind: int
    """Index of its kind."""


def patch_tensor(patches: np.ndarray, modality: str) -> Tensor:
    """(N, dim) stored patches -> float32 in about [-1, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(patches)).float()
    return values if modality == "audio" else values.div_(127.5).sub_(1.0)


def make_batch(
    rows: Items[Items[Piece]], *, row_tokens: int, media_budget: Mapping[str, int], dims: Mapping[str, int]
) -> Batch:
    """Lay pieces side by side into rows of `row_tokens`.

    media_budget: modality -> patches per row that the batch has room for; a modality with 0 is left out. dims: patch
    widths. Raises ValueError for a row that is too long or holds more patches than the budget.
    """
    shape = (len(rows), row_tokens)
    token_ids, labels = np.full(shape, PAD_ID, np.int64), np.full(shape, -100, np.int64)
    position, block = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.int32)
    document, kind, context = np.full(shape, -1, np.int32), np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
    patches: dict[str, list[np.ndarray]] = {name: [] for name in MODALITIES}
    slots: dict[str, list[np.ndarray]] = {name: [] for name in MODALITIES}
    for number, row in enumerate(rows):
        place = 0
        for order, piece in enumerate(row):
            if place + piece.length > row_tokens:
                raise ValueError(f"row {number} holds more than {row_tokens} tokens: the plan was made for longer rows")
            if (found := piece.sequence) is not None:
                here = slice(place, place + piece.length)
                token_ids[number, here], position[number, here] = found.token_ids, found.position
                block[number, here], document[number, here], kind[number, here] = found.block, order, piece.kind
                target = np.flatnonzero(found.learn[1:])
                labels[number, place + target] = found.token_ids[target + 1]
                context[number, place : place + piece.length - 1] = found.context[1:]
                for name in MODALITIES:
                    patches[name].append(getattr(found, name))
                    slots[name].append(number * row_tokens + place + found.slots(name))
            place += piece.length
    media = {}
    for name, budget in media_budget.items():
        room = budget * len(rows)
        if not room:
            continue
        slot = np.full(room, token_ids.size, np.int64)
        found = np.concatenate([np.zeros(0, np.int64), *slots[name]])
        if len(found) > room:
            raise ValueError(f"a batch holds {len(found)} {name} patches and its budget is {room}: build the plan again")
        slot[: len(found)] = found
        values = torch.zeros(room, dims[name])
        if len(found):
            values[: len(found)] = patch_tensor(np.concatenate(patches[name]), name)
        media[name] = (values, torch.from_numpy(slot))
    arrays = (token_ids, position, document, block, labels, kind, context)
    return Batch(*(torch.from_numpy(array) for array in arrays), media=media)
