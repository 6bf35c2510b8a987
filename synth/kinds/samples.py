"""One sample of each kind of media: a render spec, and the text that transcribes it.

A spec is plain JSON data and complete: the same spec and library versions are bit-identical in any process. Its
digest names the media file, so files are shared by documents that show the same thing and kept by a build that starts
again. The streams are generators that end when the source is exhausted; plan.py takes as many samples as it wants.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from brine.synth.kinds import levels
from brine.synth.kinds.levels import FRAMES_PER_SECOND, NUM_SPOKEN_PARTS, TYPING_FRACTION
from brine.synth.sources.code_regions import CodeRegion, SplitSampler, spoken_key
from brine.synth.sources.features import SourceFeatures, identifiers_in, name_parts

MIN_UTTERANCE_GAP_S = 1.3

Parts = list[tuple[dict | str, bool]]
"""The parts of a document in order: a render spec or a text, and whether the text has loss."""


@dataclass(frozen=True)
class SynthSample:
    """A render spec, its transcription or answer, the file it comes from (an index, or -1), and a question or ""."""

    spec: dict
    text: str
    file: int = -1
    question: str = ""

    @property
    def parts(self) -> Parts:
        """Media, question, text and nothing else, so that every target token is about the media."""
        question: Parts = [(f"{self.question}\n", False)] if self.question else []
        return [(self.spec, True), *question, (self.text, True)]


def frequent_name_parts(features: list[SourceFeatures], *, count: int) -> list[str]:
    """The most frequent parts (3 to 10 letters) of the identifiers in these files, most frequent first."""
    counts: Counter[str] = Counter()
    for name, times in (entry for item in features for entry in item.names.items()):
        for part in name_parts(name):
            if 3 <= len(part) <= 10 and part.isalpha() and part.isascii():
                counts[part] += times
    return sorted(counts, key=lambda part: (-counts[part], part))[:count]


def is_pronounceable(name: str, *, parts: tuple[int, int], letters: int) -> bool:
    """Whether an identifier can be said and recognised: no outer underscores, few parts, no long digits."""
    found = name_parts(name)
    return (
        name == name.strip("_")
        and name.isascii()
        and "__" not in name
        and parts[0] <= len(found) <= parts[1]
        and 3 <= len(name) <= letters
        and sum(char.isalpha() for char in name) >= 3
        and all(len(part) <= 2 for part in found if part.isdigit())
    )


def render_style(sampler: SplitSampler, level: int, rng: random.Random) -> dict:
    """How a level draws code: style, font size, margins, as fields of a spec."""
    style = levels.RENDER_STYLES[level]
    look = {
        "style": rng.choice(style.styles) if style.styles else sampler.level1_style,
        "size": rng.choice(style.sizes),
    }
    margins = {"left": rng.randint(*style.margin), "top": rng.randint(*style.margin)}
    return {**look, **margins, "leading": rng.randint(*style.leading)}


def screenshots(sampler: SplitSampler, level: int, rng: random.Random) -> Iterator[SynthSample]:
    """Images of regions from anywhere in the split, no text twice."""
    for found in sampler.regions(levels.SCREENSHOT[level], rng=rng):
        code = {"language": sampler.files[found.file].language, "lines": list(found.lines)}
        yield SynthSample({"type": "image", **code, **render_style(sampler, level, rng)}, found.text, found.file)


def narrations(sampler: SplitSampler, level: int, rng: random.Random) -> Iterator[SynthSample]:
    """Narrations, no words twice and no several words of train; at level 1 held-out ones have no single words."""
    seen: set[str] = set()
    train = sampler.train_content
    for index, text, spoken in _utterances(sampler, level, rng):
        key = spoken_key(spoken)
        if key and key not in seen and not train.has_spoken(spoken) and not train.has_line_of(text):
            seen.add(key)
            yield SynthSample({"type": "audio", **_utterance(spoken, level, rng)}, text, index)


def recordings(sampler: SplitSampler, level: int, rng: random.Random) -> Iterator[SynthSample]:
    """Videos of the split, no text twice."""
    seen: set[str] = set()
    for found in sampler.regions(levels.VIDEO_REGION[level], rng=rng):
        sample = _recording(sampler, found, level, rng)
        if sample and sample.text not in seen and not sampler.train_content.has_line_of(sample.text):
            seen.add(sample.text)
            yield sample


def spoken_words(spec: dict) -> str:
    """What the media of a spec say, "" where they are silent."""
    return spec.get("text", "") or " ".join(item["text"] for item in spec.get("narration", ()))


def _utterance(text: str, level: int, rng: random.Random) -> dict:
    voice = levels.VOICES[level]
    style = {"voice": rng.choice(voice.names), "rate": rng.randint(*voice.rate), "pitch": rng.randint(*voice.pitch)}
    return {"text": text, **style}


def _recording(sampler: SplitSampler, found: CodeRegion, level: int, rng: random.Random) -> SynthSample | None:
    """A video of a region, or None when its level wants names said and the region has too few."""
    bounds, num_lines, text = levels.VIDEO[level], len(found.lines), found.text
    mode = rng.choice(bounds.modes)
    count = round(rng.uniform(*bounds.seconds) * FRAMES_PER_SECOND)
    spec = {"type": "video", "mode": mode, "language": sampler.files[found.file].language, "lines": list(found.lines)}
    visible = num_lines if mode != "scroll" else min(rng.randint(*bounds.visible_lines), num_lines - 1)
    spec |= {"visible_lines": visible, "frames": count, "motion_frames": round(TYPING_FRACTION * count)}
    spec |= {"narration": [], **render_style(sampler, level, rng)}
    if bounds.names[1]:
        voice = _utterance("", level, rng)
        if level == 4:
            spec["motion_frames"] = count - FRAMES_PER_SECOND
            utterances = _names_in_view(found, spec, most=bounds.names[1])
            text = " ".join(name for name, _start_s in utterances)
        else:
            names = dict.fromkeys(name for line in found.lines for name in identifiers_in(line))
            names = [name for name in names if is_pronounceable(name, parts=(1, 3), letters=20)][: bounds.names[1]]
            # one utterance, so that the names are said as a list is said
            utterances = [(", ".join(names), 0.2)] if names else []
            voice["rate"] = max(voice["rate"], 160)
        if len(utterances) < min(bounds.names[0], 1 if level < 4 else 2):
            return None
        spec["narration"] = [
            {**voice, "text": _spell_names(names), "start_s": round(start_s, 2)} for names, start_s in utterances
        ]
    return SynthSample(spec, text, found.file)


def _names_in_view(found: CodeRegion, spec: dict, *, most: int) -> list[tuple[str, float]]:
    """(name, start in seconds) for identifiers of a scrolling video, each from the line then lowest in view."""
    utterances: dict[str, float] = {}
    moving_s = spec["motion_frames"] / FRAMES_PER_SECOND
    hidden = len(found.lines) - spec["visible_lines"]
    count = min(most, int(moving_s / MIN_UTTERANCE_GAP_S))
    for index in range(count):
        start_s = 0.2 + index * (moving_s - 0.2) / count
        lowest = spec["visible_lines"] - 1 + int(hidden * start_s / moving_s)
        # the lines that came into view since the utterance before, latest first
        latest = reversed(found.lines[max(0, lowest - 2) : lowest + 1])
        names = (name for line in latest for name in identifiers_in(line) if name not in utterances)
        said = (name for name in names if is_pronounceable(name, parts=(1, 3), letters=18))
        utterances |= dict.fromkeys(islice(said, 1), start_s)
    return list(utterances.items())


def _utterances(sampler: SplitSampler, level: int, rng: random.Random) -> Iterator[tuple[int, str, str]]:
    """(file, text, what is spoken): parts of names, then every identifier, signature or sentence in random order."""
    if level == 1:
        parts, shortest = sampler.name_parts, 2 if sampler.held_out else 1
        weights = {length: weight for length, weight in NUM_SPOKEN_PARTS if shortest <= length <= len(parts)}
        # random sequences of distinct words, many times over: the caller drops repeats
        for _ in range(100 * len(parts) ** min(2, max(weights)) if weights else 0):
            text = " ".join(rng.sample(parts, rng.choices(list(weights), list(weights.values()))[0]))
            yield -1, text, text
    found = []
    for index, item in enumerate(sampler.features):
        if level == 2:
            names = (name for name in item.names if is_pronounceable(name, parts=(2, 4), letters=32))
            found += [(index, name, _spell_names(name)) for name in names]
        elif level == 3:
            signatures = (text for text in item.signatures if 8 <= len(text) <= 60 and "()" not in text)
            found += [(index, text, ": ".join(map(_spell_names, text[:-1].split("(")))) for text in signatures]
        elif level == 4:
            found += [(index, text, text) for text in item.sentences]
    rng.shuffle(found)
    yield from found


def _spell_names(names: str) -> str:
    """What to speak for identifiers: their parts; commas stay, they are heard as pauses."""
    return ", ".join(" ".join(name_parts(name)) for name in names.split(", "))
