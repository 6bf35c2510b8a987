"""Manifests that can be written from a table of words (metadata.csv, captions.tsv), which is not read as it is.

What the columns of a table mean has to be guessed, so a table is refused with what was guessed and a command, `brine
data convert FILE`, that writes a manifest with that guess. Media are the column whose cells name files
(`media_column`), the text is the column of words (`text_column`), a question and its answer become a conversation, and
all other columns are kept. Where a guess is wrong, a person renames the columns of the table or edits the manifest.
"""

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from brine.common.files import replacing
from brine.data.files.compressed import detect_compression, unpack_hint
from brine.data.files.extensions import media_type_of
from brine.data.files.pointers import pointer_in
from brine.data.formats.lines.fields import FIELDS, PAIRS, WORDS
from brine.data.formats.splits.names import split_words
from brine.data.formats.splits.rules import folder_of_split, manifest_name_for
from brine.data.formats.tables.table_form import MAX_COLUMNS, CsvForm, MediaColumn, MediaFiles, sniff_csv
from brine.data.formats.tables.text_column import (
    are_external,
    is_address,
    is_metadata_column,
    is_number,
    is_text_like,
    text_column,
    text_content_of,
)

_TABLES, _MANIFESTS = (".csv", ".tsv"), (".jsonl", ".ndjson", ".jsonlines")
_NAMES = {*FIELDS, *WORDS, *(name for pair in PAIRS for name in pair), "id", "name", "split", "key", "class"}
_NOT_FETCHED = "it has no header, and addresses, which are not fetched: put the path of what was downloaded for"
_NO_FILE = "it has no header, and the cells of its paths name no file here: put what is missing before or behind"


@dataclass(frozen=True)
class ManifestConversion:
    """Manifests that can be written into a folder: name -> a function that gives its rows."""

    base: Path
    manifests: dict[str, Callable[[], Iterable[dict]]]
    note: str = ""  # what was guessed

    def write(self, out: str = "") -> dict[Path, int]:
        """Write the manifests, atomically; manifest -> number of rows. ValueError where one is there already."""
        written = {}
        for name, rows in self.manifests.items():
            path = self.base / (out or name)
            if path.exists() and path.stat().st_size:
                raise ValueError(f"{path} is there already: move it, or give another name with --out")
            written[path] = 0
            with replacing(path) as stream:
                for row in rows():
                    stream.write(json.dumps(row) + "\n")
                    written[path] += 1
        return written


def convert_command(path: Path, *, root: Path | None = None, out: str = "") -> str:
    """The command that writes manifests from a path, in backticks."""
    options = ["--root", str(root)] if root is not None else []
    return f"`{shlex.join(['brine', 'data', 'convert', str(path), *options, *(['--out', out] if out else [])])}`"


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
    found = convert_table(file, alone=alone, sole=sole, root=root)
    (out,), is_above = found.manifests, found.base != file.parent.resolve()
    where = f"in the folder {str(found.base)!r}, where its paths hold" if is_above else "in its folder"
    return (
        f"{name!r}, and {os.path.splitext(file.name)[1].lower()} is not read: write a {out} from it, {where}, by "
        f"{convert_command(file, root=root, out=out)}{found.note}"
    )


def convert_table(
    file: Path,
    *,
    alone: bool = True,
    sole: bool = True,
    root: Path | None = None,
    files: MediaFiles | None = None,
) -> ManifestConversion:
    """The manifest of a table; the parameters are those of `table_hint`."""
    form = sniff_csv(file)
    media = (files or MediaFiles()).find_column(form.rows, file, root=root)
    has_header, row_of, note = _meaning(form, media, file)

    def rows() -> Iterator[dict]:
        with open(file, encoding=form.encoding, newline="") as stream:
            found = form.read(stream)
            header = list(map(_plain, next(found, []))) if has_header else []
            for cells in found:
                # as in csv.DictReader, short rows end in null, and cells without a name are dropped
                cells = cells + [None] * (len(header) - len(cells)) if has_header else cells
                yield row_of(dict(zip(header, cells, strict=False)) if has_header else cells)

    is_above, out = media.is_above(file), f"{file.stem}.jsonl"
    if root is None and (alone or sole):
        alone = sole = not _has_others(file, media.base)
    if not split_words(file.stem):
        # those of several folders are written into one, where their names must differ
        is_metadata = sole and not folder_of_split(file, media.base) if is_above else alone
        out = "metadata.jsonl" if is_metadata else manifest_name_for(file, media.base)
    return ManifestConversion(media.base, {out: rows}, note)


def _has_others(file: Path, base: Path) -> bool:
    """Whether another table is beside a table, or a manifest named after a split there or where its paths hold."""
    for folder in {file.parent.resolve(), base}:
        with contextlib.suppress(OSError), os.scandir(folder) as found:
            for each in found:
                stem, ending = os.path.splitext(each.name)
                is_beside = ending.lower() in _TABLES and (folder == file.parent.resolve() or split_words(stem))
                is_manifest = ending.lower() in _MANIFESTS and split_words(stem)
                if each.name != file.name and (is_beside or is_manifest):
                    return True
    return False


