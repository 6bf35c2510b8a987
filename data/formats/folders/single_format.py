"""What a folder without JSON, tars and tables holds, by its names; and what is said where that would lose something.

A folder of media must not become something that its media are not part of. So it is the first of these that fits:

    "media"       media have text of their name, with at most ten programs and pages to each such pair; pairs in tests/,
                  fixtures/ and the like do not count
    refused       a table names the media
    "markdown"    pages show half of the media and outnumber the programs; without programs also where one shows a media
                  file, they are as many as the media, or the README shows half of them
    "repository"  programs and pages are as many as the media; ten texts to each media file, three to a single one;
                  texts that name half of the media; two programs or sources (LaTeX, reStructuredText, notebooks), or
                  one with a page or a build file, with at most 25 media to each and no file that may hold their text
    refused       else, with what the folder holds and what to do

READMEs and licences do not count as pages or texts, nor settings (YAML, TOML, INI) as programs; a `.git` says nothing
where there are media. Without media it is "markdown" where pages are most of its texts, else "repository".
"""

import contextlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from brine.data.document import DocumentError, Text
from brine.data.files.compressed import compressed_hint, head_of
from brine.data.files.extensions import VIDEO_OR_CODE, conversion_hint, media_type_in
from brine.data.files.pointers import dvc_target, pointer_of
from brine.data.formats import detect
from brine.data.formats.detect import CAPTIONS, CODE, PROGRAMS, FolderFiles
from brine.data.formats.folders.markdown import PAGES, markdown_parts
from brine.data.formats.folders.media_folder import TABLES, WORD_LIKE
from brine.data.formats.folders.survey import is_saved_dataset, without_fixtures
from brine.data.formats.lines.fields import WORDS
from brine.data.formats.lines.lines import LINES, is_array
from brine.data.formats.notes.refusals import describe_broken_json, describe_foreign_file, describe_wrapped_json
from brine.data.formats.notes.unread_files import is_dataset_metadata_file
from brine.data.formats.source import read_text
from brine.data.formats.tables.conversion import table_hint
from brine.data.formats.tables.lists import class_folders_hint, list_hint

_REFS = re.compile(r"(^|/)(datasets|models|spaces)--[^/]+/refs/")
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
_MAX_MEDIA_NAMES, _MAX_OTHERS, _MAX_PAGES, _PAGE_MIB = 50, 1000, 200, 1.0
# so many texts to each media file, or to one alone, are a folder of texts with a few images
_TEXTS_PER_MEDIA, _TEXTS_WITH_ONE = 10, 3
_PROGRAMS_PER_PAIR, _MIN_PROGRAMS, _MEDIA_PER_SOURCE = 10, 2, 25
_CELL = re.compile(r"[,;|\t\r\n\"']")


def single_format(path: Path, files: FolderFiles) -> str:
    """What the folder at `path` holds. Raises ValueError with the formats there are, or what to do."""
    return "datasets" if is_saved_dataset(files.root) else _FolderCounts(path, files).format()


