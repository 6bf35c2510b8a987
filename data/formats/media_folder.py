"""A folder of pictures, sounds and films, each with a text file of the same name beside it.

    birds/heron.jpg  birds/heron.txt       a picture and its caption
    talk/1.flac      talk/1.json           {"text": ...} or {"caption": ...}, as in WebDataset samples
    talk/1.mp4                             several media of one name are one document: picture, sound, film, words

The id is the path without its ending; the kind is the medium, or "mixed". A medium without words is set aside, since
there is nothing to learn from it; a text without a medium is passed over and counted. Hidden folders are not entered.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from data.document import Audio, Document, DocumentError, Image, Quarantined, Text, Video, parse_document
from data.endings import medium_of
from data.formats.captioned import read_text, words_of
from data.formats.lines import parse_object
from data.formats.source import Limits, files_sha256
from data.formats.splits import UNASSIGNED, NamedSplits
from data.formats.walk import is_open, walk

_ORDER = (Image, Audio, Video)
_WORDS = (".txt", ".caption", ".json")


def media_documents(root: Path, limits: Limits, skipped: Counter) -> Iterator[Document | Quarantined]:
    """A document for each name below `root` (resolved) that has media and words."""
    groups = grouped(root, skipped)
    splits = NamedSplits(groups, files=False)
    for name, files in groups.items():
        problem = next((f"file {path!r} {why}" for path, why in files if why), "")
        media = [path for path, _ in files if medium_of(path)]
        words = [path for path, _ in files if path.lower().endswith(_WORDS)]
        if not media and not problem:
            skipped["text without a medium"] += len(words)
            continue
        try:
            if problem:
                raise DocumentError(problem)
            text = _words(root, words, limits)
            if not text:
                raise DocumentError(f"file {media[0]!r} has no words beside it: write {name}.txt")
            document = paired(name, media, text, source=root.name)
            yield dataclasses.replace(document, split=splits.of(name))
        except DocumentError as error:
            yield Quarantined(name, (media or [path for path, _ in files])[0], str(error))


def paired(name: str, media: list[str], text: str, *, source: str) -> Document:
    """A document of media and the words for them. Raises DocumentError."""
    kinds = {medium_of(path) for path in media}
    kind = kinds.pop().__name__.lower() if len(kinds) == 1 else "mixed"
    parts = sorted((medium_of(path)(path) for path in media), key=lambda part: _ORDER.index(type(part)))
    whole = Document(id=name, parts=(*parts, Text(text)), kind=kind, source=source[:200])
    parse_document(whole.to_json())
    return Document(whole.id, whole.parts, kind=kind, split=UNASSIGNED, source=whole.source)


def grouped(root: Path, skipped: Counter | None = None) -> dict[str, list[tuple[str, str]]]:
    """Path without ending -> [(path, problem)] of the media and texts below `root`, sorted."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, problem in walk(root, enter=is_open, skipped=skipped):
        if medium_of(path) or path.lower().endswith(_WORDS):
            groups.setdefault(os.path.splitext(path)[0], []).append((path, problem))
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
