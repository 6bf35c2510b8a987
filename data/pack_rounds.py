"""Packing in rounds: thousands of stretches at once by array operations, for corpora of millions of documents.

    n stretches in the order of the stream · M modalities whose budget can bind · K rows that are open

In a round both sides are sorted, stretches by what they need and rows by their room, and the tightest row of its own
for every stretch is a running maximum (`_tightest`). Best fit in random order would leave holes that nothing fits, so a
stretch goes in only where it ends the row to within 0.2 % (`_complete`), or where there is room for a second one of
random length beside it and what is left is a sum of usual lengths (`_extend`): rows wait for what completes them. The
rest opens new rows. Where too many rows wait, plain best fit takes over, and at last the fullest are closed. A round
takes a fixed part of what is left of the stream, so that few rows are open at a time and they end about in its order.

Media. Where material comes near a budget (above `STEER` of what rows filled with the average would take), rows are
steered towards a common mixture: one that leans far to the side of this modality waits for stretches with little of
it, and the other way round. Where the material exceeds the budget, `data.pack` exchanges the two: what is called tokens
here is then patches, and tokens are one of the budgets.

Cost: 0.3 to 0.5 microseconds a stretch on one core, and a few bytes beside the input. Waste: about 0.1 % of a row on
lengths that vary over octaves; some per cent where lengths are a third of a row and alike, or where a budget is all but
exactly used up, since then few combinations are right (`tests/data/test_data_pack.py` has figures).
"""

import numpy as np

STEER = 0.8
"""Share of a media budget, were rows filled with the average, from which on rows are steered."""
PARTS = 16
"""A round takes 1 / (PARTS * stretches of a row) of what is left, with at most 16 stretches of a row counted."""
SMALLEST, LARGEST = 32, 16384
"""Stretches of a round: few enough to leave few rows open, enough to be worth the array operations."""


