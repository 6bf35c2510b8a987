"""Quality of text without knowing its language: measures of prose and code, and bounds on each.

The measures follow MassiveText (Rae et al. 2021, 2112.11446, appendix A.1), without the rules for English words, and
for code Codex (2107.03374, section 3.1) and StarCoder (2305.06161, section 3):

    characters                length of the text
    alnum_fraction            letters, marks and digits among the characters that are not space
    nonprinting_fraction      control and private characters, and replacement signs, among all
    mean_line_length, max_line_length    characters of lines that are not blank
    duplicate_line_fraction   characters in lines that came before, among those of all lines
    duplicate_ngram_fraction  characters in runs of 10 words that came before, among those of all words
    top_ngram_fraction        characters in the most frequent run of 4 words, if it comes more than once
    blob_fraction             characters in unbroken base64 or hexadecimal of 60 and more
    compression               size after zlib / size in UTF-8: low for repetition, high for noise
    generated                 1 when the first ten lines say that the file was generated, else 0

Each is a column `text_<measure>`. Where a document holds media its length says nothing, and below
`min_inspected_characters` neither do fractions: such texts are measured and kept. Held-out documents are not inspected
by default, so that a filter never makes the evaluation easier. About 8 MB of text per second and process.
"""

import dataclasses
import functools
import re
import unicodedata
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from brine.data.corpus.store import EncodedCorpus
from brine.data.document import MODALITIES
from brine.data.filters.filter_context import FilterContext, FilterResult, check_splits, empty_column, text_of
from brine.data.filters.near import ngram_hashes

Bound = tuple[float | None, float | None]
"""Minimum and maximum value that is kept; None for no bound."""

_RUN_WORDS, _TOP_WORDS = 10, 4
_BLOB = re.compile(r"[A-Za-z0-9+/=_-]{60,}")
_HEX = re.compile(r"[0-9a-fA-F]+")
_GENERATED = re.compile(r"auto[- ]?generated|automatically generated|do not edit", re.I)
_OTHER, _ALNUM, _SPACE, _NONPRINTING = range(4)


@dataclass(frozen=True)
class TextBounds:
    """Bounds on each measure; a value outside drops the document. The defaults are for prose."""

    characters: Bound = (100, None)
    """Not applied to documents with media."""
    alnum_fraction: Bound = (0.6, None)
    """Prose has 0.9 and more, Markdown tables 0.7."""
    nonprinting_fraction: Bound = (None, 0.01)
    """Broken encodings and binary files have more."""
    mean_line_length: Bound = (None, None)
    """Prose may have a paragraph a line."""
    max_line_length: Bound = (None, 50_000)
    """A longer paragraph is no paragraph."""
    duplicate_line_fraction: Bound = (None, 0.3)
    """MassiveText drops from 0.2 on crawled pages; manuals repeat their headings."""
    duplicate_ngram_fraction: Bound = (None, 0.3)
    """MassiveText drops from 0.1 on crawled pages."""
    top_ngram_fraction: Bound = (None, 0.16)
    """As in MassiveText."""
    blob_fraction: Bound = (None, 0.2)
    """Embedded images and keys."""
    compression: Bound = (0.1, 0.95)
    """Prose has 0.3 to 0.6; bytes without a pattern stay near 1."""
    generated: Bound = (None, None)
    """Prose may speak of it."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            good = isinstance(value, tuple) and len(value) == 2
            if not good or (None not in value and not value[0] <= value[1]):
                raise ValueError(
                    f"TextBounds.{field.name} must be (least, greatest), with None for no bound, not {value!r}"
                )


PROSE = TextBounds()
CODE = TextBounds(
    characters=(30, None),
    alnum_fraction=(0.25, None),
    mean_line_length=(None, 100),
    max_line_length=(None, 1000),
    duplicate_line_fraction=(None, 0.6),
    duplicate_ngram_fraction=(None, 0.6),
    top_ngram_fraction=(None, 0.3),
    compression=(0.05, 0.95),
    generated=(None, 0),
)
"""Bounds for code: shorter lines, more repetition, nothing generated."""
MEASURES = tuple(field.name for field in dataclasses.fields(TextBounds))


@dataclass(frozen=True)
class TextQuality:
    """Drop documents whose text lies outside the bounds of its kind. Raises ValueError for a field that cannot be."""

    prose: TextBounds = PROSE
    """Bounds for everything that is not code."""
    code: TextBounds = CODE
    """Bounds for documents of `code_kinds`."""
    code_kinds: tuple[str, ...] = ("code", "package")
    """Kinds whose text is source code. Kind "text" is not among them, since it is prose in most corpora; add it for
    the synthetic corpus's, where it is code."""
    kinds: tuple[str, ...] | None = None
    """Kinds inspected; None for all."""
    splits: tuple[str, ...] = ("train",)
    """Splits inspected."""
    min_inspected_characters: int = 200
    """Of shorter texts only the length counts."""
    max_measured_characters: int = 2**20
    """Longer texts are measured at their beginning."""
    name: ClassVar[str] = "text_quality"

    def __post_init__(self):
        check_splits("TextQuality", self.splits)
        if self.max_measured_characters < 1 or self.min_inspected_characters < 0:
            raise ValueError(
                "TextQuality.max_measured_characters must be at least 1 and min_inspected_characters at least 0"
            )

    def apply(self, filter_context: FilterContext) -> FilterResult:
        """Columns `text_<measure>`; documents without text are not inspected."""
        corpus = filter_context.corpus
        columns = {name: empty_column(corpus.num_documents, np.float32) for name in MEASURES}
        inspected, reasons = [], {}
        documents = filter_context.select(splits=self.splits, kinds=self.kinds)
        function = functools.partial(_measure_documents, limit=self.max_measured_characters)
        for number, found in filter_context.map(function, documents):
            if found is None:
                continue
            inspected.append(number)
            for name, value in found.items():
                columns[name][number] = value
            is_code = corpus.kinds[corpus.kind[number]] in self.code_kinds
            with_media = any(corpus.num_media[name][number] for name in MODALITIES)
            if reason := self._reason(found, is_code=is_code, with_media=with_media):
                reasons[number] = reason
        named = {f"text_{name}": column for name, column in columns.items()}
        return FilterResult(np.array(inspected, dtype=np.int64), reasons, named)

    def _reason(self, found: dict[str, float], *, is_code: bool, with_media: bool) -> str:
        bounds, sort = (self.code, "code") if is_code else (self.prose, "prose")
        short = found["characters"] < self.min_inspected_characters
        for name in MEASURES:
            if with_media if name == "characters" else short:
                continue
            low, high = getattr(bounds, name)
            if low is not None and found[name] < low:
                return f"{name} of {found[name]:.4g} is below {low:g} ({sort})"
            if high is not None and found[name] > high:
                return f"{name} of {found[name]:.4g} is above {high:g} ({sort})"
        return ""


