"""A source repository: every text file that git would keep is a document, opened by its path.

`.gitignore` files and `.git/info/exclude` are respected as by git (the `pathspec` package matches the patterns);
whether a file is tracked is not asked. Names declare splits of plain texts, pages and HTML alone (`TextFileSplits`),
since `test/` holds the tests of a program, which are trained on like the rest of it; a data set's card declares for
all. Kind is "code" or "text"; a Markdown page with local images is of kind "doc". Binary files, empty ones and media
are counted; a text over 2 MiB or not in UTF-8 is quarantined."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from brine.data.document import Document, DocumentError, Image, Quarantined, Text, parse_document
from brine.data.files.extensions import conversion_hint, media_type_of
from brine.data.files.pointers import pointer_of
from brine.data.files.resolve import resolve_media
from brine.data.files.text import decode_text, foreign_encoding, strip_bom
from brine.data.files.walk import walk
from brine.data.formats.detect import JSON, record_formats_in
from brine.data.formats.folders.dataset_card import read_dataset_card
from brine.data.formats.folders.folder_files import CODE, PROGRAMS
from brine.data.formats.folders.markdown import EXTENSIONS, page_document
from brine.data.formats.lines.lines import is_array
from brine.data.formats.notes.refusals import describe_wrapped_json
from brine.data.formats.source import NOTE_PREFIX, ReadLimits, files_sha256, skip_media
from brine.data.formats.splits.rules import UNASSIGNED, TextFileSplits

MAX_SOURCE_MIB = 2.0
"""Largest file taken for a source file, in MiB; larger ones are data."""
_HYPERTEXT = (".html", ".css")
"""Code that texts are made of or come with."""
_RAW = (
    f"{NOTE_PREFIX}JSON of documents was read as plain text: give its file or folder, or format 'manifest' "
    "(--format manifest)"
)
_MAX_IGNORE_BYTES = 2**20


class _Ignore:
    """The .gitignore files that hold below a folder."""

    def __init__(self, root: Path):
        self.root = root
        self.specs: dict[str, GitIgnoreSpec | None] = {}
        self.exclude = self._read(".git/info/exclude")

    def hides(self, path: str, *, folder: bool = False) -> bool:
        """Whether a path is ignored; its parents are known not to be."""
        parts = path.split("/")
        for depth in range(len(parts) - 1, -1, -1):
            hidden = self._ask(self._spec("/".join(parts[:depth])), "/".join(parts[depth:]), folder)
            if hidden is not None:
                return hidden
        return bool(self._ask(self.exclude, path, folder))

    def _spec(self, folder: str) -> GitIgnoreSpec | None:
        if folder not in self.specs:
            self.specs[folder] = self._read(f"{folder}/.gitignore" if folder else ".gitignore")
        return self.specs[folder]

    def _read(self, path: str) -> GitIgnoreSpec | None:
        try:
            file = resolve_media(self.root, path, max_file_mib=_MAX_IGNORE_BYTES / 2**20)
            lines = strip_bom(file.read_bytes()).decode(errors="replace").splitlines()
        except (DocumentError, OSError):
            return None
        patterns = []
        for line in lines:
            # git passes over a pattern that it cannot read, and so must one bad line here
            try:
                GitIgnoreSpec.from_lines([line])
            except ValueError:
                continue
            patterns.append(line)
        return GitIgnoreSpec.from_lines(patterns)

    @staticmethod
    def _ask(spec: GitIgnoreSpec | None, path: str, folder: bool) -> bool | None:
        return None if spec is None else spec.check_file(f"{path}/" if folder else path).include


def repository_files(root: Path, skipped: Counter | None = None) -> Iterator[tuple[str, str]]:
    """(path, problem) of the files below `root` (resolved) that no .gitignore hides."""
    ignore = _Ignore(root)
    for path, problem in walk(root, enter=lambda folder: not ignore.hides(folder, folder=True), skipped=skipped):
        if os.path.basename(path) != ".git" and not ignore.hides(path):
            yield path, problem


def repository_documents(root: Path, limits: ReadLimits, skipped: Counter) -> Iterator[Document | Quarantined]:
    """A document for each source file below `root` (resolved)."""
    files, card = list(repository_files(root, skipped)), read_dataset_card(root)
    by_folders = not any(_ending(path) in PROGRAMS and _ending(path) not in _HYPERTEXT for path, _ in files)
    splits = TextFileSplits(
        (path for path, why in files if not why and _is_plain(path)), card=card, by_folders=by_folders
    )
    for path, problem in files:
        try:
            if problem:
                raise DocumentError(f"file {path!r} {problem}")
            text = _read(root, path, min(MAX_SOURCE_MIB, limits.max_file_mib), skipped)
            if text is not None:
                document = _document(root, path, text)
                if _holds_documents(root, path):
                    skipped[_RAW] += 1
                yield document.with_split(splits.split_of(path)) if _is_plain(path) or card.split_of(path) else document
        except DocumentError as error:
            yield Quarantined(path, path, str(error))


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_plain(path: str) -> bool:
    """Whether a file's name may declare its split: a text, and no program or medium."""
    return (_ending(path) not in CODE or _ending(path) == ".html") and media_type_of(path) is None


def _holds_documents(root: Path, path: str) -> bool:
    """Whether a text is JSON of a known record format, which the whole source might be read by."""
    if _ending(path) not in JSON:
        return False
    try:
        if _ending(path) == ".json" and describe_wrapped_json(root / path):
            return True
        return (_ending(path) != ".json" or is_array(root / path)) and bool(record_formats_in(root / path))
    except OSError:
        return False


def _read(root: Path, path: str, max_mib: float, skipped: Counter) -> str | None:
    """The file's text, or None for a file that is not text, with the reason counted."""
    if media_type_of(path) is not None:
        skipped["medium"] += 1
        return None
    try:
        with open(root / path, "rb") as file:
            head = file.read(8192)
            if problem := pointer_of(head):
                skipped[problem.removeprefix("is a ")] += 1
                return None
            # text of UTF-16 is told as what it is below, though it is full of zeros
            if (b"\0" in head and not foreign_encoding(head)) or not head.strip():
                # asked only of binaries: .ts is TypeScript as well, and an SVG is text
                if conversion_hint(path) and head.strip():
                    skip_media([path], skipped)
                else:
                    skipped["binary file" if head.strip() else "empty file"] += 1
                return None
            content = head + file.read(int(max_mib * 2**20) + 1 - len(head))
    except OSError as error:
        raise DocumentError(f"file {path!r} cannot be read ({error.strerror})") from None
    if len(content) > max_mib * 2**20:
        raise DocumentError(f"file {path!r} is over {max_mib:g} MiB, more than a source file has")
    return decode_text(content, f"file {path!r}")


def _document(root: Path, path: str, text: str) -> Document:
    ending = _ending(path)
    if ending in EXTENSIONS:
        page = page_document(root, path, text, kind="text", opening=f"{path}\n")
        has_image = any(isinstance(part, Image) for part in page.parts)
        return dataclasses.replace(page, kind="doc") if has_image else page
    kind = "code" if ending in CODE else "text"
    whole = Document(id=path, parts=(Text(f"{path}\n{text}"),), kind=kind, source=root.name[:200])
    parse_document(whole.to_json())
    return whole.with_split(UNASSIGNED)


def repository_digest(root: Path, media: bool) -> str:
    """SHA-256 that changes with a repository: texts by content and, with `media`, media by size and time."""
    files = [path for path, problem in repository_files(root) if not problem]
    return files_sha256(root, files, label="repository", whole=lambda name: not media_type_of(name), media=media)
