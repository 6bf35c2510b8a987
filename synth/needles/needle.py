"""Needles: facts in a long context that are asked for at its end, of one form in all modalities.

    @QKR47             text: the value, two digits, is written behind the key, three capital letters
    @QKR<image>        image: it is drawn; audio: spoken digit by digit; video: on one of several cards
    @QKR<image>        chain: it shows a second key, `@LMN<audio>` elsewhere says the value; the answer is "LMN47"
    ?QKR               the question of all of them; the answer ends with the line

17,576 keys let a context consist of nothing but needles; a guess is right once in a hundred. The idea of a needle is
Kamradt's test (2023), of many keys of one form RULER's (2404.06654), of media as needles MM-NIAH's (2406.07230). This
file makes specs (see samples.py); documents.py places needles for training, haystacks.py for evaluation.
"""

import random
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from brine.synth.config import NEEDLE_KINDS
from brine.synth.kinds.levels import FRAMES_PER_SECOND

NEEDLE_MODALITIES = tuple(kind.removeprefix("needle_") for kind in NEEDLE_KINDS)
"""What a value may be in: text, image, audio, video, or chain, which goes from text over an image to audio."""
KEY_LETTERS = 3
NUM_VALUES = 100
CHANCE = 1 / NUM_VALUES
"""Accuracy of one who knows the form and guesses the value."""
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CARD_FRAMES = FRAMES_PER_SECOND // 2
"""Frames of a video for which a card is shown: at two sampled frames a second each card is sampled once."""
CARD_CHARS = 4
"""Characters on the widest card: two patches."""
RATES, PITCHES = (180, 200, 220), (40, 50, 60)
"""Words a minute and espeak's pitch, drawn for each utterance."""
STYLES = ("bw", "monokai")
"""Pygments styles of images and videos: dark on light, light on dark."""
_LEVEL1_STYLE = {"size": 13, "left": 0, "top": 0, "leading": -1}
"""The synthetic corpus's level 1: 8 by 16 pixels a character, without a margin."""


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
        return Needle(key, value, value, (_statement(key, media_spec(modality, value, rng)),))
    second = draw_key(rng, taken=taken)
    taken.add(second)
    image, audio = media_spec("image", second, rng), media_spec("audio", value, rng)
    return Needle(key, value, f"{second}{value}", (_statement(key, image), _statement(second, audio)))


def _statement(key: str, spec: dict) -> tuple[dict | str, ...]:
    return f"@{key}", spec, "\n"


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
