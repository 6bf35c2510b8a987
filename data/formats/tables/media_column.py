"""The column of a table or list whose cells name media, and where these files are.

A cell may name a file without its folder or its ending (LJSpeech's `LJ001-0001` is wavs/LJ001-0001.wav), and the paths
may hold in a folder above the table. The column, folder, prefix and ending that name the most files are taken.
"""

import functools
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brine.data.files.extensions import SUPPORTED, media_type_of
from brine.data.files.walk import walk
from brine.data.formats.splits.names import split_words, word_set, words_of_name

_MAX_FILES, _MAX_NAMESAKES, MAX_COLUMNS = 50_000, 8, 200
_NUMBERED = re.compile(r"\.\w{2,5}#\d{1,3}$")
# names of folders whose files tell about those in other folders
_ABOUT_OTHERS = word_set(
    "meta metadata annotation annotations annots label labels caption captions text texts transcript transcripts table "
    "tables csv json splits info"
)


@dataclass(frozen=True)
class MediaColumn:
    """Where the media are that a column names."""

    base: Path
    """Folder in which the paths hold."""
    column: int | None = None
    """The column; None where none names files."""
    before: str = ""
    """What precedes a cell in the path of its file."""
    behind: str = ""
    """What follows it."""
    by_name: bool = False
    """Whether the files are in many folders, and found by their names, or those without the ending `behind`."""
    count: int = 0
    """How many of the cells that were looked at name files."""
    is_first: bool = False
    """Whether the first cell names a file, and is not a header."""
    is_numbered: bool = False
    """Whether a number follows each name (Flickr8k's `1.jpg#0`)."""

    @functools.cached_property
    def _paths(self) -> dict[str, str]:
        files = sorted(path.relative_to(self.base) for path in self.base.rglob("*"))
        stems = {path.stem: path.as_posix() for path in files if path.suffix == self.behind}
        return stems if self.behind else {path.name: path.as_posix() for path in files}

    def path_of(self, cell: str) -> str:
        """The path of a cell's file, relative to `base`."""
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
        """(paths of the media below a folder, name with or without ending -> such paths)."""
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
                    if is_it and _is_ending(path[at + len(cell) :]):
                        around.add((path[:at], path[at + len(cell) :]))
            for before, behind in sorted(around):
                found = [f"{before}{cell}{behind}" in there for cell in cells]
                # of two folders with the same names that of the table's split
                is_own = any(split in splits for step in before.split("/") for _, split, _ in split_words(step))
                if (sum(found), is_own and any(found)) > rank:
                    rank = (sum(found), is_own)
                    best = MediaColumn(base, column, before, behind, False, sum(found), found[0], is_numbered)
            # without the folders
            for ending in {ending for _, ending in around} if len(around) > 2 else ():
                found = [_is_one(by_name.get(cell, ()), cell + ending) for cell in cells]
                if sum(found) > rank[0]:
                    rank = (sum(found), False)
                    best = MediaColumn(base, column, "", ending, True, sum(found), found[0], is_numbered)
        return best


def _is_one(paths: Sequence[str], name: str) -> bool:
    """Whether just one of these paths is of a file of this name."""
    return sum(path.rsplit("/", 1)[-1] == name for path in paths) == 1


def _is_ending(text: str) -> bool:
    return not text or (text.startswith(".") and text[1:].lower() in SUPPORTED)