def _meaning(form: CsvForm, media: MediaColumn, file: Path) -> tuple[bool, Callable, str]:
    """(whether there is a header, row -> its object, note on what was guessed)."""
    rows, header = form.rows, list(map(_plain, form.rows[0])) if form.rows else []
    known = _NAMES.intersection(cell.strip().lower() for cell in header)
    # no header begins with a number where all other rows have one
    columns = range(min(MAX_COLUMNS, min(map(len, rows), default=0))) if len(rows) > 1 else ()
    has_numbers = any(all(is_number(row[column]) for row in rows) for column in columns)
    has_value = any(media_type_of(cell) or is_address(cell) for cell in header)
    bare = (
        has_value
        or has_numbers
        or media.is_first
        or (media.column is None and (len(header) == 1 or form.delimiter == "|"))
    )
    if rows and not known and bare:
        return False, *_without_header(rows, media)
    return True, *_with_header(rows, header, media, {file.parent, media.base})


def _without_header(rows: list[list[str]], media: MediaColumn) -> tuple[Callable, str]:
    notes, column, first = [], media.column, rows[0]
    if column is None and len(first) == 1 and text_content_of([row[0] for row in rows]):
        return lambda row: {"text": row[0]}, " (it has no header)"
    if column is None:
        named = [index for index, cell in enumerate(first) if media_type_of(cell)]
        column = next(iter(named or (index for index, cell in enumerate(first) if is_address(cell))), 0)
        notes.append(f"{_NOT_FETCHED if is_address(first[column]) else _NO_FILE} column {column + 1}")
    text, most = text_column(rows, taken={column}, codes=True), max(map(len, rows))
    if text is None:
        notes.append("no cells of its rows hold text: add it to each line as 'text'")
    elif most > 2:
        notes.append(f"column {text + 1} is taken for the text")
    # rows may be short of a cell at the end
    index = -1 if text == most - 1 and len({len(row) for row in rows}) > 1 else text

    def row_of(row: list[str]) -> dict:
        path = {"file_name": media.path_of(row[column] if column < len(row) else "")}
        return path if index is None else path | {"text": row[index] if index < len(row) else ""}

    return row_of, f" ({'; '.join(notes)})" if notes else ""


def _with_header(
    rows: list[list[str]], header: list[str], media: MediaColumn, folders: Collection[Path]
) -> tuple[Callable, str]:
    names = {name: number for number, name in enumerate(header)}
    column, body = media.column, rows[1:]
    cells = {name: [row[number] for row in body if number < len(row)] for name, number in names.items()}
    is_known = column is not None and header[column] in FIELDS and not (media.before or media.behind or media.by_name)
    named = [name for name in names if name in FIELDS and name != "text"]
    has_media, changed, drop = column is not None or bool(named), {}, set()
    if column is not None and not is_known:
        changed["file_name"] = lambda row: media.path_of(row[header[column]] or "")
        drop.add(header[column])
    # the reader knows these in any case
    called = sorted((name for name in names if name.lower() in WORDS), key=lambda name: WORDS.index(name.lower()))
    # what is called words may be their location (`transcript`: "a.txt")
    elsewhere = [name for name in called if are_external(cells[name], folders)]
    taken = {column, *(names[name] for name in (*named, *elsewhere))}
    moved = {name: f"{name}_file" for name in elsewhere if names[name] != column}
    while clash := next((name for name, new in moved.items() if new in names), None):
        moved[clash] += "_"
    drop |= moved.keys()
    changed |= {new: lambda row, name=name: row[name] for name, new in moved.items()}
    has_words = any(names[name] != column and name not in elsewhere for name in called)
    pair = None if has_words else next((pair for pair in PAIRS if names.keys() >= set(pair)), None)
    number = None
    if pair is not None:
        drop |= set(pair)
        kind = media_type_of("x" + media.behind) or media_type_of(
            body[0][column] if column is not None and body else ""
        )
        mark = f"<{kind.__name__.lower()}>\n" if kind else ""
        changed["messages"] = lambda row: [
            {"role": "user", "content": f"{mark}{row[pair[0]] or ''}"},
            {"role": "assistant", "content": row[pair[1]]},
        ]
    elif not has_words:
        number = text_column(body, names=header, taken=taken, of_media=has_media, codes=True)
        if number is not None:
            changed["text"] = lambda row: row[header[number]]
            drop.add(header[number])
    has_none = not has_words and pair is None and number is None
    if has_none and "label" in names and not is_text_like(cells["label"], name="label"):
        # numbers of classes would be read as words, since words are what a label holds in lines that people write
        drop.add("label")
    note = ""
    if not has_media or "text" in changed or (has_none and body):
        shown = ", ".join(repr(name[:40]) for name in header[:6]) + (", ..." if len(header) > 6 else "")
        path = "" if has_media else " that of the path 'file_name'"
        note = (
            f" (its columns are {shown}; call{path}{' and' * bool(path)} that of the text 'text', if this is another)"
        )
        if has_none and body:
            likely = [name for name in names if names[name] not in taken and not is_metadata_column(name)]
            likely = [repr(name[:40]) for name in likely if is_text_like(cells[name])][:3] if has_media else []
            note = f" (its columns are {shown}, and none of them holds text: add a column 'text' with it"
            note += f", or call one so ({', '.join(likely)})" if likely else ""
            note += f"; call{path}, if there is one)" if path else ")"
    for name, new in moved.items():
        note += f" (the column {name[:40]!r} holds addresses or names of files, not text: it is kept as {new[:50]!r})"

    def row_of(row: dict) -> dict:
        kept = {name: value for name, value in row.items() if name and name not in drop}
        return kept | {name: value(row) for name, value in changed.items()}

    return row_of, note


def _plain(cell: str) -> str:
    return "".join(char for char in cell if char.isprintable())