def _measure_documents(corpus: EncodedCorpus, numbers: list[int], *, limit: int) -> list[dict[str, float] | None]:
    texts = (text_of(corpus.document(number)) for number in numbers)
    return [measure(text, limit=limit) if text.strip() else None for text in texts]


def measure(text: str, *, limit: int = 2**20) -> dict[str, float]:
    """Every measure of a text that is not blank; all but `characters` from its first `limit` characters."""
    characters, text = len(text), text[:limit]
    classes = np.bincount(_classes_of(text), minlength=4)
    lines = [line for line in text.splitlines() if line.strip()]
    lengths = [len(line) for line in lines]
    repeated_run, top_run = _ngram_fractions(text.split())
    data = text.encode("utf-8", errors="replace")
    return {
        "characters": characters,
        "alnum_fraction": float(classes[_ALNUM] / max(1, classes.sum() - classes[_SPACE])),
        "nonprinting_fraction": float(classes[_NONPRINTING] / classes.sum()),
        "mean_line_length": sum(lengths) / max(1, len(lengths)),
        "max_line_length": max(lengths, default=0),
        "duplicate_line_fraction": _duplicate_line_fraction(lines),
        "duplicate_ngram_fraction": repeated_run,
        "top_ngram_fraction": top_run,
        "blob_fraction": sum(map(_blob_characters, _BLOB.findall(text))) / len(text),
        "compression": len(zlib.compress(data, 6)) / len(data),
        "generated": float(any(_GENERATED.search(line[:1000]) for line in lines[:10])),
    }


@functools.lru_cache(maxsize=1)
def _class_table() -> np.ndarray:
    """(0x110000,) uint8 class of every character, by its Unicode category."""
    table = np.full(0x110000, _OTHER, dtype=np.uint8)
    for code in range(len(table)):
        category = unicodedata.category(chr(code))
        # marks belong to the letters that they stand on
        if category[0] in "LMN":
            table[code] = _ALNUM
        elif category[0] == "Z" or chr(code) in "\t\n\v\f\r":
            table[code] = _SPACE
        elif category in ("Cc", "Co", "Cs"):
            table[code] = _NONPRINTING
    table[0xFFFD] = _NONPRINTING
    return table


def _classes_of(text: str) -> np.ndarray:
    return _class_table()[np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)]


def _duplicate_line_fraction(lines: list[str]) -> float:
    seen: set[str] = set()
    total = repeated = 0
    for line in map(str.strip, lines):
        total += len(line)
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return repeated / max(1, total)


def _ngram_fractions(words: list[str]) -> tuple[float, float]:
    """Fractions of the words' characters in runs of 10 that came before, and in the most frequent run of 4."""
    known: dict[str, int] = {}
    ids = np.array([known.setdefault(word, len(known) + 1) for word in words], dtype=np.uint64)
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    total = max(1, int(lengths.sum()))
    inside = np.zeros(len(words) + 1, dtype=np.int64)
    again = _repeats(ngram_hashes(ids, _RUN_WORDS))
    np.add.at(inside, again, 1)
    np.add.at(inside, again + _RUN_WORDS, -1)
    repeated = int(lengths[np.cumsum(inside)[:-1] > 0].sum()) / total
    top = ngram_hashes(ids, _TOP_WORDS)
    _, first, counts = np.unique(top, return_index=True, return_counts=True)
    if not len(counts) or counts.max() == 1:
        return repeated, 0.0
    at = int(first[counts.argmax()])
    # a word repeated over and over makes runs that overlap
    return repeated, min(1.0, int(counts.max()) * int(lengths[at : at + _TOP_WORDS].sum()) / total)


def _repeats(values: np.ndarray) -> np.ndarray:
    """(a,) int64 indices of values that came before."""
    _, first = np.unique(values, return_index=True)
    mask = np.ones(len(values), dtype=bool)
    mask[first] = False
    return np.flatnonzero(mask)


def _blob_characters(run: str) -> int:
    """Length of a run that is base64 or hexadecimal; 0 for a name, a path or a ruled line."""
    distinct = set(run)
    if _HEX.fullmatch(run):
        return len(run) if len(distinct) >= 8 else 0
    mixed = any(map(str.isdigit, distinct)) and any(map(str.isupper, distinct)) and any(map(str.islower, distinct))
    return len(run) if mixed and len(distinct) >= 20 else 0
