"""Counts with their nouns, and reasons that are cut."""

import pytest

from brine.common.formatting import counted, cut_at_word


def test_one_has_no_plural():
    assert [counted(number, "thread") for number in (0, 1, 2, 1000)] == [
        "0 threads", "1 thread", "2 threads", "1,000 threads",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "said"),
    [(16, "a reason, or two"), (15, "a reason, or..."), (14, "a reason..."), (12, "a reason..."), (10, "a...")],
)
def test_a_text_is_cut_at_a_word(width, said):
    assert cut_at_word("a reason, or two", width) == said and len(said) <= width


def test_a_word_longer_than_all_is_cut_in_it():
    assert cut_at_word("/a/very/long/path", 10) == "/a/very..."[:10]
