"""Quality of text without knowing its language: measures of prose and code, and bounds on each.

The measures follow the rules of MassiveText (Rae et al. 2021, 2112.11446, appendix A.1), less those that ask for
English words, and for code those of Codex (2107.03374, section 3.1) and StarCoder (2305.06161, section 3):

    characters             length of the text
    alnum_share            letters, marks and digits among the characters that are not space
    nonprinting_share      control and private characters, and replacement signs, among all
    mean_line, longest_line        characters of lines that are not blank
    repeated_line_share    characters in lines that have stood before, among those of all lines
    repeated_run_share     characters in runs of 10 words that have stood before, among those of all words
    top_run_share          characters in the most frequent run of 4 words, if it comes more than once
    blob_share             characters in unbroken base64 or hexadecimal of 60 and more
    compression            size after zlib / size in UTF-8: low for repetition, high for noise
    generated              1 when the first ten lines say that the file was generated, else 0

Each is a column `text_<measure>`, so that thresholds can be chosen by looking at them. Bounds lie with the two kinds of
text, prose and code; what counts as code is told by the document's kind. Where a document holds media, its length
says nothing (a caption may be one word), and in a text of less than `judged_characters` neither do shares: such
texts are measured and kept.

What this does not do: tell sense from nonsense in well-formed text (a model's loss does, see `scores.py`), or judge
more than the first `measured_characters` of a text. Held-out documents are left alone by default, so that a rule never
makes the evaluation easier. About 8 MB of text a second and process.
"""

import dataclasses
import functools
import re
import unicodedata
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.document import MODALITIES
from data.filters.pool import Pool, Verdict, check_splits, empty_column, text_of
from data.store import EncodedCorpus

Bound = tuple[float | None, float | None]
"""Least and greatest value that is kept; None for no bound."""

_RUN_WORDS, _TOP_WORDS = 10, 4
_BLOB = re.compile(r"[A-Za-z0-9+/=_-]{60,}")
_HEX = re.compile(r"[0-9a-fA-F]+")
_GENERATED = re.compile(r"auto[- ]?generated|automatically generated|do not edit", re.I)
_OTHER, _ALNUM, _SPACE, _NONPRINTING = range(4)


