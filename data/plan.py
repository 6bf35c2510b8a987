"""The row plan: which stretch of which document lies in which row, decided before training begins.

    entry e     document[e], start[e]..stop[e], blank[e]
    row i       entries offset[i]..offset[i+1], laid one after another; the rest of the row is padding

Row i is a pure function of (plan, i), so the loader's whole state is one integer, resuming is exact at any number of
ranks, and skipping a bad stretch of training is arithmetic.

An epoch visits every chosen document (as often as its weight says), in an order shuffled by (seed, epoch). Documents
are packed by best fit, longest first within a window of the shuffled order, under one budget of tokens and one per
modality, so that batches have one shape; a row never holds two stretches of one document (equal ids side by side would
be one document to attention). Rows left open are carried into the next window and at last the next epoch. Documents
that exceed a row, in tokens or media, are spread over several rows at places outside media, so that every target is
predicted once; a document with a medium that fits no row is left out, and counted with the reason.

A tenth of the documents with media are blanked in training (grey, silence), so that a model asked about a blank
is not surprised. Which ones is a hash of (seed, document, occurrence), independent of packing.
"""

import dataclasses
import json
import math
import zipfile
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.document import MODALITIES, SPLITS
from data.tokenizer import CLOSE_ID, SLOT_ID

WINDOW_DOCUMENTS = 2048
"""Stretches that are packed together; larger fills rows better and mixes epochs less."""
MAX_TRIES = 64
"""Rows looked at for one stretch before a new row is opened; only media budgets make the first ones fail."""


