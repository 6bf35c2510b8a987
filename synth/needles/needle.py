"""Needles: facts in a long context that are asked for at its end, of one form in all modalities; documents to train on.

    @QKR47, @QKR<image>     the value, two digits, behind a key: text, drawn, spoken, or on one card of a video
    ?QKR                    the question; for `chain` an image shows a second key, whose value is spoken elsewhere

Kamradt (2023), RULER (2404.06654), MM-NIAH (2406.07230). In a training document needles stand at random positions,
questions behind them, source code and media between; only answers are targets. Level 1 teaches lookup (LOG.md).
"""

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from brine.synth.config import NEEDLE_KINDS
from brine.synth.kinds.levels import FRAMES_PER_SECOND
from brine.synth.kinds.samples import Parts

NEEDLE_MODALITIES = tuple(kind.removeprefix("needle_") for kind in NEEDLE_KINDS)
"""What a value may be in: text, image, audio, video, or chain, which goes from text over an image to audio."""
KEY_LETTERS = 3
NUM_VALUES = 100
CHANCE = 1 / NUM_VALUES
"""Accuracy of one who knows the form and guesses the value."""
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CARD_FRAMES = FRAMES_PER_SECOND // 2
"""Frames of a video for which a card is shown: at two sampled frames per second each card is sampled once."""
CARD_CHARS = 4
RATES, PITCHES = (180, 200, 220), (40, 50, 60)
"""Words per minute and espeak's pitch, sampled for each utterance."""
STYLES = ("bw", "monokai")
"""Pygments styles of images and videos: dark on light, light on dark."""
_LEVEL1_STYLE = {"size": 13, "left": 0, "top": 0, "leading": -1}
"""The synthetic corpus's level 1: 8 by 16 pixels a character, without a margin."""


LEVEL_TOKENS = {1: 64, 2: 256, 3: 1024, 4: 2048}
"""Longest document of each level; lengths are sampled from half of that on."""
AUDIO_TOKENS = 21
"""Tokens of two spoken digits or one word at the slowest of our speeds, boundaries included."""
MAX_POOLED_VIDEOS = 600
"""Maximum number of videos made for each split: each costs ten images, and they are sampled from a pool."""
MAX_HAYSTACK_WORDS = 60

PlacedText = tuple[float, tuple[dict | str, ...], str]
"""A position between 0 and 1, the parts that stand there, and the answer behind them or ""."""


@dataclass(frozen=True)
class Needle:
    """One fact: the key that the question names, the value of two digits, and the answer (for a chain "LMN47").

    statements: tuples of texts and specs that may stand apart; a chain has two, all others one.
    """

    key: str
    value: str
    answer: str
    statements: tuple[tuple[dict | str, ...], ...]


def draw_key(rng: random.Random, *, taken: Collection[str] = ()) -> str:
    """A key that is not in `taken`. Raises ValueError when none is left."""
    if len(taken) >= len(ALPHABET) ** KEY_LETTERS:
        raise ValueError(f"all {len(ALPHABET) ** KEY_LETTERS} keys are taken: ask for fewer needles in one context")
    while (key := "".join(rng.choices(ALPHABET, k=KEY_LETTERS))) in taken:
        pass
    return key


def draw_needle(modality: str, rng: random.Random, *, taken: set[str]) -> Needle:
    """A needle whose keys are new; they are added to `taken`. Raises ValueError for an unknown modality."""
    if modality not in NEEDLE_MODALITIES:
        raise ValueError(f"unknown modality {modality!r}: choose from {', '.join(NEEDLE_MODALITIES)}")
    key = draw_key(rng, taken=taken)
    taken.add(key)
    value = f"{rng.randrange(NUM_VALUES):02d}"
    if modality == "text":
        return Needle(key, value, value, ((f"@{key}{value}\n",),))
    if modality != "chain":
        return Needle(key, value, value, ((f"@{key}", media_spec(modality, value, rng), "\n"),))
    second = draw_key(rng, taken=taken)
    taken.add(second)
    image, audio = media_spec("image", second, rng), media_spec("audio", value, rng)
    return Needle(key, value, f"{second}{value}", ((f"@{key}", image, "\n"), (f"@{second}", audio, "\n")))


def question(key: str) -> str:
    """The text that asks for a key; the answer and a line end follow."""
    return f"?{key}"


