"""Which column of a table holds the words: by what its cells look like, and then by its name.

A column of addresses, numbers, dates, names of files, flags or ids is never taken, nor one that says who made a row or
how it is filed (`author`, `split`). Of the others the first is what is called like words (`caption_en`), then what
holds several words (`name` last), then one word where there are media of that class, then formulas or codes (a plate,
a captcha) where nothing else can be meant; and of several the longest.
"""

import contextlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from brine.data.files.extensions import SUPPORTED, UNSUPPORTED
from brine.data.formats.lines.fields import is_media_path
from brine.data.formats.lines.provenance import is_metadata, words_of_field
from brine.data.formats.splits.names import WORDS, split_field_kind, word_set

NONE, ONE, SEVERAL = 0, 1, 2
_LIKE_WORDS = ("text", "caption", "transcri", "sentence", "words", "descri", "prompt", "title", "label", "comment")
# words for how a row is filed that say what its media show
_CLASSES = word_set("category categories topic topics tag tags keyword keywords kind")
# words for what is written in media in other signs than words, anywhere in a column's name, and at its end alone
_SURE_SIGNS = word_set("latex formula formulas equation equations mathml smiles inchi plate captcha")
_SIGNS = word_set("tex math expression ocr gt truth code label labels answer solution notes")
# words beside these for what was noted of them (`formula_id`)
_ABOUT_SIGNS = word_set("id hash source type kind length size width height file path url")
_FLAGS = word_set("true false yes no none null nan na n/a y n t f m male female")
_NO_WORDS = {*_FLAGS, *SUPPORTED, *UNSUPPORTED, *WORDS}
# words of dates and measures, which are numbers with one of them beside
_UNITS = word_set(
    "jan feb mar apr may jun jul aug sep sept oct nov dec january february march april june july august september "
    "october november december mon tue wed thu fri sat sun am pm utc gmt s sec secs second seconds min mins minute "
    "minutes h hour hours ms x px pixels b kb mb gb hz khz fps mm cm m km kg"
)
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*:/|www\.|data:)\S*", re.IGNORECASE)
_FILE = re.compile(r"\S*[\w)\]-]\.[A-Za-z]\w{1,4}")
# objects as JSON, and colours
_OBJECTS = re.compile(r"\{.*\}|\[\s*\{.*\}\s*\]|#[0-9a-f]{3,8}", re.DOTALL | re.IGNORECASE)
# objects and lists, and no formula in braces
_JSON = re.compile(r"\{\s*(\}|[\"'].*\}|\d+\s*:.*\})|\[\s*(\]|[\[{\"'].*\]|[\d.,\s-]*\])", re.DOTALL)
# dates, spans of time, colours, hashes, addresses of people and paths
_NO_CODE = re.compile(
    r"\d{4}-\d\d-\d\d\b.*|P(\d+[YMWD])*T[\dHMS.]+|#[0-9a-f]{3,8}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|"
    r"[0-9a-f]{16,}|[\w.+-]+@[\w.-]+|[\w+/=-]{60,}|\w:\\.*|[\w.~-]*(/[\w.~-]+)+/?",
    re.IGNORECASE | re.DOTALL,
)
_PATH_OF_TEXT = re.compile(r"[^\s:]+/[^\s:/]+\.(txt|text|lab|json|xml|html?|md|csv|tsv|srt|vtt)", re.IGNORECASE)
_SUM = re.compile(r"\d\s*[=+*^]\s*[\d?(]|\\")
# arrows, signs of mathematics and pictograms stand from here on
_FIRST_SYMBOL = "\u2190"
_SIZE = re.compile(r"\d+(x\d+)+")
_MAX_PATH, _MAX_CELL, _MAX_WORD = 1000, 2000, 40
_AROUND = "\"'`.,;:!?()[]{}<>|*_-+=#&%$…“”\u2018\u2019«»"
# letters of scripts that have no blanks between words
_WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]")


def text_content_of(cells: Sequence[str]) -> int:
    """SEVERAL or ONE where more than half of the cells that are not empty hold so many words, else NONE."""
    counts = list(map(_num_words, _known(cells)))
    return next((least for least in (SEVERAL, ONE) if 2 * sum(count >= least for count in counts) > len(counts)), NONE)


def is_text_like(cells: Sequence[str], *, name: str = "") -> bool:
    """Whether more than half of the filled cells hold words, formulas or codes (a quarter if `name` is `label` ...)."""
    known = _known(cells)
    written = sum(_num_words(cell) > 0 or _is_code(cell) for cell in known)
    if _is_called_so(name) and 4 * written > len(known):
        return written + sum(map(is_number, known)) == len(known) or 2 * written > len(known)
    return 2 * written > len(known)


def _known(cells: Sequence[str]) -> list[str]:
    return [cell[:_MAX_CELL].strip() for cell in cells if cell.strip()]


def _is_called_so(name: str) -> bool:
    words = [*words_of_field(name[:200]), name.strip().lower()]
    is_sure = not _SURE_SIGNS.isdisjoint(words) and _ABOUT_SIGNS.isdisjoint(words)
    return is_sure or not _SIGNS.isdisjoint(words[-2:])


