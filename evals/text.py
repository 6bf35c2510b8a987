"""How far a transcription is from the truth: edits, character error rate, names recovered, and where they differ.

Character error rate is the sum of edit distances over the sum of reference lengths (in characters), so long lines
count for more than short ones and a rate above 1 is possible: a model that raves is worse than one that is silent.
Each distance is computed exactly, one numpy row per character of the hypothesis; insertions along a row, which make
the plain recurrence sequential, become a running minimum (`minimum.accumulate` of row - index). 500 x 500 characters
take about 5 ms.

Names are identifiers, words of letters, digits and underscores that begin with no digit. A recording's names are
recovered when they come by in the hypothesis in order: longest common subsequence over names, divided by the number
of names in the reference.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

_NAME = re.compile(r"\b[^\W\d]\w*")


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


def _rows(reference: str, hypothesis: str) -> Iterable[np.ndarray]:
    """The rows of the edit-distance table: row j holds the cost of each prefix of the reference against j characters
    of the hypothesis."""
    truth, guess = _codes(reference), _codes(hypothesis)
    index = np.arange(len(truth) + 1, dtype=np.int32)
    row = index.copy()
    yield row
    for code in guess:
        fresh = row + 1
        np.minimum(fresh[1:], row[:-1] + (truth != code), out=fresh[1:])
        # a missing character costs one more than its left neighbour: a running minimum of (row - index)
        row = np.minimum.accumulate(fresh - index) + index
        yield row


def edit_distance(reference: str, hypothesis: str) -> int:
    """Fewest insertions, deletions and substitutions of characters that turn one into the other (Levenshtein)."""
    last = deque(_rows(reference, hypothesis), maxlen=1)
    return int(last[0][-1])


def character_error_rate(pairs: Iterable[tuple[str, str]]) -> float | None:
    """Edits over reference characters of (reference, hypothesis) pairs, both summed; None without any character."""
    edits = length = 0
    for reference, hypothesis in pairs:
        edits += edit_distance(reference, hypothesis)
        length += len(reference)
    return edits / length if length else None


def names_in(text: str) -> list[str]:
    """Identifiers of a text, in order."""
    return _NAME.findall(text)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(second) + 1)
    for item in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = best[column]
            best[column] = diagonal + 1 if item == other else max(above, best[column - 1])
            diagonal = above
    return best[-1]


def names_recovered(reference: str, hypothesis: str) -> tuple[int, int]:
    """(names of the reference that occur in the hypothesis in order, names in the reference)."""
    truth = names_in(reference)
    return common_subsequence(truth, names_in(hypothesis)), len(truth)


def align(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """Where two texts agree and differ: (operation, piece of the reference, piece of the hypothesis), in order.

    operation is "same", "missing" (only in the reference), "extra" (only in the hypothesis) or "wrong"; runs of one
    operation are one entry. The pieces of either text, joined, are that text.
    """
    table = np.stack(list(_rows(reference, hypothesis)))
    steps, column, row = [], len(reference), len(hypothesis)
    while column or row:
        here = table[row, column]
        if column and row:
            equal = reference[column - 1] == hypothesis[row - 1]
            if here == table[row - 1, column - 1] + (not equal):
                column, row = column - 1, row - 1
                steps.append(("same" if equal else "wrong", reference[column], hypothesis[row]))
                continue
        if column and here == table[row, column - 1] + 1:
            column -= 1
            steps.append(("missing", reference[column], ""))
        else:
            row -= 1
            steps.append(("extra", "", hypothesis[row]))
    merged: list[tuple[str, str, str]] = []
    for operation, truth, guess in reversed(steps):
        if merged and merged[-1][0] == operation:
            merged[-1] = (operation, merged[-1][1] + truth, merged[-1][2] + guess)
        else:
            merged.append((operation, truth, guess))
    return merged
