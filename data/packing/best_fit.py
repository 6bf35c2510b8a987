"""Packing chunk by chunk: each into the tightest open sequence that takes it, longest first within a window.

Best-fit decreasing for training sequences is from Ding et al. 2024, "Fewer Truncations Improve Language Modeling".
Open sequences are a structured array in the order of opening; a sequence is closed when it is nearly full, or has been
open for two windows' worth of chunks.
"""

import numpy as np

WINDOW = 2048  # chunks that are sorted by length at once; larger fills sequences better and mixes the stream more


class BestFitPacker:
    """Fills in `sequence` (n,) int32, the number of each chunk's sequence in the order of opening."""

    def __init__(self, tokens, media, document, sequence, *, seq_len: int, budget: np.ndarray):
        self.tokens, self.media, self.document, self.sequence = tokens, media, document, sequence
        self.seq_len, self.budget = seq_len, budget
        self.closed: list[int] = []
        self.opened = self.placed = self.num_open = 0
        self.held: dict[int, set[int]] = {}
        fields = [("free", "i8"), ("left", "i8", (len(budget),)), ("number", "i8"), ("since", "i8")]
        self.open = np.zeros(256, dtype=fields)

    def adopt_open_sequences(self, numbers: np.ndarray, *, end: int, opened: int) -> None:
        """Take over open sequences with what chunks before `end` put into them; `opened`: the count opened so far."""
        self.opened, self.num_open = opened, len(numbers)
        numbers = np.sort(numbers)
        index_of = np.full(opened, -1, dtype=np.int32)
        index_of[numbers] = np.arange(len(numbers))
        # chunks that were taken out again have sequence -1
        inside = np.flatnonzero((self.sequence[:end] >= 0) & (index_of[self.sequence[:end]] >= 0))
        at = index_of[self.sequence[inside]]
        self.open = np.zeros(2 * len(numbers) + 256, dtype=self.open.dtype)
        open_now = self.open[: len(numbers)]
        open_now["number"], open_now["free"], open_now["left"] = numbers, self.seq_len, self.budget
        np.subtract.at(open_now["free"], at, self.tokens[inside])
        np.subtract.at(open_now["left"], at, self.media[inside])
        self.held = {number: set() for number in numbers.tolist()}
        for number, document in zip(self.sequence[inside].tolist(), self.document[inside].tolist(), strict=True):
            self.held[number].add(document)

    def pack(self, chunks: np.ndarray) -> None:
        """Pack one window, then close what is nearly full or old."""
        chunks = chunks[np.argsort(-self.tokens[chunks].astype(np.int64), kind="stable")]
        columns = (chunks, self.tokens[chunks], self.document[chunks])
        for chunk, length, document in zip(*map(np.ndarray.tolist, columns), strict=True):
            self._place(chunk, length, document)
        open_now = self.open[: self.num_open]
        self._close((open_now["free"] <= self.seq_len // 128) | (self.placed - open_now["since"] >= 2 * WINDOW))

    def _place(self, chunk: int, length: int, document: int) -> None:
        open_now, media = self.open[: self.num_open], self.media[chunk]
        fits = open_now["free"] >= length
        if len(media) and media.any():
            fits &= (open_now["left"] >= media).all(axis=1)
        for at in _tightest_first(open_now["free"], np.flatnonzero(fits)):
            if document not in self.held[int(open_now["number"][at])]:
                break
        else:
            at = self._open()
        number = int(self.open["number"][at])
        self.sequence[chunk] = number
        self.held[number].add(document)
        self.open["free"][at] -= length
        self.open["left"][at] -= media
        self.placed += 1
        if self.open["free"][at] == 0:
            self._finish(number)
            self.open["free"][at] = -1

    def _open(self) -> int:
        if self.num_open == len(self.open):
            self._close(np.zeros(self.num_open, dtype=bool))
            self.open = np.concatenate([self.open, np.zeros_like(self.open)])
        at, number = self.num_open, self.opened
        self.open[at] = (self.seq_len, self.budget, number, self.placed)
        self.held[number] = set()
        self.opened, self.num_open = number + 1, at + 1
        return at

    def _finish(self, number: int) -> None:
        self.closed.append(number)
        del self.held[number]

    def _close(self, which: np.ndarray) -> None:
        """Close the open sequences marked, and drop those that were closed when they became full."""
        open_now = self.open[: self.num_open]
        gone = open_now["free"] < 0
        for number in open_now["number"][which & ~gone].tolist():
            self._finish(number)
        keep = open_now[~(which | gone)]
        self.num_open = len(keep)
        self.open[: len(keep)] = keep

    def close_all(self) -> list[int]:
        """Close what is open -> all sequences in the order they were closed."""
        self._close(np.ones(self.num_open, dtype=bool))
        return self.closed


def _tightest_first(free: np.ndarray, fitting: np.ndarray):
    """Indices from the tightest on; the first one nearly always does."""
    if len(fitting):
        yield int(fitting[np.argmin(free[fitting])])
        yield from fitting[np.argsort(free[fitting], kind="stable")].tolist()[1:]
