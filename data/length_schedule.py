"""Train short, extend: how far attention reaches along a document, as a function of progress along the planned rows.

    LengthSchedule.parse(("0:2048", "0.5:8192", "0.8:16384"))      2,048 tokens first, from half of the rows on 8,192

Rows are packed once, at their full length, and stay what they are: the same documents in the same order in tensors of
one shape. What grows is the segment, the stretch of a document that attention sees together. Where a document is longer
than the schedule allows at a row, it is cut there into segments of at most so many tokens, at places outside media, and
each begins without what came before; attention, which costs in proportion to what is seen, costs less. No target is
lost: the last token of a segment still predicts the first of the next. Memory does not shrink with short segments, and
a medium longer than the limit stays whole. Places (rotary positions) run on, since only their differences matter.

Growing the length in steps is from Llama 3 (Grattafiori et al. 2024, section 3.4.2). Masking between the pieces of a
row, as here, rather than shortening rows leaves tokens per step, learning-rate schedule and compiled shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SHORTEST = 16
"""Least tokens of a segment."""


@dataclass(frozen=True)
class LengthSchedule:
    """Segment lengths by progress. Raises ValueError for steps that cannot be meant."""

    steps: tuple[tuple[float, int], ...] = ()
    """(progress, most tokens of a segment from there on), both ascending, the first at 0; empty: documents whole."""

    def __post_init__(self):
        try:
            steps = tuple((float(progress), int(tokens)) for progress, tokens in self.steps)
        except (TypeError, ValueError):
            raise ValueError(f"length_schedule must be steps (progress, tokens), not {self.steps!r}") from None
        progress, tokens = [at for at, _ in steps], [length for _, length in steps]
        if steps and (progress[0] != 0 or progress[-1] >= 1 or sorted(set(progress)) != progress):
            raise ValueError(f"length_schedule: progress must begin at 0 and ascend below 1, not {progress}")
        if steps and (tokens[0] < SHORTEST or sorted(set(tokens)) != tokens):
            raise ValueError(f"length_schedule: lengths must ascend from {SHORTEST} tokens or more, not {tokens}")
        object.__setattr__(self, "steps", steps)

    @classmethod
    def parse(cls, entries: Iterable[str]) -> LengthSchedule:
        """From lines such as "0.5:8192" (progress:tokens)."""
        steps = []
        for entry in entries:
            progress, _, tokens = str(entry).partition(":")
            try:
                steps.append((float(progress), int(tokens)))
            except ValueError:
                raise ValueError(
                    f'length_schedule: {entry!r} must read PROGRESS:TOKENS, as "0:2048" and "0.5:8192"'
                ) from None
        return cls(tuple(steps))

    def longest_in(self, row_tokens: int, num_rows: int) -> int:
        """Most tokens that a segment has anywhere in a plan of `num_rows` rows of `row_tokens`."""
        return min(row_tokens, max((tokens for _, tokens in self.by_row(num_rows)), default=row_tokens))

    def by_row(self, num_rows: int) -> tuple[tuple[int, int], ...]:
        """(first row, tokens) of each step in a plan of `num_rows` rows; steps that get no row are left out."""
        # the later of two steps that begin at one row stands
        by_row = {math.ceil(progress * num_rows): tokens for progress, tokens in self.steps}
        return tuple((row, tokens) for row, tokens in by_row.items() if row < num_rows)


def segment_starts(cuts: np.ndarray, limit: int | None) -> np.ndarray:
    """(s,) int64 where the segments of a stretch begin, 0 first: as few as a greedy walk finds.

    cuts: (c,) places where it may be cut, ascending, its beginning 0 and its length included. What lies between two
    cuts stays whole where it is longer than `limit`.
    """
    starts = [0]
    while limit is not None and int(cuts[-1]) - starts[-1] > limit:
        last = int(np.searchsorted(cuts, starts[-1] + limit, side="right")) - 1
        if cuts[last] == starts[-1]:
            last += 1
        if last >= len(cuts) - 1:
            break
        starts.append(int(cuts[last]))
    return np.array(starts, dtype=np.int64)
