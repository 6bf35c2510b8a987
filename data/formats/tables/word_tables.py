"""Tables of words (metadata.csv, captions.tsv): the command that makes the lines of a manifest of one.

    table_hint(file, name)            what to do about a table, as the end of a sentence that begins with its name
    find_media_column(rows, file)     where the media lie that cells name, and what is missing of their paths

A table is not read, since what its columns mean has to be guessed. It is guessed once here, from the files around it,
and the guess stands in a command that a person can read and change: the column whose cells name files, with the folder
before them and the ending behind them (LJSpeech's `LJ001-0001` is wavs/LJ001-0001.wav); the folder in which the paths
hold, at or above the table's; and the column of the words (`word_columns`). A question and its answer become a
conversation, other columns are kept, and what is not sure is said behind the command.
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

from brine.data.files.compressed import detect_compression, unpack_hint
from brine.data.files.extensions import SUPPORTED, media_type_of
from brine.data.files.pointers import pointer_in
from brine.data.files.walk import walk
from brine.data.formats.lines.fields import FIELDS, PAIRS, WORDS
from brine.data.formats.splits.names import split_words, word_set, words_of_name
from brine.data.formats.splits.rules import folder_of_split, manifest_name_for
from brine.data.formats.tables.table_form import CsvTable, python_literal, sniff_csv
from brine.data.formats.tables.word_columns import (
    are_external,
    is_address,
    is_metadata_column,
    is_number,
    is_text_like,
    text_column,
    text_content_of,
)

_TABLES, _MANIFESTS = (".csv", ".tsv"), (".jsonl", ".ndjson", ".jsonlines")
_MAX_FILES, _MAX_NAMESAKES, _MAX_COLUMNS = 50_000, 8, 200
_NUMBERED = re.compile(r"\.\w{2,5}#\d{1,3}$")
# names of folders whose files tell about those in other folders
_ABOUT_OTHERS = word_set(
    "meta metadata annotation annotations annots label labels caption captions text texts transcript transcripts table "
    "tables csv json splits info"
)
_NAMES = {*FIELDS, *WORDS, *(name for pair in PAIRS for name in pair), "id", "name", "split", "key", "class"}


@dataclass(frozen=True)
class MediaPathColumn:
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
        before, behind = (text and python_literal(text) for text in (self.before, self.behind))
        return " + ".join(filter(None, (before, cell, behind)))

    @property
    def names(self) -> str:
        """The statement that `around` needs before it."""
        return self.names_below(".")

    def names_below(self, folder: str) -> str:
        """The same where the command is run in another folder."""
        if not self.by_name:
            return ""
        name, which = ("stem", f" if p.suffix == {python_literal(self.behind)}") if self.behind else ("name", "")
        paths = f'sorted(pathlib.Path({python_literal(folder)}).rglob("*"))'
        return f"n = {{p.{name}: p.as_posix() for p in {paths}{which}}}; "

    def is_above(self, file: Path) -> bool:
        """Whether that is another folder than the file's own."""
        return self.base != file.parent.resolve()


def table_hint(file: Path, name: str, *, alone: bool = True, sole: bool = True, root: Path | None = None) -> str:
    """What to do about a table of words, as the end of a sentence that begins with its name in the source.

    alone: whether its folder has no other, so that a metadata.jsonl hides none. sole: whether the source has no other
    table. root: the folder that media are looked for in.
    """
    if problem := pointer_in(file) or unpack_hint(file):
        return f"{name!r}, which {problem}"
    if packing := detect_compression(file):
        out = shlex.quote(file.name.partition(".")[0] + (".tsv" if ".tsv" in file.name.lower() else ".csv"))
        out = out if out != file.name else f"unpacked-{out}"
        return f"{name!r}, which is compressed: unpack it by `{packing.unpack} {shlex.quote(file.name)} > {out}`"
    table = sniff_csv(file)
    media = find_media_column(table.rows, file, root=root)
    kind, row, note = _meaning(table, media, file)
    shown = os.path.relpath(file.resolve(), media.base)
    program = (
        f"import csv, json{', pathlib' if media.by_name else ''}; csv.field_size_limit(2**30); {media.names}"
        f"[print(json.dumps({row})) for row in {table.reader(shown, kind)}{' if row' if kind == 'reader' else ''}]"
    )
    is_above, out = media.is_above(file), f"{file.stem}.jsonl"
    if root is None and (alone or sole):
        alone = sole = not _has_others(file, media.base)
    if not split_words(file.stem):
        # those of several folders are written into one, where their names must differ
        is_metadata = sole and not folder_of_split(file, media.base) if is_above else alone
        out = "metadata.jsonl" if is_metadata else manifest_name_for(file, media.base)
    where = f"in the folder {str(media.base)!r}, where its paths hold" if is_above else "in its folder"
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


