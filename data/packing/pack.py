"""Packing: which chunk goes into which packed sequence, for a few chunks or for tens of millions.

A sequence has space for `seq_len` tokens and a budget of patches for each of M modalities, and never gets two chunks of
one document. `BestFitPacker` takes chunks one by one (least waste, 10 to 30 microseconds each), `BulkPacker` thousands
at a time (half a microsecond each). Up to `MAX_BEST_FIT_CHUNKS` chunks are packed both ways and the fewer sequences
win; more go through BulkPacker, all but the last `TAIL`, and BestFitPacker fills what is left open; fewer than
`MIN_DOCUMENTS` documents go through BestFitPacker alone. It does not look for the optimum (documents of 0.4 to 0.6
sequences fit badly), or move what was placed.
"""

import numpy as np

from brine.data.packing.best_fit import WINDOW, BestFitPacker
from brine.data.packing.bulk import BulkPacker

MAX_BEST_FIT_CHUNKS = 2**17  # maximum number of chunks that are packed one by one too, to see whether that wastes less
MIN_DOCUMENTS = 4096  # fewest different documents for BulkPacker: below, a document would meet itself too often
TAIL = 4096
"""Chunks at the end of the stream that are packed one by one, into sequences that BulkPacker left open as well."""


def pack(
    tokens: np.ndarray,
    media: np.ndarray,
    document: np.ndarray,
    *,
    seq_len: int,
    budget: np.ndarray,
    phase: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Pack a stream of chunks -> (sequence of each chunk, (n,) int32, numbered as they were closed; their number).

    tokens (n,), media (n, M) and document (n,) integers; no chunk may exceed seq_len or budget (M,). phase (n,)
    ascending: windows of BestFitPacker stay within one.
    """
    budget = np.asarray(budget, dtype=np.int64)
    binds = [column for column in range(len(budget)) if _exceeds(tokens, media[:, column], seq_len, budget[column])]
    if len(binds) < len(budget):
        media, budget = np.ascontiguousarray(media[:, binds]), budget[binds]
    seen = np.zeros(int(document.max(initial=-1)) + 1, dtype=bool)
    seen[document] = True
    num_documents = int(seen.sum())
    enough = num_documents >= MIN_DOCUMENTS
    one_by_one = len(tokens) <= MAX_BEST_FIT_CHUNKS or not enough
    # bulk packing costs little beside the other, and does better where two or three chunks fill a sequence
    in_bulk = enough and len(tokens) > TAIL
    results = []
    for bulk in [False] * one_by_one + [True] * in_bulk:
        sequence = np.full(len(tokens), -1, dtype=np.int32)
        last = BestFitPacker(tokens, media, document, sequence, seq_len=seq_len, budget=budget)
        late, closed = np.arange(len(tokens)), []
        if bulk:
            late, closed = _bulk(tokens, media, document, sequence, seq_len, budget, num_documents, last)
        for window in _windows(late, phase):
            last.pack(window)
        order = np.concatenate([*closed, np.array(last.close_all(), dtype=np.int32)])
        number = np.empty(len(order), dtype=np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        results.append((number[sequence], len(order)))
    return min(results, key=lambda packed: packed[1])


def _bulk(tokens, media, document, sequence, seq_len: int, budget, num_documents: int, last: BestFitPacker):
    """Pack all but the tail in bulk, and give open sequences to `last` -> (chunks left, sequences closed)."""
    unique, end = num_documents == len(document), len(document) - TAIL
    measure, others, size, limits = _by_pressure(tokens, media, seq_len, budget)
    packer = BulkPacker(measure, others, None if unique else document, sequence, seq_len=size, budget=limits)
    # so that a sequence is full before its documents come again
    packer.pack(end, largest=num_documents // 256)
    again = np.zeros(0, dtype=np.int64) if unique else _repeats(sequence[:end], document[:end])
    sequence[again] = -1
    last.adopt_open_sequences(packer.number, end=end, opened=packer.opened)
    return np.concatenate([again, np.arange(end, len(tokens))]), packer.closed


def _exceeds(tokens, media, seq_len: int, budget: int, step: int = 2**18) -> bool:
    """Whether some combination of chunks could exceed a budget: never where its part is at most that of the tokens."""
    # in steps, so that the products need no memory
    starts = range(0, len(tokens), step)
    return any((media[i : i + step] * float(seq_len) > tokens[i : i + step] * float(budget)).any() for i in starts)


def _by_pressure(tokens, media, seq_len: int, budget) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """Tokens and media exchanged where a media budget decides the number of sequences: they are full by its patches."""
    pressure = media.sum(axis=0, dtype=np.int64) / np.maximum(1, budget) * seq_len
    column = int(pressure.argmax()) if len(pressure) else 0
    if not len(pressure) or pressure[column] <= tokens.sum(dtype=np.int64):
        return tokens, media, seq_len, budget
    exchanged, limits = media.copy(), budget.copy()
    exchanged[:, column], limits[column] = tokens, seq_len
    return np.ascontiguousarray(media[:, column]), exchanged, int(budget[column]), limits


def _windows(late: np.ndarray, phase: np.ndarray | None):
    ends = np.flatnonzero(np.diff(phase[late])) + 1 if phase is not None and len(late) else []
    for part in np.split(late, ends):
        yield from (part[first : first + WINDOW] for first in range(0, len(part), WINDOW))


def _repeats(sequence: np.ndarray, document: np.ndarray) -> np.ndarray:
    key = sequence.astype(np.int64) << 32 | document
    ordered = np.sort(key)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return np.zeros(0, dtype=np.int64)
    found = np.flatnonzero(np.isin(key, twice))
    _, firsts = np.unique(key[found], return_index=True)
    return np.delete(found, firsts)
