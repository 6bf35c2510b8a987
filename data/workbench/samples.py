"""One sample of each medium: a recipe, which says how to render it, and the text that transcribes it.

A recipe is plain JSON data and complete: the same recipe and library versions give the same bytes, in any
process, whatever was rendered before. Its digest names the media file, so files are shared by documents
that show the same thing and kept by a build that starts again. Recipes are drawn here and rendered by
picture.py, speech.py and film.py.

The streams below are generators that end when the source is exhausted; plan.py takes as many as it wants.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from data.workbench.extract import Extract, name_parts, names_in
from data.workbench.levels import (
    FILM,
    FILM_REGION,
    FRAMES_PER_SECOND,
    LOOKS,
    NARRATION,
    NUM_SPOKEN_PARTS,
    SCREENSHOT,
    TYPED_BY,
    VOICES,
)
from data.workbench.lines import Bench, Found, spoken_key

SLOT_S = 1.3
"""Least time between the starts of two names narrated in a scrolling film."""


@dataclass(frozen=True)
class Sample:
    """A recipe, its transcription, the words it speaks ("" if none) and the file it comes from (an index, or -1).

    With a `question` the text is its answer, which need not be all that the medium shows."""

    recipe: dict
    text: str
    spoken: str = ""
    file: int = -1
    question: str = ""


def frequent_parts(extracts: list[Extract], *, count: int) -> list[str]:
    """The most frequent parts (3 to 10 letters) of the identifiers in these files, most frequent first."""
    counts: Counter[str] = Counter()
    for item in extracts:
        for name, times in item.names.items():
            for part in name_parts(name):
                if 3 <= len(part) <= 10 and part.isalpha() and part.isascii():
                    counts[part] += times
    return sorted(counts, key=lambda part: (-counts[part], part))[:count]


def speakable(name: str, *, parts: tuple[int, int], letters: int) -> bool:
    """Whether an identifier can be said and recognised: no outer underscores, few parts, no long digits."""
    pieces = name_parts(name)
    return (
        name == name.strip("_")
        and name.isascii()
        and "__" not in name
        and parts[0] <= len(pieces) <= parts[1]
        and 3 <= len(name) <= letters
        and sum(char.isalpha() for char in name) >= 3
        and all(len(piece) <= 2 for piece in pieces if piece.isdigit())
    )


def screenshot(found: Found, *, level: int, language: str, style: str, rng: random.Random) -> Sample:
    """The picture of a region. `style` is the one used where the level's look names none."""
    recipe = {
        "type": "image",
        "language": language,
        "lines": list(found.lines),
        **look_of(level, style=style, rng=rng),
    }
    return Sample(recipe, found.text, file=found.file)


def screenshots(bench: Bench, *, level: int, style: str, rng: random.Random) -> Iterator[Sample]:
    """Screenshots of regions from anywhere in the split, no text twice."""
    for found in bench.regions(SCREENSHOT[level], rng=rng):
        language = bench.files[found.file].language
        yield screenshot(found, level=level, language=language, style=style, rng=rng)


def utterance(text: str, *, level: int, rng: random.Random) -> dict:
    """The recipe of one utterance, in a voice of the level."""
    voice = VOICES[level]
    return {
        "text": text,
        "voice": rng.choice(voice.names),
        "rate": rng.randint(*voice.rate),
        "pitch": rng.randint(*voice.pitch),
    }


def narrations(bench: Bench, *, level: int, parts: list[str], rng: random.Random) -> Iterator[Sample]:
    """Narrations of the split, no words twice. `parts` is the level-1 vocabulary, drawn from train.

    What train says in several words is refused where the bench knows it, and held-out level-1 samples have
    no single words, which train says in the very same voice.
    """
    seen: set[str] = set()
    if NARRATION[level] == "parts":
        source = _part_sequences(parts, rng=rng, shortest=2 if bench.held_out else 1)
    else:
        source = _from_files(bench, NARRATION[level], rng=rng)
    for index, text, spoken in source:
        key = spoken_key(spoken)
        if not key or key in seen or bench.known.has_spoken(spoken) or bench.known.has_line_of(text):
            continue
        seen.add(key)
        recipe = {"type": "audio", **utterance(spoken, level=level, rng=rng)}
        yield Sample(recipe, text, spoken=spoken, file=index)


def recordings(bench: Bench, *, level: int, style: str, rng: random.Random) -> Iterator[Sample]:
    """Films of the split, no text twice."""
    seen: set[str] = set()
    for found in bench.regions(FILM_REGION[level], rng=rng):
        sample = recording(found, level=level, language=bench.files[found.file].language, style=style, rng=rng)
        if sample is None or sample.text in seen or bench.known.has_line_of(sample.text):
            continue
        seen.add(sample.text)
        yield sample


