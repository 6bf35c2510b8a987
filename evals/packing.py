"""Documents, as they are or altered, packed into rows for a forward pass that only measures.

Training reads rows from a plan, because it must be able to go on at any row. Measuring needs something else: the same
documents several times over, each time with other media (their own, blank, another document's), and a loss per
document. So this file packs `Sequence`s directly: first fit, longest first, into rows of a fixed length, documents
too long for one row cut where `Sequence.cuts` allows. A piece that cannot be cut (a long video) gets a row as long as
it needs. Every target token is measured exactly once.

Media are not padded to a budget here: nothing is compiled around them (see `loss.measure_losses`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

from brine.data.batch import Batch, collate
from brine.data.sequence import Sequence


@dataclass(frozen=True)
class DocumentChunk:
    """Tokens start..stop of one of the documents being measured."""

    doc_index: int
    """Which document, as a place in the list that was given."""
    start: int
    stop: int


def chunks_of(sequence: Sequence, doc_index: int, seq_len: int) -> list[DocumentChunk]:
    """The pieces of one document, each at most `seq_len` long where its media allow.

    A piece after the first begins one token early, so that its first target has something to be predicted from.
    """
    length = len(sequence)
    if length <= seq_len:
        return [DocumentChunk(doc_index, 0, length)] if length else []
    split_points, chunks, start = sequence.split_points(), [], 0
    while start < length:
        begin = start - 1 if start and sequence.loss_mask[start] else start
        fitting = split_points[(split_points > start) & (split_points <= begin + seq_len)]
        stop = int(fitting[-1]) if len(fitting) else int(split_points[split_points > start][0])
        chunks.append(DocumentChunk(doc_index, begin, stop))
        start = stop
    return chunks


def pack_chunks(chunks: Items[DocumentChunk], seq_len: int) -> list[list[DocumentChunk]]:
    """Chunks, longest first, each in the first sequence with room; a chunk over the length has its own."""
    rows: list[list[DocumentChunk]] = []
    room: list[int] = []
    for chunk in sorted(chunks, key=lambda chunk: (chunk.start - chunk.stop, chunk.doc_index, chunk.start)):
        size = chunk.stop - chunk.start
        place = next((number for number, free in enumerate(room) if free >= size), None)
        if place is None:
            rows.append([])
            room.append(max(seq_len, size))
            place = len(rows) - 1
        rows[place].append(chunk)
        room[place] -= size
    return rows


def assemble(packed: Items[Items[DocumentChunk]], load_sequence: Callable[[int], Sequence], seq_len: int) -> Batch:
    """The batch of packed chunks, each padded to `seq_len`; `document` is the number in the list that was given."""
    return collate(
        [
            [
                (
                    chunk.doc_index,
                    chunk.stop - chunk.start,
                    load_sequence(chunk.doc_index).slice(chunk.start, chunk.stop),
                )
                for chunk in chunks
            ]
            for chunks in packed
        ],
        seq_len=seq_len,
    )


def packed_batches(
    num_items: int,
    load_sequence: Callable[[int], Sequence],
    lengths: Items[int],
    *,
    seq_len: int,
    batch_size: int,
) -> Iterator[Batch]:
    """All documents 0 .. num_items - 1, packed. `load_sequence` is called once or twice for each.

    The last batch is padded with empty rows, so all batches but those of overlong pieces have one shape.
    """
    chunks = [
        chunk
        for doc_index in range(num_items)
        for chunk in (
            [DocumentChunk(doc_index, 0, lengths[doc_index])]
            if 0 < lengths[doc_index] <= seq_len
            else chunks_of(load_sequence(doc_index), doc_index, seq_len)
        )
    ]
    packed = pack_chunks(chunks, seq_len)
    long = [row for row in packed if row[0].stop - row[0].start > seq_len]
    normal = [row for row in packed if row[0].stop - row[0].start <= seq_len]
    for row in long:
        yield assemble([row], load_sequence, row[0].stop - row[0].start)
    for first in range(0, len(normal), batch_size):
        chosen = normal[first : first + batch_size]
        yield assemble(chosen + [[]] * (batch_size - len(chosen)), load_sequence, seq_len)
