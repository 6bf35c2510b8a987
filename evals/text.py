"""How far a transcription is from its reference: edit distance, character error rate, identifier recall, alignment.

The character error rate is the sum of edit distances over the sum of reference lengths, so long references count for
more and a rate above 1 is possible. Identifier recall is the longest common subsequence of identifiers (words of
letters, digits and underscores that begin with no digit) over the number of identifiers in the reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_IDENTIFIER = re.compile(r"\b[^\W\d]\w*")
_OPERATIONS = {"equal": "same", "delete": "missing", "insert": "extra", "replace": "wrong"}


def edit_distance(reference: str, hypothesis: str) -> int:
    """Levenshtein distance in characters."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(reference, hypothesis)


def character_error_rate(pairs: Iterable[tuple[str, str]]) -> float | None:
    """Edits over reference characters of (reference, hypothesis) pairs, both summed; None without any character."""
    edits = length = 0
    for reference, hypothesis in pairs:
        edits += edit_distance(reference, hypothesis)
        length += len(reference)
    return edits / length if length else None


def identifiers_in(text: str) -> list[str]:
    """Identifiers of a text, in order."""
    return _IDENTIFIER.findall(text)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    from rapidfuzz.distance import LCSseq

    return LCSseq.similarity(first, second)


def identifier_recall(reference: str, hypothesis: str) -> tuple[int, int]:
    """(identifiers of the reference that occur in the hypothesis in order, identifiers in the reference)."""
    truth = identifiers_in(reference)
    return common_subsequence(truth, identifiers_in(hypothesis)), len(truth)


def align(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """Where two texts agree and differ: (operation, part of the reference, part of the hypothesis), in order.

    operation is "same", "missing" (only in the reference), "extra" (only in the hypothesis) or "wrong". The parts of
    either text, joined, are that text.
    """
    from rapidfuzz.distance import Levenshtein

    return [
        (_OPERATIONS[code.tag], reference[code.src_start : code.src_end], hypothesis[code.dest_start : code.dest_end])
        for code in Levenshtein.opcodes(reference, hypothesis)
    ]
