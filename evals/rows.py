"""Documents, as they are or altered, packed into rows for a forward pass that only measures.

Training reads rows from a plan, because it must be able to go on at any row. Measuring needs something else: the same
documents several times over, each time with other media (their own, blank, another document's), and a loss per
document. So this file packs `Sequence`s directly: first fit, longest first, into rows of a fixed length, documents
too long for one row cut where `Sequence.cuts` allows. A piece that cannot be cut (a long film) gets a row as long as
it needs. Every target token is measured exactly once.

Media are not padded to a budget here: nothing is compiled around them (see `loss.measure`).

B rows, T tokens, N patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.document import MODALITIES
from data.sequence import Sequence


@dataclass(frozen=True)
class Piece:
    """Tokens start..stop of one of the documents being measured."""

    item: int
    """Which document, as a place in the list that was given."""
    start: int
    stop: int


@dataclass(frozen=True)
class Rows:
    """A batch to measure, and whose each token is."""

    token_ids: Tensor
    """(B, T) int64."""
    position: Tensor
    """(B, T, 3) float32."""
    document: Tensor
    """(B, T) int32; -1 is padding."""
    block: Tensor
    """(B, T) int32."""
    labels: Tensor
    """(B, T) int64, -100 where there is no target."""
    media: dict[str, tuple[Tensor, Tensor]]
    """modality -> (patches (N, dim) as they are stored, slot (N,) int64 flat index into B * T)."""
    item: np.ndarray
    """(B, T) int64: the document of each target, -1 where there is no target."""
    context: np.ndarray
    """(B, T) uint8: the context of each target."""

    def to(self, device: torch.device | str) -> Rows:
        """The same with all tensors on a device."""
        media = {name: (patches.to(device), slot.to(device)) for name, (patches, slot) in self.media.items()}
        moved = (getattr(self, name).to(device) for name in ("token_ids", "position", "document", "block", "labels"))
        return Rows(*moved, media, self.item, self.context)


def pieces_of(sequence: Sequence, item: int, row_tokens: int) -> list[Piece]:
    """The pieces of one document, each at most `row_tokens` long where its media allow.

    A piece after the first begins one token early, so that its first target has something to be predicted from.
    """
    length = len(sequence)
    if length <= row_tokens:
        return [Piece(item, 0, length)] if length else []
    cuts, pieces, start = sequence.cuts(), [], 0
    while start < length:
        begin = start - 1 if start and sequence.learn[start] else start
        fitting = cuts[(cuts > start) & (cuts <= begin + row_tokens)]
        stop = int(fitting[-1]) if len(fitting) else int(cuts[cuts > start][0])
        pieces.append(Piece(item, begin, stop))
        start = stop
    return pieces


def pack(pieces: Items[Piece], row_tokens: int) -> list[list[Piece]]:
    """Rows of pieces: longest first, each into the first row with room. A piece over the length has its own row."""
    rows: list[list[Piece]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=lambda piece: (piece.start - piece.stop, piece.item, piece.start)):
        size = piece.stop - piece.start
        place = next((number for number, free in enumerate(room) if free >= size), None)
        if place is None:
            rows.append([])
            room.append(max(row_tokens, size))
            place = len(rows) - 1
        rows[place].append(piece)
        room[place] -= size
    return rows


def assemble(rows: Items[Items[Piece]], sequence_of: Callable[[int], Sequence], num_tokens: int) -> Rows:
    """Tensors of the rows given, each padded to `num_tokens`."""
    shape = (len(rows), num_tokens)
    token_ids, labels = np.zeros(shape, np.int64), np.full(shape, -100, np.int64)
    position, block = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.int32)
    document, item = np.full(shape, -1, np.int32), np.full(shape, -1, np.int64)
    context = np.zeros(shape, np.uint8)
    patches: dict[str, list[np.ndarray]] = {name: [] for name in MODALITIES}
    slots: dict[str, list[np.ndarray]] = {name: [] for name in MODALITIES}
    for number, row in enumerate(rows):
        first = 0
        for order, piece in enumerate(row):
            part = sequence_of(piece.item).slice(piece.start, piece.stop)
            here = slice(first, first + len(part))
            token_ids[number, here], position[number, here] = part.token_ids, part.position
            block[number, here], document[number, here] = part.block, order
            target = np.flatnonzero(part.learn[1:])
            labels[number, first + target] = part.token_ids[target + 1]
            item[number, first + target] = piece.item
            context[number, first + target] = part.context[target + 1]
            for name in MODALITIES:
                patches[name].append(getattr(part, name))
                slots[name].append(number * num_tokens + first + part.slots(name))
            first += len(part)
    media = {
        name: (torch.from_numpy(np.concatenate(patches[name])), torch.from_numpy(np.concatenate(slots[name])))
        for name in MODALITIES
        if sum(map(len, slots[name]))
    }
    tensors = (torch.from_numpy(array) for array in (token_ids, position, document, block, labels))
    return Rows(*tensors, media, item, context)


def batches(
    num_items: int,
    sequence_of: Callable[[int], Sequence],
    lengths: Items[int],
    *,
    row_tokens: int,
    rows_per_batch: int,
) -> Iterator[Rows]:
    """All documents 0 .. num_items - 1, packed. `sequence_of` is called once or twice for each, so it may load lazily.

    The last batch is padded with empty rows, so all batches but those of overlong pieces have one shape.
    """
    pieces = [
        piece
        for item in range(num_items)
        for piece in (
            [Piece(item, 0, lengths[item])]
            if 0 < lengths[item] <= row_tokens
            else pieces_of(sequence_of(item), item, row_tokens)
        )
    ]
    packed = pack(pieces, row_tokens)
    long = [row for row in packed if row[0].stop - row[0].start > row_tokens]
    normal = [row for row in packed if row[0].stop - row[0].start <= row_tokens]
    for row in long:
        yield assemble([row], sequence_of, row[0].stop - row[0].start)
    for first in range(0, len(normal), rows_per_batch):
        chosen = normal[first : first + rows_per_batch]
        yield assemble(chosen + [[]] * (rows_per_batch - len(chosen)), sequence_of, row_tokens)
