"""What to build: the source, how many documents of each kind and level, and the limits.

Counts are tuples over the levels 1 to 4 and not fractions of a total, because they decide what a model can learn. The
summary says how many could be made. Nothing here reads a file.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

from brine.common.config_fields import OPERATIONAL, operational
from brine.data.document import SPLITS

LEVELS = (1, 2, 3, 4)
"""Levels of difficulty of every kind with media; 1 is for a tiny model. Text alone has level 0."""

NONE = (0, 0, 0, 0)


INSTALL = "run `uv sync --group corpus` (outside a checkout, `pip install espeakng-loader pygments`)"
"""Remedy for a missing library."""


class SynthError(ValueError):
    """The corpus cannot be made; the message names what is wrong and what to do about it."""


@dataclass(frozen=True)
class SynthCounts:
    """Number of documents of each kind in one split. Tuples give the levels 1, 2, 3 and 4."""

    text: int = 0
    """Chunks of single files, each opened by the file's path."""
    package: int = 0
    """Long text documents: the files of one package joined, each opened by its path."""
    screenshot: tuple[int, int, int, int] = NONE
    """An image of code, then its text."""
    narration: tuple[int, int, int, int] = NONE
    """Spoken names, signatures or sentences, then their text."""
    recording: tuple[int, int, int, int] = NONE
    """A video of code being typed or scrolled, then its text or the names spoken in it."""
    page: tuple[int, int, int, int] = NONE
    """A tutorial page: heading, prose, code, and the media of that level with their texts."""
    table: tuple[int, int, int, int] = NONE
    """A table of numbers of the source, a question about it, and the answer."""
    chart: tuple[int, int, int, int] = NONE
    """A bar, line or scatter chart of such numbers, a question, and the answer."""
    screen: tuple[int, int, int, int] = NONE
    """A user interface (form, menu, terminal, tree), a question, and the answer."""
    needle_text: tuple[int, int, int, int] = NONE
    """Facts in source code, and questions that look them up. Levels are lengths: 64, 256, 1,024, 2,048 tokens."""
    needle_image: tuple[int, int, int, int] = NONE
    """The same with sampled values, among other images."""
    needle_audio: tuple[int, int, int, int] = NONE
    """The same with spoken values, among other audio."""
    needle_video: tuple[int, int, int, int] = NONE
    """The same with values in one frame of a video, among other videos."""
    needle_chain: tuple[int, int, int, int] = NONE
    """The same with keys that lead to an image of a second key, whose value is spoken."""

    def __post_init__(self) -> None:
        for name in KINDS:
            value, single = getattr(self, name), name in ("text", "package")
            listed = isinstance(value, list | tuple) and len(value) == len(LEVELS)
            numbers = [value] if single else value if listed else [None]
            if not all(type(n) is int and n >= 0 for n in numbers):
                wanted = "a number of documents" if single else "four numbers of documents, one for each level"
                raise SynthError(f"SynthCounts.{name} is {value!r}: give {wanted}, 0 or more")
            # a list read from a JSON file becomes the tuple it stands for
            object.__setattr__(self, name, value if single else tuple(value))

    def by_level(self, kind: str) -> dict[int, int]:
        """level -> number of documents, zeros left out. Raises AttributeError for an unknown kind."""
        value = getattr(self, kind)
        levels = {0: value} if isinstance(value, int) else dict(zip(LEVELS, value, strict=True))
        return {level: count for level, count in levels.items() if count}


KINDS = tuple(item.name for item in fields(SynthCounts))
"""What SynthCounts counts. In the manifest `package` documents are of the kind `text`."""
QUESTION_KINDS = ("table", "chart", "screen")
"""Kinds whose image is followed by a question, which has no loss, and its answer, which has."""
NEEDLE_KINDS = tuple(kind for kind in KINDS if kind.startswith("needle_"))
"""Kinds whose documents are facts and questions that look them up."""

