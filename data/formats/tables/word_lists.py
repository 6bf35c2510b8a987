"""Lists of words that are not CSV, and folders named after classes: the command that makes a manifest of them.

    84-121123.trans.txt     84-121123-0000 GO DO YOU HEAR           LibriSpeech: all of that ending, beside their media
    train/text  test/text   utt1 hello world                        Kaldi: a file for each split
    transcripts.txt         utt1 hello world                        MLS: one list for many folders
    captions.txt            image,caption                           Flickr8k: a table under another ending
    cat/1.jpg  dog/1.jpg                                            the folders name what the images show

Lists that differ in numbers and words for splits go together; where their media are not in folders that say the same,
each split gets a file of its own (train.jsonl, test.jsonl). Nothing here is read as documents, since it is guessed.
"""

import dataclasses
import glob
import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from brine.data.files.extensions import media_type_of
from brine.data.files.text import foreign_encoding
from brine.data.formats.notes.accounts import is_dataset_metadata_file
from brine.data.formats.splits.names import split_words, words_of_name
from brine.data.formats.splits.rules import PathSplits
from brine.data.formats.tables.table_form import DELIMITERS, delimiter_of, python_literal
from brine.data.formats.tables.word_columns import NONE, text_column, text_content_of
from brine.data.formats.tables.word_tables import MediaPathColumn, find_media_column, table_hint

_ENDINGS = ("", ".txt", ".text", ".lst", ".list", ".token", ".tok", ".trans", ".transcript", ".transcripts")
_MAX_LISTS, _MAX_LISTS_ABOVE, _HEAD_BYTES, _LINES = 200, 20, 2**16, 50
_CLASSES_SHOWN, _SHOWN = 3, 8
# Kaldi's files about utterances that hold none of their words
_KALDI = re.compile(r"(utt|spk|reco)2(?!text).*|segments")
_MAX_MEDIA, _TOKENS = 50_000, 8
_BETWEEN = re.compile(r'[\s,|;"#/]+')


def list_hint(root: Path, paths: list[str]) -> str:
    """What to do about the first text that names media, and its like, after the words "has its words in"; else ""."""
    media = (os.path.basename(path) for path in itertools.islice(filter(media_type_of, paths), _MAX_MEDIA))
    names = {name for base in media for name in (base, os.path.splitext(base)[0])}
    likely = [path for path in paths if _ending(path) in _ENDINGS and not _KALDI.fullmatch(os.path.basename(path))]
    likely = [path for path in likely if not is_dataset_metadata_file(path)]
    for path in likely[:_MAX_LISTS]:
        is_table, media_column = _find_list_column(root, path, names)
        if media_column is None:
            continue
        others = [other for other in likely if other != path and _are_alike(path, other)]
        is_above, found = media_column.is_above(root / path), {path: media_column}
        most = _MAX_LISTS_ABOVE if is_above else _MAX_LISTS
        for number, other in enumerate(others[:most]):
            # of many that lie beside their media only the names are looked at
            kind, column = is_table, dataclasses.replace(media_column, base=(root / other).parent.resolve())
            if is_above or number < _SHOWN:
                kind, column = _find_list_column(root, other, names, is_part=True)
            if column is not None and kind == is_table:
                found[other] = column
        told = _tables_hint(root, list(found)) if is_table else _lines_hint(root, dict(sorted(found.items())))
        left = len(others) - most if "glob.glob(" not in told else 0
        return told + (f" ({left:,} more lists of this kind were not looked at: put theirs in too)" if left > 0 else "")
    return ""


def _find_list_column(
    root: Path, path: str, names: set[str], *, is_part: bool = False
) -> tuple[bool, MediaPathColumn | None]:
    """Whether a list is a table, and where the media lie that it names; None for any other text.

    is_part: whether it is one of several, and may be too short to show that it holds words.
    """
    lines = _head(root / path)
    first = next((line for line in lines if not names.isdisjoint(_BETWEEN.split(line)[:_TOKENS])), "")
    if any(mark in first for mark in DELIMITERS):
        rows = [row for line in lines if len(row := line.split(delimiter_of(lines))) > 1]
        media_column = find_media_column(rows, root / path, root=root)
        has_words = is_part or text_column(rows, taken={media_column.column}) is not None
        # a comma in the words of a single line makes no table
        if has_words and media_column.count and 2 * media_column.count >= len(lines) - 1:
            return True, media_column
    rows = [row for line in lines if len(row := line.split(None, 1)) == 2] if first else []
    media_column = find_media_column([row[:1] for row in rows], root / path, root=root)
    # numbers and paths are no words (CelebA's list_attr_celeba.txt, Kaldi's wav.scp)
    has_words = is_part or text_content_of([words for _, words in rows]) != NONE
    if media_column.column is None or 2 * media_column.count < len(lines) or not has_words:
        return False, None
    return False, media_column


def _are_alike(one: str, other: str) -> bool:
    """Whether two lists are parts of one: of one name, or of names that differ in numbers and words for splits."""
    if os.path.basename(one) == os.path.basename(other):
        return True
    dots, others_dots = (os.path.basename(path).partition(".")[2] for path in (one, other))
    return dots == others_dots and ("." in dots or _without_splits(one) == _without_splits(other))


def _without_splits(path: str) -> list[tuple[str, ...]]:
    words = (words_of_name(step) for step in path.split("/"))
    return [tuple(word for word in step if not split_words(word)) for step in words]