class Rounds:
    """Many stretches at once. Arrays of open rows are sorted by room at the beginning of each round."""

    def __init__(self, tokens, media, document, row, *, row_tokens: int, budget: np.ndarray):
        """document: None where none comes twice. row (n,) int32 is filled in."""
        self.tokens, self.media, self.document, self.row = tokens, media, document, row
        self.row_tokens, self.budget = row_tokens, budget
        self.total = int(tokens.sum())
        self.mean = self.total / len(tokens)
        self.least = int(tokens.min()), media.min(axis=0)
        self.near = row_tokens // 512
        self._balance()
        self.usual = _usual_sums(tokens, row_tokens)
        self.room = np.zeros(0, dtype=np.int32)
        self.left = np.zeros((0, len(budget)), dtype=np.int32)
        self.number = np.zeros(0, dtype=np.int32)
        self.opened = 0
        self.closed: list[np.ndarray] = []
        self.latest = None if document is None else np.full(int(document.max()) + 1, -1, dtype=np.int32)

    def _balance(self) -> None:
        """Which modality is steered and to what mixture; and how far rows are filled where a budget decides."""
        self.steered = None
        if not len(self.budget):
            return
        pressure = self.media.sum(axis=0, dtype=np.int64) / np.maximum(1, self.budget) * (self.row_tokens / self.total)
        column = int(pressure.argmax())
        if pressure[column] <= STEER:
            return
        self.steered = column
        limit = float(self.budget[column]) / self.row_tokens
        mean = float(self.media[:, column].sum(dtype=np.int64)) / self.total
        # a little below the limit: rows that a long text fills alone take less, and all others may take more
        self.mixture = mean + 0.8 * max(0.0, limit - mean)
        rich = self._is_rich(self.tokens, self.media)
        density = [
            float(self.media[part, column].sum(dtype=np.int64)) / max(1, int(self.tokens[part].sum(dtype=np.int64)))
            for part in (rich, ~rich)
        ]
        # the most a row may lean for each token of room it has left to make up for it
        self.lean = 0.8 * (self.mixture - density[1]), 0.8 * (density[0] - self.mixture)

    def _is_rich(self, tokens, media) -> np.ndarray:
        """Stretches that hold more of the steered modality than the mixture."""
        return media[:, self.steered] > self.mixture * tokens

    def run(self, end: int, *, largest: int) -> None:
        """Pack stretches 0..end, in rounds of at most `largest`."""
        parts = max(1, int(PARTS * min(self.row_tokens / self.mean, 16)))
        largest = max(SMALLEST, min(largest, LARGEST))
        start = 0
        while start < end:
            stop = min(end, start + min(largest, max(SMALLEST, (len(self.tokens) - start) // parts)))
            self._round(start, stop)
            start = stop

    def _round(self, start: int, stop: int) -> None:
        self.start = start
        self.lengths = self.tokens[start:stop]
        # from here on stretches are known by their place in ascending order of length
        self.order = np.argsort(_small(self.lengths, self.row_tokens), kind="stable")
        self.length, self.patches = self.lengths[self.order], self.media[start:stop][self.order]
        self.waiting = np.ones(len(self.order), dtype=bool)
        by_room = np.argsort(_small(self.room, self.row_tokens), kind="stable")
        self.room, self.left, self.number = self.room[by_room], self.left[by_room], self.number[by_room]
        self.free = np.ones(len(by_room), dtype=bool)
        if len(self.room):
            self._each_group(self._complete)
            for attempt in range(2):
                self._each_group(self._extend, attempt)
            if len(self.room) > 4 * len(self.order):
                self._put(np.flatnonzero(self.waiting), np.flatnonzero(self.free))
        self._open_rows()
        self._close_rows(8 * len(self.order))

    def _each_group(self, step, *arguments) -> None:
        """Call step(stretches, rows) for the groups that may meet: all, or where rows are steered those that should."""
        stretches, rows = np.flatnonzero(self.waiting), np.flatnonzero(self.free)
        groups = [(stretches, rows)]
        if self.steered is not None:
            used = self.budget[self.steered] - self.left[rows, self.steered]
            room = self.room[rows]
            leaning = used - self.mixture * (self.row_tokens - room)
            much, little = leaning > self.lean[0] * room, leaning < -self.lean[1] * room
            rich = self._is_rich(self.length[stretches], self.patches[stretches])
            groups = [(stretches[~rich], rows[much]), (stretches[rich], rows[little]), (None, rows[~much & ~little])]
        for stretches, rows in groups:
            stretches = np.flatnonzero(self.waiting) if stretches is None else stretches
            if len(stretches) and len(rows):
                step(stretches, rows, *arguments)

    def _complete(self, stretches: np.ndarray, rows: np.ndarray) -> None:
        """Stretches into rows that they fill to within `near`."""
        room = self.room[rows]
        first = np.searchsorted(room, self.length[stretches])
        gap = room[np.minimum(first, len(room) - 1)] - self.length[stretches]
        stretches = stretches[(gap >= 0) & (gap <= self.near)]
        self._put(stretches, rows, most=self.near)

    def _extend(self, stretches: np.ndarray, rows: np.ndarray, attempt: int) -> None:
        """Stretches into rows with room for another one of random length, leaving a sum of usual lengths."""
        beside = self.lengths[(stretches + attempt) % len(self.lengths)]
        need = self.length[stretches] + beside
        by_need = np.argsort(need, kind="stable")
        stretches, need = stretches[by_need], need[by_need]
        # a row with room for many takes several at once, each from its equal part
        shares = np.maximum(1, self.room[rows] // int(8 * self.mean))
        if shares[-1] > 1:
            rows, shares = np.repeat(rows, shares), np.repeat(shares, shares)
            by_part = np.argsort(self.room[rows] // shares, kind="stable")
            rows, shares = rows[by_part], shares[by_part]
        self._put(stretches, rows, need=need, shares=shares, usual=True)

    def _put(self, stretches, rows, *, need=None, shares=1, most: int | None = None, usual: bool = False) -> None:
        """Each stretch into the tightest place of its own, where all that is asked holds; stretches sorted by need."""
        several = np.ndim(shares) > 0
        room = self.room[rows] // shares
        place = _tightest(self.length[stretches] if need is None else need, room)
        inside = place < len(rows)
        stretches, place = stretches[inside], place[inside]
        rest = room[place] - self.length[stretches]
        good = rest <= most if most is not None else self.usual[rest] if usual else rest >= 0
        row = rows[place]
        if len(self.budget):
            left = self.left[row] // shares[place][:, None] if several else self.left[row]
            good &= (self.patches[stretches] <= left).all(axis=1)
        if self.latest is not None:
            document = self.document[self.start + self.order[stretches]]
            good &= self.latest[document] != self.number[row]
        stretches, row = stretches[good], row[good]
        self._note(stretches, self.number[row])
        if several:
            np.subtract.at(self.room, row, self.length[stretches])
            np.subtract.at(self.left, row, self.patches[stretches])
        else:
            self.room[row] -= self.length[stretches]
            self.left[row] -= self.patches[stretches]
        self.free[row] = False

    def _note(self, stretches: np.ndarray, numbers: np.ndarray) -> None:
        index = self.start + self.order[stretches]
        self.row[index] = numbers
        self.waiting[stretches] = False
        if self.latest is not None:
            self.latest[self.document[index]] = numbers

    def _open_rows(self) -> None:
        """New rows for what found none: one for each large stretch, small ones together up to an eighth of a row."""
        stretches = np.flatnonzero(self.waiting)
        # in stream order, so that lengths mix
        stretches = stretches[np.argsort(self.order[stretches], kind="stable")]
        share = self._share(self.length[stretches], self.patches[stretches])
        large, small = np.flatnonzero(share > 1 / 8), np.flatnonzero(share <= 1 / 8)
        eighth = ((np.cumsum(share[small]) - share[small]) * 8).astype(np.int64)
        together = np.cumsum(np.diff(eighth, prepend=eighth[:1]) != 0)
        label = np.concatenate([np.arange(len(large)), len(large) + together])
        stretches = stretches[np.concatenate([large, small])]
        count = int(label[-1]) + 1 if len(label) else 0
        room = np.full(count, self.row_tokens, dtype=np.int32)
        left = np.tile(self.budget.astype(np.int32), (count, 1))
        np.subtract.at(room, label, self.length[stretches])
        np.subtract.at(left, label, self.patches[stretches])
        numbers = np.arange(self.opened, self.opened + count, dtype=np.int32)
        self._note(stretches, numbers[label])
        self.room = np.concatenate([self.room, room])
        self.left, self.number = np.concatenate([self.left, left]), np.concatenate([self.number, numbers])
        self.opened += count

    def _share(self, tokens: np.ndarray, media: np.ndarray) -> np.ndarray:
        """Part of a row that each takes, by tokens or by the media budget that is taken most."""
        share = tokens / self.row_tokens
        for column, budget in enumerate(self.budget.tolist()):
            share = np.maximum(share, media[:, column] / max(1, budget))
        return share

    def _close_rows(self, most: int) -> None:
        """Close rows that are full or that nothing fits, and the fullest where more than `most` are open."""
        done = (self.room <= self.near) | (self.room < self.least[0]) | (self.left < self.least[1]).any(axis=1)
        surplus = len(done) - int(done.sum()) - most
        if surplus > 0:
            share = self._share(self.row_tokens - self.room, self.budget - self.left)
            share[done] = -1.0
            done[np.argsort(-share, kind="stable")[:surplus]] = True
        self.closed.append(self.number[done])
        self.room, self.left, self.number = self.room[~done], self.left[~done], self.number[~done]


def _tightest(need: np.ndarray, room: np.ndarray) -> np.ndarray:
    """For every need (ascending) a place of its own in room (ascending), the first large enough; len(room) for none.

    The k-th takes the first place that is large enough and behind those taken: a running maximum.
    """
    steps = np.arange(len(need))
    return np.minimum(np.maximum.accumulate(np.searchsorted(room, need) - steps) + steps, len(room))


def _small(array: np.ndarray, most: int) -> np.ndarray:
    """The same numbers as uint16 where they fit, which numpy sorts by radix."""
    return array.astype(np.uint16) if most < 2**16 else array


def _usual_sums(tokens: np.ndarray, row_tokens: int) -> np.ndarray:
    """(row_tokens + 1,) bool: room that some number of usual lengths (10th to 90th percentile) adds up to."""
    sample = np.sort(tokens[:: max(1, len(tokens) // 2**16)])
    low, high = max(1, int(sample[len(sample) // 10])), int(sample[len(sample) * 9 // 10])
    usual = np.zeros(row_tokens + 1, dtype=bool)
    for count in range(1, row_tokens // low + 1):
        usual[count * low : count * high + 1] = True
        if (count + 1) * low <= count * high + 1:
            # from here on the stretches of sums overlap
            usual[count * low :] = True
            break
    return usual