HELD_OUT_COUNTS = SynthCounts(
    text=100, package=4, screenshot=(200, 50, 50, 50), narration=(200, 50, 50, 50), recording=(100, 20, 20, 20),
    page=(20, 10, 10, 10),
)  # fmt: skip


@dataclass(frozen=True)
class SynthConfig:
    """A whole corpus. The same config, source and library versions give bit-identical files."""

    source: Path | None = field(default=None, metadata=OPERATIONAL)
    """Folder of source code; None takes the interpreter's standard library. The corpus depends on its content alone.
    A recipe sets it from `corpus.source`."""
    train: SynthCounts = SynthCounts(
        text=2000,
        package=40,
        screenshot=(25000, 1000, 500, 250),
        narration=(20000, 1000, 500, 250),
        recording=(4000, 200, 100, 50),
        page=(400, 200, 100, 50),
    )
    """Documents to train on; four numbers are the counts of levels 1 to 4."""
    validation: SynthCounts = HELD_OUT_COUNTS
    """Documents from other files, for decisions taken during training; four numbers are the counts of levels 1
    to 4."""
    test: SynthCounts = HELD_OUT_COUNTS
    """Documents from a third set of files, for the numbers that are reported; four numbers are the counts of levels 1
    to 4."""
    seed: int = 0
    """Seed of the train/validation/test split and of all sampling."""
    workers: int = operational(2)
    """Rendering processes. Their number does not change the corpus."""
    validation_fraction: float = 0.05
    """Fraction of the source's bytes whose files go to validation."""
    test_fraction: float = 0.05
    """Fraction of the source's bytes whose files go to test."""
    near_duplicate_threshold: float = 0.5
    """Files whose token shingles have at least this Jaccard similarity stay in one split."""
    max_files: int | None = None
    """Maximum number of source files, sampled by the seed; None takes all."""
    min_file_bytes: int = 64
    """Smaller source files are left out."""
    max_file_kib: int = 512
    """Larger source files (mostly tables) are left out."""
    chunk_bytes: int = 3000
    """Upper bound of a text chunk; chunks end at line ends."""
    package_text_kib: int = 128
    """Upper bound of a long text document."""
    narration_vocab_size: int = 300
    """Size of the vocabulary of level-1 narration: the most frequent parts of the names in train."""
    level1_style: str = "bw"
    """Pygments style of level-1 images; "bw" is black on white, "default" has colours."""
    utterance_timeout_s: float = 20.0
    """An utterance that takes longer to synthesise fails, and its document is left out and counted."""

    def __post_init__(self) -> None:
        fractions = (self.validation_fraction, self.test_fraction)
        rules = [
            ("workers", self.workers >= 1, "1 or more: at least one process must render"),
            ("validation_fraction", min(fractions) >= 0, "0 or more, as to test_fraction"),
            (
                "test_fraction",
                sum(fractions) <= 0.9,
                "less, here or to validation_fraction, and leave at least 0.1 to train",
            ),
            ("near_duplicate_threshold", 0.0 < self.near_duplicate_threshold <= 1.0, "more than 0, at most 1"),
            ("max_files", self.max_files is None or self.max_files >= 1, "1 or more, or None for all files"),
        ]
        positive = ("max_file_kib", "chunk_bytes", "package_text_kib", "narration_vocab_size", "utterance_timeout_s")
        rules += [(name, getattr(self, name) > 0, "a number above 0") for name in positive]
        for name, good, wanted in rules:
            if not good:
                raise SynthError(f"{name} is {getattr(self, name)}: give {wanted}")

    @property
    def needs_code_metrics(self) -> bool:
        """Whether some split has documents of QUESTION_KINDS, for which the source is measured."""
        return any(self.counts(split).by_level(kind) for split in SPLITS for kind in QUESTION_KINDS)

    def counts(self, split: str) -> SynthCounts:
        """The counts of "train", "validation" or "test"."""
        return getattr(self, split)
