"""Manifests that can be written from lists of words that are not CSV, and from folders that are named after classes.

    84-121123.trans.txt     84-121123-0000 GO DO YOU HEAR           LibriSpeech: all *.trans.txt, beside their media
    train/text  test/text   utt1 hello world                        Kaldi: a file for each split
    captions.txt            image,caption                           Flickr8k: a table under another extension

Lists whose names differ in numbers and words for splits belong together. Where their media are not in folders that say
the same, each split gets its manifest (train.jsonl, test.jsonl).
"""

import dataclasses
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from brine.data.files.compressed import head_of
from brine.data.files.extensions import media_type_of
from brine.data.files.text import foreign_encoding
from brine.data.formats.notes.unread_files import is_dataset_metadata_file
from brine.data.formats.splits.names import split_words, words_of_name
from brine.data.formats.splits.rules import PathSplits
from brine.data.formats.tables.conversion import ManifestConversion, convert_command, convert_table
from brine.data.formats.tables.table_form import DELIMITERS, MediaColumn, MediaFiles, delimiter_of
from brine.data.formats.tables.text_column import NONE, text_column, text_content_of

_ENDINGS = ("", ".txt", ".text", ".lst", ".list", ".token", ".tok", ".trans", ".transcript", ".transcripts")
_MAX_LISTS, _HEAD_BYTES, _LINES, _SHOWN, _CLASSES_SHOWN = 200, 2**16, 50, 8, 3
# Kaldi's files about utterances that hold none of their words
_KALDI = re.compile(r"(utt|spk|reco)2(?!text).*|segments")
_MAX_MEDIA, _TOKENS = 50_000, 8
_BETWEEN = re.compile(r'[\s,|;"#/]+')


@dataclasses.dataclass(frozen=True)
class _List:
    path: str
    is_table: bool
    media: MediaColumn


def list_hint(root: Path, paths: list[str]) -> str:
    """What to do about the first text that names media, and its like, after "has its text in"; else ""."""
    if (found := _first_list(root, paths, _names_of_media(paths), MediaFiles())) is None:
        return ""
    first, others = found
    more = (", ..." if len(others) > _SHOWN else "") if others else ""
    names = ", ".join(repr(name) for name in (first.path, *others[:_SHOWN])) + more
    what = "tables" if first.is_table else "lines of a name and text"
    note = convert_table(root / first.path, root=root).note if first.is_table and not others else ""
    return f"{names}, {what}, which are not read: write manifests of them by {convert_command(root)}{note}"


def convert_lists(root: Path, paths: list[str]) -> list[ManifestConversion]:
    """The manifests of the first text that names media and of its like; empty where there is none."""
    files, names = MediaFiles(), _names_of_media(paths)
    if (first_list := _first_list(root, paths, names, files)) is None:
        return []
    first, others = first_list
    # of a list beside its media the others are too, and only some are looked at
    is_above, lists = first.media.is_above(root / first.path), [first]
    for number, path in enumerate(others):
        part = _List(path, first.is_table, dataclasses.replace(first.media, base=(root / path).parent.resolve()))
        found = _as_list(root, path, names, files, is_part=True) if is_above or number < _SHOWN else part
        if found is not None and found.is_table == first.is_table:
            lists.append(found)
    if not first.is_table:
        return [_lines_conversion(root, {each.path: each.media for each in sorted(lists, key=lambda each: each.path)})]
    folders = Counter(os.path.dirname(each.path) for each in lists)
    return [
        convert_table(
            root / each.path,
            alone=folders[os.path.dirname(each.path)] == 1,
            sole=len(lists) == 1,
            root=root,
            files=files,
        )
        for each in lists
    ]


def _first_list(root: Path, paths: list[str], names: set[str], files: MediaFiles) -> tuple[_List, list[str]] | None:
    likely = [
        path
        for path in paths
        if os.path.splitext(path)[1].lower() in _ENDINGS and not _KALDI.fullmatch(os.path.basename(path))
    ]
    likely = [path for path in likely if not is_dataset_metadata_file(path)]
    for path in likely[:_MAX_LISTS]:
        if (first := _as_list(root, path, names, files)) is not None:
            return first, [other for other in likely if other != path and _are_alike(path, other)]
    return None


def _names_of_media(paths: list[str]) -> set[str]:
    media = (os.path.basename(path) for path in itertools.islice(filter(media_type_of, paths), _MAX_MEDIA))
    return {name for base in media for name in (base, os.path.splitext(base)[0])}


