"""A source repository: every text file that git would keep, one document a file, opened by its path.

    src/pages.py
    import os
    ...

`.gitignore` is respected at every level, deeper files and later lines first, negation included, and
`.git/info/exclude` too; a folder that is ignored is not entered, as with git, so nothing inside it can be named
again. Patterns are matched by the `pathspec` package. Whether a file is tracked is not asked: a folder of code
without git is read the same way.

**Splits.** Names of folders and files declare those of plain texts, pages and HTML (`data.formats.text_splits`), where
there are programs only beside a `train` of theirs. For programs and settings they declare nothing: `test/` holds the
tests of a program, which are learned as the rest of it. A data set's card (`configs` in README.md) declares for all.

Kind is "code" for files in a programming language and "text" for others; a Markdown page with local pictures is
multimodal, of kind "doc". Binary files (a NUL byte in the first 8 KiB), empty ones and media are passed over and
counted, media that are not read with the remedy; a text file over 2 MiB or of another encoding than UTF-8 is set aside
with its name. JSON of documents that is a text among others is noted, with the way to read them.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from data.document import Document, DocumentError, Image, Quarantined, Text, parse_document, resolve_media
from data.endings import medium_of, remedy_for
from data.formats.card import read_card
from data.formats.lines import is_array
from data.formats.markdown_folder import ENDINGS, page_document
from data.formats.media_folder import pass_over
from data.formats.opening import JSON, forms_in
from data.formats.refusals import wrapped
from data.formats.source import NOTE, Limits, files_sha256
from data.formats.splits import UNASSIGNED
from data.formats.text_splits import TextSplits
from data.formats.walk import walk
from data.pointers import pointer_of
from data.text import decode_text, foreign_encoding, without_marks
from data.workbench.source import LANGUAGES

MAX_SOURCE_MIB = 2.0
"""Largest file taken for a source file, in MiB; larger ones are data."""
CODE = frozenset(ending for ending, language in LANGUAGES.items() if language not in ("markdown", "rst", "text"))
PROGRAMS = CODE - {".yaml", ".yml", ".toml", ".ini", ".cfg"}
"""Endings of code that data sets do not have as their settings."""
_HYPERTEXT = (".html", ".css")
"""Code that texts are made of or come with."""
_RAW = (
    f"{NOTE}JSON of documents was read as plain text: give its file or folder, or format 'manifest' (--format manifest)"
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
            verdict = self._ask(self._spec("/".join(parts[:depth])), "/".join(parts[depth:]), folder)
            if verdict is not None:
                return verdict
        return bool(self._ask(self.exclude, path, folder))

    def _spec(self, folder: str) -> GitIgnoreSpec | None:
        if folder not in self.specs:
            self.specs[folder] = self._read(f"{folder}/.gitignore" if folder else ".gitignore")
        return self.specs[folder]

    def _read(self, path: str) -> GitIgnoreSpec | None:
        try:
            file = resolve_media(self.root, path, max_file_mib=_MAX_IGNORE_BYTES / 2**20)
            lines = without_marks(file.read_bytes()).decode(errors="replace").splitlines()
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


def repository_documents(root: Path, limits: Limits, skipped: Counter) -> Iterator[Document | Quarantined]:
    """A document for each source file below `root` (resolved)."""
    files, card = list(repository_files(root, skipped)), read_card(root)
    by_folders = not any(_ending(path) in PROGRAMS and _ending(path) not in _HYPERTEXT for path, _ in files)
    splits = TextSplits((path for path, why in files if not why and _is_plain(path)), card=card, by_folders=by_folders)
    for path, problem in files:
        try:
            if problem:
                raise DocumentError(f"file {path!r} {problem}")
            text = _read(root, path, min(MAX_SOURCE_MIB, limits.max_file_mib), skipped)
            if text is not None:
                document = _document(root, path, text)
                if _holds_documents(root, path):
                    skipped[_RAW] += 1
                yield document.in_split(splits.of(path)) if _is_plain(path) or card.of(path) else document
        except DocumentError as error:
            yield Quarantined(path, path, str(error))


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_plain(path: str) -> bool:
    """Whether a file's name may declare its split: a text, and no program or medium."""
    return (_ending(path) not in CODE or _ending(path) == ".html") and medium_of(path) is None


def _holds_documents(root: Path, path: str) -> bool:
    """Whether a text is JSON of a known form, one that the whole source might be read by."""
    if _ending(path) not in JSON:
        return False
    try:
        if _ending(path) == ".json" and wrapped(root / path):
            return True
        return (_ending(path) != ".json" or is_array(root / path)) and bool(forms_in(root / path))
    except OSError:
        return False


def _read(root: Path, path: str, max_mib: float, skipped: Counter) -> str | None:
    """The file's text, or None where it is no text at all, with the reason counted."""
    if medium_of(path) is not None:
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
                if remedy_for(path) and head.strip():
                    pass_over([path], skipped)
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
    if ending in ENDINGS:
        page = page_document(root, path, text, kind="text", opening=f"{path}\n")
        if any(isinstance(part, Image) for part in page.parts):
            return Document(page.id, page.parts, kind="doc", split=page.split, source=page.source)
        return page
    kind = "code" if ending in CODE else "text"
    whole = Document(id=path, parts=(Text(f"{path}\n{text}"),), kind=kind, source=root.name[:200])
    parse_document(whole.to_json())
    return Document(whole.id, whole.parts, kind=kind, split=UNASSIGNED, source=whole.source)


def repository_digest(root: Path) -> Callable[[bool], str]:
    """What tells whether a repository changed: text files by content, media by size and time."""

    def digest(media: bool) -> str:
        files = [path for path, problem in repository_files(root) if not problem]
        return files_sha256(root, files, label="repository", whole=lambda name: medium_of(name) is None, media=media)

    return digest
