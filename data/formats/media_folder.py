"""A folder of pictures, sounds and films, each with a text file of the same name beside it.

    birds/heron.jpg  birds/heron.txt       a picture and its caption
    talk/1.flac      talk/1.json           {"text": ...} or {"caption": ...}, as in WebDataset samples
    talk/1.mp4                             several media of one name are one document: picture, sound, film, words

The id is the path without its ending; the kind is the medium, or "mixed". A medium without words is set aside, since
there is nothing to learn from it; so are an image beside numbers alone (YOLO's boxes), and words whose only medium is
of a kind that is not read, with the remedy. Media of such kinds without words or beside others, texts without a medium
and all other files are passed over and counted, but for lists of files that say what is held out
(`data.formats.split_lists`). Hidden folders are not entered.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from data.compressed import packed_kind
from data.document import Document, DocumentError, Image, Quarantined
from data.endings import FILM_OR_CODE, ending_of, medium_in, medium_of, remedy_for
from data.formats.captioned import read_text
from data.formats.card import read_card
from data.formats.samples import captioned_sample, is_whole, named_in, note_text_beside, object_beside, whole_sample
from data.formats.source import LOST, Limits, files_sha256
from data.formats.split_lists import SplitLists, digest_of_lists
from data.formats.splits import HELD_OUT, UNASSIGNED, NamedSplits, digest_of_card
from data.formats.walk import is_open, walk
from data.links import stays_within
from data.pointers import awaited, why_missing
from data.split_names import split_of_name

TABLES = (".csv", ".tsv")
"""Endings of tables of text, which are not read: a metadata.jsonl is written from them."""
_WORDS = (".txt", ".caption", ".json")
_NUMBER = re.compile(r"[-+]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][-+]?\d{1,4})?[,;]?")
_CELLS = 10_000
WORD_LIKE = (".lab", ".srt", ".vtt", ".lrc", ".tags", ".cap", ".text", ".label", ".normalized.txt", ".original.txt")
"""Endings of files that may hold the words for a medium of their name, and are not read."""


def media_documents(
    root: Path,
    limits: Limits,
    skipped: Counter,
    *,
    within: list[str] | None = None,
    splits: NamedSplits | None = None,
) -> Iterator[Document | Quarantined]:
    """A document for each name below `root` (resolved) that has media and words.

    within: folders right below the root that are looked into alone, where they are a part of a source whose names
    `splits` knows.
    """
    groups = grouped(root, skipped, within=within)
    paths = {name: files[0][0] for name, files in groups.items()}
    splits = splits or NamedSplits(paths.values(), files=False, card=read_card(root))
    lists = SplitLists(root, skipped)
    for name, files in groups.items():
        problem = next((f"file {path!r} {why}" for path, why in files if why), "")
        media = {path: kind for path, why in files if (kind := medium_of(path) if why else medium_in(root, path))}
        words = [path for path, _ in files if path.lower().endswith(_WORDS)]
        unread = [path for path, _ in files if remedy_for(path)]
        if not media and not problem and not (unread and words):
            for path in words:
                if path not in lists.files:
                    split = split_of_name(os.path.basename(name))
                    lost = f"{LOST}{split}: " if split in HELD_OUT else ""
                    skipped[f"{lost}text without a medium{f': {path}' if lost else ''}"] += 1
            pass_over(unread, skipped)
            continue
        try:
            if problem:
                raise DocumentError(problem)
            if not media:
                raise DocumentError(f"file {unread[0]!r} is not read: {remedy_for(unread[0])}")
            pass_over(unread, skipped)
            document = _document(root, name, media, words, limits, skipped)
            if document.split == UNASSIGNED:
                document = document.in_split(lists.of(paths[name], splits.of_one(paths[name])))
            yield document
        except DocumentError as error:
            yield Quarantined(name, ([*media] or unread or [path for path, _ in files])[0], str(error))


def _document(
    root: Path, name: str, media: dict[str, type], words: list[str], limits: Limits, skipped: Counter
) -> Document:
    """The document of one name. Raises DocumentError."""
    text, fields, numbers, kinds = "", {}, "", set(media.values())
    for path in sorted(words, key=lambda path: _WORDS.index(os.path.splitext(path)[1].lower())):
        content = read_text(root, path, limits.max_line_mib)
        if path.lower().endswith(".json"):
            fields = object_beside(content, text, skipped)
        elif kinds == {Image} and (what := numbers_in(content, classes=_has_classes(root, path))):
            numbers = numbers or f"file {path!r} holds {what}"
        elif not text.strip():
            text = content
        elif content.strip() not in ("", text.strip()):
            skipped["note: of several texts of one name the first was read"] += 1
    find = named_in(os.path.dirname(name), lambda path: _is_there(root, path))
    if is_whole(fields):
        note_text_beside(text, skipped)
        return whole_sample(name, media, fields, find=find, max_file_mib=limits.max_file_mib, notes=skipped)
    document = captioned_sample(name, media, text, fields, find=find, source=root.name, notes=skipped)
    if not document.parts[-1].text:
        if numbers:
            raise DocumentError(numbers)
        likely = next((name + ending for ending in WORD_LIKE if _is_there(root, name + ending)), "")
        what = f": rename {likely!r} to {name}.txt if it holds plain words" if likely else f": write {name}.txt"
        held = ", ".join(repr(key[:40]) for key in list(fields)[:8])
        if held:
            json = next(path for path in words if path.lower().endswith(".json"))
            what = f", for {json!r} has the fields {held} and words in none of them{what}"
        raise DocumentError(f"file {next(iter(media))!r} has no words beside it{what}")
    if numbers:
        skipped["note: numbers beside an image that has words were not read"] += 1
    return document


def numbers_in(text: str, *, classes: bool = False) -> str:
    """What a text of nothing but numbers is, with the remedy; "" for words, and for one number unless it is of a class.

    Boxes of YOLO are lines of a class and four numbers or more; learned as captions they would teach to write boxes.
    """
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


def pass_over(media: list[str], skipped: Counter) -> None:
    """Count media that are not read, with the remedy."""
    for path in media:
        skipped[f"medium .{ending_of(path)}: {remedy_for(path)}"] += 1


def pass_over_other(path: str, skipped: Counter) -> None:
    """Count a file of no medium and no words; whoever opened the folder counts compressed ones, with the remedy."""
    if awaited(path):
        skipped["file .dvc, not fetched: `dvc pull` fetches it"] += 1
    elif not packed_kind(path):
        skipped[f"file .{ending_of(path)[:20]}" if ending_of(path) else "file without an ending"] += 1


def grouped(
    root: Path, skipped: Counter | None = None, *, within: list[str] | None = None
) -> dict[str, list[tuple[str, str]]]:
    """Path without ending -> [(path, problem)] of the media and texts below `root`, sorted; counts the other files."""
    groups: dict[str, list[tuple[str, str]]] = {}
    skipped = Counter() if skipped is None else skipped

    def enter(folder: str) -> bool:
        return is_open(folder) and (within is None or folder.split("/")[0] in within)

    for path, problem in walk(root, enter=enter, skipped=skipped):
        media = awaited(path)
        if media and (medium_of(media) or remedy_for(media)):
            if not os.path.exists(root / media):
                groups.setdefault(os.path.splitext(media)[0], []).append((media, why_missing(root / media)))
            continue
        if within is not None and "/" not in path:
            continue
        if os.path.basename(path).startswith("."):
            skipped["hidden file"] += 1
            continue
        is_film = not problem and ending_of(path) in FILM_OR_CODE and medium_in(root, path)
        if medium_of(path) or is_film or remedy_for(path) or path.lower().endswith(_WORDS):
            groups.setdefault(os.path.splitext(path)[0], []).append((path, problem))
        elif problem:
            skipped[f"file that {problem}"] += 1
        elif path.lower().endswith(TABLES):
            skipped[f"table .{ending_of(path)}: its words are not read, captions beside media are"] += 1
        else:
            pass_over_other(path, skipped)
    return _with_named_after_media(groups)


def _with_named_after_media(groups: dict[str, list]) -> dict[str, list]:
    """The groups with words that are named after a medium's whole name (`a.jpg.txt`) beside that medium."""
    sizes = {name: len(group) for name, group in groups.items()}
    for name in [name for name in groups if medium_of(name) or remedy_for(name)]:
        group = groups.get(os.path.splitext(name)[0], [])
        medium = next((file for file in group if file[0] == name), None)
        if medium is None:
            continue
        if sizes[os.path.splitext(name)[0]] == 1:
            group += groups.pop(name)
        else:
            # of several media of one name each may have words of its own
            group.remove(medium)
            groups[name] = [medium, *groups[name]]
    return {name: groups[name] for name in sorted(groups, key=os.fsencode) if groups[name]}


def _is_words(path: str) -> bool:
    return medium_of(path) is None and ending_of(path) not in FILM_OR_CODE


def media_digest(root: Path, *, within: list[str] | None = None) -> Callable[[bool], str]:
    """What tells whether such a folder changed: texts by content, media by size and time."""

    def digest(media: bool) -> str:
        files = [path for group in grouped(root, within=within).values() for path, problem in group if not problem]
        found = files_sha256(root, files, label="media", whole=_is_words, media=media)
        return digest_of_lists(root, digest_of_card(root, found))

    return digest
