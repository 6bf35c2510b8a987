"""A folder of images, audio and videos, each with a text file of the same name beside it.

    birds/heron.jpg  birds/heron.txt       an image and its caption
    talk/1.flac      talk/1.json           {"text": ...} or {"caption": ...}, as in WebDataset samples
    talk/1.mp4                             several media of one name are one document: image, audio, video, text

The id is the path without its ending. A medium without text is quarantined; so are an image beside numbers alone
(YOLO's boxes), and text whose only medium is of a kind that is not read. All other files are counted, but for lists of
files that say what is held out (`brine.data.formats.splits.split_lists`). Hidden folders are not entered."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from brine.data.document import Document, DocumentError, Image, Quarantined
from brine.data.files.extensions import VIDEO_OR_CODE, conversion_hint, extension_of, media_type_in, media_type_of
from brine.data.files.pointers import dvc_target, missing_file_hint
from brine.data.files.resolve import stays_within
from brine.data.files.walk import is_visible, walk
from brine.data.formats.folders.card import read_dataset_card
from brine.data.formats.lines.samples import (
    captioned_sample,
    is_complete_record,
    named_in,
    note_ignored_caption,
    record_sample,
    sidecar_object,
)
from brine.data.formats.source import UNREAD_SPLIT, ReadLimits, files_sha256, read_text, skip_file, skip_media
from brine.data.formats.splits.names import HELD_OUT, split_of_name
from brine.data.formats.splits.rules import UNASSIGNED, PathSplits, digest_of_card
from brine.data.formats.splits.split_lists import SplitListFiles, digest_of_split_lists

TABLES = (".csv", ".tsv")
"""Endings of tables of text, which are not read: a metadata.jsonl is written from them."""
_WORDS = (".txt", ".caption", ".json")
_NUMBER = re.compile(r"[-+]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][-+]?\d{1,4})?[,;]?")
_CELLS = 10_000
WORD_LIKE = (".lab", ".srt", ".vtt", ".lrc", ".tags", ".cap", ".text", ".label", ".normalized.txt", ".original.txt")
"""Endings of files that may hold the words for a medium of their name, and are not read."""


def media_documents(
    root: Path,
    limits: ReadLimits,
    skipped: Counter,
    *,
    within: list[str] | None = None,
    splits: PathSplits | None = None,
) -> Iterator[Document | Quarantined]:
    """A document for each name below `root` (resolved) that has media and text.

    within: the only folders right below the root to read, as part of a source whose names `splits` knows.
    """
    groups = grouped(root, skipped, within=within)
    paths = {name: files[0][0] for name, files in groups.items()}
    splits = splits or PathSplits(paths.values(), files=False, card=read_dataset_card(root))
    lists = SplitListFiles(root, skipped)
    for name, files in groups.items():
        problem = next((f"file {path!r} {why}" for path, why in files if why), "")
        kinds = {path: media_type_of(path) if why else media_type_in(root, path) for path, why in files}
        media = {path: kind for path, kind in kinds.items() if kind}
        words = [path for path, _ in files if path.lower().endswith(_WORDS)]
        unread = [path for path, _ in files if conversion_hint(path)]
        if not media and not problem and not (unread and words):
            for path in words:
                if path not in lists.files:
                    split = split_of_name(os.path.basename(name))
                    lost = f"{UNREAD_SPLIT}{split}: " if split in HELD_OUT else ""
                    skipped[f"{lost}text without a medium{f': {path}' if lost else ''}"] += 1
            skip_media(unread, skipped)
            continue
        try:
            if problem:
                raise DocumentError(problem)
            if not media:
                raise DocumentError(f"file {unread[0]!r} is not read: {conversion_hint(unread[0])}")
            skip_media(unread, skipped)
            document = _document(root, name, media, words, limits, skipped)
            if document.split == UNASSIGNED:
                document = document.with_split(lists.split_of(paths[name], splits.split_of_single(paths[name])))
            yield document
        except DocumentError as error:
            yield Quarantined(name, ([*media] or unread or [path for path, _ in files])[0], str(error))


def _document(
    root: Path, name: str, media: dict[str, type], words: list[str], limits: ReadLimits, skipped: Counter
) -> Document:
    """The document of one name. Raises DocumentError."""
    text, fields, numbers, kinds = "", {}, "", set(media.values())
    for path in sorted(words, key=lambda path: _WORDS.index(os.path.splitext(path)[1].lower())):
        content = read_text(root, path, limits.max_line_mib)
        if path.lower().endswith(".json"):
            fields = sidecar_object(content, text, skipped)
        elif kinds == {Image} and (what := numbers_in(content, classes=_has_classes(root, path))):
            numbers = numbers or f"file {path!r} holds {what}"
        elif not text.strip():
            text = content
        elif content.strip() not in ("", text.strip()):
            skipped["note: of several texts of one name the first was read"] += 1
    find = named_in(os.path.dirname(name), lambda path: _is_there(root, path))
    if is_complete_record(fields):
        note_ignored_caption(text, skipped)
        return record_sample(name, media, fields, find=find, max_file_mib=limits.max_file_mib, notes=skipped)
    document = captioned_sample(name, media, text, fields, find=find, source=root.name, notes=skipped)
    if not document.parts[-1].text:
        likely = next((name + ending for ending in WORD_LIKE if _is_there(root, name + ending)), "")
        what = f": rename {likely!r} to {name}.txt if it holds plain words" if likely else f": write {name}.txt"
        if held := ", ".join(repr(key[:40]) for key in list(fields)[:8]):
            json = next(path for path in words if path.lower().endswith(".json"))
            what = f", for {json!r} has the fields {held} and words in none of them{what}"
        raise DocumentError(numbers or f"file {next(iter(media))!r} has no words beside it{what}")
    if numbers:
        skipped["note: numbers beside an image that has words were not read"] += 1
    return document


def numbers_in(text: str, *, classes: bool = False) -> str:
    """What a text of nothing but numbers is, with the remedy; "" for words, and for one number unless `classes`."""
    cells = text.split()
    if not cells or (len(cells) == 1 and not classes) or not all(map(_NUMBER.fullmatch, cells[:_CELLS])):
        return ""
    lines = [len(line.split()) for line in text.splitlines() if line.strip()]
    what = "boxes or outlines in numbers (YOLO)" if min(lines[:_CELLS]) >= 5 else "numbers"
    what = "the number of a class" if len(cells) == 1 else what
    return f"{what} and no words: write words in its place, or a metadata.jsonl of the images and their words"


def _has_classes(root: Path, path: str) -> bool:
    """Whether the names of classes lie beside a file, or on top."""
    folders = (root / os.path.dirname(path), root)
    return any((folder / name).is_file() for folder in folders for name in ("classes.txt", "obj.names"))


def _is_there(root: Path, path: str) -> bool:
    return (root / path).is_file() and stays_within(root, (root / path).resolve())


def grouped(
    root: Path, skipped: Counter | None = None, *, within: list[str] | None = None
) -> dict[str, list[tuple[str, str]]]:
    """Path without ending -> [(path, problem)] of the media and texts below `root`, sorted; counts the other files."""
    groups: dict[str, list[tuple[str, str]]] = {}
    skipped = Counter() if skipped is None else skipped

    def enter(folder: str) -> bool:
        return is_visible(folder) and (within is None or folder.split("/")[0] in within)

    for path, problem in walk(root, enter=enter, skipped=skipped):
        media = dvc_target(path)
        if media and (media_type_of(media) or conversion_hint(media)):
            if not os.path.exists(root / media):
                groups.setdefault(os.path.splitext(media)[0], []).append((media, missing_file_hint(root / media)))
            continue
        if within is not None and "/" not in path:
            continue
        if os.path.basename(path).startswith("."):
            skipped["hidden file"] += 1
            continue
        is_video = not problem and extension_of(path) in VIDEO_OR_CODE and media_type_in(root, path)
        if media_type_of(path) or is_video or conversion_hint(path) or path.lower().endswith(_WORDS):
            groups.setdefault(os.path.splitext(path)[0], []).append((path, problem))
        elif problem:
            skipped[f"file that {problem}"] += 1
        elif path.lower().endswith(TABLES):
            skipped[f"table .{extension_of(path)}: its words are not read, captions beside media are"] += 1
        else:
            skip_file(path, skipped)
    return _with_named_after_media(groups)


def _with_named_after_media(groups: dict[str, list]) -> dict[str, list]:
    """The groups with words that are named after a medium's whole name (`a.jpg.txt`) beside that medium."""
    sizes = {name: len(group) for name, group in groups.items()}
    for name in [name for name in groups if media_type_of(name) or conversion_hint(name)]:
        stem = os.path.splitext(name)[0]
        group = groups.get(stem, [])
        medium = next((file for file in group if file[0] == name), None)
        if medium and sizes[stem] == 1:
            group += groups.pop(name)
        elif medium:
            # of several media of one name each may have a text of its own
            group.remove(medium)
            groups[name] = [medium, *groups[name]]
    return {name: groups[name] for name in sorted(groups, key=os.fsencode) if groups[name]}


def _is_words(path: str) -> bool:
    return media_type_of(path) is None and extension_of(path) not in VIDEO_OR_CODE


def media_digest(root: Path, media: bool, *, within: list[str] | None = None) -> str:
    """SHA-256 that changes with such a folder: texts by content and, with `media`, media by size and time."""
    files = [path for group in grouped(root, within=within).values() for path, problem in group if not problem]
    found = files_sha256(root, files, label="media", whole=_is_words, media=media)
    return digest_of_split_lists(root, digest_of_card(root, found))
