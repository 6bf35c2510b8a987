"""What the beginning of a table or list shows: how it is written, and which column names media that are where.

`csv.Sniffer` takes any character for a delimiter, and two sentences may have as many commas as bars. Here the character
behind names of media decides, then the one that all lines have equally often, then the most frequent of the first line.
A cell may name a file without its folder or its extension (LJSpeech's `LJ001-0001` is wavs/LJ001-0001.wav), and the
paths may hold in a folder above the table. The column, folder, prefix and extension that name the most files are taken.
"""

import codecs
import contextlib
import csv
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brine.data.files.compressed import head_of
from brine.data.files.extensions import SUPPORTED, media_type_of
from brine.data.files.text import foreign_encoding
from brine.data.files.walk import walk
from brine.data.formats.splits.names import split_words, word_set, words_of_name

_MAX_FILES, _MAX_NAMESAKES, MAX_COLUMNS = 50_000, 8, 200
_NUMBERED = re.compile(r"\.\w{2,5}#\d{1,3}$")
# names of folders whose files tell about those in other folders
_ABOUT_OTHERS = word_set(
    "meta metadata annotation annotations annots label labels caption captions text texts transcript transcripts table "
    "tables csv json splits info"
)
DELIMITERS = ",\t;|"
_HEAD_BYTES, _READ_BYTES, _ROWS = 2**20, 2**28, 50
_QUOTED = re.compile(r'"[^"]*"')
_BEHIND = re.compile(r"\.(\w{2,5})(?:#\d{1,3})?\"?([,\t;|])")


@dataclass(frozen=True)
class CsvForm:
    """How a table is written, and its first rows."""

    encoding: str
    delimiter: str
    quoted: bool
    rows: list[list[str]]

    def read(self, lines) -> Iterator[list[str]]:
        """The rows of some lines that are not empty."""
        csv.field_size_limit(2**30)
        quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return filter(None, csv.reader(lines, delimiter=self.delimiter, quoting=quoting))


def sniff_csv(file: Path) -> CsvForm:
    """Encoding, delimiter, quotes and the first 50 rows of a table."""
    head = head_of(file, _HEAD_BYTES)
    if not head:
        return CsvForm("utf-8-sig", ",", True, [])
    encoding = foreign_encoding(head[:64]) or _encoding(file)
    lines = head.decode(encoding, "replace").replace("\0", "").lstrip("\ufeff").splitlines(keepends=True)
    if len(head) == _HEAD_BYTES and len(lines) > 1:
        # the last one continues behind the head
        lines.pop()
    lines = lines[: 4 * _ROWS]
    delimiter = delimiter_of(lines)
    # bars and tabs are written by programs that know no quotes, unless every line has pairs of them
    quoted = delimiter in ",;" or (delimiter == "\t" and all(line.count('"') % 2 == 0 for line in lines))
    form = CsvForm(encoding, delimiter, quoted, [])
    with contextlib.suppress(csv.Error):
        form.rows.extend(itertools.islice(form.read(lines), _ROWS))
    return form


def delimiter_of(lines: list[str]) -> str:
    """The delimiter of some lines; of several that all have equally often a tab, or the first in a line."""
    behind = Counter(
        mark for line in lines for ending, mark in _BEHIND.findall(line[:4096]) if ending.lower() in SUPPORTED
    )
    known, first = [line for line in lines if line.strip()], lines[0] if lines else ""
    # a sentence may name a file too
    behind = {mark: count for mark, count in behind.items() if 4 * count >= len(known)}
    unquoted = [_QUOTED.sub("", line) for line in known]

    def rank(mark: str) -> tuple:
        counts = ({line.count(mark) for line in each} for each in (known, unquoted))
        alike = mark in first and any(len(each) == 1 and each != {0} for each in counts)
        index = (-first.index(mark) if mark != "\t" else 1) if alike else 0
        in_each = mark in first and all(mark in line for line in unquoted)
        return behind.get(mark, 0), alike, index, in_each, first[:4096].count(mark), -DELIMITERS.index(mark)

    return max(DELIMITERS, key=rank)