def recording(found: Found, *, level: int, language: str, style: str, rng: random.Random) -> Sample | None:
    """A film of a region, or None when its level wants names said and the region has too few."""
    film = FILM[level]
    mode = rng.choice(film.modes)
    count = round(rng.uniform(*film.seconds) * FRAMES_PER_SECOND)
    view = min(rng.randint(*film.view), len(found.lines) - 1) if mode == "scroll" else len(found.lines)
    recipe = {
        "type": "video",
        "mode": mode,
        "language": language,
        "lines": list(found.lines),
        "view": view,
        "frames": count,
        "moved_by": round(TYPED_BY * count),
        "sound": [],
        **look_of(level, style=style, rng=rng),
    }
    text = found.text
    if film.names[1]:
        voice = utterance("", level=level, rng=rng)
        if level == 4:
            recipe["moved_by"] = count - FRAMES_PER_SECOND
            heard = _names_as_they_come(found, recipe, most=film.names[1])
            text = " ".join(name for name, _at in heard)
        else:
            names = [name for line in found.lines for name in names_in(line)]
            names = [name for name in dict.fromkeys(names) if speakable(name, parts=(1, 3), letters=20)]
            names = names[: film.names[1]]
            # one utterance, so that the names are said as a list is said
            heard = [(", ".join(names), 0.2)] if names else []
            voice["rate"] = max(voice["rate"], 160)
        if len(heard) < min(film.names[0], 1 if level < 4 else 2):
            return None
        recipe["sound"] = [{**voice, "text": _say(name), "at_s": round(at, 2)} for name, at in heard]
    spoken = " ".join(item["text"] for item in recipe["sound"])
    return Sample(recipe, text, spoken=spoken, file=found.file)


def look_of(level: int, *, style: str, rng: random.Random) -> dict:
    """How a level draws code: style, font size, margins, as fields of a recipe."""
    look = LOOKS[level]
    return {
        "style": rng.choice(look.styles) if look.styles else style,
        "size": rng.choice(look.sizes),
        "left": rng.randint(*look.margin),
        "top": rng.randint(*look.margin),
        "leading": rng.randint(*look.leading),
    }


def _say(names: str) -> str:
    """What to speak for identifiers: their parts; commas stay, they are heard as pauses."""
    return ", ".join(" ".join(name_parts(name)) for name in names.split(", "))


def _names_as_they_come(found: Found, recipe: dict, *, most: int) -> list[tuple[str, float]]:
    """(name, start in seconds) for identifiers of a scrolling film, each from the line then lowest in view."""
    heard: list[tuple[str, float]] = []
    moving_s = recipe["moved_by"] / FRAMES_PER_SECOND
    hidden = len(found.lines) - recipe["view"]
    slots = min(most, int(moving_s / SLOT_S))
    used: set[str] = set()
    for slot in range(slots):
        at = 0.2 + slot * (moving_s - 0.2) / slots
        lowest = recipe["view"] - 1 + int(hidden * at / moving_s)
        # the lines that came since the slot before, latest first
        for line in reversed(found.lines[max(0, lowest - 2) : lowest + 1]):
            names = [name for name in names_in(line) if speakable(name, parts=(1, 3), letters=18)]
            fresh = [name for name in names if name not in used]
            if fresh:
                used.add(fresh[0])
                heard.append((fresh[0], at))
                break
    return heard


def _part_sequences(parts: list[str], *, rng: random.Random, shortest: int) -> Iterator[tuple[int, str, str]]:
    """Random sequences of distinct vocabulary words; ends after many draws, the caller drops repeats."""
    lengths = [(length, weight) for length, weight in NUM_SPOKEN_PARTS if shortest <= length <= len(parts)]
    if not lengths:
        return
    for _ in range(100 * len(parts) ** min(2, lengths[-1][0])):
        length = rng.choices([item[0] for item in lengths], [item[1] for item in lengths])[0]
        text = " ".join(rng.sample(parts, length))
        yield -1, text, text


def _from_files(bench: Bench, what: str, *, rng: random.Random) -> Iterator[tuple[int, str, str]]:
    """(file, text, spoken) for every identifier, signature or sentence of the bench, in random order."""
    if what == "identifier":
        everything = [
            (index, name, _say(name))
            for index, item in enumerate(bench.extracts)
            for name in item.names
            if speakable(name, parts=(2, 4), letters=32)
        ]
    elif what == "signature":
        everything = [
            (index, text, _say_signature(text))
            for index, item in enumerate(bench.extracts)
            for text in item.signatures
            if 8 <= len(text) <= 60 and "()" not in text
        ]
    else:
        everything = [(index, text, text) for index, item in enumerate(bench.extracts) for text in item.sentences]
    rng.shuffle(everything)
    yield from everything


def _say_signature(text: str) -> str:
    name, arguments = text.rstrip(")").split("(")
    return f"{_say(name)}: {_say(arguments)}"
