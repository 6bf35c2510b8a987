"""Edit distance, character error rate, names recovered, alignment."""

import random

import pytest

from brine.evals.config import EvalConfig
from brine.evals.transcribe import (
    Transcript,
    align,
    edit_distance,
    identifier_recall,
    identifiers_in,
    transcription_rates,
)


def plain_distance(a, b):
    """The textbook table."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        fresh = [i]
        for j, y in enumerate(b, start=1):
            fresh.append(min(row[j] + 1, fresh[j - 1] + 1, row[j - 1] + (x != y)))
        row = fresh
    return row[-1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits"),
    [
        ("kitten", "sitting", 3),
        ("", "", 0),
        ("abc", "", 3),
        ("", "abc", 3),
        ("same", "same", 0),
        ("naïve 🙂", "naive 🙂", 1),
        ("ab", "ba", 2),
    ],
)
def test_edit_distance(reference, hypothesis, edits):
    assert edit_distance(reference, hypothesis) == edits


def test_edit_distance_is_the_textbooks():
    generator = random.Random(0)
    for _ in range(200):
        a, b = ("".join(generator.choices("abc", k=generator.randrange(12))) for _ in range(2))
        assert edit_distance(a, b) == plain_distance(a, b), (a, b)


def test_character_error_rate_weighs_by_length_and_may_exceed_one():
    assert character_error_rate([("abcd", "abcd"), ("ab", "xx")]) == pytest.approx(2 / 6)
    assert character_error_rate([("a", "bbbb")]) == 4
    assert character_error_rate([("", "abc")]) is None
    assert character_error_rate([]) is None


def character_error_rate(pairs):
    found = [Transcript(0, "page", 1, "image", *pair, edit_distance(*pair), 0, 0) for pair in pairs]
    return transcription_rates(found, EvalConfig())["cer"]


def test_names_are_identifiers():
    assert identifiers_in("def read_2(self, x1): return 3.5e8 + größe") == [
        "def",
        "read_2",
        "self",
        "x1",
        "return",
        "größe",
    ]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "found"),
    [
        ("alpha beta gamma", "alpha gamma", (2, 3)),
        ("alpha beta gamma", "gamma beta alpha", (1, 3)),
        ("alpha, alpha", "alpha", (1, 2)),
        ("alpha", "alphabet", (0, 1)),
        ("1 + 2", "1 + 2", (0, 0)),
    ],
)
def test_names_recovered_keeps_order_and_count(reference, hypothesis, found):
    assert identifier_recall(reference, hypothesis) == found


def test_common_subsequence():
    assert identifier_recall(" ".join("ABCBDAB"), " ".join("BDCABA")) == (4, 7)


def test_align_spells_both_texts_and_costs_the_distance():
    generator = random.Random(1)
    for _ in range(100):
        a, b = ("".join(generator.choices("ab ", k=generator.randrange(10))) for _ in range(2))
        pieces = align(a, b)
        assert "".join(piece for _, piece, _ in pieces) == a
        assert "".join(piece for _, _, piece in pieces) == b
        cost = sum(max(len(x), len(y)) for operation, x, y in pieces if operation != "same")
        assert cost == edit_distance(a, b)
    assert align("cat", "cut") == [("same", "c", "c"), ("wrong", "a", "u"), ("same", "t", "t")]
