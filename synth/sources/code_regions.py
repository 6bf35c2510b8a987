"""Samples regions of code from the files of one split, without repeats and without leaks.

About a fifth of the standard library's lines occur in more than one file. What a held-out sample asks to be transcribed
must not be such a line, or memory passes for reading: `TrainTextIndex` holds every line and utterance that train shows,
and a held-out region with one of them is refused. A `SplitSampler` visits all starting points of its split once, in an
order shuffled by the seed: too few lines mean fewer documents, never an endless loop.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from brine.data.files.source_files import SourceFile
from brine.synth.kinds.levels import RegionSpec
from brine.synth.sources.code_metrics import CodeMetrics
from brine.synth.sources.features import SourceFeatures

MIN_LETTERS_PER_LINE = 4
"""A line with fewer letters (rulers, brackets, columns of digits) is not worth reading alone."""


def stripped_lines(text: str) -> Iterator[str]:
    """The lines of a text without surrounding space; empty ones are left out."""
    return (stripped for line in text.split("\n") if (stripped := line.strip()))


def spoken_key(utterance: str) -> str:
    """What an utterance sounds like, for comparing: its words in lower case."""
    return " ".join("".join(char if char.isalnum() else " " for char in utterance.lower()).split())


@dataclass
class TrainTextIndex:
    """What train contains: stripped lines of its files and targets, and its utterances of several words; for kinds
    that show single words and numbers, also the identifiers of its files and its (label, column, number) triples."""

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
        """Whether train says exactly these words; single words are allowed everywhere."""
        key = spoken_key(utterance)
        return " " in key and key in self.spoken


def region_at(lines: list[str], start: int, *, count: int, region: RegionSpec) -> list[str] | None:
    """`count` lines from `start`, tabs expanded, common indent and trailing space removed; None unless they are
    printable ASCII, the longest has region.chars characters, there are enough letters, and no end is blank."""
    picked = [line.expandtabs(4).rstrip() for line in lines[start : start + count]]
    if len(picked) < count or not picked[0] or not picked[-1]:
        return None
    full = [line for line in picked if line]
    if len(full) < len(picked) and not region.blank_lines:
        return None
    indent = min(len(line) - len(line.lstrip(" ")) for line in full)
    picked = [line[indent:] for line in picked]
    joined = "".join(picked)
    allowed = (
        region.chars[0] <= max(map(len, picked)) <= region.chars[1]
        and joined.isascii()
        and joined.isprintable()
        and sum(map(str.isalpha, joined)) >= MIN_LETTERS_PER_LINE * count
    )
    return picked if allowed else None


@dataclass(frozen=True)
class CodeRegion:
    """A region: its lines, and where it lies."""

    file: int
    start: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass(eq=False)
class SplitSampler:
    """The files of one split and what is sampled from them; code_metrics: for tables, charts and screens; name_parts:
    the vocabulary of level-1 narration."""

    files: list[SourceFile]
    features: list[SourceFeatures]
    train_content: TrainTextIndex | None = None
    code_metrics: Sequence[CodeMetrics] = ()
    name_parts: Sequence[str] = ()
    level1_style: str = "bw"

    def __post_init__(self) -> None:
        self.held_out = self.train_content is not None
        self.train_content = self.train_content or TrainTextIndex()
        self.lines = [item.text.split("\n") for item in self.files]
        code = (index for index, item in enumerate(self.files) if item.language != "text")
        self.starts = [(index, start) for index in code for start, line in enumerate(self.lines[index]) if line.strip()]

    def single_file(self, index: int) -> "SplitSampler":
        """A sampler of one of the files, under the same rule."""
        known = self.train_content if self.held_out else None
        one = {"files": [self.files[index]], "features": [self.features[index]], "code_metrics": ()}
        return replace(self, **one, train_content=known)

    def regions(self, region: RegionSpec, *, rng: random.Random) -> Iterator[CodeRegion]:
        """Every starting point once, in random order, with a region of a random number of lines, or fewer, that is
        allowed and not in train; no text twice."""
        seen: set[str] = set()
        starts = list(self.starts)
        rng.shuffle(starts)
        for index, start in starts:
            for count in range(rng.randint(*region.lines), region.lines[0] - 1, -1):
                lines = region_at(self.lines[index], start, count=count, region=region)
                if lines is not None and not self.train_content.has_line_of("\n".join(lines)):
                    found = CodeRegion(index, start, tuple(lines))
                    if found.text not in seen:
                        seen.add(found.text)
                        yield found
                    break
