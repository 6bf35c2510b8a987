"""What a folder without a manifest holds, by the names in it; and what is said where that would lose something.

    folder_format(path, root)    one of FORMATS; ValueError with the remedy where nothing fits
    table_remedy(file, name)     the command that makes a metadata.jsonl of a table of words (metadata.csv)

A folder of media must not become something that its media are no part of: where media, or files of media that are not
read, have no captions of their names beside them, texts of other names do not make a repository of it, nor does a
README (a data set's card) make it a folder of pages when a table holds the words. Such a folder is refused with what
is missing. A source tree (code in it, or .git) is a repository whatever media it has.
"""

import codecs
import csv
import itertools
import json
import os
import shlex
from collections import Counter
from pathlib import Path

from data.compressed import how_to_unpack, packing_in
from data.endings import FILM_OR_CODE, ending_of, medium_in, medium_of, remedy_for
from data.formats.media_folder import TABLES
from data.formats.opening import unknown, what_packed
from data.formats.walk import walk
from data.pointers import pointer_in
from data.text import foreign_encoding

_WORDS = (".txt", ".caption", ".json")
_OTHERS = (".txt", ".json", ".xml", ".xlsx", ".srt", ".vtt")
_LOOKED_AT = 200_000
_DELIMITERS = ",\t;|"


class _Names:
    """The names in a folder, counted."""

    def __init__(self, root: Path):
        self.endings: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.tables: list[str] = []
        self.refused = ""
        self.others: list[str] = []
        self.num_media = self.films = 0
        self.paths: list[str] = []
        media, words = set(), set()
        for name, problem in itertools.islice(walk(root), _LOOKED_AT):
            stem, ending = os.path.splitext(name)
            ending = ending.lower()
            if not problem:
                self.paths.append(name)
            self.endings[ending] += 1
            known = medium_of(name) if problem else medium_in(root, name)
            if known or remedy_for(name):
                media.add(stem)
                self.num_media += known is not None
                self.films += known is not None and ending[1:] in FILM_OR_CODE
                if not known:
                    self.unread[ending] += 1
            elif ending in _WORDS:
                words.add(stem)
            if ending in TABLES and problem:
                # what is no plain file must not be opened to tell its columns
                self.refused = self.refused or f"; {name!r} {problem}"
            elif ending in TABLES:
                self.tables.append(name)
            elif ending in _OTHERS and len(self.others) < 1000:
                self.others.append(name)
        self.num_pairs = len(media & words)
        self.others = [name for name in self.others if os.path.splitext(name)[0] not in media]

    def told(self) -> str:
        """The media in words."""
        unread = ", ".join(f"{n} {ending} ({remedy_for('x' + ending)})" for ending, n in sorted(self.unread.items()))
        read = f"{self.num_media} media files" if self.num_media else ""
        return " and ".join(filter(None, (read, unread and f"media that are not read: {unread}")))


def folder_format(path: Path, root: Path) -> str:
    """What the folder at `path` holds. Raises ValueError with the formats there are, or what to do."""
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return "datasets"
    names = _Names(root)
    endings = names.endings
    if (root / ".git").exists():
        return "repository"
    from data.formats.repository import CODE

    pages, texts = endings[".md"] + endings[".markdown"], endings[".txt"] + endings[".rst"]
    # an unread ending may be that of code too (.ts)
    code = sum(count for ending, count in endings.items() if ending in CODE and ending not in names.unread)
    code -= names.films
    if names.num_pairs > pages + code:
        return "media"
    num_media = names.num_media + names.unread.total()
    if names.tables and not code and pages <= 1 and texts <= 1 and not names.num_pairs:
        raise ValueError(f"{path} has its words in {table_remedy(root / names.tables[0], names.tables[0])}")
    if pages and not code:
        return "markdown"
    if code or pages or texts > num_media:
        return "repository"
    if num_media:
        raise ValueError(unknown(path, _no_words(names) + what_packed(root, names.paths)))
    if texts:
        return "repository"
    raise ValueError(unknown(path, "holds nothing that is read" + what_packed(root, names.paths)))


def _no_words(names: _Names) -> str:
    others = ", ".join(repr(name) for name in names.others[:3])
    return (
        f"holds {names.told()} but no words beside them"
        + (f" (files such as {others} have names of none)" if others else "")
        + ': write heron.txt beside heron.jpg, or a metadata.jsonl of lines {"file_name": "heron.jpg", "text": "..."}'
        + names.refused
    )


def table_remedy(file: Path, name: str) -> str:
    """What to do about a table of words, as the end of a sentence that begins with its name in the source."""
    if problem := pointer_in(file) or how_to_unpack(file):
        return f"{name!r}, which {problem}"
    if packing := packing_in(file):
        return f"{name!r}, which is compressed: unpack it by `{packing.unpack} {shlex.quote(file.name)} > unpacked.csv`"
    ending = ending_of(file.name)
    encoding, delimiter, header = _first_row(file)
    options = f", delimiter={json.dumps(delimiter)}" if delimiter != "," else ""
    if not {"file_name", "text"} & set(header):
        known = not any(medium_of(cell) for cell in header) and len(header) > 1 and delimiter != "|"
        names = [repr(cell[:40]) for cell in header[:6]]
        # without a header the first row is data already
        what = f"its columns are {', '.join(names)}; call" if known else "it has no header; call"
        note = f" ({what} that of the path file_name and that of the words text)"
        options += "" if known else ', fieldnames=("file_name", "text")'
    else:
        note = ""
    # as Python spells it: JSON would write a name beyond 16 bits as two halves
    spelt = json.dumps(file.name, ensure_ascii=False) if file.name.isprintable() else repr(file.name)
    program = (
        f"import csv, json; [print(json.dumps(row)) for row in csv.DictReader(open({spelt}, "
        f'encoding="{encoding}", newline=""){options})]'
    )
    return (
        f"{name!r}, and .{ending} is not read: write a metadata.jsonl from it, in its folder, by "
        f"`python -c {shlex.quote(program)} > metadata.jsonl`{note}"
    )


def _first_row(file: Path) -> tuple[str, str, list[str]]:
    """(encoding, delimiter, cells of the first row) of a table, as far as its first MiB tells."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(2**20)
    except OSError:
        return "utf-8-sig", ",", []
    encoding = foreign_encoding(head[:64])
    try:
        # a character that the end of what was read cuts is no fault
        codecs.getincrementaldecoder("utf-8")().decode(head if encoding is None else b"")
    except UnicodeDecodeError:
        encoding = "latin-1"
    encoding = encoding or "utf-8-sig"
    text = head[:4096].decode(encoding, "replace").replace("\0", "").removeprefix("\ufeff")
    line = next(iter(text.splitlines()), "")
    delimiter = max(_DELIMITERS, key=lambda mark: (line.count(mark), -_DELIMITERS.index(mark)))
    row = next(csv.reader([line], delimiter=delimiter), [])
    return encoding, delimiter, ["".join(char for char in cell if char.isprintable()) for cell in row]