def _as_list(root: Path, path: str, names: set[str], files: MediaFiles, *, is_part: bool = False) -> _List | None:
    """A list of names of media and words, or None. is_part: perhaps too short to show that it holds words."""
    lines = _head(root / path)
    first = next((line for line in lines if not names.isdisjoint(_BETWEEN.split(line)[:_TOKENS])), "")
    if any(mark in first for mark in DELIMITERS):
        rows = [row for line in lines if len(row := line.split(delimiter_of(lines))) > 1]
        media = files.find_column(rows, root / path, root=root)
        has_words = is_part or text_column(rows, taken={media.column}) is not None
        # a comma in the words of a single line makes no table
        if has_words and media.count and 2 * media.count >= len(lines) - 1:
            return _List(path, True, media)
    rows = [row for line in lines if len(row := line.split(None, 1)) == 2] if first else []
    media = files.find_column([row[:1] for row in rows], root / path, root=root)
    # numbers and paths are no words (CelebA's list_attr_celeba.txt, Kaldi's wav.scp)
    has_words = is_part or text_content_of([words for _, words in rows]) != NONE
    is_list = media.column is not None and 2 * media.count >= len(lines) and has_words
    return _List(path, False, media) if is_list else None


def _are_alike(one: str, other: str) -> bool:
    """Whether two lists are parts of one: of one name, or of names that differ in numbers and words for splits."""
    if os.path.basename(one) == os.path.basename(other):
        return True
    dots, others_dots = (os.path.basename(path).partition(".")[2] for path in (one, other))
    return dots == others_dots and ("." in dots or _without_splits(one) == _without_splits(other))


def _without_splits(path: str) -> list[tuple[str, ...]]:
    words = (words_of_name(step) for step in path.split("/"))
    return [tuple(word for word in step if not split_words(word)) for step in words]


def _lines_conversion(root: Path, found: dict[str, MediaColumn]) -> ManifestConversion:
    named = PathSplits(found, files=True)
    splits = {path: named.declared(path) for path in found} if named.held_out else {}
    # where the media are in folders of these names too, one manifest is enough
    by_folder = all(
        not found[path].is_above(root / path) and named.split_of_single(path) == named.split_of(path) for path in splits
    )
    base = next(iter(found.values())).base if len(found) == 1 and by_folder else root.resolve()
    lists: dict[str, list[str]] = {}
    for path in found:
        lists.setdefault("metadata.jsonl" if by_folder else f"{splits.get(path) or 'train'}.jsonl", []).append(path)

    def rows(paths: list[str]) -> Iterator[dict]:
        for path in paths:
            below = os.path.relpath(found[path].base, base)
            with open(root / path, encoding="utf-8-sig") as stream:
                for line in stream:
                    name, _, words = line.strip().replace("\t", " ").partition(" ")
                    if words:
                        media = found[path].path_of(name)
                        yield {"file_name": os.path.join(below, media) if below != "." else media, "text": words}

    return ManifestConversion(base, {out: lambda paths=paths: rows(paths) for out, paths in lists.items()})


def class_folders_hint(root: Path, paths: Iterable[str]) -> str:
    """What to do where all media are in folders that may be named after what they show; "" for others."""
    media = list(itertools.islice(filter(media_type_of, paths), 10_000))
    folders = dict.fromkeys(os.path.basename(os.path.dirname(path)) for path in media)
    if len(folders) < 2 or "" in folders or len(folders) == len(media) > 2 or any(map(split_words, folders)):
        return ""
    shown = ", ".join(map(repr, list(folders)[:_CLASSES_SHOWN])) + (", ..." if len(folders) > _CLASSES_SHOWN else "")
    command = convert_command(root)
    return f"; if the names of their folders ({shown}) are their captions, write a metadata.jsonl by {command}"


def convert_classes(root: Path, paths: list[str]) -> list[ManifestConversion]:
    """The manifest of media whose folders name what they show; empty where they do not."""
    media = sorted(filter(media_type_of, paths))
    rows = [{"file_name": path, "text": os.path.basename(os.path.dirname(path))} for path in media]
    return [ManifestConversion(root, {"metadata.jsonl": lambda: rows})] if class_folders_hint(root, paths) else []


def _head(file: Path) -> list[str]:
    head = head_of(file, _HEAD_BYTES)
    if b"\0" in head or foreign_encoding(head[:64]):
        return []
    return [line for line in head.decode("utf-8-sig", "replace").splitlines() if line.strip()][:_LINES]