class _FolderCounts:
    """The files of a folder, counted: what decides between captions, pages and code."""

    def __init__(self, path: Path, folder: FolderFiles):
        self.path, self.root, self.is_clone, files = path, folder.root, folder.is_clone, folder.files
        # files of extensions such as .ts that are videos by their content
        transport = (file.name for file in files if file.ending[1:] in VIDEO_OR_CODE and not file.problem)
        videos = {name for name in transport if media_type_in(self.root, name)}
        media = [file for file in files if file.media or file.unread_media or file.name in videos]
        self.unread = Counter(file.ending for file in media if file.unread_media)
        self.num_media, self.num_captioned = len(media), len(media) - self.unread.total()
        self.media_names = {os.path.basename(file.name) for file in media[:_MAX_MEDIA_NAMES]}
        stems = {name for file in media for name in (file.stem, file.name)}
        others = [file for file in files if not (file.media or file.unread_media or file.name in videos)]
        self.captioned = sorted({file.stem for file in others if file.ending in CAPTIONS[:2]} & stems)
        self.json_pairs = sorted({file.stem for file in others if file.ending == ".json"} & stems - {*self.captioned})
        self.num_pairs = len(self.captioned) + len(self.json_pairs)
        self.paths = [file.name for file in files if not file.problem]
        self.tables, self.all_pages = self._ending_in(TABLES), self._ending_in(PAGES)
        self.pages = [name for name in self.all_pages if not is_dataset_metadata_file(name)]
        # files that may be lists of words, and one that may hold the words of media
        others_like_lists = [file for file in others if file.ending in _OTHERS][:_MAX_OTHERS]
        self.others = [file.name for file in others_like_lists if file.stem not in stems]
        self.likely = next((n for n in self._ending_in(WORD_LIKE) if n[: n.rindex(".")] in stems), "")
        code = [file for file in others if file.ending in CODE]
        code = [f for f in code if f.ending != ".jl" or f.problem or not detect.is_named_lines(self.root / f.name)]
        self.code, self.programs = len(code), sum(file.ending in PROGRAMS for file in code)
        self.sources = self.programs + len(self._ending_in(_SOURCES))
        self.texts = sum(file.ending in (".txt", ".rst") for file in files)
        problems = [(f.name, f.problem) for f in files if f.problem and not f.name.startswith(".")]
        self.link = next((f", but {name!r} {problem}" for name, problem in problems), "")
        # a link or pipe must not be opened to read its columns
        refused = (f"; {name!r} {problem}" for name, problem in problems if name.lower().endswith(TABLES))
        self.refused = next(refused, self.link.replace(", but", ";", 1))
        self.num_shown = self._num_shown(self.pages) if media else 0

    def _ending_in(self, endings: tuple[str, ...]) -> list[str]:
        return [name for name in self.paths if name.lower().endswith(endings)]

    def format(self) -> str:
        programs, pages, media, shown = self.programs, len(self.pages), self.num_media, self.num_shown
        if self.num_pairs > pages + self.sources:
            return "media"
        num_pairs = len(without_fixtures([*self.captioned, *filter(self._has_words, self.json_pairs[:1000])]))
        if 0 < num_pairs >= shown and programs + pages <= _PROGRAMS_PER_PAIR * num_pairs:
            return "media"
        has_few_texts = len(self.all_pages) <= 1 and self.texts <= 1
        if self.tables and has_few_texts and not (shown or self.is_clone or self.code or self.num_pairs):
            self._refuse_tables(self.tables)
        # a dataset card must not become all of the data set
        texts = (os.path.basename(name).lower() for name in self._ending_in((*PAGES, ".rst", ".txt")))
        if not self.code and all(name.startswith(("readme", "license", "card", "dataset")) for name in texts):
            why = "" if self.num_pairs else self._unread_lines()
            if why := why or ("" if media or " is a link out of the folder" not in self.link else self.link):
                raise ValueError(detect.unknown_format(self.path, f"holds nothing that is read{why}"))
        if not media:
            return self._format_of_texts()
        if named := [name for name in self.tables if self._names_media(name, whole=bool(shown))]:
            self._refuse_tables(named)
        if pages > programs and 2 * shown >= media:
            return "markdown"
        is_tree = programs and programs + pages >= media
        if is_tree or self.texts >= (_TEXTS_WITH_ONE if media == 1 else _TEXTS_PER_MEDIA * media):
            return "repository"
        if not programs and (pages >= media or shown or 2 * self._num_shown(self.all_pages) >= media):
            return "markdown"
        if found := list_hint(self.root, self.paths):
            raise ValueError(f"{self.path} has its text in {found}")
        if self._are_named() or self._is_program():
            return "repository"
        what = detect.describe_unread_file(self.root, self.paths) or class_folders_hint(self.root, self.paths)
        if programs or self.texts or self.all_pages:
            what += f"; its {'code and texts' if programs else 'texts'} alone are read as format 'repository'"
        raise ValueError(detect.unknown_format(self.path, self._no_words() + what))

    def _format_of_texts(self) -> str:
        left = [name for name in self.paths if not is_dataset_metadata_file(name)]
        left = [name for name in left if not name.lower().endswith((*PAGES, *WORD_LIKE))]
        # under extensions that say nothing, by the first bytes; of a hub's cache, not the file that names a revision
        unknown = (
            name
            for name in left
            if not (
                _REFS.search(name)
                or detect.has_known_extension(name)
                or name.lower().endswith((*_TEXTS, *detect.JSON, *TABLES))
            )
            and not (describe_foreign_file(name) or compressed_hint(name) or dvc_target(name))
        )
        num_texts = sum(name.lower().endswith((".txt", ".xml", *_TEXTS)) for name in left)
        num_texts += sum(_opens_like_text(self.root / name) for name in itertools.islice(unknown, _MAX_PAGES))
        if self.all_pages and not (self.code or self.is_clone) and (len(self.pages) > num_texts or not num_texts):
            return "markdown"
        if self.is_clone or self.code or self.all_pages or self.texts or num_texts:
            return "repository"
        json = itertools.islice(filter(_is_json, self.paths), 100)
        why = detect.describe_unread_file(self.root, self.paths) or self.link or _broken_json(self.root, json)
        if not why and self.paths:
            first = ", ".join(map(repr, self.paths[:3]))
            more = f" and {len(self.paths) - 3:,} more" if len(self.paths) > 3 else ""
            why = f", but files of no known kind ({first}{more})"
        raise ValueError(detect.unknown_format(self.path, f"holds nothing that is read{why}"))

    def _has_words(self, stem: str) -> bool:
        try:
            fields = json.loads(read_text(self.root, f"{stem}.json", _PAGE_MIB))
        except (DocumentError, ValueError, RecursionError):
            return False
        return isinstance(fields, dict) and any(isinstance(fields.get(key), (str, list)) for key in WORDS)

    def _is_program(self) -> bool:
        """Whether there are programs, or sources of a book or site, whose images are a part of them, and no words."""
        # lists of the media's words, and not what any program has
        lists = [name for name in self.others if name.lower().endswith((".txt", ".xlsx", ".srt", ".vtt"))]
        lists = [n for n in lists if not (is_dataset_metadata_file(n) or _BUILT.fullmatch(os.path.basename(n)))]
        num_built = sum(bool(_BUILDS.fullmatch(os.path.basename(name))) for name in self.paths)
        num_sources = self.sources + len(self.pages)
        if not self.sources or num_sources + num_built < _MIN_PROGRAMS or self.likely or self.tables or lists:
            return False
        return self.num_media <= _MEDIA_PER_SOURCE * num_sources and 2 * self.unread.total() <= self.num_media

    def _num_shown(self, pages: list[str]) -> int:
        shown: set[str] = set()
        for page in pages[:_MAX_PAGES]:
            with contextlib.suppress(DocumentError):
                text = read_text(self.root, page, _PAGE_MIB)
                parts = markdown_parts(text, path=page, is_there=lambda target: os.path.lexists(self.root / target))
                shown.update(os.path.normpath(part.path) for part in parts if not isinstance(part, Text))
        return len(shown)

    def _are_named(self) -> bool:
        texts = [name for name in self._ending_in((*_TEXTS, *PAGES)) if not is_dataset_metadata_file(name)]
        said = "".join(head_of(self.root / name).decode("utf-8", "replace") for name in texts[:_MAX_PAGES])
        found = sum(name in said or f"/{os.path.splitext(name)[0]}}}" in said for name in self.media_names)
        return bool(self.media_names) and 2 * found >= len(self.media_names)

    def _names_media(self, table: str, *, whole: bool) -> bool:
        """Whether the beginning of a table names one of the media; by less than its `whole` name only in cells."""
        head = head_of(self.root / table).decode("utf-8", "replace")
        if whole or any(name in head for name in self.media_names):
            return any(name in head for name in self.media_names)
        cells = {os.path.basename(cell.strip()) for cell in _CELL.split(head)}
        stems = {os.path.splitext(name)[0] for name in self.media_names}
        found = stems & (cells | {os.path.splitext(cell)[0] for cell in cells})
        # a number or a letter may be anything
        return any(len(stem) > 2 and not stem.isdigit() for stem in found) or 2 * len(found) > len(stems)

    def _refuse_tables(self, tables: list[str]) -> None:
        # one manifest stands for its folder, so that several tables become as many files
        (first, *others), folder = tables, os.path.dirname(tables[0])
        alone = [os.path.dirname(name) for name in tables].count(folder) == 1
        what = table_hint(self.root / first, first, alone=alone, sole=not others, root=self.root)
        if others:
            more = ", ..." if len(others) > 5 else ""
            what += f"; the same with {', '.join(map(repr, others[:5]))}{more}, each into a separate file"
            what += " (`data check FILE` prints the command)"
        raise ValueError(f"{self.path} has its text in {what}")

    def _unread_lines(self) -> str:
        """The first data of other programs, JSON of no known record format or compressed file; "" for none."""
        root, named = self.root, self._ending_in(LINES)
        lines = itertools.islice((name for name in named if _is_json(name) or detect.is_named_lines(root / name)), 100)
        arrays = self._ending_in((".json",))[:100]
        arrays = (name for name in arrays if is_array(root / name) or describe_wrapped_json(root / name))
        looked_at = [
            *filter(describe_foreign_file, self.paths),
            *itertools.islice((name for name in lines if detect.opens_like_json(root / name)), 1),
            *itertools.islice(arrays, 1),
            *filter(compressed_hint, () if self.num_media else self.paths),
        ]
        return detect.describe_unread_file(root, looked_at) or _broken_json(root, list(filter(_is_json, named))[:1])

    def _no_words(self) -> str:
        unread = ", ".join(f"{n} {end} ({conversion_hint('x' + end)})" for end, n in sorted(self.unread.items()))
        media = [f"{self.num_captioned} media files"] if self.num_captioned else []
        media += [f"media that are not read: {unread}"] if unread else []
        others, likely = ", ".join(map(repr, self.others[:3])), self.likely
        return (
            f"holds {' and '.join(media)} but no caption beside them"
            + (f" (files such as {others} have names of none)" if others else "")
            + (f" (rename {likely!r} to end in .txt, and its like, if they hold plain text)" if likely else "")
            + ': write heron.txt beside heron.jpg, or a metadata.jsonl of lines {"file_name": "heron.jpg", "text": '
            + f'"..."}}{self.refused}'
        )


def _is_json(name: str) -> bool:
    """Whether a file is called JSON or lines of it, compressed or not; .jl is more often a program's."""
    plain = detect.without_compression(name).lower()
    return plain.endswith(detect.JSON) and not plain.endswith(".jl")


def _opens_like_text(file: Path) -> bool:
    head = head_of(file, 4096)
    if not head.strip() or b"\0" in head or pointer_of(head) or head.lstrip()[:1] in (b"{", b"["):
        return False
    # the last character may be cut
    text = head.decode("utf-8", "ignore").encode()
    return len(head) - len(text) < 4 and head.startswith(text)


def _broken_json(root: Path, names: Iterable[str]) -> str:
    return next((f", but {name}, which {why}" for name in names if (why := describe_broken_json(root / name))), "")