def are_external(cells: Sequence[str], folders: Collection[Path]) -> bool:
    """Whether all cells that are not empty are addresses with ://, paths of texts, or files in one of the folders."""

    def is_file(cell: str) -> bool:
        if len(cell) > _MAX_PATH or os.path.isabs(cell) or ".." in cell.split("/"):
            return False
        with contextlib.suppress(OSError, ValueError):
            return any((folder / cell).is_file() for folder in folders)
        return False

    known = [cell.strip() for cell in cells if cell.strip()]
    is_elsewhere = (
        ("://" in cell and is_address(cell)) or _PATH_OF_TEXT.fullmatch(cell) or is_file(cell) for cell in known
    )
    return bool(known) and all(is_elsewhere)


def is_address(cell: str) -> bool:
    """Whether a cell is an address and nothing else."""
    return _ADDRESS.fullmatch(cell.strip()[:_MAX_CELL]) is not None


def is_number(cell: str) -> bool:
    """Whether a cell is a number, a date or the like: digits and signs without letters."""
    return any(char.isdigit() for char in cell[:100]) and not any(char.isalpha() for char in cell[:100])


def text_column(
    rows: Sequence[Sequence[str]],
    *,
    names: Sequence[str] | None = None,
    taken: Collection[int | None] = (),
    of_media: bool = True,
    codes: bool = False,
) -> int | None:
    """The column of rows that most likely holds the words; None where none can.

    names: of the columns. taken: columns that are something else. of_media: whether the rows have media, which a
    single word may be the class of. codes: whether formulas and codes count too, where the rows have media.
    """
    best, found, written = (), None, []
    for index in range(max(map(len, rows), default=0)):
        if index in taken:
            continue
        cells = [row[index] for row in rows if index < len(row)]
        name = names[index] if names is not None and index < len(names) else ""
        count, is_like = text_content_of(cells), is_text_column_name(name)
        if codes and of_media and count != SEVERAL and is_text_like(cells, name=name):
            if _is_called_so(name) and (count == NONE or not is_like):
                is_like, count = True, ONE if "label" in name.lower() else SEVERAL
            elif count == NONE and (is_like or not is_metadata_column(name)):
                written.append(index)
        if count == NONE or (not is_like and (is_metadata_column(name) or (count == ONE and not of_media))):
            continue
        rank = (is_like, count, name.strip().lower() != "name", sum(map(len, cells)), index)
        if rank > best:
            best, found = rank, index
    return written[0] if found is None and len(written) == 1 else found


def is_text_column_name(name: str) -> bool:
    """Whether a column is called like one of words (`caption_en`), and not like one about them (`caption_id`)."""
    last = next(reversed(words_of_field(name[:200])), "")
    if last == "alt" or any(word in last for word in _LIKE_WORDS):
        return True
    return bool(last) and any(word in name.lower() for word in _LIKE_WORDS) and not is_metadata(name)


def is_metadata_column(name: str) -> bool:
    """Whether a column is called like one of a split, or of what was noted of a row."""
    return bool(split_field_kind(name)) or (is_metadata(name) and words_of_field(name[:200])[-1] not in _CLASSES)


def _num_words(cell: str) -> int:
    if is_media_path(cell) or _OBJECTS.fullmatch(cell):
        return 0
    tokens = cell.split()
    count = sum(_is_word(token, alone=len(tokens) == 1) for token in tokens)
    # a letter beside a number is a position or a size
    bare = [token.strip(_AROUND).lower() for token in tokens]
    measures = sum(token in _UNITS or (len(token) == 1 and token.isascii() and token.isalpha()) for token in bare)
    if (measures == count and len(tokens) > count) or 3 * count < len(tokens):
        return 0
    # two such signs are about a word
    return max(count, len(_WITHOUT_BLANKS.findall(cell)) // 2) if count else 0


def _is_code(cell: str) -> bool:
    """Whether a cell is a formula or a code: no number, measure, address, name of a file, flag or JSON."""
    is_path = is_media_path(cell) or is_address(cell) or _FILE.fullmatch(cell)
    if is_path or _JSON.fullmatch(cell) or _NO_CODE.fullmatch(cell) or cell.lower() in _NO_WORDS:
        return False
    if not any(char.isalpha() for char in cell):
        return _SUM.search(cell) is not None or any(char >= _FIRST_SYMBOL for char in cell)
    tokens = [token.strip(_AROUND).lower() for token in cell.split()]
    units = [re.sub(r"^[\d.,:/-]+", "", token) for token in tokens]
    return any(sign in cell for sign in "=^\\") or any(
        unit and unit not in _UNITS and not _SIZE.fullmatch(token) and (len(unit) > 1 or len(units) == 1)
        for token, unit in zip(tokens, units, strict=True)
    )


def _is_word(token: str, *, alone: bool) -> bool:
    bare = token.strip(_AROUND)
    if is_address(token) or not any(char.isalpha() for char in bare):
        return False
    if not bare.isascii():
        return "/" not in bare or not alone
    # of one that stands alone more is to be known than of one among others
    is_path = "/" in bare or "\\" in bare or "@" in bare or _FILE.fullmatch(bare)
    is_other = alone and (is_path or bare.lower() in _NO_WORDS or len(bare) > _MAX_WORD)
    return not any(char.isdigit() for char in bare) and not is_other
