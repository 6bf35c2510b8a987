"""Length schedule: how far attention reaches along a document, by progress along the planned sequences.

    LengthSchedule.parse(("0:2048", "0.5:8192", "0.8:16384"))      2,048 tokens first, from half of the run on 8,192

Documents are packed once, at the full `seq_len`. What grows is the segment, the part of a document that attention sees
together (Llama 3, Grattafiori et al. 2024, section 3.4.2). A document longer than the schedule allows is divided into
segments outside media; attention then costs less, and no target is lost, since the last token of a segment still
predicts the first of the next. Memory does not shrink, and an image longer than the limit stays whole. Position ids are
not restarted, since only their differences matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MIN_SEGMENT_TOKENS = 16


@dataclass(frozen=True)
class LengthSchedule:
    """Segment lengths by progress. Raises ValueError for steps that do not ascend."""

    steps: tuple[tuple[float, int], ...] = ()
    """(progress, maximum tokens of a segment from there on), both ascending, the first at 0; empty: documents whole."""

    def __post_init__(self):
        try:
            steps = tuple((float(progress), int(tokens)) for progress, tokens in self.steps)
        except (TypeError, ValueError):
            raise ValueError(f"length_schedule must be steps (progress, tokens), not {self.steps!r}") from None
        progress, tokens = [at for at, _ in steps], [length for _, length in steps]
        if steps and (progress[0] != 0 or progress[-1] >= 1 or sorted(set(progress)) != progress):
            raise ValueError(f"length_schedule: progress must begin at 0 and ascend below 1, not {progress}")
        if steps and (tokens[0] < MIN_SEGMENT_TOKENS or sorted(set(tokens)) != tokens):
            raise ValueError(f"length_schedule: lengths must ascend from {MIN_SEGMENT_TOKENS} tokens, not {tokens}")
        object.__setattr__(self, "steps", steps)

    @classmethod
    def parse(cls, entries: Iterable[str]) -> LengthSchedule:
        """From entries PROGRESS:TOKENS. Raises ValueError naming the entry that is not one."""
        steps = []
        for entry in entries:
            progress, _, tokens = str(entry).partition(":")
            try:
                steps.append((float(progress), int(tokens)))
            except ValueError:
                example = 'as "0:2048" and "0.5:8192"'
                raise ValueError(f"length_schedule: {entry!r} must read PROGRESS:TOKENS, {example}") from None
        return cls(tuple(steps))

    def max_segment_tokens(self, seq_len: int, num_sequences: int) -> int:
        """Maximum number of tokens of any segment in a plan of `num_sequences` sequences of `seq_len`."""
        return min(seq_len, max((tokens for _, tokens in self.by_sequence(num_sequences)), default=seq_len))

    def by_sequence(self, num_sequences: int) -> tuple[tuple[int, int], ...]:
        """(first sequence, tokens) of each step in a plan of `num_sequences`; steps without a sequence are left out."""
        # of two steps that begin at one sequence the later counts
        by_sequence = {math.ceil(progress * num_sequences): tokens for progress, tokens in self.steps}
        return tuple((number, tokens) for number, tokens in by_sequence.items() if number < num_sequences)


def segment_starts(split_points: np.ndarray, limit: int | None) -> np.ndarray:
    """(s,) int64 where the segments of a chunk begin, 0 first, as few as a greedy walk finds.

    split_points: (c,) ascending, 0 and the chunk's length included. What lies between two of them stays whole even
    where it is longer than `limit`.
    """
    starts = [0]
    while limit is not None and int(split_points[-1]) - starts[-1] > limit:
        last = int(np.searchsorted(split_points, starts[-1] + limit, side="right")) - 1
        if split_points[last] == starts[-1]:
            last += 1
        if last >= len(split_points) - 1:
            break
        starts.append(int(split_points[last]))
    return np.array(starts, dtype=np.int64)