def media_spec(modality: str, payload: str, rng: random.Random) -> dict:
    """The spec of media that show or say a text: digits are spoken one by one, videos add cards with words."""
    if modality == "image":
        return image_spec(payload, style=rng.choice(STYLES))
    if modality == "audio":
        return audio_spec(" ".join(DIGITS[int(char)] if char.isdigit() else char for char in payload), rng)
    cards = ["".join(rng.choices(ALPHABET.lower(), k=CARD_CHARS)) for _ in range(rng.randint(2, 4))]
    cards.insert(rng.randint(0, len(cards)), payload)
    return video_spec(cards, style=rng.choice(STYLES))


def image_spec(text: str, *, style: str) -> dict:
    """A line of characters on the patch grid, two to a patch."""
    return {"type": "image", "language": "text", "lines": [text], "style": style, **_LEVEL1_STYLE}


def audio_spec(text: str, rng: random.Random) -> dict:
    """A text said by one voice at one of three speeds and pitches."""
    return {"type": "audio", "text": text, "voice": "en-us", "rate": rng.choice(RATES), "pitch": rng.choice(PITCHES)}


def video_spec(cards: list[str], *, style: str) -> dict:
    """A silent video of cards, one after the other."""
    return {
        "type": "video", "mode": "cards", "language": "text", "lines": cards, "style": style, "visible_lines": 1,
        "frames": CARD_FRAMES * len(cards), "motion_frames": CARD_FRAMES, "narration": [], **_LEVEL1_STYLE,
    }  # fmt: skip


def distractor(modality: str, words: list[str], rng: random.Random) -> dict | None:
    """The spec of haystack media: words of the source, drawn, spoken or on cards; None for text. A chain's haystack has
    images and audio."""
    if modality == "text":
        return None
    modality = rng.choice(("image", "audio")) if modality == "chain" else modality
    word = rng.choice(words)
    if modality == "image":
        return image_spec(word, style=rng.choice(STYLES))
    if modality == "audio":
        return audio_spec(word, rng)
    cards = [rng.choice(words)[:CARD_CHARS].ljust(CARD_CHARS) for _ in range(rng.randint(3, 5))]
    return video_spec(cards, style=rng.choice(STYLES))


def haystack_words(texts: list[str], *, most: int = 200) -> list[str]:
    """The most frequent lower-case words of 4 to 8 letters in some texts, most frequent first: no digit, no key."""
    found = (word for text in texts for word in re.findall("[A-Za-z]+", text))
    counts = Counter(word for word in found if 4 <= len(word) <= 8 and word.islower())
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]


class NeedleDocuments:
    """Samples documents from the files of one split."""

    def __init__(self, texts: list[str], rng: random.Random):
        """texts: the source files that haystacks are cut from."""
        self.rng = rng
        self.lines = [line for text in texts for line in text.split("\n") if 0 < len(line) <= 100 and line.isascii()]
        self.words = haystack_words(texts, most=MAX_HAYSTACK_WORDS) or ["word"]
        self.videos: dict[str, list[dict]] = {}

    def document(self, modality: str, level: int) -> Parts:
        """(text or spec, whether it has loss) of each part of a new document, in order."""
        most = LEVEL_TOKENS[level]
        num_tokens = self.rng.randint(most // 2, most)
        limit = num_tokens * (1.0 if self.rng.random() < 0.5 else self.rng.uniform(0.1, 0.6))
        events: list[PlacedText] = []
        used, taken = 0, set()
        while True:
            found = self._events(self._pooled(draw_needle(modality, self.rng, taken=taken)))
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
        return [*placed, (positions[-1], (question(fact.key),), fact.answer + "\n")]

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
            spec = distractor(modality, self.words, self.rng) if self.rng.random() < 0.3 else None
            part: dict | str = self._pooled_video(spec) if spec else self.lines[at % len(self.lines)] + "\n"
            at += spec is None
            num_tokens -= _tokens((part,))
            if num_tokens < 0:
                return
            yield part

    def _pooled(self, fact: Needle) -> Needle:
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
        if len(pool) < MAX_POOLED_VIDEOS // 2 // (NUM_VALUES if payload else 1):
            pool.append(spec)
            return spec
        return self.rng.choice(pool)


def _tokens(parts: Iterable[dict | str]) -> int:
    def count(part: dict | str) -> int:
        if isinstance(part, str) or part["type"] == "audio":
            return len(part) if isinstance(part, str) else AUDIO_TOKENS
        images = len(part["lines"]) if part["type"] == "video" else 1
        return 2 + images * -(-max(map(len, part["lines"])) // 2)

    return sum(map(count, parts))
