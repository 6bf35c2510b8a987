"""Draws regions of code from the files of one split, without repeats and without leaks.

Files of different splits still share lines: `import sys`, `else:`, a licence. About a fifth of the standard
library's lines occur in more than one file. What a held-out sample asks to be transcribed must not be such
a line, or memory passes for reading: `Known` holds every line and every utterance that train shows, and a
held-out region with one of them is refused.

A `Bench` walks all starting points of its split once, in an order drawn by the seed, so drawing ends when
the source has no more to give: too few lines means fewer documents, never an endless loop.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from data.workbench.extract import Extract
from data.workbench.levels import Region
from data.workbench.numbers import Measures
from data.workbench.source import SourceFile

MIN_LETTERS = 4
"""A line with fewer letters (rulers, brackets, columns of digits) is no line worth reading alone."""


def stripped_lines(text: str) -> Iterator[str]:
    """The lines of a text without surrounding space; empty ones are left out."""
    for line in text.split("\n"):
        line = line.strip()
        if line:
            yield line


def spoken_key(utterance: str) -> str:
    """What an utterance sounds like, for comparing: its words in lower case."""
    return " ".join("".join(char if char.isalnum() else " " for char in utterance.lower()).split())


@dataclass
class Known:
    """What train contains: stripped lines of its files and targets, and its utterances of several words; for kinds
    that show single words and numbers, also the identifiers of its files and what its numbers say of what."""

    lines: set[str] = field(default_factory=set)
    spoken: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    facts: set[tuple[str, str, int]] = field(default_factory=set)

    def add_text(self, text: str) -> None:
        self.lines.update(stripped_lines(text))

    def add_spoken(self, utterance: str) -> None:
        self.spoken.add(spoken_key(utterance))

    def has_line_of(self, text: str) -> bool:
        """Whether some line of `text` stands in train."""
        return any(line in self.lines for line in stripped_lines(text))

    def has_spoken(self, utterance: str) -> bool:
        """Whether train says exactly these words; single words are everybody's."""
        key = spoken_key(utterance)
        return " " in key and key in self.spoken

    def has_name(self, name: str) -> bool:
        """Whether a file in train has this identifier."""
        return name in self.names

    def has_fact(self, label: str, column: str, number: int) -> bool:
        """Whether something in train has this name and this very number, say "close" and 3 "calls"."""
        return (label, column, number) in self.facts


NOTHING_KNOWN = Known()


def region_at(lines: list[str], start: int, *, count: int, region: Region) -> list[str] | None:
    """`count` lines from `start`, tabs expanded, common indent and trailing space removed; None if not allowed.

    Allowed are printable ASCII lines whose longest has region.chars characters, with letters enough to be
    worth reading and no blank line at either end.
    """
    picked = [line.expandtabs(4).rstrip() for line in lines[start : start + count]]
    if len(picked) < count or not picked[0] or not picked[-1]:
        return None
    full = [line for line in picked if line]
    if len(full) < len(picked) and not region.blank_lines:
        return None
    indent = min(len(line) - len(line.lstrip(" ")) for line in full)
    picked = [line[indent:] for line in picked]
    low, high = region.chars
    if not low <= max(len(line) for line in picked) <= high:
        return None
    joined = "".join(picked)
    if not (joined.isascii() and joined.isprintable()) or sum(char.isalpha() for char in joined) < MIN_LETTERS * count:
        return None
    return picked


@dataclass(frozen=True)
class Found:
    """A region: its lines, and where it lies."""

    file: int
    start: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Bench:
    """The files of one split laid out for drawing. Holds the texts once, however many draws are made."""

    def __init__(
        self,
        files: list[SourceFile],
        *,
        extracts: list[Extract],
        known: Known = NOTHING_KNOWN,
        measures: Sequence[Measures] = (),
    ) -> None:
        self.files = files
        self.extracts = extracts
        self.known = known
        # only what draws tables, charts and screens needs them
        self.measures = measures
        self.lines = [item.text.split("\n") for item in files]
        self.starts = [
            (index, start)
            for index, lines in enumerate(self.lines)
            if files[index].language != "text"
            for start, line in enumerate(lines)
            if line.strip()
        ]

    @property
    def held_out(self) -> bool:
        """Whether train's lines are refused here."""
        return self.known is not NOTHING_KNOWN

    def alone(self, index: int) -> Bench:
        """A bench with one of the files, under the same rule."""
        return Bench([self.files[index]], extracts=[self.extracts[index]], known=self.known)

    def regions(self, region: Region, *, rng: random.Random) -> Iterator[Found]:
        """Every starting point once, in random order, with a region of a random number of lines that is allowed
        there and not known to train. Where the drawn number does not fit, smaller ones are tried.
        """
        starts = list(self.starts)
        rng.shuffle(starts)
        seen: set[str] = set()
        for index, start in starts:
            found = self._region(index, start, region, rng.randint(*region.lines))
            if found is not None and found.text not in seen:
                seen.add(found.text)
                yield found

    def _region(self, index: int, start: int, region: Region, count: int) -> Found | None:
        for fewer in range(count, region.lines[0] - 1, -1):
            lines = region_at(self.lines[index], start, count=fewer, region=region)
            if lines is not None and not self.known.has_line_of("\n".join(lines)):
                return Found(index, start, tuple(lines))
        return None
