"""Training documents with many needles and many questions, so that every line trains lookups.

Each needle stands at a random position, its question at a random position behind it; between them lie source code and
media without a needle, or nothing in half of the documents. Only answers are targets. A level is a length by an
estimate of what media take. Lookup is learned at level 1, where half of the guesses among two or three needles are
right; a model that starts with 256 tokens stays at chance (measured, LOG.md).
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from brine.synth.kinds.samples import Parts
from brine.synth.needles import needle
from brine.synth.needles.needle import Needle

LEVEL_TOKENS = {1: 64, 2: 256, 3: 1024, 4: 2048}
"""Longest document of each level; lengths are drawn from half of that on."""
AUDIO_TOKENS = 21
"""Tokens of two spoken digits or one word at the slowest of our speeds, boundaries included."""
MAX_POOLED_VIDEOS = 600
"""Most videos that are made for each split: they cost ten times what an image costs, and are drawn from a pool."""
MAX_HAYSTACK_WORDS = 60
"""Words that media of the haystack show or say."""

PlacedText = tuple[float, tuple[dict | str, ...], str]
"""A position between 0 and 1, the parts that stand there, and the answer behind them or ""."""


class NeedleDocuments:
    """Draws documents from the files of one split."""

    def __init__(self, texts: list[str], rng: random.Random):
        """texts: the source files that haystacks are cut from."""
        self.rng = rng
        self.lines = [line for text in texts for line in text.split("\n") if 0 < len(line) <= 100 and line.isascii()]
        self.words = needle.haystack_words(texts, most=MAX_HAYSTACK_WORDS) or ["word"]
        self.videos: dict[str, list[dict]] = {}

    def document(self, modality: str, level: int) -> Parts:
        """(text or spec, whether it has loss) of each part of a new document, in order."""
        most = LEVEL_TOKENS[level]
        num_tokens = self.rng.randint(most // 2, most)
        limit = num_tokens * (1.0 if self.rng.random() < 0.5 else self.rng.uniform(0.1, 0.6))
        events: list[PlacedText] = []
        used, taken = 0, set()
        while True:
            found = self._events(self._pooled(needle.draw_needle(modality, self.rng, taken=taken)))
            cost = sum(_tokens(parts) + len(answer) for _position, parts, answer in found)
            if events and used + cost > limit:
                break
            events += found
            used += cost
        return self._interleaved(sorted(events, key=lambda event: event[0]), modality, max(0, num_tokens - used))

    def _events(self, fact: Needle) -> list[PlacedText]:
        """The statements of a needle in any order, then its question behind them."""
        positions = sorted(self.rng.random() for _ in range(len(fact.statements) + 1))
        statements = list(fact.statements)
        self.rng.shuffle(statements)
        placed = [(position, parts, "") for position, parts in zip(positions[:-1], statements, strict=True)]
        return [*placed, (positions[-1], (needle.question(fact.key),), fact.answer + "\n")]

    def _interleaved(self, events: list[PlacedText], modality: str, haystack_tokens: int) -> Parts:
        """Events in order, with the haystack's tokens distributed over the gaps before them."""
        parts: Parts = []

        def add(part: dict | str) -> None:
            if parts and isinstance(part, str) and isinstance(parts[-1][0], str) and not parts[-1][1]:
                # neighbouring texts without loss are one part
                part = parts.pop()[0] + part
            parts.append((part, False))

        left = haystack_tokens
        for number, (_position, stated, answer) in enumerate(events):
            gap = min(left, int(left * self.rng.uniform(0, 2) / (len(events) - number)))
            hay = list(self._haystack(modality, gap))
            left -= _tokens(hay)
            for part in (*hay, *stated):
                add(part)
            if answer:
                parts.append((answer, True))
        return parts

    def _haystack(self, modality: str, num_tokens: int) -> Iterator[dict | str]:
        """Lines of source from one position on, with media that bear no needle, at most `num_tokens` long."""
        at = self.rng.randrange(max(1, len(self.lines)))
        while self.lines:
            spec = needle.distractor(modality, self.words, self.rng) if self.rng.random() < 0.3 else None
            part: dict | str = self._pooled_video(spec) if spec else self.lines[at % len(self.lines)] + "\n"
            at += spec is None
            num_tokens -= _tokens((part,))
            if num_tokens < 0:
                return
            yield part

    def _pooled(self, fact: Needle) -> Needle:
        """The needle with a video from the pool of videos that show its value."""
        statements = tuple(
            tuple(self._pooled_video(part, fact.value) if isinstance(part, dict) else part for part in statement)
            for statement in fact.statements
        )
        return replace(fact, statements=statements)

    def _pooled_video(self, spec: dict, payload: str = "") -> dict:
        """A spec, for a video one of a bounded pool for each payload."""
        if spec["type"] != "video":
            return spec
        pool = self.videos.setdefault(payload, [])
        if len(pool) < MAX_POOLED_VIDEOS // 2 // (needle.NUM_VALUES if payload else 1):
            pool.append(spec)
            return spec
        return self.rng.choice(pool)


def _tokens(parts: Iterable[dict | str]) -> int:
    """About how many tokens parts take."""

    def count(part: dict | str) -> int:
        if isinstance(part, str) or part["type"] == "audio":
            return len(part) if isinstance(part, str) else AUDIO_TOKENS
        images = len(part["lines"]) if part["type"] == "video" else 1
        return 2 + images * -(-max(map(len, part["lines"])) // 2)

    return sum(map(count, parts))
