"""The row plan: which documents lie in which row, decided before the first row is read.

Lengths are known from the index, so packing needs no data: documents (or, where one is longer than a row, segments of
it) are shuffled for each epoch, and laid best-fit into a few open rows under a token budget and a budget of patches per
modality. Row i is then a lookup, a pure function of (plan, i): a run resumes with one integer, ranks share rows by
arithmetic, a bad window is skipped by adding to a number, and a selection is a plan of fewer documents.

    offset    (R + 1,)  int64   row i holds the pieces offset[i] .. offset[i + 1]
    document  (P,)      int32   index in the corpus
    start     (P,)      int32   first token of the piece
    stop      (P,)      int32   one past the last
    blank     (P,)      bool    its media are replaced by grey and silence

A document longer than a row is cut outside media, never silently shortened; each segment after the first begins one
token early, so that every target is predicted exactly once. A document with a stretch of media that fits no row is
left out and listed in `dropped` with the reason. Which documents are blank depends on (seed, epoch, document) alone.

Cost: about 15 microseconds a piece. What this file does not do: read media, or decide what a kind is worth.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.document import MODALITIES

OPEN_ROWS = 64
"""Rows that are open at once; more pack a little tighter and take longer."""


@dataclass(frozen=True)
class Plan:
    """R rows of pieces; see the head of the file for the arrays."""

    row_tokens: int
    """Tokens of a row."""
    media_budget: dict[str, int]
    """Patches per row and modality."""
    offset: np.ndarray
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    blank: np.ndarray
    dropped: tuple[tuple[int, str], ...] = ()
    """(document, reason) of those that fit no row."""

    def __len__(self) -> int:
        return len(self.offset) - 1

    def row(self, index: int) -> list[tuple[int, int, int, bool]]:
        """The pieces (document, start, stop, blank) of one row, in order. Raises IndexError beyond the plan."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a plan of {len(self)} rows")
        here = slice(self.offset[index], self.offset[index + 1])
        columns = (self.document[here], self.start[here], self.stop[here], self.blank[here])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    @property
    def fill(self) -> float:
        """Share of the rows' tokens that hold a document."""
        return float((self.stop - self.start).sum() / max(1, len(self) * self.row_tokens))

    @classmethod
    def build(
        cls,
        corpus: Any,
        *,
        row_tokens: int,
        media_budget: Mapping[str, int],
        split: str | None = "train",
        num_rows: int | None = None,
        epochs: int | None = None,
        seed: int = 0,
        blank_fraction: float = 0.0,
        kind_weights: Mapping[str, float] | None = None,
        documents: Iterable[int] | None = None,
    ) -> Plan:
        """Plan `num_rows` rows (as many epochs as that takes), or `epochs` whole epochs.

        corpus: an `EncodedCorpus`. split: documents of one split, None for all. kind_weights: how often documents of a
        kind appear in an epoch (1 where not named; 2.5 means twice, and a third time for half of them). documents: only
        these. Raises ValueError, naming the remedy, when nothing fits a row or a kind is unknown.
        """
        if (num_rows is None) == (epochs is None) or (num_rows or epochs) < 1:
            raise ValueError("give either num_rows or epochs, 1 or more")
        chosen = np.ones(corpus.num_documents, bool) if split is None else np.asarray(corpus.split) == split
        if documents is not None:
            only = np.zeros_like(chosen)
            only[np.fromiter(documents, np.int64)] = True
            chosen &= only
        weights = np.ones(len(corpus.kinds))
        for name, weight in (kind_weights or {}).items():
            if name not in corpus.kinds or weight < 0:
                raise ValueError(
                    f"kind_weights has {name!r}: {weight}; weights are 0 or more, kinds are {', '.join(corpus.kinds)}"
                )
            weights[corpus.kinds.index(name)] = weight
        budget = {name: int(media_budget.get(name, 0)) for name in MODALITIES}
        table, dropped = _pieces(corpus, np.flatnonzero(chosen), row_tokens, budget)
        if not len(table):
            reason = f"; the first: {dropped[0][1]}" if dropped else ""
            raise ValueError(
                f"no document of split {split!r} fits a row of {row_tokens} tokens ({len(dropped)} do not){reason}: "
                "use longer rows, larger media budgets, or another corpus"
            )
        times = weights[np.asarray(corpus.kind)[table[:, 0]]]
        if not times.sum():
            raise ValueError("kind_weights gives every document weight 0: leave some in")
        packer = _Packer(row_tokens, np.array([budget[name] for name in MODALITIES]))
        epoch = 0
        while (num_rows is not None and len(packer.closed) < num_rows) or (epochs is not None and epoch < epochs):
            rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
            copies = np.floor(times + rng.random(len(table))).astype(np.int64)
            order = rng.permutation(np.repeat(np.arange(len(table)), copies))
            for place in order:
                packer.add(table[place], epoch)
                if num_rows is not None and len(packer.closed) >= num_rows:
                    break
            packer.close_all()
            epoch += 1
        rows = packer.closed[:num_rows]
        flat = np.array([piece for row in rows for piece in row], dtype=np.int64).reshape(-1, 4)
        offset = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        blank = _blank(flat[:, 0], flat[:, 3], seed, blank_fraction)
        document, start, stop = (flat[:, column].astype(np.int32) for column in range(3))
        return cls(row_tokens, budget, offset, document, start, stop, blank, tuple(dropped))

    def save(self, path: str | Path) -> None:
        """Write the plan as one .npz without pickle."""
        settings = {"row_tokens": self.row_tokens, "media_budget": self.media_budget, "dropped": self.dropped}
        np.savez_compressed(
            path,
            settings=np.frombuffer(json.dumps(settings).encode(), np.uint8),
            offset=self.offset,
            document=self.document,
            start=self.start,
            stop=self.stop,
            blank=self.blank,
        )

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote. Raises ValueError naming the file when it is no plan."""
        try:
            with np.load(path, allow_pickle=False) as file:
                settings = json.loads(file["settings"].tobytes())
                arrays = {name: file[name] for name in ("offset", "document", "start", "stop", "blank")}
        except (OSError, ValueError, KeyError, zlib.error) as error:
            raise ValueError(f"{path} is no row plan ({error}): build the plan again") from None
        dropped = tuple((int(document), str(reason)) for document, reason in settings["dropped"])
        return cls(settings["row_tokens"], settings["media_budget"], **arrays, dropped=dropped)


class _Packer:
    """Best fit into at most OPEN_ROWS open rows; the fullest is closed when none has room."""

    def __init__(self, row_tokens: int, budget: np.ndarray):
        self.closed: list[list[tuple[int, int, int, int]]] = []
        self.rows: list[list[tuple[int, int, int, int]]] = []
        self.full = np.array([row_tokens, *budget], np.int64)
        # room left: tokens, then patches of each modality
        self.room = np.zeros((OPEN_ROWS, len(self.full)), np.int64)

    def add(self, piece: np.ndarray, epoch: int) -> None:
        """piece: (document, start, stop, tokens, patches of each modality)."""
        need = piece[3:]
        count = len(self.rows)
        fits = (self.room[:count] >= need).all(axis=1)
        if fits.any():
            left = np.where(fits, self.room[:count, 0], np.iinfo(np.int64).max)
            place = int(left.argmin())
        else:
            if count == OPEN_ROWS:
                self.close(int(self.room[:, 0].argmin()))
            self.rows.append([])
            place = len(self.rows) - 1
            self.room[place] = self.full
        self.rows[place].append((int(piece[0]), int(piece[1]), int(piece[2]), epoch))
        self.room[place] -= need
        if self.room[place, 0] < 2:
            self.close(place)

    def close(self, place: int) -> None:
        self.closed.append(self.rows.pop(place))
        self.room[place:-1] = self.room[place + 1 :]

    def close_all(self) -> None:
        """Close what is open, in the order it was opened."""
        self.closed += self.rows
        self.rows = []


def _pieces(
    corpus: Any, chosen: np.ndarray, row_tokens: int, budget: Mapping[str, int]
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """(P, 7) document, start, stop, tokens, patches of each modality; and the documents that fit no row."""
    lengths = np.asarray(corpus.num_tokens)[chosen].astype(np.int64)
    patches = np.stack([np.asarray(corpus.num_patches[name])[chosen] for name in MODALITIES], 1).astype(np.int64)
    limit = np.array([budget[name] for name in MODALITIES])
    whole = (lengths <= row_tokens) & (patches <= limit).all(axis=1) & (lengths > 1)
    columns = [chosen, np.zeros_like(lengths), lengths, lengths]
    parts = [np.column_stack([*columns, patches])[whole]]
    dropped = []
    for place in np.flatnonzero(~whole & (lengths > 1)):
        document = int(chosen[place])
        found, reason = _segments(corpus.sequence(document), document, row_tokens, budget)
        if reason:
            dropped.append((document, reason))
        else:
            parts.append(np.array(found, np.int64))
    table = np.concatenate(parts)
    # segments stand where their document would have stood, so the plan depends on the corpus and not on this loop
    return table[np.lexsort((table[:, 1], table[:, 0]))], dropped


def _segments(
    sequence: Any, document: int, row_tokens: int, budget: Mapping[str, int]
) -> tuple[list[list[int]], str | None]:
    """Pieces of a document that does not fit whole, or the reason why it cannot be cut to fit."""
    cuts = sequence.cuts()
    slots = {name: sequence.slots(name) for name in MODALITIES}

    def need(start: int, stop: int) -> list[int]:
        counts = [int(np.subtract(*np.searchsorted(slots[name], (stop, start)))) for name in MODALITIES]
        return [stop - start, *counts]

    limits = [row_tokens, *(budget[name] for name in MODALITIES)]
    found, start = [], 0
    while start < len(sequence):
        begin = start - 1 if start and sequence.learn[start] else start
        stop = None
        for cut in cuts[(cuts > start) & (cuts <= begin + row_tokens)]:
            if any(size > limit for size, limit in zip(need(begin, int(cut)), limits, strict=True)):
                break
            stop = int(cut)
        if stop is None:
            following = int(cuts[cuts > start][0])
            sizes = need(begin, following)
            return [], (
                f"a medium of {sizes[0]} tokens ({', '.join(f'{n} {m}' for n, m in zip(sizes[1:], MODALITIES) if n)}) "
                f"fits no row of {row_tokens} tokens and {', '.join(f'{budget[m]} {m}' for m in MODALITIES)} patches"
            )
        if stop - begin > 1:
            found.append([document, begin, stop, *need(begin, stop)])
        start = stop
    return found, None


def _blank(document: np.ndarray, epoch: np.ndarray, seed: int, fraction: float) -> np.ndarray:
    """(P,) bool: a counter hash of (seed, epoch, document) below `fraction`; pieces of one document go together."""
    with np.errstate(over="ignore"):
        value = document.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + epoch.astype(np.uint64)
        value += np.uint64(seed) * np.uint64(0xD1B54A32D192ED03)
        # splitmix64's finaliser
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)).astype(np.float64) / 2**53 < fraction
