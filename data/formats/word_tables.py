"""Tables of words (metadata.csv, captions.tsv): the command that makes the lines of a manifest of one.

    table_remedy(file, name)    what to do about a table, as the end of a sentence that begins with its name
    place_of(rows, file)        where the media lie that cells name, and what is missing of their paths

A table is not read, since what its columns mean would have to be guessed anew whenever it is. It is guessed once here,
by looking at the files that lie around it, and the guess stands in a command that a person can read and change:

    encoding     UTF-8, UTF-16 or UTF-32; else Windows-1252, or Latin-1 where that has no such character
    delimiter    of , TAB ; | the one behind the names of media; else the one that every line has equally often; else
                 the most frequent in the first line. Quotes are signs like others where they do not pair
    path         the column whose cells name files, with a folder before them and an ending behind where they lack those
                 (LJSpeech's `LJ001-0001` is wavs/LJ001-0001.wav, Common Voice's path lies in clips/)
    place        the table's folder, or the nearest above it below which the files lie (ESC-50's audio/ and meta/);
                 there the command is run and the paths hold
    words        a column that has a known name (`data.formats.fields`), unless all its cells say where the words lie;
                 else what looks most like it, or none at all (`data.formats.word_columns`); a question and its answer
                 become a conversation

Columns that need no change are left as they are, so that splits and marks are kept. The command reads all of the table
before the shell has a whole line, and what it cannot be sure of is said behind it.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.compressed import how_to_unpack, packing_in
from data.endings import READ, medium_of
from data.formats.fields import FIELDS, PAIRS, WORDS
from data.formats.splits import folder_of_split, named_after
from data.formats.table_form import Table, look_at, spelt
from data.formats.walk import walk
from data.formats.word_columns import (
    is_address,
    is_number,
    is_written,
    lie_elsewhere,
    tells_about,
    words_column,
    words_in,
)
from data.pointers import pointer_in
from data.split_names import split_words, words_of_name

_TABLES, _MANIFESTS = (".csv", ".tsv"), (".jsonl", ".ndjson", ".jsonlines")
_FILES = 50_000
_ALIKE, _COLUMNS = 8, 200
_NUMBERED = re.compile(r"\.\w{2,5}#\d{1,3}$")
_ABOUT_OTHERS = {"meta", "metadata", "annotation", "annotations", "annots", "label", "labels", "caption", "captions"}
_ABOUT_OTHERS |= {"text", "texts", "transcript", "transcripts", "table", "tables", "csv", "json", "splits", "info"}
_NAMES = {*FIELDS, *WORDS, *(name for pair in PAIRS for name in pair), "id", "name", "split", "key", "class"}


@dataclass(frozen=True)
class Place:
    """Where the media lie that a column names."""

    base: Path
    """Folder in which the paths hold."""
    column: int | None = None
    """The column; None where none names files."""
    before: str = ""
    """What stands before a cell in the path of its file."""
    behind: str = ""
    """What stands behind it."""
    by_name: bool = False
    """Whether the files lie in many folders, and are found by their names, or those without the ending `behind`."""
    count: int = 0
    """How many of the cells that were looked at name files."""
    is_first: bool = False
    """Whether the first of the cells names a file, and is no header."""
    is_numbered: bool = False
    """Whether a number stands behind each name (Flickr8k's `1.jpg#0`)."""

    def around(self, cell: str) -> str:
        """The expression of a path, of that of a cell."""
        cell += '.partition("#")[0]' if self.is_numbered else ""
        if self.by_name:
            return f"n.get({cell}, {cell})"
        return " + ".join(filter(None, (self.before and spelt(self.before), cell, self.behind and spelt(self.behind))))

    @property
    def names(self) -> str:
        """The statement that `around` needs before it."""
        return self.names_below(".")

    def names_below(self, folder: str) -> str:
        """The same where the command is run above the place."""
        if not self.by_name:
            return ""
        name, which = ("stem", f" if p.suffix == {spelt(self.behind)}") if self.behind else ("name", "")
        return f'n = {{p.{name}: p.as_posix() for p in sorted(pathlib.Path({spelt(folder)}).rglob("*")){which}}}; '

    def is_above(self, file: Path) -> bool:
        """Whether that is another folder than the file's own."""
        return self.base != file.parent.resolve()


def table_remedy(file: Path, name: str, *, alone: bool = True, sole: bool = True, root: Path | None = None) -> str:
    """What to do about a table of words, as the end of a sentence that begins with its name in the source.

    One that is not `alone` in its folder, or named after a split, keeps its name, for a metadata.jsonl hides others;
    so does one that is given by itself, where others lie beside it.
    sole: whether the source has no other table. root: the folder that media are looked for in.
    """
    if problem := pointer_in(file) or how_to_unpack(file):
        return f"{name!r}, which {problem}"
    if packing := packing_in(file):
        out = shlex.quote(file.name.partition(".")[0] + (".tsv" if ".tsv" in file.name.lower() else ".csv"))
        out = out if out != file.name else f"unpacked-{out}"
        return f"{name!r}, which is compressed: unpack it by `{packing.unpack} {shlex.quote(file.name)} > {out}`"
    table = look_at(file)
    place = place_of(table.rows, file, root=root)
    kind, row, note = _meaning(table, place, file)
    shown = os.path.relpath(file.resolve(), place.base)
    program = (
        f"import csv, json{', pathlib' if place.by_name else ''}; csv.field_size_limit(2**30); {place.names}"
        f"[print(json.dumps({row})) for row in {table.reader(shown, kind)}{' if row' if kind == 'reader' else ''}]"
    )
    is_above, out = place.is_above(file), f"{file.stem}.jsonl"
    if root is None and (alone or sole):
        alone = sole = not _has_others(file, place.base)
    if not split_words(file.stem):
        # those of several folders are written into one, where their names must differ
        is_metadata = sole and not folder_of_split(file, place.base) if is_above else alone
        out = "metadata.jsonl" if is_metadata else named_after(file, place.base)
    where = f"in the folder {str(place.base)!r}, where its paths hold" if is_above else "in its folder"
    return (
        f"{name!r}, and {os.path.splitext(file.name)[1].lower()} is not read: write a {out} from it, {where}, by "
        f"`python -c {shlex.quote(program)} > {shlex.quote(out)}`{note}"
    )


def _has_others(file: Path, base: Path) -> bool:
    """Whether beside a table lies another one, or there or where its paths hold a manifest named after a split."""
    for folder in {file.parent.resolve(), base}:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                stem, ending = os.path.splitext(entry.name)
                is_beside = ending.lower() in _TABLES and (folder == file.parent.resolve() or split_words(stem))
                is_manifest = ending.lower() in _MANIFESTS and split_words(stem)
                if entry.name != file.name and (is_beside or is_manifest):
                    return True
    return False


def _meaning(table: Table, place: Place, file: Path) -> tuple[str, str, str]:
    """(reader of the csv module, expression of a row's object, note on what was guessed)."""
    rows, header = table.rows, [_plain(cell) for cell in table.rows[0]] if table.rows else []
    known = _NAMES.intersection(cell.strip().lower() for cell in header)
    column = place.column
    has_value = any(medium_of(cell) or is_address(cell) for cell in header) or _begins_with_numbers(rows)
    bare = has_value or place.is_first or (column is None and (len(header) == 1 or table.delimiter == "|"))
    if rows and not known and bare:
        return _without_header(rows, place)
    return _with_header(rows, header, place, {file.parent, place.base})


def _begins_with_numbers(rows: list[list[str]]) -> bool:
    """Whether the first row has a number where all others have one, as no header does."""
    columns = range(min(_COLUMNS, min(map(len, rows), default=0))) if len(rows) > 1 else ()
    return any(all(is_number(row[place]) for row in rows) for place in columns)


def _without_header(rows: list[list[str]], place: Place) -> tuple[str, str, str]:
    """Cells by their places."""
    note, column = "", place.column
    if column is None and len(rows[0]) == 1 and words_in([row[0] for row in rows]):
        return "reader", '{"text": row[0]}', " (it has no header)"
    if column is None:
        column = next((place for place, cell in enumerate(rows[0]) if medium_of(cell)), None)
        address = next((place for place, cell in enumerate(rows[0]) if is_address(cell)), column)
        column = (address if column is None else column) or 0
        note = "it has no header, and the cells of its paths name no file here: put what is missing before or behind"
        if is_address(rows[0][column]):
            note = "it has no header, and addresses, which are not fetched: put the path of what was downloaded for"
        note += f" row[{column}]"
    wordy = words_column(rows, taken={column}, codes=True)
    if wordy is None:
        note += f'{"; " * bool(note)}no cells of its rows hold words: put them behind "file_name" as "text"'
        return "reader", f'{{"file_name": {place.around(f"row[{column}]")}}}', f" ({note})"
    if max(map(len, rows)) > 2:
        note += f"{'; ' * bool(note)}row[{wordy}] is taken for the words"
    # rows may be short of a cell at the end
    cell = "row[-1]" if wordy == max(map(len, rows)) - 1 and len({len(row) for row in rows}) > 1 else f"row[{wordy}]"
    note = f" ({note})" if note else ""
    return "reader", f'{{"file_name": {place.around(f"row[{column}]")}, "text": {cell}}}', note


def _free(name: str, names: Collection[str]) -> str:
    """A name that no other column has."""
    return name if name not in names else _free(f"{name}_", names)


def _with_header(
    rows: list[list[str]], header: list[str], place: Place, folders: Collection[Path]
) -> tuple[str, str, str]:
    """Cells by their names. folders: those in which files of words may lie."""
    names = {name: number for number, name in enumerate(header)}
    column, behind = place.column, place.behind
    is_known = column is not None and header[column] in FIELDS and not (place.before or behind or place.by_name)
    named = [name for name in names if name in FIELDS and name != "text"]
    changed, drop, note = {}, [], ""
    if column is not None and not is_known:
        changed["file_name"] = place.around(f"row[{spelt(header[column])}]")
        drop.append(header[column])
    pair = next((pair for pair in PAIRS if names.keys() >= set(pair)), None)
    cells = {name: [row[number] for row in rows[1:] if number < len(row)] for name, number in names.items()}
    # the reader knows these in any case
    called = sorted((name for name in names if name.lower() in WORDS), key=lambda name: WORDS.index(name.lower()))
    # what is called words may be where they lie (`transcript`: "a.txt")
    elsewhere = [name for name in called if lie_elsewhere(cells[name], folders)]
    words = next((name for name in called if names[name] != column and name not in elsewhere), None)
    taken = {column, *(names[name] for name in (*named, *elsewhere))}
    moved = {name: _free(f"{name}_file", names) for name in elsewhere if names[name] != column}
    drop += moved
    changed |= {new: f"row[{spelt(name)}]" for name, new in moved.items()}
    number, has_media = None, column is not None or bool(named)
    if words is None and pair is not None:
        drop += pair
        kind = medium_of("x" + behind) or (medium_of(rows[1][column]) if column is not None and len(rows) > 1 else None)
        mark = f'"<{kind.__name__.lower()}>\\n" + ' if kind else ""
        ask, answer = (f"row[{spelt(name)}]" for name in pair)
        turns = f'[{{"role": "user", "content": {mark}{ask}}}, {{"role": "assistant", "content": {answer}}}]'
        changed["messages"] = turns
    elif words is None:
        number = words_column(rows[1:], names=header, taken=taken, of_media=has_media, codes=True)
        if number is not None:
            changed["text"] = f"row[{spelt(header[number])}]"
            drop.append(header[number])
    if (
        words is None
        and not changed.keys() & {"text", "messages"}
        and not is_written(cells.get("label", ()), name="label")
    ):
        # numbers of classes would be read as words, since words are what a label holds in lines that people write
        drop += [name for name in ("label",) if name in names]
    has_none = words is None and pair is None and number is None and len(rows) > 1
    if (column is None and not named) or "text" in changed or has_none:
        shown = ", ".join(repr(name[:40]) for name in header[:6]) + (", ..." if len(header) > 6 else "")
        path = " that of the path file_name" if column is None and not named else ""
        note = f" (its columns are {shown}; call{path}{' and' * bool(path)} that of the words text, if this is another)"
        if has_none:
            note = f" (its columns are {shown}, and none of them holds words: add a column text with them"
            likely = [name for name in names if names[name] not in taken and not tells_about(name)]
            likely = [name[:40] for name in likely if is_written(cells[name])][:3]
            note += f", or call one so ({', '.join(map(repr, likely))})" if has_media and likely else ""
            note += f"; call{path}, if there is one)" if path else ")"
    for name, new in moved.items():
        note += (
            f" (the column {name[:40]!r} holds addresses or names of files, and no words: it is kept as {new[:50]!r})"
        )
    if not changed and not drop:
        return "DictReader", "{k: v for k, v in row.items() if k}", note
    kept = f"{{k: v for k, v in row.items() if k and k not in {tuple(drop)!r}}}"
    changes = ", ".join(f"{json.dumps(k)}: {v}" for k, v in changed.items())
    return "DictReader", f"{kept} | {{{changes}}}" if changes else kept, note


def place_of(rows: list[list[str]], file: Path, *, root: Path | None = None) -> Place:
    """Where the media lie that a column of a table or list names: below its folder, or the nearest one above that.

    Folders above are looked into up to `root`. Where no root is known it is the one above a folder that is called after
    what tells about others (annotations, meta): beside any other the same names may be those of other data.
    """
    own = file.parent.resolve()
    if root is not None:
        most = len(own.relative_to(root.resolve()).parts)
    else:
        most = int(not _ABOUT_OTHERS.isdisjoint(words_of_name(own.name)))
    best = (0, Place(own))
    for base in (own, *own.parents[:most]):
        count, place = _path_column(rows, base, file)
        # one row or two may name a file elsewhere by chance
        if count > best[0] and (base == own or 2 * count >= len(rows) - 1):
            best = (count, place)
        if best[0] and best[0] >= len(rows) - 1:
            break
    return best[1]


def _path_column(rows: list[list[str]], base: Path, file: Path) -> tuple[int, Place]:
    """How many of the cells name files below a folder, and how."""
    files = [path for path, why in itertools.islice(walk(base), _FILES) if not why and medium_of(path)]
    by_base: dict[str, list[str]] = {}
    for path in files:
        name = path.rsplit("/", 1)[-1]
        for key in {name, os.path.splitext(name)[0]}:
            by_base.setdefault(key, []).append(path)
    there, best = set(files), (0, False, Place(base))
    splits = {split for step in (*file.parts[-3:-1], file.stem) for _, split, _ in split_words(step)}
    for column in range(min(_COLUMNS, min(map(len, rows), default=0))):
        cells = [row[column] for row in rows]
        is_numbered = sum(bool(_NUMBERED.search(cell)) for cell in cells) >= max(1, len(cells) - 1)
        cells = [cell.partition("#")[0] for cell in cells] if is_numbered else cells
        around = {("", "")}
        for cell in filter(None, cells):
            for path in by_base.get(cell.rsplit("/", 1)[-1], ())[:_ALIKE]:
                # not its last place in the path: `c` is in `c.flac` twice
                at = path.rfind("/") + 1 + len(cell.rsplit("/", 1)[-1]) - len(cell)
                is_it = at >= 0 and path.startswith(cell, at) and (not at or path[at - 1] == "/")
                if is_it and _is_ending(path[at + len(cell) :]):
                    around.add((path[:at], path[at + len(cell) :]))
        for before, behind in sorted(around):
            count = sum(f"{before}{cell}{behind}" in there for cell in cells)
            # of two folders with the same names that of the table's own split
            is_own = any(split in splits for step in before.split("/") for _, split, _ in split_words(step))
            if (count, is_own and count > 0) > best[:2]:
                is_first = f"{before}{cells[0]}{behind}" in there
                place = Place(base, column, before, behind, count=count, is_first=is_first, is_numbered=is_numbered)
                best = (count, is_own, place)
        # with the folders left out
        for ending in {ending for _, ending in around} if len(around) > 2 else ():
            count = sum(_is_one(by_base.get(cell, ()), cell + ending) for cell in cells)
            if count > best[0]:
                is_first = _is_one(by_base.get(cells[0], ()), cells[0] + ending)
                place = Place(
                    base, column, behind=ending, by_name=True, count=count, is_first=is_first, is_numbered=is_numbered
                )
                best = (count, False, place)
    return best[0], best[2]


def _is_one(paths: Sequence[str], name: str) -> bool:
    """Whether just one of these paths is of a file of this name."""
    return sum(path.rsplit("/", 1)[-1] == name for path in paths) == 1


def _is_ending(text: str) -> bool:
    return not text or (text.startswith(".") and text[1:].lower() in READ)


def _plain(cell: str) -> str:
    return "".join(char for char in cell if char.isprintable())