@dataclass(frozen=True)
class TextBounds:
    """Bounds on each measure; a value outside drops the document. The defaults are for prose."""

    characters: Bound = (100, None)
    """Not asked of documents with media."""
    alnum_share: Bound = (0.6, None)
    """Prose has 0.9 and more, Markdown tables 0.7."""
    nonprinting_share: Bound = (None, 0.01)
    """Broken encodings and binary files have more."""
    mean_line: Bound = (None, None)
    """Prose may have a paragraph a line."""
    longest_line: Bound = (None, 50_000)
    """A longer paragraph is no paragraph."""
    repeated_line_share: Bound = (None, 0.3)
    """MassiveText drops from 0.2 on crawled pages; manuals repeat their headings."""
    repeated_run_share: Bound = (None, 0.3)
    """MassiveText drops from 0.1 on crawled pages."""
    top_run_share: Bound = (None, 0.16)
    """As in MassiveText."""
    blob_share: Bound = (None, 0.2)
    """Embedded pictures and keys."""
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
    alnum_share=(0.25, None),
    mean_line=(None, 100),
    longest_line=(None, 1000),
    repeated_line_share=(None, 0.6),
    repeated_run_share=(None, 0.6),
    top_run_share=(None, 0.3),
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
    the workbench's, where it is code."""
    kinds: tuple[str, ...] | None = None
    """Kinds judged; None for all."""
    splits: tuple[str, ...] = ("train",)
    """Splits judged."""
    judged_characters: int = 200
    """Shorter texts are only asked for their length."""
    measured_characters: int = 2**20
    """Of longer texts the beginning is measured."""
    name: ClassVar[str] = "text_quality"

    def __post_init__(self):
        check_splits("TextQuality", self.splits)
        if self.measured_characters < 1 or self.judged_characters < 0:
            raise ValueError("TextQuality.measured_characters must be at least 1 and judged_characters at least 0")

    def judge(self, pool: Pool) -> Verdict:
        """Columns `text_<measure>`; documents without text are not judged."""
        corpus = pool.corpus
        columns = {name: empty_column(corpus.num_documents, np.float32) for name in MEASURES}
        judged, reasons = [], {}
        documents = pool.of(splits=self.splits, kinds=self.kinds)
        function = functools.partial(_measure_documents, limit=self.measured_characters)
        for number, found in pool.map(function, documents):
            if found is None:
                continue
            judged.append(number)
            for name, value in found.items():
                columns[name][number] = value
            is_code = corpus.kinds[corpus.kind[number]] in self.code_kinds
            with_media = any(corpus.num_media[name][number] for name in MODALITIES)
            if reason := self._reason(found, is_code=is_code, with_media=with_media):
                reasons[number] = reason
        named = {f"text_{name}": column for name, column in columns.items()}
        return Verdict(np.array(judged, dtype=np.int64), reasons, named)

    def _reason(self, found: dict[str, float], *, is_code: bool, with_media: bool) -> str:
        """The first bound that the measures break, or nothing."""
        bounds, sort = (self.code, "code") if is_code else (self.prose, "prose")
        short = found["characters"] < self.judged_characters
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
    repeated_run, top_run = _run_shares(text.split())
    data = text.encode("utf-8", errors="replace")
    return {
        "characters": characters,
        "alnum_share": float(classes[_ALNUM] / max(1, classes.sum() - classes[_SPACE])),
        "nonprinting_share": float(classes[_NONPRINTING] / classes.sum()),
        "mean_line": sum(lengths) / max(1, len(lengths)),
        "longest_line": max(lengths, default=0),
        "repeated_line_share": _repeated_line_share(lines),
        "repeated_run_share": repeated_run,
        "top_run_share": top_run,
        "blob_share": sum(map(_blob_characters, _BLOB.findall(text))) / len(text),
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
    """(characters,) uint8 class of each character."""
    return _class_table()[np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)]


def _repeated_line_share(lines: list[str]) -> float:
    seen: set[str] = set()
    total = repeated = 0
    for line in map(str.strip, lines):
        total += len(line)
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return repeated / max(1, total)


def _run_shares(words: list[str]) -> tuple[float, float]:
    """Shares of the words' characters in runs of 10 that have stood before, and in the most frequent run of 4."""
    known: dict[str, int] = {}
    ids = np.array([known.setdefault(word, len(known)) for word in words], dtype=np.uint64)
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    total = max(1, int(lengths.sum()))
    inside = np.zeros(len(words) + 1, dtype=np.int64)
    again = _again(_runs(ids, _RUN_WORDS))
    np.add.at(inside, again, 1)
    np.add.at(inside, again + _RUN_WORDS, -1)
    repeated = int(lengths[np.cumsum(inside)[:-1] > 0].sum()) / total
    top = _runs(ids, _TOP_WORDS)
    _, first, counts = np.unique(top, return_index=True, return_counts=True)
    if not len(counts) or counts.max() == 1:
        return repeated, 0.0
    place = int(first[counts.argmax()])
    # a word repeated over and over makes runs that overlap
    return repeated, min(1.0, int(counts.max()) * int(lengths[place : place + _TOP_WORDS].sum()) / total)


def _runs(ids: np.ndarray, length: int) -> np.ndarray:
    """(r,) uint64 hash of every run of `length` ids; ids (w,) uint64."""
    count = max(0, len(ids) - length + 1)
    value = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        value = (value + ids[offset : offset + count] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(29)
    return value


def _again(values: np.ndarray) -> np.ndarray:
    """(a,) int64 places of values that have stood before."""
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
