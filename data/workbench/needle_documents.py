"""Training documents with many needles and many questions, so that looking things up is learnt from every line.

One question at the end of two thousand tokens would be one lesson in two thousand tokens. Here needles and questions
stand all over the document: each needle at a random place, its question at a random place behind it, source code (and
media without a needle) between them where the document is sparse, nothing where it is dense. Only answers are targets.
Half of the documents are dense, and a dense one of text holds about 120 needles, each asked once; that is many-key
retrieval and the lesson of which one needle in a haystack is the easy case.

A level is a length: up to 64, 256, 1,024 and 2,048 tokens of a byte-level tokenizer without merges, by an estimate
of what media take (a document may be a few tokens off). Level 1 is where looking up begins: with two or three
needles in sight half of the guesses are right, and a model finds the way from there in minutes; from 256 tokens on
it stays at chance (measured, LOG.md). Which level is shown when is the recipe's part (`rows.mixture`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from data.workbench import needle
from data.workbench.needle import Needle

LEVEL_TOKENS = {1: 64, 2: 256, 3: 1024, 4: 2048}
"""Longest document of each level; lengths are drawn from half of that on."""
SOUND_TOKENS = 21
"""Tokens of a sound of two digits or one word at the slowest of our speeds, boundaries included."""
NUM_FILMS = 600
"""Films that are made at most for each split: they cost ten times what a picture costs, and are drawn from a pool."""
MOST_WORDS = 60
"""Words that media of the haystack show or say."""


@dataclass(frozen=True)
class _Event:
    """A stretch of a document at a place between 0 and 1."""

    place: float
    parts: tuple[dict | str, ...]
    answer: str = ""


class NeedleDocuments:
    """Draws documents from the files of one split."""

    def __init__(self, texts: list[str], rng: random.Random):
        """texts: the source files that haystacks are cut from."""
        self.rng = rng
        self.lines = [line for text in texts for line in text.split("\n") if 0 < len(line) <= 100 and line.isascii()]
        self.words = needle.haystack_words(texts, most=MOST_WORDS) or ["word"]
        self.films: dict[str, list[dict]] = {}

    def document(self, modality: str, level: int) -> list[tuple[dict | str, bool]]:
        """(text or recipe, whether it is a target) of each part of a new document, in order."""
        most = LEVEL_TOKENS[level]
        num_tokens = self.rng.randint(most // 2, most)
        dense = self.rng.random() < 0.5
        share = 1.0 if dense else self.rng.uniform(0.1, 0.6)
        events, used, taken = [], 0, set()
        while True:
            found = self._events(self._pooled(needle.draw_needle(modality, self.rng, taken=taken)))
            cost = sum(_tokens(event.parts) + len(event.answer) for event in found)
            if events and used + cost > share * num_tokens:
                break
            events += found
            used += cost
        events.sort(key=lambda event: event.place)
        return self._laid(events, modality, max(0, num_tokens - used))

    def _events(self, fact: Needle) -> list[_Event]:
        """The pieces of a needle in any order, then its question behind them."""
        places = sorted(self.rng.random() for _ in range(len(fact.pieces) + 1))
        pieces = list(fact.pieces)
        self.rng.shuffle(pieces)
        events = [_Event(place, parts) for place, parts in zip(places, pieces, strict=False)]
        return [*events, _Event(places[-1], (needle.question(fact.key),), fact.answer + "\n")]

    def _laid(self, events: list[_Event], modality: str, hay_tokens: int) -> list[tuple[dict | str, bool]]:
        """Events in order, with the haystack's tokens dealt to the gaps before them."""
        parts: list[tuple[dict | str, bool]] = []

        def add(part: dict | str, *, learn: bool = False) -> None:
            if parts and isinstance(part, str) and isinstance(parts[-1][0], str) and not (learn or parts[-1][1]):
                # neighbouring texts that are no targets are one part
                parts[-1] = (parts[-1][0] + part, False)
            else:
                parts.append((part, learn))

        left = hay_tokens
        for number, event in enumerate(events):
            gap = min(left, int(left * self.rng.uniform(0, 2) / (len(events) - number)))
            for part in self._hay(modality, gap):
                add(part)
                left -= _tokens((part,))
            for part in event.parts:
                add(part)
            if event.answer:
                add(event.answer, learn=True)
        return parts

    def _hay(self, modality: str, num_tokens: int) -> Iterator[dict | str]:
        """Lines of source from one place, with media that bear no needle, at most `num_tokens` long."""
        at = self.rng.randrange(max(1, len(self.lines)))
        while self.lines:
            part: dict | str | None = None
            if self.rng.random() < 0.3:
                part = self._pooled_film(needle.distractor(modality, self.words, self.rng))
            if part is None:
                part = self.lines[at % len(self.lines)] + "\n"
                at += 1
            num_tokens -= _tokens((part,))
            if num_tokens < 0:
                return
            yield part

    def _pooled(self, fact: Needle) -> Needle:
        """The needle with a film from the pool of films that show its value."""
        if fact.modality != "video":
            return fact
        pieces = tuple(
            tuple(self._pooled_film(part, fact.value) if isinstance(part, dict) else part for part in piece)
            for piece in fact.pieces
        )
        return Needle(fact.key, fact.value, fact.answer, fact.modality, pieces)

    def _pooled_film(self, recipe: dict | None, shown: str = "") -> dict | None:
        if recipe is None or recipe["type"] != "video":
            return recipe
        pool = self.films.setdefault(shown, [])
        most = NUM_FILMS // (2 * needle.NUM_VALUES) if shown else NUM_FILMS // 2
        if len(pool) < most:
            pool.append(recipe)
            return recipe
        return self.rng.choice(pool)


def _tokens(parts: tuple[dict | str, ...]) -> int:
    """About how many tokens parts take."""
    total = 0
    for part in parts:
        if isinstance(part, str):
            total += len(part)
        elif part["type"] == "audio":
            total += SOUND_TOKENS
        else:
            patches = -(-max(map(len, part["lines"])) // 2)
            total += 2 + patches * (len(part["lines"]) if part["type"] == "video" else 1)
    return total