def _tables_hint(root: Path, paths: list[str]) -> str:
    """What to do about lists that are tables: a command for each, since their columns may differ."""
    folders = Counter(map(os.path.dirname, paths))
    told = [
        table_hint(root / path, path, alone=folders[os.path.dirname(path)] == 1, sole=len(paths) == 1, root=root)
        for path in paths[:_SHOWN]
    ]
    rest = f"; the same with the {len(paths) - _SHOWN} others of this kind" if len(paths) > _SHOWN else ""
    return "; and in ".join(told) + rest


def _lines_hint(root: Path, found: dict[str, MediaPathColumn]) -> str:
    """What to do about lines of a name and words with a space between."""
    (path, media_column), named = next(iter(found.items())), PathSplits(found, files=True)
    splits = {path: named.declared(path) for path in found} if named.held_out else {}
    top, what = root.resolve(), f"{path!r}, lines of a name and words, which are not read"
    # where the media lie in folders of these names too, one file is enough
    by_folder = all(
        not found[path].is_above(root / path) and named.split_of_single(path) == named.split_of(path) for path in splits
    )
    if len(found) == 1 and by_folder:
        shown = os.path.relpath((root / path).resolve(), media_column.base)
        program = f"{media_column.names}{_printed(f'[{python_literal(shown)}]', media_column.around('k'))}"
        return _hint(what, os.path.basename(path), media_column.base, program, "metadata.jsonl")
    alike, dots = {os.path.basename(path) for path in found}, os.path.basename(path).partition(".")[2]
    has_pattern = len(alike) == 1 or "." in dots
    if by_folder and len(found) > _SHOWN and has_pattern and not media_column.is_above(root / path):
        name = glob.escape(alike.pop()) if len(alike) == 1 else f"*.{glob.escape(dots)}"
        files = f"sorted(glob.glob({python_literal(f'**/{name}')}, recursive=True))"
        # names are looked up from the top
        path_of = media_column.around("k")
        path_of = path_of if media_column.by_name else f"os.path.join(os.path.dirname(t), {path_of})"
        return _hint(what, name, top, f"{media_column.names}{_printed(files, path_of)}", "metadata.jsonl")
    statements: dict[str, dict[tuple[str, str], list[str]]] = {}
    for path, media_column in found.items():
        below = os.path.relpath(media_column.base, top)
        before = media_column.before if below == "." else f"{below}/{media_column.before}"
        key = (media_column.names_below(below), dataclasses.replace(media_column, before=before).around("k"))
        out = "metadata.jsonl" if by_folder else f"{splits.get(path) or 'train'}.jsonl"
        statements.setdefault(out, {}).setdefault(key, []).append(python_literal(path))
    names = ", ".join(list(found)[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    programs = {
        out: "; ".join(
            n + _printed(f"[{', '.join(files)}]", path_of, is_one=by_folder) for (n, path_of), files in each.items()
        )
        for out, each in statements.items()
    }
    if by_folder:
        return _hint(what, names, top, programs["metadata.jsonl"], "metadata.jsonl")
    opened = (f'f = open("{out}", "w", encoding="utf-8"); {each}; f.close()' for out, each in programs.items())
    return _hint(what, names, top, "; ".join(opened), *programs)


def _printed(files: str, path_of: str, *, is_one: bool = True) -> str:
    """The statement that prints the lines of some files."""
    return (
        f'[print(json.dumps({{"file_name": {path_of}, "text": w}}){"" if is_one else ", file=f"}) for t in {files} '
        'for k, _, w in (l.strip().replace("\\t", " ").partition(" ") for l in open(t, encoding="utf-8-sig")) if w]'
    )


def _hint(what: str, names: str, base: Path, program: str, *outs: str) -> str:
    command = f"python -c {shlex.quote(f'import glob, json, os, pathlib; {program}')}"
    if outs == ("metadata.jsonl",):
        command, made = f"{command} > metadata.jsonl", "a metadata.jsonl"
    else:
        made = " and ".join(outs) + (
            ", which keep the splits apart," if len(outs) > 1 else ", a name that holds it out,"
        )
    return f"{what}: write {made} from {names}, in the folder {str(base)!r}, where its paths hold, by `{command}`"


def class_folders_hint(root: Path, paths: Iterable[str]) -> str:
    """What to do where all media lie in folders that may be named after what they show; "" for others."""
    media = list(itertools.islice((path for path in paths if media_type_of(path)), 10_000))
    folders = dict.fromkeys(path.split("/")[-2] if "/" in path else "" for path in media)
    if len(folders) < 2 or "" in folders or len(folders) == len(media) > 2 or any(map(split_words, folders)):
        return ""
    shown = ", ".join(map(repr, list(folders)[:_CLASSES_SHOWN])) + (", ..." if len(folders) > _CLASSES_SHOWN else "")
    extensions = tuple(sorted({_ending(path) for path in media}))
    program = (
        'import glob, json, os; [print(json.dumps({"file_name": p, "text": os.path.basename(os.path.dirname(p))})) '
        f'for p in sorted(glob.glob("**/*", recursive=True)) if p.lower().endswith({extensions!r})]'
    )
    return (
        f"; if the names of their folders ({shown}) are their words, write a metadata.jsonl in the folder "
        f"{str(root)!r} by `python -c {shlex.quote(program)} > metadata.jsonl`"
    )


def _head(file: Path) -> list[str]:
    try:
        with open(file, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return []
    if b"\0" in head or foreign_encoding(head[:64]):
        return []
    return [line for line in head.decode("utf-8-sig", "replace").splitlines() if line.strip()][:_LINES]


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()
