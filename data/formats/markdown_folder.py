"""A folder of Markdown pages with pictures, sounds and films: every .md and .markdown below it is a document.

Pages come in the order of their paths, which are their ids. Media links become parts (`data.markdown`); a link whose
file is not there, or that counts from the root of a web site, stays in the text. Media that no page shows, those of
kinds that are not read (with the remedy) and other files are passed over and counted. Hidden folders are not entered.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from data.document import Document, DocumentError, Quarantined, Text, parse_document
from data.endings import READ, medium_of, remedy_for
from data.formats.captioned import read_text
from data.formats.card import read_card
from data.formats.media_folder import pass_over, pass_over_other
from data.formats.source import Limits, files_sha256
from data.formats.splits import UNASSIGNED, digest_of_card
from data.formats.text_splits import TextSplits
from data.formats.walk import is_open, walk
from data.markdown import markdown_parts

ENDINGS = (".md", ".markdown")


def markdown_documents(root: Path, limits: Limits, skipped: Counter) -> Iterator[Document | Quarantined]:
    """A document for each page below `root` (resolved)."""
    pages, media = [], set()
    for path, problem in walk(root, enter=is_open, skipped=skipped):
        if path.lower().endswith(ENDINGS):
            pages.append((path, problem))
        elif medium_of(path):
            media.add(path)
        elif remedy_for(path):
            pass_over([path], skipped)
        elif problem:
            skipped[f"file that {problem}"] += 1
        else:
            pass_over_other(path, skipped)
    splits = TextSplits((path for path, _ in pages), card=read_card(root), by_folders=True)
    for path, problem in pages:
        try:
            if problem:
                raise DocumentError(f"file {path!r} {problem}")
            document = page_document(root, path, read_text(root, path, limits.max_file_mib), kind="doc")
            media.difference_update(part.path for part in document.parts if not isinstance(part, Text))
            yield document.in_split(splits.of(path))
        except DocumentError as error:
            yield Quarantined(path, path, str(error))
    if media:
        skipped["medium that no page shows"] += len(media)


def page_document(root: Path, path: str, page: str, *, kind: str, opening: str = "") -> Document:
    """The document of one page, its text opened by `opening`. Raises DocumentError."""
    parts = markdown_parts(page, path=path, is_there=lambda target: os.path.lexists(root / target))
    if opening:
        first = parts[0].text if parts and isinstance(parts[0], Text) else ""
        parts = (Text(opening + first), *(parts[1:] if first else parts))
    if not any(isinstance(part, Text) and part.text.strip() for part in parts):
        raise DocumentError(f"page {path!r} has no text")
    whole = Document(id=path, parts=parts, kind=kind, source=root.name[:200])
    checked = parse_document(whole.to_json())
    return Document(checked.id, checked.parts, kind=checked.kind, split=UNASSIGNED, source=checked.source)


def markdown_digest(root: Path) -> Callable[[bool], str]:
    """What tells whether such a folder changed: pages by content, media by size and time."""

    def digest(media: bool) -> str:
        endings = (*ENDINGS, *(f".{ending}" for ending in READ))
        files = [path for path, problem in walk(root, enter=is_open) if not problem and path.lower().endswith(endings)]
        found = files_sha256(
            root, files, label="markdown", whole=lambda name: name.lower().endswith(ENDINGS), media=media
        )
        return digest_of_card(root, found)

    return digest