def _encoding(file: Path) -> str:
    """UTF-8 or Windows-1252 where the first 256 MiB of a file can be read in it, else Latin-1."""
    for encoding in ("utf-8", "cp1252"):
        decoder = codecs.getincrementaldecoder(encoding)()
        with contextlib.suppress(UnicodeDecodeError), open(file, "rb") as stream:
            for _ in range(_READ_BYTES // _HEAD_BYTES):
                block = stream.read(_HEAD_BYTES)
                decoder.decode(block, final=not block)
                if not block:
                    break
            return "utf-8-sig" if encoding == "utf-8" else encoding
    return "latin-1"


@dataclass(frozen=True)
class MediaColumn:
    """Where the media are that a column names."""

    base: Path  # folder in which the paths hold
    column: int | None = None  # None where none names files
    before: str = ""  # what precedes a cell in the path of its file
    behind: str = ""  # what follows it
    by_name: bool = False
    """Whether the files are in many folders, and found by their names, or those without the extension `behind`."""
    count: int = 0  # how many of the cells that were looked at name files
    is_first: bool = False  # whether the first cell names a file, and is not a header
    is_numbered: bool = False  # whether a number follows each name (Flickr8k's `1.jpg#0`)

    @functools.cached_property
    def _paths(self) -> dict[str, str]:
        files = sorted(path.relative_to(self.base) for path in self.base.rglob("*"))
        stems = {path.stem: path.as_posix() for path in files if path.suffix == self.behind}
        return stems if self.behind else {path.name: path.as_posix() for path in files}

    def path_of(self, cell: str) -> str:
        cell = cell.partition("#")[0] if self.is_numbered else cell
        return self._paths.get(cell, cell) if self.by_name else f"{self.before}{cell}{self.behind}"

    def is_above(self, file: Path) -> bool:
        """Whether `base` is another folder than the file's."""
        return self.base != file.parent.resolve()


class MediaFiles:
    """The media below folders, each folder walked once."""

    def __init__(self):
        self._found: dict[Path, tuple[set[str], dict[str, list[str]]]] = {}

    def below(self, base: Path) -> tuple[set[str], dict[str, list[str]]]:
        """(paths of the media below a folder, name with or without extension -> such paths)."""
        if base not in self._found:
            files = [path for path, why in itertools.islice(walk(base), _MAX_FILES) if not why and media_type_of(path)]
            by_name: dict[str, list[str]] = {}
            for path in files:
                name = path.rsplit("/", 1)[-1]
                for key in {name, os.path.splitext(name)[0]}:
                    by_name.setdefault(key, []).append(path)
            self._found[base] = set(files), by_name
        return self._found[base]

    def find_column(self, rows: list[list[str]], file: Path, *, root: Path | None = None) -> MediaColumn:
        """The media column of a table or list, with paths below its folder, or the nearest one above.

        Folders above are searched up to `root`; without one, only above a folder named like `annotations` or `meta`.
        """
        own = file.parent.resolve()
        if root is not None:
            most = len(own.relative_to(root.resolve()).parts)
        else:
            most = int(not _ABOUT_OTHERS.isdisjoint(words_of_name(own.name)))
        best = MediaColumn(own)
        for base in (own, *own.parents[:most]):
            found = self._column_below(rows, base, file)
            # one row or two may name a file elsewhere by chance
            if found.count > best.count and (base == own or 2 * found.count >= len(rows) - 1):
                best = found
            if best.count and best.count >= len(rows) - 1:
                break
        return best

    def _column_below(self, rows: list[list[str]], base: Path, file: Path) -> MediaColumn:
        (there, by_name), best, rank = self.below(base), MediaColumn(base), (0, False)
        splits = {split for step in (*file.parts[-3:-1], file.stem) for _, split, _ in split_words(step)}
        for column in range(min(MAX_COLUMNS, min(map(len, rows), default=0))):
            cells = [row[column] for row in rows]
            is_numbered = sum(bool(_NUMBERED.search(cell)) for cell in cells) >= max(1, len(cells) - 1)
            cells = [cell.partition("#")[0] for cell in cells] if is_numbered else cells
            around = {("", "")}
            for cell in filter(None, cells):
                name = cell.rsplit("/", 1)[-1]
                for path in by_name.get(name, ())[:_MAX_NAMESAKES]:
                    # not its last position in the path: `c` is in `c.flac` twice
                    at = path.rfind("/") + 1 + len(name) - len(cell)
                    is_it = at >= 0 and path.startswith(cell, at) and (not at or path[at - 1] == "/")
                    ending = path[at + len(cell) :]
                    if is_it and (not ending or (ending[0] == "." and ending[1:].lower() in SUPPORTED)):
                        around.add((path[:at], ending))
            for before, behind in sorted(around):
                found = [f"{before}{cell}{behind}" in there for cell in cells]
                # of two folders with the same names that of the table's split
                is_own = any(split in splits for step in before.split("/") for _, split, _ in split_words(step))
                if (sum(found), is_own and any(found)) > rank:
                    rank = (sum(found), is_own)
                    best = MediaColumn(base, column, before, behind, False, sum(found), found[0], is_numbered)
            # without the folders
            for ending in {ending for _, ending in around} if len(around) > 2 else ():
                names = ([path.rsplit("/", 1)[-1] for path in by_name.get(cell, ())] for cell in cells)
                found = [each.count(cell + ending) == 1 for each, cell in zip(names, cells, strict=True)]
                if sum(found) > rank[0]:
                    rank = (sum(found), False)
                    best = MediaColumn(base, column, "", ending, True, sum(found), found[0], is_numbered)
        return best
