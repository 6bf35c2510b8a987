"""What a folder without a manifest holds, by the names in it; and what is said where that would lose something.

A folder of media must not become something that its media are no part of. So it is the first of these that fits:

* "media", where text lies beside media of its name, with at most ten programs and pages to each such pair. Pairs in
  `tests/`, `fixtures/` and the like, and a `.json` without text beside programs, do not count.
* Refused, where a table names the media: its words are there.
* "markdown", where pages are more than the programs and show half of the media, or show some without programs.
* "repository", where programs and pages are as many as the media; ten texts to each medium (three to a single one);
  texts that name half of the media; or two programs or sources, at most 25 media to each, and no list of words.

Otherwise it is refused with what is there and what to do. Without media it is "markdown" where pages are most of its
texts, else "repository". A README or LICENSE is no page or text, and settings (YAML, TOML, INI) are no programs.
"""

import contextlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from brine.data.document import DocumentError, Text
from brine.data.files.compressed import compressed_hint
from brine.data.files.extensions import VIDEO_OR_CODE, conversion_hint, media_type_in, media_type_of
from brine.data.files.pointers import dvc_target, pointer_of
from brine.data.files.walk import FolderListing
from brine.data.formats.folders.markdown import EXTENSIONS as PAGES
from brine.data.formats.folders.markdown import markdown_parts
from brine.data.formats.folders.media_folder import TABLES, WORD_LIKE
from brine.data.formats.folders.repository import CODE, PROGRAMS
from brine.data.formats.lines.fields import WORDS
from brine.data.formats.lines.lines import LINES, is_array
from brine.data.formats.notes.refusals import (
    describe_broken_json,
    describe_foreign_file,
    describe_wrapped_json,
)
from brine.data.formats.notes.unread_files import is_dataset_metadata_file
from brine.data.formats.opening import (
    JSON,
    describe_archives,
    has_known_extension,
    is_named_lines,
    opens_like_json,
    unknown,
    without_compression,
)
from brine.data.formats.source import read_text
from brine.data.formats.survey import without_fixtures
from brine.data.formats.tables.conversion import table_hint
from brine.data.formats.tables.lists import class_folders_hint, list_hint

_REFS = re.compile(r"(^|/)(datasets|models|spaces)--[^/]+/refs/")
_WORDS = (".txt", ".caption", ".json")
_OTHERS = (".txt", ".json", ".xml", ".xlsx", ".srt", ".vtt")
# texts that may show media, in other ways than pages do
_TEXTS = (".rst", ".tex", ".html", ".htm", ".adoc", ".asciidoc", ".org", ".mdx", ".ipynb", ".qmd", ".rmd", ".typ")
_SOURCES = (".rst", ".tex", ".ipynb")
_BUILT = re.compile(r"(requirements[\w.-]*|constraints|cmakelists|robots|humans|manifest|version|todo)\.txt", re.I)
# files that programs, books and sites are built by
_BUILDS = re.compile(
    r"(build\.gradle|pom\.xml|package\.json|makefile|pyproject\.toml|setup\.cfg|cargo\.toml|cmakelists\.txt|go\.mod|"
    r"_?config\.(toml|ya?ml)|mkdocs\.yml|gemfile)",
    re.IGNORECASE,
)
_MAX_NAMES, _MAX_MEDIA_NAMES, _MAX_OTHERS, _MAX_PAGES = 200_000, 50, 1000, 200
_HEAD_BYTES, _PAGE_MIB = 2**16, 1.0
# so many texts to each medium, or to one alone, are a folder of texts with a few images
_TEXTS_PER_MEDIUM, _TEXTS_WITH_ONE = 10, 3
_PROGRAMS_PER_PAIR, _MIN_PROGRAMS, _MEDIA_PER_SOURCE = 10, 2, 25
_CELL = re.compile(r"[,;|\t\r\n\"']")


