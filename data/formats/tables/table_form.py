"""How a table of words is written: its encoding, what stands between its cells, and its first rows.

`csv.Sniffer` is not used: it takes any sign for a delimiter, and two sentences may well have as many commas as bars.
The sign behind names of media decides, then the one that all lines have equally often, then the most frequent in the
first line. What the columns mean is for `brine.data.formats.tables.word_tables` to say."""

import codecs
import contextlib
import csv
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from brine.data.files.extensions import SUPPORTED
from brine.data.files.text import foreign_encoding

DELIMITERS = ",\t;|"
_HEAD_BYTES = 2**20
_READ_BYTES = 2**28
_ROWS = 50
_QUOTED = re.compile(r'"[^"]*"')
_BEHIND = re.compile(r"\.(\w{2,5})(?:#\d{1,3})?\"?([,\t;|])")


@dataclass(frozen=True)
class CsvTable:
    """What the beginning of a CSV or TSV looks like."""

    encoding: str
    delimiter: str
    quoted: bool
    rows: list[list[str]]

    def reader(self, name: str, kind: str) -> str:
        """The call that reads the file of this name."""
        options = f", delimiter={json.dumps(self.delimiter)}" if self.delimiter != "," else ""
        options += "" if self.quoted else ", quoting=csv.QUOTE_NONE"
        return f'csv.{kind}(open({python_literal(name)}, encoding="{self.encoding}", newline=""){options})'


def sniff_csv(file: Path) -> CsvTable:
    """Encoding, delimiter and first rows."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return CsvTable("utf-8-sig", ",", True, [])
    encoding = foreign_encoding(head[:64]) or _encoding(file)
    text = head.decode(encoding, "replace").replace("\0", "").lstrip("\ufeff")
    lines = text.splitlines(keepends=True)
    if len(head) == _HEAD_BYTES and len(lines) > 1:
        # the last one goes on behind the head
        lines.pop()
    lines = lines[: 4 * _ROWS]
    delimiter = delimiter_of(lines)
    # bars and tabs are written by programs that know no quotes, unless every line has pairs of them
    quoted = delimiter in ",;" or (delimiter == "\t" and all(line.count('"') % 2 == 0 for line in lines))
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    rows = []
    with contextlib.suppress(csv.Error):
        rows.extend(filter(None, itertools.islice(reader, _ROWS)))
    return CsvTable(encoding, delimiter, quoted, rows)


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
        # bars are written by programs that know no quotes
        counts = ({line.count(mark) for line in each} for each in (known, unquoted))
        alike = mark in first and any(len(each) == 1 and each != {0} for each in counts)
        index = (-first.index(mark) if mark != "\t" else 1) if alike else 0
        in_each = mark in first and all(mark in line for line in unquoted)
        shown = first[:4096].count(mark)
        return behind.get(mark, 0), alike, index, in_each, shown, -DELIMITERS.index(mark)

    return max(DELIMITERS, key=rank)


def _encoding(file: Path) -> str:
    """UTF-8 or Windows-1252 where all of a file (its first 256 MiB) can be read in it, else Latin-1."""
    for encoding in ("utf-8", "cp1252"):
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            with open(file, "rb") as stream:
                for _ in range(_READ_BYTES // _HEAD_BYTES):
                    block = stream.read(_HEAD_BYTES)
                    decoder.decode(block, final=not block)
                    if not block:
                        break
            return "utf-8-sig" if encoding == "utf-8" else encoding
        except UnicodeDecodeError:
            continue
    return "latin-1"


def python_literal(text: str) -> str:
    """A text as a literal of Python."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)
