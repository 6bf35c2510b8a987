"""How a CSV or TSV is written: its encoding, its delimiter, its quotes and its first rows.

`csv.Sniffer` takes any character for a delimiter, and two sentences may have as many commas as bars. Here the character
behind names of media decides, then the one that all lines have equally often, then the most frequent of the first line.
"""

import codecs
import contextlib
import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brine.data.files.extensions import SUPPORTED
from brine.data.files.text import foreign_encoding

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
    try:
        with open(file, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
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