@dataclass(frozen=True)
class Plan:
    """Rows of known content. Build with `Plan.build`, keep with `save`, read with `load`."""

    document: np.ndarray
    """(E,) int64 index into the corpus."""
    start: np.ndarray
    """(E,) int64 first token of the stretch."""
    stop: np.ndarray
    """(E,) int64 end of the stretch."""
    blank: np.ndarray
    """(E,) bool: media of this occurrence are blanked."""
    offset: np.ndarray
    """(R + 1,) int64 first entry of each row."""
    row_tokens: int
    """Tokens in a row, padding included."""
    media_budget: dict[str, int]
    """Most patches of each modality in a row."""
    fingerprint: str
    """Of the corpus the plan was made for."""
    info: dict
    """How it was made: split, seed, epochs begun, fill fraction, documents used and left out with reasons."""

    def __len__(self) -> int:
        return len(self.offset) - 1

    def row(self, number: int) -> list[tuple[int, int, int, bool]]:
        """Entries (document, start, stop, blank) of one row."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of a plan of {len(self)} rows")
        entries = range(self.offset[number], self.offset[number + 1])
        return [(int(self.document[e]), int(self.start[e]), int(self.stop[e]), bool(self.blank[e])) for e in entries]

    @property
    def fill(self) -> float:
        """Fraction of the rows' tokens that are documents, not padding."""
        return float((self.stop - self.start).sum() / max(1, len(self) * self.row_tokens))

    def with_blank(self, blank: bool) -> "Plan":
        """The same rows with every document blanked, or none: for measuring what media contribute."""
        return dataclasses.replace(self, blank=np.full(len(self.document), blank))

    def rows(self, start: int, stop: int) -> "Plan":
        """Rows start..stop as a plan of their own."""
        first, last = int(self.offset[start]), int(self.offset[stop])
        pieces = {name: getattr(self, name)[first:last] for name in ("document", "start", "stop", "blank")}
        return dataclasses.replace(self, **pieces, offset=self.offset[start : stop + 1] - first)

    @classmethod
    def build(
        cls,
        corpus,
        *,
        split: str = "train",
        row_tokens: int,
        media_budget: dict[str, int] | None = None,
        num_rows: int | None = None,
        epochs: int | None = None,
        seed: int = 0,
        blank_fraction: float | None = None,
        documents: Iterable[int] | np.ndarray | None = None,
        kinds: Iterable[str] | None = None,
        levels: Iterable[int] | None = None,
        kind_weights: dict | None = None,
        shuffle: bool = True,
    ) -> "Plan":
        """Plan `num_rows` rows, or as many as `epochs` visits fill (one when neither is given).

        corpus: an EncodedCorpus (or anything with its arrays). media_budget: patches a row per modality, row_tokens
        where absent. blank_fraction: 0.1 for the train split and 0 for others unless given. documents: indices or a
        mask (n,) to choose from; kinds, levels narrow further. kind_weights: visits per epoch, by kind
        ("page": 2) or kind and level ("page/1": 0.5); a fraction visits that part of the documents, drawn anew
        each epoch; kinds without an entry weigh 1. Raises ValueError when nothing is left to plan.
        """
        if row_tokens < 2:
            raise ValueError(f"row_tokens must be at least 2, not {row_tokens}")
        if num_rows is not None and epochs is not None:
            raise ValueError("give num_rows or epochs, not both")
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        unknown = sorted(set(media_budget or {}) - set(MODALITIES))
        if unknown:
            raise ValueError(f"unknown modality {unknown[0]!r} in media_budget; there are {', '.join(MODALITIES)}")
        budget = {name: int((media_budget or {}).get(name, row_tokens)) for name in MODALITIES}
        blank_fraction = (0.1 if split == "train" else 0.0) if blank_fraction is None else blank_fraction
        chosen = _choose(corpus, split, documents, kinds, levels)
        table, left_out = _segments(corpus, chosen, row_tokens, budget)
        weight = _weights(corpus, kind_weights)
        usable = np.array([number for number in chosen if number in table], dtype=np.int64)
        if not len(usable) or not weight[usable].any():
            first = next(iter(left_out.values()), "the split, kinds, levels and weights asked for leave no document")
            raise ValueError(f"no document to plan in split {split!r} ({len(left_out)} left out; the first: {first})")
        with_media = sum(corpus.num_media[name] for name in MODALITIES) > 0
        packer = _Packer(row_tokens, budget)
        wanted = math.inf if num_rows is None else num_rows
        begun = 0
        while packer.num_rows < wanted and (num_rows is not None or begun < (epochs or 1)):
            visits = iter(_visits(usable, weight, seed, begun, shuffle))
            begun += 1
            while packer.num_rows < wanted:
                # no more is taken up than there is room for: a window that is cut off would favour what it packs first
                room = wanted * row_tokens - packer.num_tokens
                pieces = []
                while len(pieces) < WINDOW_DOCUMENTS and room > 0 and (visit := next(visits, None)):
                    number, copy = visit
                    draw = _uniform(seed, 2, number, (begun - 1) * 4096 + copy)
                    blank = bool(with_media[number]) and draw < blank_fraction
                    pieces += [(number, *piece, blank) for piece in table[number]]
                    room -= sum(stop - start for start, stop, _ in table[number])
                if not pieces:
                    break
                packer.window(pieces, keep_order=not shuffle)
        packer.close_all()
        rows = packer.closed[: num_rows if num_rows is not None else None]
        if shuffle:
            # best fit closes full rows early; their order must not tell. Windows keep epochs apart meanwhile
            rows = _shuffled_in_windows(rows, seed)
        plan = _from_rows(rows, row_tokens, budget, corpus.fingerprint)
        info = {
            "split": split,
            "seed": seed,
            "epochs_begun": begun,
            "rows": len(rows),
            "fill": round(plan.fill, 6),
            "documents": len(usable),
            "blank_fraction": blank_fraction,
            "left_out": len(left_out),
            "left_out_reasons": {str(number): left_out[number] for number in sorted(left_out)},
        }
        return dataclasses.replace(plan, info=info)

    def save(self, path: str | Path) -> None:
        """Write the plan as one .npz file without pickle; by rename, complete or absent."""
        path = Path(path)
        meta = {
            "row_tokens": self.row_tokens,
            "media_budget": self.media_budget,
            "fingerprint": self.fingerprint,
            "info": self.info,
        }
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            np.savez(
                file,
                document=self.document,
                start=self.start,
                stop=self.stop,
                blank=self.blank,
                offset=self.offset,
                meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
            )
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan. Raises ValueError when the file is missing or is no plan."""
        try:
            with np.load(path, allow_pickle=False) as file:
                meta = json.loads(file["meta"].tobytes())
                return cls(**{name: file[name] for name in ("document", "start", "stop", "blank", "offset")}, **meta)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a row plan ({error}): build it again with Plan.build") from None


def _choose(corpus, split, documents, kinds, levels) -> np.ndarray:
    """(n,) int64 documents that pass every filter, ascending."""
    mask = corpus.split == SPLITS.index(split)
    if documents is not None:
        documents = np.asarray(list(documents) if not isinstance(documents, np.ndarray) else documents)
        if documents.dtype == bool and documents.shape != mask.shape:
            raise ValueError(f"a document mask needs {len(mask)} entries, not {len(documents)}")
        keep = np.zeros(len(mask), dtype=bool)
        keep[documents if documents.dtype == bool else documents.astype(np.int64)] = True
        mask = mask & keep
    if kinds is not None:
        kinds = list(kinds)
        unknown = sorted(set(kinds) - set(corpus.kinds))
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r}; the corpus has {', '.join(corpus.kinds)}")
        mask = mask & np.isin(corpus.kind, [corpus.kinds.index(kind) for kind in kinds])
    if levels is not None:
        mask = mask & np.isin(corpus.level, list(levels))
    return np.flatnonzero(mask)


def _weights(corpus, kind_weights: dict | None) -> np.ndarray:
    """(n,) float64 visits per epoch of every document."""
    weight = np.ones(corpus.num_documents)
    # kinds first, kind/level after, so that the narrower entry wins whatever the order given
    for key, value in sorted((kind_weights or {}).items(), key=lambda item: str(item[0]).count("/")):
        kind, _, level = ("/".join(map(str, key)) if isinstance(key, tuple) else key).partition("/")
        if kind not in corpus.kinds or (level and not level.isdigit()):
            raise ValueError(f"kind_weights: {key!r} is no kind, nor kind/level; kinds: {', '.join(corpus.kinds)}")
        if not 0 <= value <= 4096:
            raise ValueError(f"kind_weights[{key!r}] must lie in 0..4096, not {value}")
        chosen = corpus.kind == corpus.kinds.index(kind)
        weight[chosen & (corpus.level == int(level)) if level else chosen] = value
    return weight


def _visits(usable: np.ndarray, weight: np.ndarray, seed: int, epoch: int, shuffle: bool) -> list[tuple[int, int]]:
    """(document, copy) pairs of one epoch in order."""
    whole = np.floor(weight[usable]).astype(np.int64)
    part = weight[usable] - whole
    draws = np.array([_uniform(seed, 1, int(number), epoch) for number in usable]) if part.any() else np.ones(len(part))
    times = whole + (draws < part)
    documents = np.repeat(usable, times)
    copies = np.arange(len(documents)) - np.repeat(np.cumsum(times) - times, times)
    order = np.arange(len(documents))
    if shuffle:
        order = np.random.Generator(np.random.PCG64([seed, epoch, 3])).permutation(len(documents))
    return list(zip(documents[order].tolist(), copies[order].tolist(), strict=True))


_Piece = tuple[int, int, tuple[int, int, int]]


def _segments(corpus, chosen, row_tokens: int, budget: dict) -> tuple[dict[int, list[_Piece]], dict[int, str]]:
    """Stretches (start, stop, media counts) of each document, and the documents that fit no row with the reason."""
    counts = np.stack([corpus.num_media[name] for name in MODALITIES], axis=1)
    limits = np.array([budget[name] for name in MODALITIES])
    fits = (corpus.num_tokens <= row_tokens) & (counts <= limits).all(axis=1)
    table, left_out = {}, {}
    for number in chosen.tolist():
        if fits[number]:
            table[number] = [(0, int(corpus.num_tokens[number]), tuple(counts[number].tolist()))]
            continue
        pieces = _split(corpus.tokens(number), row_tokens, limits)
        if isinstance(pieces, str):
            left_out[number] = pieces
        else:
            table[number] = pieces
    return table, left_out


def _split(sequence, row_tokens: int, limits: np.ndarray) -> list[_Piece] | str:
    """Stretches of a long document within the budgets, or why there are none."""
    total = np.zeros((len(sequence) + 1, len(MODALITIES)), dtype=np.int64)
    for column, name in enumerate(MODALITIES):
        np.cumsum(sequence.token_ids == SLOT_ID[name], out=total[1:, column])
    closes = np.isin(sequence.token_ids, list(CLOSE_ID.values()))
    cuts, pieces, cut = sequence.cuts(), [], 0
    # media counts never fall along a document, so the furthest cut within every budget is a search, not a scan
    at_cuts = total[cuts]
    while cut < len(sequence):
        # a target needs the token before it in its row; where that is text it is repeated
        start = cut - 1 if cut and sequence.learn[cut] and not closes[cut - 1] else cut
        last = int(np.searchsorted(cuts, start + row_tokens, side="right"))
        for column, limit in enumerate(limits):
            last = min(last, int(np.searchsorted(at_cuts[:, column], total[start, column] + limit, side="right")))
        first = int(np.searchsorted(cuts, cut, side="right"))
        if last <= first:
            following = int(cuts[first])
            media = (total[following] - total[start]).tolist()
            return (
                f"tokens {cut}..{following} cannot be cut (media {dict(zip(MODALITIES, media, strict=True))}) and "
                f"exceed a row of {row_tokens} tokens with {dict(zip(MODALITIES, limits.tolist(), strict=True))}"
            )
        stop = int(cuts[last - 1])
        pieces.append((start, stop, tuple((total[stop] - total[start]).tolist())))
        cut = stop
    return pieces


class _Packer:
    """Best fit of stretches into open rows; rooms are kept sorted, so the tightest row that fits is found first."""

    # rows: number -> entries, media left, documents held, stretches placed when it was opened

    def __init__(self, row_tokens: int, budget: dict[str, int]):
        self.row_tokens = row_tokens
        self.media = tuple(budget[name] for name in MODALITIES)
        self.closed: list[list[tuple]] = []
        self.rooms: list[tuple[int, int]] = []
        self.rows: dict[int, tuple[list[tuple], list[int], set[int], int]] = {}
        self.opened = self.placed = self.num_tokens = 0

    @property
    def num_rows(self) -> int:
        """Rows closed and open."""
        return len(self.closed) + len(self.rows)

    def window(self, pieces: list[tuple], *, keep_order: bool = False) -> None:
        """Pack one window; afterwards close rows that are nearly full, or have been open for two windows' worth."""
        if not keep_order:
            pieces = sorted(pieces, key=lambda piece: piece[1] - piece[2])
        for piece in pieces:
            self._place(piece)
        for room, row in list(self.rooms):
            if room <= self.row_tokens // 128 or self.placed - self.rows[row][3] >= 2 * WINDOW_DOCUMENTS:
                self._close(room, row)

    def _place(self, piece: tuple) -> None:
        document, start, stop, media, blank = piece
        length, place = stop - start, bisect_left(self.rooms, (stop - start, -1))
        for index in range(place, min(place + MAX_TRIES, len(self.rooms))):
            room, row = self.rooms[index]
            entries, left, held, _ = self.rows[row]
            if document not in held and all(need <= have for need, have in zip(media, left, strict=True)):
                del self.rooms[index]
                break
        else:
            room, row = self.row_tokens, self.opened
            entries, left, held, _ = self.rows[row] = ([], list(self.media), set(), self.placed)
            self.opened += 1
        entries.append((document, start, stop, blank))
        self.placed += 1
        self.num_tokens += length
        held.add(document)
        for column, need in enumerate(media):
            left[column] -= need
        insort(self.rooms, (room - length, row))
        if room == length:
            self._close(0, row)

    def _close(self, room: int, row: int) -> None:
        self.rooms.remove((room, row))
        self.closed.append(self.rows.pop(row)[0])

    def close_all(self) -> None:
        """Close what is open, in the order it was opened."""
        for row in sorted(self.rows):
            self.closed.append(self.rows[row][0])
        self.rows, self.rooms = {}, []


def _shuffled_in_windows(rows: list, seed: int, size: int = 1024) -> list:
    """Rows with their order shuffled within stretches of `size`, so that epochs stay roughly in order."""
    generator = np.random.Generator(np.random.PCG64([seed, 0, 4]))
    out = []
    for first in range(0, len(rows), size):
        stretch = rows[first : first + size]
        out += [stretch[place] for place in generator.permutation(len(stretch))]
    return out


def _from_rows(rows: list[list[tuple]], row_tokens: int, budget: dict, fingerprint: str) -> Plan:
    entries = [entry for row in rows for entry in row]
    columns = [np.array([entry[place] for entry in entries], dtype=np.int64) for place in range(3)]
    offset = np.cumsum([0] + [len(row) for row in rows], dtype=np.int64)
    blank = np.array([entry[3] for entry in entries], dtype=bool)
    return Plan(*columns, blank, offset, row_tokens, budget, fingerprint, {})


def _uniform(seed: int, stream: int, number: int, count: int) -> float:
    """A number in [0, 1) from counters alone (SplitMix64 steps), equal on every machine."""
    value = 0
    for word in (seed, stream, number, count):
        value = (value + word + 0x9E3779B97F4A7C15) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value ^= value >> 31
    return value / 2**64
