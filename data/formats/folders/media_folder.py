"""A folder of images, audio and videos, each with a text file of the same name beside it.

    birds/heron.jpg  birds/heron.txt       an image and its caption
    talk/1.flac      talk/1.json           {"text": ...} or {"caption": ...}, as in WebDataset samples
    talk/1.mp4                             several media of one name are one document: image, audio, video, text

The id is the path without its extension. Media without text are quarantined; so are an image beside numbers alone
(YOLO's boxes), and text whose only media file is of a kind that is not read. All other files are counted, but for lists
of files that say what is held out (`brine.data.formats.splits.split_lists`). Hidden folders are not entered.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from brine.data.document import Document, DocumentError, Image, Quarantined
from brine.data.files.extensions import VIDEO_OR_CODE, conversion_hint, extension_of, media_type_in, media_type_of
from brine.data.files.pointers import dvc_target, missing_file_hint
from brine.data.files.resolve import stays_within
from brine.data.files.walk import is_visible, walk
from brine.data.formats.detect import CAPTIONS
from brine.data.formats.folders.dataset_card import read_dataset_card
from brine.data.formats.lines import samples
from brine.data.formats.source import UNREAD_SPLIT, ReadLimits, files_sha256, read_text, skip_file
from brine.data.formats.splits.names import HELD_OUT, split_of_name
from brine.data.formats.splits.rules import UNASSIGNED, PathSplits, digest_of_card
from brine.data.formats.splits.split_lists import SplitListFiles, digest_of_split_lists

TABLES = (".csv", ".tsv")  # endings of tables of text, which are not read: a metadata.jsonl is written from them
WORD_LIKE = (".lab", ".srt", ".vtt", ".lrc", ".tags", ".cap", ".text", ".label", ".normalized.txt", ".original.txt")
"""Endings of files that may hold the words of media of their name, and are not read."""
_NUMBER = re.compile(r"[-+]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][-+]?\d{1,4})?[,;]?")
_CELLS = 10_000


def media_documents(
    root: Path,
    limits: ReadLimits,
    skipped: Counter,
    *,
    within: list[str] | None = None,
    splits: PathSplits | None = None,
) -> Iterator[Document | Quarantined]:
    """A document for each name below `root` (resolved) with media and text. within: read these top folders alone."""
    groups, lists = _grouped(root, skipped, within), SplitListFiles(root, skipped)
    paths = (files[0][0] for files in groups.values())
    splits = splits or PathSplits(paths, files=False, card=read_dataset_card(root))
    for name, files in groups.items():
        problem = next((f"file {path!r} {why}" for path, why in files if why), "")
        kinds = {path: media_type_of(path) if why else media_type_in(root, path) for path, why in files}
        media = {path: kind for path, kind in kinds.items() if kind}
        words = [path for path, _ in files if path.lower().endswith(CAPTIONS)]
        unread = [path for path, _ in files if conversion_hint(path)]
        if not media and not problem and not (unread and words):
            split = split_of_name(os.path.basename(name))
            lost = f"{UNREAD_SPLIT}{split}: text without media: {{}}" if split in HELD_OUT else ""
            for path in (path for path in words if path not in lists.files):
                skipped[lost.format(path) or "text without media"] += 1
            for path in unread:
                skip_file(path, skipped)
            continue
        try:
            if problem:
                raise DocumentError(problem)
            if not media:
                raise DocumentError(f"file {unread[0]!r} is not read: {conversion_hint(unread[0])}")
            for path in unread:
                skip_file(path, skipped)
            document = _document(root, name, media, words, limits, skipped)
            if document.split == UNASSIGNED:
                document = document.with_split(lists.split_of(files[0][0], splits.split_of_single(files[0][0])))
            yield document
        except DocumentError as error:
            yield Quarantined(name, ([*media] or unread or [path for path, _ in files])[0], str(error))


def _document(
    root: Path, name: str, media: dict[str, type], words: list[str], limits: ReadLimits, skipped: Counter
) -> Document:

    def is_there(path: str) -> bool:
        return (root / path).is_file() and stays_within(root, (root / path).resolve())

    def has_classes(path: str) -> bool:
        folders = (root / os.path.dirname(path), root)
        return any((folder / name).is_file() for folder in folders for name in ("classes.txt", "obj.names"))

    text, fields, numbers = read_words(
        words,
        lambda path: read_text(root, path, limits.max_line_mib),
        skipped,
        of_images=set(media.values()) == {Image},
        has_classes=has_classes,
    )
    find = samples.named_in(os.path.dirname(name), is_there)
    if samples.is_complete_record(fields):
        samples.note_ignored_caption(text, skipped)
        return samples.record_sample(name, media, fields, find=find, max_file_mib=limits.max_file_mib, notes=skipped)
    document = samples.captioned_sample(name, media, text, fields, find=find, source=root.name, notes=skipped)
    if not document.parts[-1].text:
        if numbers:
            raise DocumentError(f"file {numbers}")
        likely = next((name + ending for ending in WORD_LIKE if is_there(name + ending)), "")
        what = f": rename {likely!r} to {name}.txt if it holds plain text" if likely else f": write {name}.txt"
        if held := ", ".join(repr(key[:40]) for key in list(fields)[:8]):
            json = next(path for path in words if path.lower().endswith(".json"))
            what = f", for {json!r} has the fields {held} and text in none of them{what}"
        raise DocumentError(f"file {next(iter(media))!r} has no caption beside it{what}")
    return document


def read_words(
    paths: Iterable[str],
    read: Callable[[str], str],
    notes: Counter,
    *,
    of_images: bool,
    has_classes: Callable[[str], bool] = lambda _: False,
) -> tuple[str, dict, str]:
    """(text, object, what a text of numbers holds) of a sample. of_images: numbers beside images are no words."""
    text, fields, numbers = "", {}, ""
    for path in sorted(paths, key=lambda path: CAPTIONS.index(os.path.splitext(path)[1].lower())):
        content = read(path)
        if path.lower().endswith(".json"):
            fields = samples.sidecar_object(content, text, notes)
        elif of_images and (what := _numbers_in(content, has_classes=has_classes(path))):
            numbers = numbers or f"{path[:200]!r} holds {what}"
        elif not text.strip():
            text = content
        elif content.strip() not in ("", text.strip()):
            notes["note: of several texts of one name the first was read"] += 1
    if numbers and (text.strip() or fields):
        notes["note: numbers beside an image that has a caption were not read"] += 1
    return text, fields, numbers


def _numbers_in(text: str, *, has_classes: bool) -> str:
    """What a text of nothing but numbers is, with the remedy; "" for words, and for one number unless `has_classes`."""
    cells = text.split()
    if not cells or (len(cells) == 1 and not has_classes) or not all(map(_NUMBER.fullmatch, cells[:_CELLS])):
        return ""
    shortest = min([len(line.split()) for line in text.splitlines() if line.strip()][:_CELLS])
    what = "boxes or outlines in numbers (YOLO)" if shortest >= 5 else "numbers"
    what = "the number of a class" if len(cells) == 1 else what
    return f"{what} and no text: write text in its place, or a metadata.jsonl of the images and their captions"


def _grouped(root: Path, skipped: Counter, within: list[str] | None) -> dict[str, list[tuple[str, str]]]:
    """Path without extension -> [(path, problem)] of media and texts below `root`, sorted; counts other files."""
    groups: dict[str, list[tuple[str, str]]] = {}

    def enter(folder: str) -> bool:
        return is_visible(folder) and (within is None or folder.split("/")[0] in within)

    for path, problem in walk(root, enter=enter, skipped=skipped):
        media = dvc_target(path)
        if media and (media_type_of(media) or conversion_hint(media)):
            if not os.path.exists(root / media):
                groups.setdefault(os.path.splitext(media)[0], []).append((media, missing_file_hint(root / media)))
        elif within is not None and "/" not in path:
            continue
        elif os.path.basename(path).startswith("."):
            skipped["hidden file"] += 1
        elif (
            media_type_of(path)
            or (not problem and extension_of(path) in VIDEO_OR_CODE and media_type_in(root, path))
            or conversion_hint(path)
            or path.lower().endswith(CAPTIONS)
        ):
            groups.setdefault(os.path.splitext(path)[0], []).append((path, problem))
        elif not problem and path.lower().endswith(TABLES):
            skipped[f"table .{extension_of(path)}: its text is not read, captions beside media are"] += 1
        else:
            skip_file(path, skipped, problem)
    # words may be named after all of a media file's name (`a.jpg.txt`)
    sizes = {name: len(group) for name, group in groups.items()}
    for name in [name for name in groups if media_type_of(name) or conversion_hint(name)]:
        stem = os.path.splitext(name)[0]
        group = groups.get(stem, [])
        media = next((file for file in group if file[0] == name), None)
        if media and sizes[stem] == 1:
            group += groups.pop(name)
        elif media:
            # each of several media of one name may have a text
            group.remove(media)
            groups[name] = [media, *groups[name]]
    return {name: groups[name] for name in sorted(groups, key=os.fsencode) if groups[name]}


def media_digest(root: Path, media: bool, *, within: list[str] | None = None) -> str:
    """SHA-256 that changes with such a folder: texts by content and, with `media`, media by size and time."""
    groups = _grouped(root, Counter(), within).values()
    files = [path for group in groups for path, problem in group if not problem]

    def is_words(path: str) -> bool:
        return media_type_of(path) is None and extension_of(path) not in VIDEO_OR_CODE

    found = files_sha256(root, files, label="media", whole=is_words, media=media)
    return digest_of_split_lists(root, digest_of_card(root, found))
