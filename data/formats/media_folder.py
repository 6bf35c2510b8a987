"""A folder of pictures, sounds and films, each with a text file of the same name beside it.

    birds/heron.jpg  birds/heron.txt       a picture and its caption
    talk/1.flac      talk/1.json           {"text": ...} or {"caption": ...}, as in WebDataset samples
    talk/1.mp4                             several media of one name are one document: picture, sound, film, words

The id is the path without its ending; the kind is the medium, or "mixed". A medium without words is set aside, since
there is nothing to learn from it, and so are words whose only medium is of a kind that is not read, with the remedy.
Media of such kinds without words or beside others, texts without a medium and all other files are passed over and
counted. Hidden folders are not entered.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from data.compressed import packed_kind
from data.document import Audio, Document, DocumentError, Image, Quarantined, Text, Video, parse_document
from data.endings import ending_of, medium_of, remedy_for
from data.formats.captioned import read_text, words_of
from data.formats.lines import parse_object
from data.formats.source import Limits, files_sha256
from data.formats.splits import UNASSIGNED, NamedSplits
from data.formats.walk import is_open, walk

_ORDER = (Image, Audio, Video)
TABLES = (".csv", ".tsv")
"""Endings of tables of text, which are not read: a metadata.jsonl is written from them."""
_WORDS = (".txt", ".caption", ".json")


def media_documents(root: Path, limits: Limits, skipped: Counter) -> Iterator[Document | Quarantined]:
    """A document for each name below `root` (resolved) that has media and words."""
    groups = grouped(root, skipped)
    splits = NamedSplits(groups, files=False)
    for name, files in groups.items():
        problem = next((f"file {path!r} {why}" for path, why in files if why), "")
        media = [path for path, _ in files if medium_of(path)]
        words = [path for path, _ in files if path.lower().endswith(_WORDS)]
        unread = [path for path, _ in files if remedy_for(path)]
        if not media and not problem and not (unread and words):
            skipped["text without a medium"] += len(words)
            pass_over(unread, skipped)
            continue
        try:
            if problem:
                raise DocumentError(problem)
            if not media:
                raise DocumentError(f"file {unread[0]!r} is not read: {remedy_for(unread[0])}")
            pass_over(unread, skipped)
            text = _words(root, words, limits)
            if not text:
                raise DocumentError(f"file {media[0]!r} has no words beside it: write {name}.txt")
            document = paired(name, media, text, source=root.name)
            yield document.in_split(splits.of(name))
        except DocumentError as error:
            yield Quarantined(name, (media or unread or [path for path, _ in files])[0], str(error))


def paired(name: str, media: list[str], text: str, *, source: str) -> Document:
    """A document of media and the words for them. Raises DocumentError."""
    kinds = {medium_of(path) for path in media}
    kind = kinds.pop().__name__.lower() if len(kinds) == 1 else "mixed"
    parts = sorted((medium_of(path)(path) for path in media), key=lambda part: _ORDER.index(type(part)))
    whole = Document(id=name, parts=(*parts, Text(text)), kind=kind, source=source[:200])
    parse_document(whole.to_json())
    return Document(whole.id, whole.parts, kind=kind, split=UNASSIGNED, source=whole.source)


def pass_over(media: list[str], skipped: Counter) -> None:
    """Count media that are not read, with the remedy."""
    for path in media:
        skipped[f"medium .{ending_of(path)}: {remedy_for(path)}"] += 1


def pass_over_other(path: str, skipped: Counter) -> None:
    """Count a file of no medium and no words; whoever opened the folder counts compressed ones, with the remedy."""
    if not packed_kind(path):
        skipped[f"file .{ending_of(path)[:20]}" if ending_of(path) else "file without an ending"] += 1


def grouped(root: Path, skipped: Counter | None = None) -> dict[str, list[tuple[str, str]]]:
    """Path without ending -> [(path, problem)] of the media and texts below `root`, sorted; counts the other files."""
    groups: dict[str, list[tuple[str, str]]] = {}
    skipped = Counter() if skipped is None else skipped
    for path, problem in walk(root, enter=is_open, skipped=skipped):
        if medium_of(path) or remedy_for(path) or path.lower().endswith(_WORDS):
            groups.setdefault(os.path.splitext(path)[0], []).append((path, problem))
        elif path.lower().endswith(TABLES):
            skipped[f"table .{ending_of(path)}: its words are not read, captions beside media are"] += 1
        else:
            pass_over_other(path, skipped)
    return groups


def _words(root: Path, files: list[str], limits: Limits) -> str:
    for path in sorted(files, key=lambda path: _WORDS.index(os.path.splitext(path)[1].lower())):
        text = read_text(root, path, limits.max_line_mib)
        if path.lower().endswith(".json"):
            text = words_of(parse_object(text.encode()))
        if text.strip():
            return text
    return ""


def media_digest(root: Path) -> Callable[[bool], str]:
    """What tells whether such a folder changed: texts by content, media by size and time."""

    def digest(media: bool) -> str:
        files = [path for group in grouped(root).values() for path, problem in group if not problem]
        return files_sha256(root, files, label="media", whole=lambda name: medium_of(name) is None, media=media)

    return digest
