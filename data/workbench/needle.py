"""Needles: facts that stand somewhere in a long context and are asked for at its end.

A needle is a key and a value. The key is three capital letters, one of 17,576, so that a context made of nothing but
needles has a key for each; the value is two digits, one of 100, so that a guess is right once in a hundred:

    @QKR47             text: the value is written
    @QKR<picture>      image: the value is drawn, one patch of the workbench's level-1 font
    @QKR<sound>        audio: the value is spoken, digit by digit ("four seven")
    @QKR<film>         video: one of several cards, each shown for half a second, bears the value; the others words
    @QKR<picture>      chain: the picture shows a second key, `@LMN<sound>` stands elsewhere, and the sound says the
                       value; the answer spells the way, "LMN47"
    ?QKR               the question of all of them; the answer ends with the line

Key and question are always text and look alike in every modality, so what differs between the modalities is where the
value has to be read, and nothing in the question tells where to look. The idea of a needle is Kamradt's test
(2023), of many keys of one form RULER's (2404.06654), of media as needles MM-NIAH's (2406.07230).

Drawing is pure and knows no library: what is drawn here are recipes (see `samples.py`), rendered by the workbench. What
this file does not do: place needles (`needle_documents.py` for training, `needle_contexts.py` for evaluation).
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from data.workbench.config import NEEDLES
from data.workbench.levels import FRAMES_PER_SECOND

MODALITIES = tuple(kind.removeprefix("needle_") for kind in NEEDLES)
"""What a value may be in: text, image, audio, video, or chain, which goes from text over a picture to a sound."""
KEY_LETTERS = 3
NUM_VALUES = 100
CHANCE = 1 / NUM_VALUES
"""Share of right answers of one who knows the form and guesses the value."""
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CARD_FRAMES = FRAMES_PER_SECOND // 2
"""Frames of a film for which a card is shown: at two sampled frames a second each card is sampled once."""
CARD_CHARS = 4
"""Characters on the widest card: two patches."""
RATES, PITCHES = (180, 200, 220), (40, 50, 60)
"""Words a minute and espeak's pitch, drawn for each sound."""
STYLES = ("bw", "monokai")
"""Pygments styles of pictures and films: dark on light, light on dark."""


@dataclass(frozen=True)
class Needle:
    """One fact: what is asked, what is answered, and the parts that state it, in order, each to be placed."""

    key: str
    """The key that the question names."""
    value: str
    """Two digits."""
    answer: str
    """What the model should say: the value, for a chain "LMN47"."""
    modality: str
    """One of MODALITIES."""
    pieces: tuple[tuple[dict | str, ...], ...]
    """Stretches that may stand apart, each a tuple of texts and recipes; a chain has two, all others one."""


def draw_key(rng: random.Random, *, taken: Collection[str] = ()) -> str:
    """A key that is not in `taken`. Raises ValueError when none is left."""
    if len(taken) >= len(ALPHABET) ** KEY_LETTERS:
        raise ValueError(f"all {len(ALPHABET) ** KEY_LETTERS} keys are taken: ask for fewer needles in one context")
    while (key := "".join(rng.choices(ALPHABET, k=KEY_LETTERS))) in taken:
        pass
    return key


def draw_needle(modality: str, rng: random.Random, *, taken: set[str], value: str | None = None) -> Needle:
    """A needle whose keys are new; they are added to `taken`.

    value: two digits, drawn where it is None. Raises ValueError for an unknown modality.
    """
    if modality not in MODALITIES:
        raise ValueError(f"unknown modality {modality!r}: choose from {', '.join(MODALITIES)}")
    key = draw_key(rng, taken=taken)
    taken.add(key)
    value = f"{rng.randrange(NUM_VALUES):02d}" if value is None else value
    if modality != "chain":
        shown = value if modality == "text" else recipe_of(modality, value, rng)
        return Needle(key, value, value, modality, (statement(key, shown),))
    second = draw_key(rng, taken=taken)
    taken.add(second)
    pieces = (
        statement(key, recipe_of("image", second, rng)),
        statement(second, recipe_of("audio", value, rng)),
    )
    return Needle(key, value, f"{second}{value}", modality, pieces)


def statement(key: str, shown: dict | str) -> tuple[dict | str, ...]:
    """The line that states a needle: texts and at most one recipe."""
    return (f"@{key}{shown}\n",) if isinstance(shown, str) else (f"@{key}", shown, "\n")


def question(key: str) -> str:
    """The text that asks for a key; the answer and a line end follow."""
    return f"?{key}"


def recipe_of(modality: str, shown: str, rng: random.Random) -> dict:
    """The recipe of a medium that shows or says a text: digits are spoken one by one, films add cards with words."""
    if modality == "image":
        return picture_recipe(shown, style=rng.choice(STYLES))
    if modality == "audio":
        return sound_recipe(" ".join(DIGITS[int(char)] if char.isdigit() else char for char in shown), rng)
    cards = ["".join(rng.choices(ALPHABET.lower(), k=CARD_CHARS)) for _ in range(rng.randint(2, 4))]
    cards.insert(rng.randint(0, len(cards)), shown)
    return film_recipe(cards, style=rng.choice(STYLES))


def picture_recipe(text: str, *, style: str) -> dict:
    """A line of characters on the patch grid, two to a patch."""
    return {"type": "image", "language": "text", "lines": [text], "style": style, **_PLACE}


def sound_recipe(text: str, rng: random.Random) -> dict:
    """A text said by one voice at one of three speeds and pitches."""
    return {"type": "audio", "text": text, "voice": "en-us", "rate": rng.choice(RATES), "pitch": rng.choice(PITCHES)}


def film_recipe(cards: list[str], *, style: str) -> dict:
    """A silent film of cards, one after the other."""
    return {
        "type": "video", "mode": "cards", "language": "text", "lines": cards, "style": style, "view": 1,
        "frames": CARD_FRAMES * len(cards), "moved_by": CARD_FRAMES, "sound": [], **_PLACE,
    }  # fmt: skip


_PLACE = {"size": 13, "left": 0, "top": 0, "leading": -1}
"""The workbench's level 1: 8 by 16 pixels a character, without a margin."""


def distractor(modality: str, words: list[str], rng: random.Random) -> dict | None:
    """A medium that bears no needle, as part of the haystack: words of the source, drawn, spoken or on cards.

    None for text, whose haystack is the source itself. A chain's haystack has pictures and sounds.
    """
    if modality == "text":
        return None
    modality = rng.choice(("image", "audio")) if modality == "chain" else modality
    word = rng.choice(words)
    if modality == "image":
        return picture_recipe(word, style=rng.choice(STYLES))
    if modality == "audio":
        return sound_recipe(word, rng)
    cards = [rng.choice(words)[:CARD_CHARS].ljust(CARD_CHARS) for _ in range(rng.randint(3, 5))]
    return film_recipe(cards, style=rng.choice(STYLES))


def haystack_words(texts: list[str], *, most: int = 200) -> list[str]:
    """The most frequent lower-case words of 4 to 8 letters in some texts, most frequent first: no digit, no key."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in "".join(char if char.isalpha() and char.isascii() else " " for char in text).split():
            if 4 <= len(word) <= 8 and word.islower():
                counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]