def _meaning(table: CsvTable, media: MediaPathColumn, file: Path) -> tuple[str, str, str]:
    """(reader of the csv module, expression of a row's object, note on what was guessed)."""
    rows, header = table.rows, [_plain(cell) for cell in table.rows[0]] if table.rows else []
    known = _NAMES.intersection(cell.strip().lower() for cell in header)
    column = media.column
    has_value = any(media_type_of(cell) or is_address(cell) for cell in header) or _begins_with_numbers(rows)
    bare = has_value or media.is_first or (column is None and (len(header) == 1 or table.delimiter == "|"))
    if rows and not known and bare:
        return _without_header(rows, media)
    return _with_header(rows, header, media, {file.parent, media.base})


def _begins_with_numbers(rows: list[list[str]]) -> bool:
    """Whether the first row has a number where all others have one, as no header does."""
    columns = range(min(_MAX_COLUMNS, min(map(len, rows), default=0))) if len(rows) > 1 else ()
    return any(all(is_number(row[column]) for row in rows) for column in columns)


def _without_header(rows: list[list[str]], media: MediaPathColumn) -> tuple[str, str, str]:
    """The same for cells by their index."""
    notes, column, first = [], media.column, rows[0]
    if column is None and len(first) == 1 and text_content_of([row[0] for row in rows]):
        return "reader", '{"text": row[0]}', " (it has no header)"
    if column is None:
        names = [index for index, cell in enumerate(first) if media_type_of(cell)]
        column = next((index for index, cell in enumerate(first) if is_address(cell)), None) if not names else names[0]
        column = column or 0
        note = "it has no header, and the cells of its paths name no file here: put what is missing before or behind"
        if is_address(first[column]):
            note = "it has no header, and addresses, which are not fetched: put the path of what was downloaded for"
        notes.append(f"{note} row[{column}]")
    path, text = f'"file_name": {media.around(f"row[{column}]")}', text_column(rows, taken={column}, codes=True)
    if text is None:
        notes.append('no cells of its rows hold words: put them behind "file_name" as "text"')
        return "reader", f"{{{path}}}", f" ({'; '.join(notes)})"
    most = max(map(len, rows))
    if most > 2:
        notes.append(f"row[{text}] is taken for the words")
    # rows may be short of a cell at the end
    cell = "row[-1]" if text == most - 1 and len({len(row) for row in rows}) > 1 else f"row[{text}]"
    return "reader", f'{{{path}, "text": {cell}}}', f" ({'; '.join(notes)})" if notes else ""


def _free(name: str, names: Collection[str]) -> str:
    """A name that no other column has."""
    return name if name not in names else _free(f"{name}_", names)


def _with_header(
    rows: list[list[str]], header: list[str], media: MediaPathColumn, folders: Collection[Path]
) -> tuple[str, str, str]:
    """The same for cells by their names. folders: those in which files of words may lie."""
    names = {name: number for number, name in enumerate(header)}
    column, body = media.column, rows[1:]
    cells = {name: [row[number] for row in body if number < len(row)] for name, number in names.items()}
    is_known = column is not None and header[column] in FIELDS and not (media.before or media.behind or media.by_name)
    named = [name for name in names if name in FIELDS and name != "text"]
    has_media, changed, drop = column is not None or bool(named), {}, []
    if column is not None and not is_known:
        changed["file_name"] = media.around(_cell(header[column]))
        drop.append(header[column])
    # the reader knows these in any case
    called = sorted((name for name in names if name.lower() in WORDS), key=lambda name: WORDS.index(name.lower()))
    # what is called words may be where they lie (`transcript`: "a.txt")
    elsewhere = [name for name in called if are_external(cells[name], folders)]
    taken = {column, *(names[name] for name in (*named, *elsewhere))}
    moved = {name: _free(f"{name}_file", names) for name in elsewhere if names[name] != column}
    drop += moved
    changed |= {new: _cell(name) for name, new in moved.items()}
    has_words = any(names[name] != column and name not in elsewhere for name in called)
    pair = None if has_words else next((pair for pair in PAIRS if names.keys() >= set(pair)), None)
    number = None
    if pair is not None:
        drop += pair
        cell = body[0][column] if column is not None and body else ""
        kind = media_type_of("x" + media.behind) or media_type_of(cell)
        mark = f'"<{kind.__name__.lower()}>\\n" + ' if kind else ""
        ask, answer = map(_cell, pair)
        turns = f'[{{"role": "user", "content": {mark}{ask}}}, {{"role": "assistant", "content": {answer}}}]'
        changed["messages"] = turns
    elif not has_words:
        number = text_column(body, names=header, taken=taken, of_media=has_media, codes=True)
        if number is not None:
            changed["text"] = _cell(header[number])
            drop.append(header[number])
    has_none = not has_words and pair is None and number is None
    if has_none and "label" in names and not is_text_like(cells["label"], name="label"):
        # numbers of classes would be read as words, since words are what a label holds in lines that people write
        drop.append("label")
    note = ""
    if not has_media or "text" in changed or (has_none and body):
        shown = ", ".join(repr(name[:40]) for name in header[:6]) + (", ..." if len(header) > 6 else "")
        path = "" if has_media else " that of the path file_name"
        note = f" (its columns are {shown}; call{path}{' and' * bool(path)} that of the words text, if this is another)"
        if has_none and body:
            likely = [name for name in names if names[name] not in taken and not is_metadata_column(name)]
            likely = [repr(name[:40]) for name in likely if is_text_like(cells[name])][:3] if has_media else []
            note = f" (its columns are {shown}, and none of them holds words: add a column text with them"
            note += f", or call one so ({', '.join(likely)})" if likely else ""
            note += f"; call{path}, if there is one)" if path else ")"
    for name, new in moved.items():
        note += f" (the column {name[:40]!r} holds addresses or names of files, not words: it is kept as {new[:50]!r})"
    if not changed and not drop:
        return "DictReader", "{k: v for k, v in row.items() if k}", note
    kept = f"{{k: v for k, v in row.items() if k and k not in {tuple(drop)!r}}}"
    changes = ", ".join(f"{json.dumps(k)}: {v}" for k, v in changed.items())
    return "DictReader", f"{kept} | {{{changes}}}" if changes else kept, note


