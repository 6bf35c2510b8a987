"""What to build: the source, how many documents of each kind and level, and the limits.

Counts are tuples over the levels 1 to 4 and not shares of a total, because the counts decide what a model
can learn: a recipe states them, the summary says how many could be made. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from data.deciding import ASIDE, aside

LEVELS = (1, 2, 3, 4)
"""The levels of difficulty of every kind with a medium; 1 is for a tiny model. Text alone has level 0."""

SPLITS = ("train", "validation", "test")


class WorkbenchError(ValueError):
    """The corpus cannot be made; the message names what is wrong and what to do about it."""


@dataclass(frozen=True)
class Counts:
    """How many documents of each kind one split shall have. Tuples give the levels 1, 2, 3 and 4."""

    text: int = 0
    """Pieces of single files, each opened by the file's path."""
    package: int = 0
    """Long text documents: the files of one package joined, each opened by its path."""
    screenshot: tuple[int, int, int, int] = (0, 0, 0, 0)
    """A picture of code, then its text."""
    narration: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Spoken names, signatures or sentences, then their text."""
    recording: tuple[int, int, int, int] = (0, 0, 0, 0)
    """A film of code being typed or scrolled, then its text or the names that came by."""
    page: tuple[int, int, int, int] = (0, 0, 0, 0)
    """A tutorial page: heading, prose, code, and the media of that level with their texts."""
    table: tuple[int, int, int, int] = (0, 0, 0, 0)
    """A table of numbers of the source, a question about it, and the answer."""
    chart: tuple[int, int, int, int] = (0, 0, 0, 0)
    """A bar, line or scatter chart of such numbers, a question, and the answer."""
    screen: tuple[int, int, int, int] = (0, 0, 0, 0)
    """A user interface (form, menu, console, tree), a question, and the answer."""
    needle_text: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Many facts in source code, and questions that look them up. Levels are lengths: 64, 256, 1,024, 2,048 tokens."""
    needle_image: tuple[int, int, int, int] = (0, 0, 0, 0)
    """The same with drawn values, among other pictures."""
    needle_audio: tuple[int, int, int, int] = (0, 0, 0, 0)
    """The same with spoken values, among other sounds."""
    needle_video: tuple[int, int, int, int] = (0, 0, 0, 0)
    """The same with values in one frame of a film, among other films."""
    needle_chain: tuple[int, int, int, int] = (0, 0, 0, 0)
    """The same with keys that lead to a picture of a second key, whose value is spoken."""

    def __post_init__(self) -> None:
        for name in ("text", "package"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise WorkbenchError(f"Counts.{name} is {value!r}: give a number of documents, 0 or more")
        for name in (item.name for item in fields(self) if item.name not in ("text", "package")):
            value = getattr(self, name)
            plain = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(LEVELS)
            if not plain or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in value):
                raise WorkbenchError(
                    f"Counts.{name} is {value!r}: give four numbers of documents, one for each of the levels 1 to 4"
                )
            # a list read from a JSON file becomes the tuple it stands for
            object.__setattr__(self, name, tuple(value))

    def of(self, kind: str) -> dict[int, int]:
        """level -> number of documents asked for, those with 0 left out. Raises AttributeError for another kind."""
        value = getattr(self, kind)
        levels = {0: value} if isinstance(value, int) else dict(zip(LEVELS, value, strict=True))
        return {level: count for level, count in levels.items() if count}


KINDS = tuple(item.name for item in fields(Counts))
"""What Counts counts. In the manifest `package` documents are of the kind `text`."""
ASKING = ("table", "chart", "screen")
"""Kinds whose medium is followed by a question, which is no target, and its answer, which is."""
NEEDLES = tuple(kind for kind in KINDS if kind.startswith("needle_"))
"""Kinds whose documents are facts and questions that look them up."""


@dataclass(frozen=True)
class WorkbenchConfig:
    """A whole corpus. The same config, source and library versions give the same bytes."""

    source: Path | None = field(default=None, metadata=ASIDE)
    """Folder of source code; None takes the standard library of the running interpreter. What is in it decides, and not
    where it lies."""
    train: Counts = field(
        default_factory=lambda: Counts(
            text=2000,
            package=40,
            screenshot=(25000, 1000, 500, 250),
            narration=(20000, 1000, 500, 250),
            recording=(4000, 200, 100, 50),
            page=(400, 200, 100, 50),
        )
    )
    """Documents to train on."""
    validation: Counts = field(
        default_factory=lambda: Counts(
            text=100,
            package=4,
            screenshot=(200, 50, 50, 50),
            narration=(200, 50, 50, 50),
            recording=(100, 20, 20, 20),
            page=(20, 10, 10, 10),
        )
    )
    """Documents from other files, for decisions taken while training."""
    test: Counts = field(
        default_factory=lambda: Counts(
            text=100,
            package=4,
            screenshot=(200, 50, 50, 50),
            narration=(200, 50, 50, 50),
            recording=(100, 20, 20, 20),
            page=(20, 10, 10, 10),
        )
    )
    """Documents from again other files, for the numbers that are reported."""
    seed: int = 0
    """Decides the split of the files and every draw."""
    workers: int = aside(2)
    """Processes that render. Their number changes the time needed, not a byte of the corpus."""
    validation_share: float = 0.05
    """Share of the source's bytes whose files go to validation."""
    test_share: float = 0.05
    """Share of the source's bytes whose files go to test."""
    near_duplicate: float = 0.5
    """Files whose token shingles have at least this Jaccard similarity stay in one split."""
    max_files: int | None = None
    """At most this many source files, drawn by the seed; None takes all."""
    min_file_bytes: int = 64
    """Smaller source files are left out."""
    max_file_kib: int = 512
    """Larger source files (tables, mostly) are left out."""
    piece_bytes: int = 3000
    """Upper bound of a text piece; pieces are cut at line ends."""
    package_kib: int = 128
    """Upper bound of a long text document."""
    num_name_parts: int = 300
    """Size of the vocabulary of level-1 narration: the most frequent parts of the names in train."""
    level1_style: str = "bw"
    """Pygments style of level-1 pictures; "bw" is black on white, "default" has colours."""
    utterance_timeout_s: float = 20.0
    """An utterance that takes longer to synthesise is given up, and its document left out and counted."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise WorkbenchError(f"workers is {self.workers}: at least one process must render, set it to 1 or more")
        shares = (self.validation_share, self.test_share)
        if min(shares) < 0 or sum(shares) > 0.9:
            raise WorkbenchError(
                f"validation_share and test_share are {shares}: give shares >= 0 that leave at least 0.1 to train"
            )
        if not 0.0 < self.near_duplicate <= 1.0:
            raise WorkbenchError(f"near_duplicate is {self.near_duplicate}: give a similarity above 0, at most 1")
        for name in ("max_file_kib", "piece_bytes", "package_kib", "num_name_parts", "utterance_timeout_s"):
            if getattr(self, name) <= 0:
                raise WorkbenchError(f"{name} is {getattr(self, name)}: give a number above 0")
        if self.max_files is not None and self.max_files < 1:
            raise WorkbenchError(f"max_files is {self.max_files}: give 1 or more, or None for all files")

    @property
    def asks(self) -> bool:
        """Whether some split has documents of the kinds in ASKING, for which the source must be measured."""
        return any(self.counts(split).of(kind) for split in SPLITS for kind in ASKING)

    def counts(self, split: str) -> Counts:
        """The counts of "train", "validation" or "test"."""
        return getattr(self, split)
