"""Packing: which stretch goes into which row, for a few stretches or for tens of millions.

    n stretches in the order of the stream · M modalities whose budget can bind

A row has room for `row_tokens` tokens and a budget of patches for each modality. Two packers share the work. `BestFit`
(here) takes stretches one by one, longest first within a window, and puts each into the tightest open row that has
room for its tokens and media: the least waste, at 10 to 30 microseconds a stretch. `Rounds` (data.pack_rounds)
takes thousands at a time, at less than half a microsecond each.

One rule decides: up to `SMALL` stretches go both ways, and the fewer rows win; more go through Rounds, all but the last
`TAIL`, and BestFit ends the rows that they leave open; fewer than `MIN_DOCUMENTS` documents go through BestFit alone.

A modality whose share of its budget is never greater than its share of a row's tokens cannot break it, in whatever
combination, and costs nothing. A row never gets two stretches of one document. Best-fit decreasing for training rows is
from Ding et al. 2024, "Fewer Truncations Improve Language Modeling". What this does not do: look for the optimum
(documents of 0.4 to 0.6 rows fit badly), or move what was placed.
"""

import numpy as np

from data.pack_rounds import Rounds

SMALL = 2**17
"""Most stretches that are packed one by one too, to see whether that wastes less."""
MIN_DOCUMENTS = 4096
"""Fewest different documents for rounds: below, the same document would meet itself too often."""
TAIL = 4096
"""Stretches at the end of the stream that are packed one by one, into the rows that rounds left open as well."""
WINDOW = 2048
"""Stretches that BestFit sorts by length at once; larger fills rows better and mixes the stream more."""


def pack(
    tokens: np.ndarray,
    media: np.ndarray,
    document: np.ndarray,
    *,
    row_tokens: int,
    budget: np.ndarray,
    phase: np.ndarray | None = None,
    keep_order: bool = False,
) -> tuple[np.ndarray, int]:
    """Rows for a stream of stretches -> (row of each stretch, (n,) int32, numbered as rows were closed; their number).

    tokens (n,), media (n, M) and document (n,) integers; no stretch may exceed row_tokens or budget (M,). phase (n,)
    ascending: windows of BestFit do not reach over it. keep_order: do not sort windows by length.
    """
    media, budget = _binding(tokens, media, row_tokens, budget)
    common = {"row_tokens": row_tokens, "budget": budget, "phase": phase, "keep_order": keep_order}
    enough = _num_different(document) >= MIN_DOCUMENTS
    ways = []
    if len(tokens) <= SMALL or not enough:
        ways.append(False)
    # rounds cost little beside the other, and do better where two or three stretches fill a row
    if enough and len(tokens) > TAIL and not (ways and keep_order):
        ways.append(True)
    return min((_pack(tokens, media, document, in_rounds=way, **common) for way in ways), key=lambda packed: packed[1])