def _cell(name: str) -> str:
    return f"row[{python_literal(name)}]"


def find_media_column(rows: list[list[str]], file: Path, *, root: Path | None = None) -> MediaPathColumn:
    """Where the media lie that a column of a table or list names: below its folder, or the nearest one above.

    Folders above are looked into up to `root`; without one, only above a folder named like `annotations` or `meta`.
    """
    own = file.parent.resolve()
    if root is not None:
        most = len(own.relative_to(root.resolve()).parts)
    else:
        most = int(not _ABOUT_OTHERS.isdisjoint(words_of_name(own.name)))
    best = MediaPathColumn(own)
    for base in (own, *own.parents[:most]):
        found = _path_column(rows, base, file)
        # one row or two may name a file elsewhere by chance
        if found.count > best.count and (base == own or 2 * found.count >= len(rows) - 1):
            best = found
        if best.count and best.count >= len(rows) - 1:
            break
    return best


def _path_column(rows: list[list[str]], base: Path, file: Path) -> MediaPathColumn:
    """The column whose cells name most files below a folder, and how."""
    files = [path for path, why in itertools.islice(walk(base), _MAX_FILES) if not why and media_type_of(path)]
    by_base: dict[str, list[str]] = {}
    for path in files:
        name = path.rsplit("/", 1)[-1]
        for key in {name, os.path.splitext(name)[0]}:
            by_base.setdefault(key, []).append(path)
    there, best, rank = set(files), MediaPathColumn(base), (0, False)
    splits = {split for step in (*file.parts[-3:-1], file.stem) for _, split, _ in split_words(step)}
    for column in range(min(_MAX_COLUMNS, min(map(len, rows), default=0))):
        cells = [row[column] for row in rows]
        is_numbered = sum(bool(_NUMBERED.search(cell)) for cell in cells) >= max(1, len(cells) - 1)
        cells = [cell.partition("#")[0] for cell in cells] if is_numbered else cells
        around = {("", "")}
        for cell in filter(None, cells):
            name = cell.rsplit("/", 1)[-1]
            for path in by_base.get(name, ())[:_MAX_NAMESAKES]:
                # not its last position in the path: `c` is in `c.flac` twice
                at = path.rfind("/") + 1 + len(name) - len(cell)
                is_it = at >= 0 and path.startswith(cell, at) and (not at or path[at - 1] == "/")
                if is_it and _is_ending(path[at + len(cell) :]):
                    around.add((path[:at], path[at + len(cell) :]))
        for before, behind in sorted(around):
            found = [f"{before}{cell}{behind}" in there for cell in cells]
            # of two folders with the same names that of the table's own split
            is_own = any(split in splits for step in before.split("/") for _, split, _ in split_words(step))
            if (sum(found), is_own and any(found)) > rank:
                rank = (sum(found), is_own)
                best = MediaPathColumn(base, column, before, behind, False, sum(found), found[0], is_numbered)
        # with the folders left out
        for ending in {ending for _, ending in around} if len(around) > 2 else ():
            found = [_is_one(by_base.get(cell, ()), cell + ending) for cell in cells]
            if sum(found) > rank[0]:
                rank = (sum(found), False)
                best = MediaPathColumn(base, column, "", ending, True, sum(found), found[0], is_numbered)
    return best


def _is_one(paths: Sequence[str], name: str) -> bool:
    """Whether just one of these paths is of a file of this name."""
    return sum(path.rsplit("/", 1)[-1] == name for path in paths) == 1


def _is_ending(text: str) -> bool:
    return not text or (text.startswith(".") and text[1:].lower() in SUPPORTED)


def _plain(cell: str) -> str:
    return "".join(char for char in cell if char.isprintable())