class _MediaFolderNames:
    """The names in a folder, counted."""

    def __init__(self, listing: FolderListing):
        root = listing.root
        self.extensions, self.unread = Counter(), Counter()
        self.refused = self.link = ""
        self.num_media = self.num_videos = 0
        self.paths, self.tables, self.pages, self.others, self.media_names = [], [], [], [], []
        media, words, captions = set(), set(), set()
        for name, problem in itertools.islice(listing, _MAX_NAMES):
            # a medium that was not fetched is one of the folder's media
            target = dvc_target(name)
            name = target if media_type_of(target) or conversion_hint(target) else name
            stem, ending = os.path.splitext(name)
            ending = ending.lower()
            if _base(name).startswith("._"):
                continue
            if ending == ".jl" and not problem and is_named_lines(root / name):
                ending = ".jsonl"
            if not problem:
                self.paths.append(name)
            elif not self.link and not name.startswith("."):
                self.link = f", but {name!r} {problem}"
            self.extensions[ending] += 1
            known = media_type_of(name) if problem else media_type_in(root, name)
            if known or conversion_hint(name):
                # words may be named after all of a medium's name
                media |= {stem, name}
                if len(self.media_names) < _MAX_MEDIA_NAMES:
                    self.media_names.append(_base(name))
                self.num_media += known is not None
                self.num_videos += known is not None and ending[1:] in VIDEO_OR_CODE
                self.unread.update([] if known else [ending])
            elif ending in _WORDS:
                words.add(stem)
                captions |= {stem} if ending != ".json" else set()
            if ending in TABLES and problem:
                # a link or pipe must not be opened to read its columns
                self.refused = self.refused or f"; {name!r} {problem}"
            elif ending in TABLES:
                self.tables.append(name)
            elif ending in PAGES and not problem:
                self.pages.append(name)
            elif ending in _OTHERS and len(self.others) < _MAX_OTHERS:
                self.others.append(name)
        self.num_pairs = len(media & words)
        self.pairs, self.json_pairs = sorted(media & captions), sorted((media & words) - captions)
        likely = (name for name in self.paths if name.lower().endswith(WORD_LIKE))
        self.likely = next((name for name in likely if name[: name.rindex(".")] in media), "")
        self.others = [name for name in self.others if os.path.splitext(name)[0] not in media]

    def count(self, endings: Collection[str]) -> int:
        """Files with these endings; one that may be a video's or code's counts as code unless it is a video."""
        found = sum(
            count for ending, count in self.extensions.items() if ending in endings and ending not in self.unread
        )
        return found - self.num_videos

    def description(self) -> str:
        """The media in words."""
        unread = ", ".join(
            f"{n} {ending} ({conversion_hint('x' + ending)})" for ending, n in sorted(self.unread.items())
        )
        read = f"{self.num_media} media files" if self.num_media else ""
        return " and ".join(filter(None, (read, unread and f"media that are not read: {unread}")))


def _is_json(name: str) -> bool:
    """Whether a file is called JSON or lines of it, compressed or not; .jl is more often a program's."""
    plain = without_compression(name).lower()
    return plain.endswith(JSON) and not plain.endswith(".jl")


def folder_format(path: Path, listing: FolderListing) -> str:
    """What the folder at `path` holds. Raises ValueError with the formats there are, or what to do."""
    root = listing.root
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return "datasets"
    names = _MediaFolderNames(listing)
    code, programs = names.count(CODE), names.count(PROGRAMS)
    texts = names.extensions[".txt"] + names.extensions[".rst"]
    num_media = names.num_media + names.unread.total()
    pages = [name for name in names.pages if not is_dataset_metadata_file(name)]
    shown = _num_shown(root, pages) if num_media else 0
    sources = sum(name.lower().endswith(_SOURCES) for name in names.paths)
    if names.num_pairs > len(pages) + programs + sources or _is_captioned(names, root, programs, len(pages), shown):
        return "media"
    is_clone, has_tables = (root / ".git").exists(), bool(names.tables) and not shown
    if has_tables and not is_clone and not code and len(names.pages) <= 1 and texts <= 1 and not names.num_pairs:
        raise ValueError(f"{path} has its words in {_tables_hint(root, names.tables)}")
    is_card = _is_card(names) and not code
    why = _unread_lines(names, root, archives=not num_media) if is_card and not names.num_pairs else ""
    if is_card and not num_media and " is a link out of the folder" in names.link:
        why = why or names.link
    if why:
        # a data set's card must not become all of it
        raise ValueError(unknown(path, f"holds nothing that is read{why}"))
    if not num_media:
        num_texts = _num_texts(names, root)
        if names.pages and not code and not is_clone and (len(pages) > num_texts or not num_texts):
            return "markdown"
        if is_clone or code or names.pages or texts or num_texts:
            return "repository"
        why = describe_archives(root, names.paths) or names.link
        why = why or _broken_json(root, itertools.islice(filter(_is_json, names.paths), 100))
        if not why and names.paths:
            first = ", ".join(map(repr, names.paths[:3]))
            more = f" and {len(names.paths) - 3:,} more" if len(names.paths) > 3 else ""
            why = f", but files of no known kind ({first}{more})"
        raise ValueError(unknown(path, f"holds nothing that is read{why}"))
    tables = [name for name in names.tables if _names_media(root / name, names.media_names, whole=bool(shown))]
    if tables:
        raise ValueError(f"{path} has its words in {_tables_hint(root, tables)}")
    if len(pages) > programs and 2 * shown >= num_media:
        return "markdown"
    is_tree = programs and programs + len(pages) >= num_media
    if is_tree or texts >= _TEXTS_PER_MEDIUM * num_media or (num_media == 1 and texts >= _TEXTS_WITH_ONE):
        return "repository"
    if not programs and (len(pages) >= num_media or shown or 2 * _num_shown(root, names.pages) >= num_media):
        return "markdown"
    if found := list_hint(root, names.paths):
        raise ValueError(f"{path} has its words in {found}")
    if _are_named(names, root) or _is_program(names, programs + sources, len(pages)):
        return "repository"
    told = _no_words(names) + (describe_archives(root, names.paths) or class_folders_hint(root, names.paths))
    if programs or texts or names.pages:
        told += f"; its {'code and texts' if programs else 'texts'} alone are read as format 'repository'"
    raise ValueError(unknown(path, told))