def _pack(tokens, media, document, *, in_rounds: bool, row_tokens: int, budget, phase, keep_order: bool):
    row = np.full(len(tokens), -1, dtype=np.int32)
    last = BestFit(tokens, media, document, row, row_tokens=row_tokens, budget=budget)
    late, closed = np.arange(len(tokens)), []
    if in_rounds:
        num_documents = _num_different(document)
        unique = num_documents == len(document)
        measures = _by_pressure(tokens, media, row_tokens, budget)
        rounds = Rounds(*measures[:2], None if unique else document, row, row_tokens=measures[2], budget=measures[3])
        end = len(tokens) - TAIL
        # so that a row is full before its documents come again
        rounds.run(end, largest=num_documents // 256)
        met = np.zeros(0, dtype=np.int64) if unique else _repeats(row[:end], document[:end])
        row[met] = -1
        late = np.concatenate([met, np.arange(end, len(tokens))])
        closed = rounds.closed
        last.adopt(rounds.number, end=end, opened=rounds.opened)
    for first, stop in _windows(late, phase):
        last.window(late[first:stop], keep_order=keep_order)
    order = np.concatenate([*closed, np.array(last.close_all(), dtype=np.int32)])
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return place[row], len(order)


def _num_different(document: np.ndarray) -> int:
    seen = np.zeros(int(document.max(initial=-1)) + 1, dtype=bool)
    seen[document] = True
    return int(seen.sum())


def _binding(tokens, media, row_tokens: int, budget) -> tuple[np.ndarray, np.ndarray]:
    """Media and budgets of the modalities that some combination of stretches could exceed."""
    budget = np.asarray(budget, dtype=np.int64)
    binds = [column for column in range(len(budget)) if _exceeds(tokens, media[:, column], row_tokens, budget[column])]
    return (media if len(binds) == len(budget) else np.ascontiguousarray(media[:, binds])), budget[binds]


def _exceeds(tokens, media, row_tokens: int, budget: int, step: int = 2**18) -> bool:
    # in steps, so that the products need no room
    starts = range(0, len(tokens), step)
    return any((media[i : i + step] * float(row_tokens) > tokens[i : i + step] * float(budget)).any() for i in starts)


def _by_pressure(tokens, media, row_tokens: int, budget) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """The measure that decides the number of rows in the place of tokens, where that is a media budget.

    Rows are then full when their patches are, and tokens are one of the budgets.
    """
    pressure = media.sum(axis=0, dtype=np.int64) / np.maximum(1, budget) * row_tokens
    column = int(pressure.argmax()) if len(pressure) else 0
    if not len(pressure) or pressure[column] <= tokens.sum(dtype=np.int64):
        return tokens, media, row_tokens, budget
    exchanged, limits = media.copy(), budget.copy()
    exchanged[:, column], limits[column] = tokens, row_tokens
    return np.ascontiguousarray(media[:, column]), exchanged, int(budget[column]), limits


def _windows(late: np.ndarray, phase: np.ndarray | None):
    """(first, stop) of windows of up to WINDOW stretches that stay within a phase."""
    ends = [len(late)]
    if phase is not None and len(late):
        ends = [*(np.flatnonzero(np.diff(phase[late])) + 1).tolist(), len(late)]
    first = 0
    for end in ends:
        while first < end:
            stop = min(end, first + WINDOW)
            yield first, stop
            first = stop


def _repeats(row: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Indices of stretches whose row holds an earlier stretch of the same document."""
    key = row.astype(np.int64) << 32 | document
    ordered = np.sort(key)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return np.zeros(0, dtype=np.int64)
    found = np.flatnonzero(np.isin(key, twice))
    _, firsts = np.unique(key[found], return_index=True)
    return np.delete(found, firsts)


class BestFit:
    """Stretch by stretch into the tightest row that takes it. Arrays of open rows are kept in the order of opening."""

    def __init__(self, tokens, media, document, row, *, row_tokens: int, budget: np.ndarray):
        self.tokens, self.media, self.document, self.row = tokens, media, document, row
        self.row_tokens, self.budget = row_tokens, budget
        self.closed: list[int] = []
        self.opened = self.placed = self.num_open = 0
        self.held: dict[int, set[int]] = {}
        self._reserve(256)

    def _reserve(self, size: int) -> None:
        old = self.num_open
        fresh = {"room": ((), -1), "left": ((len(self.budget),), 0), "number": ((), 0), "since": ((), 0)}
        for name, (shape, fill) in fresh.items():
            array = np.full((size, *shape), fill, dtype=np.int64)
            if old:
                array[:old] = getattr(self, name)[:old]
            setattr(self, name, array)

    def adopt(self, numbers: np.ndarray, *, end: int, opened: int) -> None:
        """Take over open rows: what stretches before `end` put into them, and the count of rows opened so far."""
        self.opened = opened
        numbers = np.sort(numbers)
        place = np.full(opened, -1, dtype=np.int32)
        place[numbers] = np.arange(len(numbers))
        # stretches that were taken out again have row -1
        inside = np.flatnonzero((self.row[:end] >= 0) & (place[self.row[:end]] >= 0))
        where = place[self.row[inside]]
        self._reserve(2 * len(numbers) + 256)
        self.num_open = count = len(numbers)
        self.number[:count] = numbers
        self.room[:count] = self.row_tokens
        self.left[:count] = self.budget
        np.subtract.at(self.room, where, self.tokens[inside])
        np.subtract.at(self.left, where, self.media[inside])
        self.held = {number: set() for number in numbers.tolist()}
        for number, document in zip(self.row[inside].tolist(), self.document[inside].tolist(), strict=True):
            self.held[number].add(document)

    def window(self, pieces: np.ndarray, *, keep_order: bool = False) -> None:
        """Pack one window; then close rows that are nearly full, or have been open for two windows' worth."""
        if not keep_order:
            pieces = pieces[np.argsort(-self.tokens[pieces].astype(np.int64), kind="stable")]
        columns = (pieces, self.tokens[pieces], self.document[pieces])
        for piece, length, document in zip(*map(np.ndarray.tolist, columns), strict=True):
            self._place(piece, length, document)
        room, since = self.room[: self.num_open], self.since[: self.num_open]
        self._close((room <= self.row_tokens // 128) | (self.placed - since >= 2 * WINDOW))

    def _place(self, piece: int, length: int, document: int) -> None:
        room, media = self.room[: self.num_open], self.media[piece]
        fits = room >= length
        if len(media) and media.any():
            fits &= (self.left[: self.num_open] >= media).all(axis=1)
        for at in self._by_room(np.flatnonzero(fits)):
            if document not in self.held[int(self.number[at])]:
                break
        else:
            at = self._open()
        number = int(self.number[at])
        self.row[piece] = number
        self.held[number].add(document)
        self.room[at] -= length
        self.left[at] -= media
        self.placed += 1
        if self.room[at] == 0:
            self._finish(number)
            self.room[at] = -1

    def _by_room(self, rows: np.ndarray):
        """Rows from the tightest on; the first one nearly always does."""
        if len(rows):
            yield int(rows[np.argmin(self.room[rows])])
            yield from rows[np.argsort(self.room[rows], kind="stable")].tolist()[1:]

    def _open(self) -> int:
        if self.num_open == len(self.room):
            self._close(np.zeros(self.num_open, dtype=bool))
            self._reserve(2 * self.num_open + 256)
        at = self.num_open
        self.room[at], self.left[at], self.since[at] = self.row_tokens, self.budget, self.placed
        self.number[at] = self.opened
        self.held[self.opened] = set()
        self.opened += 1
        self.num_open += 1
        return at

    def _finish(self, number: int) -> None:
        self.closed.append(number)
        del self.held[number]

    def _close(self, which: np.ndarray) -> None:
        """Close the rows marked, and let go of those that were closed when they became full."""
        count = self.num_open
        gone = self.room[:count] < 0
        for number in self.number[:count][which & ~gone].tolist():
            self._finish(number)
        keep = np.flatnonzero(~(which | gone))
        for name in ("room", "left", "number", "since"):
            array = getattr(self, name)
            array[: len(keep)] = array[keep]
        self.num_open = len(keep)

    def close_all(self) -> list[int]:
        """Close what is open -> all rows in the order they were closed."""
        self._close(np.ones(self.num_open, dtype=bool))
        return self.closed
