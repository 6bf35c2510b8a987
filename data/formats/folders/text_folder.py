"""Folders of texts: Markdown pages with media, and source repositories, of which every file is a document.

"markdown": each .md and .markdown file, in the order of their paths, which are their ids; hidden folders are not
entered. "repository": every text file that git would keep, opened by its path; `.gitignore` and `.git/info/exclude` are
respected as by git (the `pathspec` package matches the patterns), whether a file is tracked is not asked. Its names
declare splits of plain texts, pages and HTML alone (`TextFileSplits`), since `test/` holds the tests of a program,
which are trained on like the rest of it; a dataset card declares for all. Kind is "code", "text" or, of a page with
local images, "doc". Other files are counted; a text over 2 MiB or not in UTF-8 is quarantined.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from brine.data.document import Document, DocumentError, Image, Quarantined, Text, media_paths, parse_document
from brine.data.files.extensions import SUPPORTED, conversion_hint, media_type_of
from brine.data.files.pointers import pointer_of
from brine.data.files.resolve import resolve_media
from brine.data.files.text import decode_text, foreign_encoding, strip_bom
from brine.data.files.walk import is_visible, walk
from brine.data.formats.detect import CODE, JSON, PROGRAMS, record_formats_in
from brine.data.formats.folders.dataset_card import read_dataset_card
from brine.data.formats.folders.markdown import PAGES, page_document
from brine.data.formats.lines.lines import is_array
from brine.data.formats.notes.refusals import describe_wrapped_json
from brine.data.formats.source import NOTE_PREFIX, ReadLimits, each_document, files_sha256, read_text, skip_file
from brine.data.formats.splits.rules import UNASSIGNED, TextFileSplits, digest_of_card

MAX_SOURCE_MIB = 2.0  # largest file taken for a source file, in MiB; larger ones are data
# code that texts are made of or come with
_HYPERTEXT = (".html", ".css")
_RAW = (
    f"{NOTE_PREFIX}JSON of documents was read as plain text: give its file or folder, or format 'manifest' "
    "(--format manifest)"
)


def markdown_documents(root: Path, limits: ReadLimits, skipped: Counter) -> Iterator[Document | Quarantined]:
    """A document for each page below `root` (resolved)."""
    pages, media = [], set()
    for path, problem in walk(root, enter=is_visible, skipped=skipped):
        if _ending(path) in PAGES:
            pages.append((path, problem))
        elif media_type_of(path):
            media.add(path)
        else:
            skip_file(path, skipped, problem)
    splits = TextFileSplits((path for path, _ in pages), card=read_dataset_card(root), by_folders=True)

    def read(path: str) -> Document:
        document = page_document(root, path, read_text(root, path, limits.max_file_mib), kind="doc")
        media.difference_update(media_paths(document))
        return document.with_split(splits.split_of(path))

    yield from each_document(pages, read)
    if media:
        skipped["media file that no page shows"] += len(media)


def markdown_digest(root: Path, media: bool) -> str:
    """SHA-256 that changes with such a folder: pages by content and, with `media`, media by size and time."""
    extensions = (*PAGES, *(f".{ending}" for ending in SUPPORTED))
    files = [path for path, why in walk(root, enter=is_visible) if not why and path.lower().endswith(extensions)]
    found = files_sha256(root, files, label="markdown", whole=lambda path: _ending(path) in PAGES, media=media)
    return digest_of_card(root, found)


def repository_documents(root: Path, limits: ReadLimits, skipped: Counter) -> Iterator[Document | Quarantined]:
    """A document for each source file below `root` (resolved)."""
    files, card = list(_repository_files(root, skipped)), read_dataset_card(root)
    by_folders = not any(_ending(path) in PROGRAMS and _ending(path) not in _HYPERTEXT for path, _ in files)
    plain = {path for path, why in files if not why and _is_plain(path)}
    splits = TextFileSplits(plain, card=card, by_folders=by_folders)

    def read(path: str) -> Document | None:
        text = _source_text(root, path, min(MAX_SOURCE_MIB, limits.max_file_mib), skipped)
        if text is None:
            return None
        if _ending(path) in PAGES:
            document = page_document(root, path, text, kind="text", opening=f"{path}\n")
            has_image = any(isinstance(part, Image) for part in document.parts)
            document = dataclasses.replace(document, kind="doc") if has_image else document
        else:
            kind = "code" if _ending(path) in CODE else "text"
            document = Document(id=path, parts=(Text(f"{path}\n{text}"),), kind=kind, source=root.name[:200])
            document = parse_document(document.to_json()).with_split(UNASSIGNED)
        skipped.update([_RAW] if _holds_documents(root, path) else ())
        return document.with_split(splits.split_of(path)) if path in plain or card.split_of(path) else document

    yield from each_document(files, read)


def repository_digest(root: Path, media: bool) -> str:
    """SHA-256 that changes with a repository: texts by content and, with `media`, media by size and time."""
    files = [path for path, problem in _repository_files(root) if not problem]
    return files_sha256(root, files, label="repository", whole=lambda name: not media_type_of(name), media=media)


def _repository_files(root: Path, skipped: Counter | None = None) -> Iterator[tuple[str, str]]:
    ignore = _Ignore(root)
    for path, problem in walk(root, enter=lambda folder: not ignore.hides(folder, folder=True), skipped=skipped):
        if os.path.basename(path) != ".git" and not ignore.hides(path):
            yield path, problem


class _Ignore:
    """The .gitignore files that hold below a folder."""

    def __init__(self, root: Path):
        self.root = root
        self.specs: dict[str, GitIgnoreSpec | None] = {}
        self.exclude = self._read(".git/info/exclude")

    def hides(self, path: str, *, folder: bool = False) -> bool:
        parts = f"{path}/" if folder else path
        above = path.rpartition("/")[0]
        while True:
            if above not in self.specs:
                self.specs[above] = self._read(f"{above}/.gitignore" if above else ".gitignore")
            if (spec := self.specs[above]) is not None:
                hidden = spec.check_file(parts[len(above) + bool(above) :]).include
                if hidden is not None:
                    return hidden
            if not above:
                return bool(self.exclude and self.exclude.check_file(parts).include)
            above = above.rpartition("/")[0]

    def _read(self, path: str) -> GitIgnoreSpec | None:
        try:
            file = resolve_media(self.root, path, max_file_mib=1.0)
            lines = strip_bom(file.read_bytes()).decode(errors="replace").splitlines()
        except (DocumentError, OSError):
            return None
        # git passes over a pattern that it cannot read, and so must one bad line here
        return GitIgnoreSpec.from_lines(list(filter(_is_pattern, lines)))


def _is_pattern(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_plain(path: str) -> bool:
    return (_ending(path) not in CODE or _ending(path) == ".html") and media_type_of(path) is None


def _holds_documents(root: Path, path: str) -> bool:
    """Whether a text is JSON of a known record format, which the whole source might be read by."""
    if _ending(path) not in JSON:
        return False
    try:
        is_json = _ending(path) == ".json"
        if is_json and describe_wrapped_json(root / path):
            return True
        return (not is_json or is_array(root / path)) and bool(record_formats_in(root / path))
    except OSError:
        return False


def _source_text(root: Path, path: str, max_mib: float, skipped: Counter) -> str | None:
    """The file's text, or None for a file that is not text, with the reason counted."""
    if media_type_of(path) is not None:
        skipped["media file"] += 1
        return None
    try:
        with open(root / path, "rb") as file:
            head = file.read(8192)
            if problem := pointer_of(head):
                skipped[problem.removeprefix("is a ")] += 1
                return None
            # text of UTF-16 is reported as what it is below, though it is full of zeros
            if not head.strip() or (b"\0" in head and not foreign_encoding(head)):
                # asked only of binaries: .ts is TypeScript as well, and an SVG is text
                if conversion_hint(path) and head.strip():
                    skip_file(path, skipped)
                else:
                    skipped["binary file" if head.strip() else "empty file"] += 1
                return None
            content = head + file.read(int(max_mib * 2**20) + 1 - len(head))
    except OSError as error:
        raise DocumentError(f"file {path!r} cannot be read ({error.strerror})") from None
    if len(content) > max_mib * 2**20:
        raise DocumentError(f"file {path!r} is over {max_mib:g} MiB, more than a source file has")
    return decode_text(content, f"file {path!r}")