def _is_captioned(names: _MediaFolderNames, root: Path, programs: int, pages: int, shown: int) -> bool:
    """Whether there are pairs of a medium and its words that make the folder one of captions."""
    pairs = without_fixtures([*names.pairs, *(name for name in names.json_pairs[:1000] if _has_words(root, name))])
    return bool(pairs) and shown <= len(pairs) and programs + pages <= _PROGRAMS_PER_PAIR * len(pairs)


def _has_words(root: Path, stem: str) -> bool:
    """Whether the .json of a name holds words: what else a program has beside its images does not."""
    try:
        fields = json.loads(read_text(root, f"{stem}.json", _PAGE_MIB))
    except (DocumentError, ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and any(isinstance(fields.get(key), (str, list)) for key in WORDS)


def _num_texts(names: _MediaFolderNames, root: Path) -> int:
    """How many texts that are no pages a folder has: by their endings, under unknown ones by their first bytes."""
    left = [name for name in names.paths if not is_dataset_metadata_file(name)]
    left = [name for name in left if not name.lower().endswith((*PAGES, *WORD_LIKE))]
    known = sum(name.lower().endswith((".txt", ".xml", *_TEXTS)) for name in left)
    unknown_endings = (
        name
        for name in left
        # of a hub's cache, the file that names a revision
        if not _REFS.search(name)
        and not has_known_extension(name)
        and not name.lower().endswith((*_TEXTS, *JSON, *TABLES))
        and not (describe_foreign_file(name) or compressed_hint(name) or dvc_target(name))
    )
    return known + sum(_opens_like_text(root / name) for name in itertools.islice(unknown_endings, _MAX_PAGES))


def _opens_like_text(file: Path) -> bool:
    head = _head(file, 4096)
    if not head.strip() or b"\0" in head or pointer_of(head) or head.lstrip()[:1] in (b"{", b"["):
        return False
    # the last character may be cut
    text = head.decode("utf-8", "ignore").encode()
    return len(head) - len(text) < 4 and head.startswith(text)


def _is_program(names: _MediaFolderNames, sources: int, pages: int) -> bool:
    """Whether there are programs, or sources of a book or site, whose images are a part of them, and nothing else."""
    built = sum(bool(_BUILDS.fullmatch(_base(name))) for name in names.paths)
    # lists of the media's words, and not what any program has
    others = (name for name in names.others if not name.lower().endswith((".json", ".xml")))
    others = (name for name in others if not is_dataset_metadata_file(name) and not _BUILT.fullmatch(_base(name)))
    if not sources or sources + pages + built < _MIN_PROGRAMS or names.likely or names.tables or any(others):
        return False
    unread = names.unread.total()
    return names.num_media + unread <= _MEDIA_PER_SOURCE * (sources + pages) and unread <= names.num_media


def _base(name: str) -> str:
    return os.path.basename(name)


def _are_named(names: _MediaFolderNames, root: Path) -> bool:
    """Whether texts that are no pages name half of the first media, as those do that show them."""
    texts = [
        name for name in names.paths if name.lower().endswith((*_TEXTS, *PAGES)) and not is_dataset_metadata_file(name)
    ]
    said = "".join(_head(root / name).decode("utf-8", "replace") for name in texts[:_MAX_PAGES])
    sought = set(names.media_names)
    found = sum(name in said or f"/{os.path.splitext(name)[0]}}}" in said for name in sought)
    return bool(sought) and 2 * found >= len(sought)


def _head(file: Path, size: int = _HEAD_BYTES) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read(size)
    except OSError:
        return b""


def _names_media(table: Path, names: list[str], *, whole: bool) -> bool:
    """Whether the beginning of a table names one of these media; by less than its `whole` name only in cells."""
    head = _head(table).decode("utf-8", "replace")
    if whole or any(name in head for name in names):
        return any(name in head for name in names)
    cells = {_base(cell.strip()) for cell in _CELL.split(head)}
    cells |= {os.path.splitext(cell)[0] for cell in cells}
    stems = {os.path.splitext(name)[0] for name in names}
    # a number or a letter may be anything
    sure = any(len(stem) > 2 and not stem.isdigit() for stem in stems & cells)
    return sure or 2 * len(stems & cells) > len(stems)


def _num_shown(root: Path, pages: list[str]) -> int:
    """How many media the first pages show."""
    shown: set[str] = set()
    for page in pages[:_MAX_PAGES]:
        with contextlib.suppress(DocumentError):
            text = read_text(root, page, _PAGE_MIB)
            parts = markdown_parts(text, path=page, is_there=lambda target: os.path.lexists(root / target))
            shown.update(os.path.normpath(part.path) for part in parts if not isinstance(part, Text))
    return len(shown)


def _tables_hint(root: Path, tables: list[str]) -> str:
    """What to do about the tables of a folder, as the end of a sentence."""
    # one manifest stands for its folder, so that several tables become as many files
    folders = Counter(os.path.dirname(name) for name in tables)
    first, *others = tables
    alone = folders[os.path.dirname(first)] == 1
    told = table_hint(root / first, first, alone=alone, sole=not others, root=root)
    if others:
        more = ", ..." if len(others) > 5 else ""
        told += f"; the same with {', '.join(map(repr, others[:5]))}{more}, each into a file of its own"
        told += " (`data check FILE` tells the command)"
    return told


def _is_card(names: _MediaFolderNames) -> bool:
    """Whether the pages and texts in a folder only describe what it holds."""
    pages = (_base(name).lower() for name in names.paths if name.lower().endswith((*PAGES, ".rst", ".txt")))
    return all(name.startswith(("readme", "license", "card", "dataset")) for name in pages)


def _broken_json(root: Path, names: Iterable[str]) -> str:
    return next((f", but {name}, which {why}" for name in names if (why := describe_broken_json(root / name))), "")


def _unread_lines(names: _MediaFolderNames, root: Path, *, archives: bool) -> str:
    """The first data of other programs, JSON of no known record format or compressed file in a folder; "" for none."""
    named = [name for name in names.paths if name.lower().endswith(LINES)]
    lines = (name for name in named if _is_json(name) or is_named_lines(root / name))
    arrays = itertools.islice((name for name in names.paths if name.lower().endswith(".json")), 100)
    arrays = (name for name in arrays if is_array(root / name) or describe_wrapped_json(root / name))
    looked_at = itertools.chain(
        filter(describe_foreign_file, names.paths),
        [name for name in itertools.islice(lines, 100) if opens_like_json(root / name)][:1],
        itertools.islice(arrays, 1),
        filter(compressed_hint, names.paths if archives else ()),
    )
    return describe_archives(root, looked_at) or _broken_json(root, list(filter(_is_json, named))[:1])


def _no_words(names: _MediaFolderNames) -> str:
    others = ", ".join(repr(name) for name in names.others[:3])
    return (
        f"holds {names.description()} but no words beside them"
        + (f" (files such as {others} have names of none)" if others else "")
        + (f" (rename {names.likely!r} to end in .txt, and its like, if they hold plain words)" if names.likely else "")
        + ': write heron.txt beside heron.jpg, or a metadata.jsonl of lines {"file_name": "heron.jpg", "text": "..."}'
        + (names.refused or names.link.replace(", but", ";", 1))
    )
