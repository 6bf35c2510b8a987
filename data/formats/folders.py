"""What a folder without a manifest holds, by the names in it; and what is said where that would lose something.

    folder_format(path, listing)    one of FORMATS; ValueError with the remedy where nothing fits

A folder of media must not become something that its media are no part of. So it is the first of these that fits:

* One of captions, where words lie beside media of their name, whatever scripts and pages lie there too: up to ten of
  these to each such pair, and pages that show no more media than there are pairs. Pairs in `tests/`, `fixtures/` and
  the like are those of a program, and so is a `.json` without words beside programs.
* Refused, where a table names the media: its words are there.
* One of pages, where these are more than the programs and show half of the media (`![](a.png)`), whatever programs,
  styles and tables lie there too; without programs also where they show one, are as many as the media, or its README
  shows half of them.
* A repository, where there are programs, and these and the pages are as many as the media; ten texts to each medium
  (three to a single one); texts that name half of the media (HTML and others); or at least two programs, or sources
  (LaTeX, reStructuredText, notebooks), or one and a page or a file that it is built by, with at most 25 media to each,
  and nothing that may hold words for them (`words.txt`, a table). The media are counted.

It is refused otherwise, with what is there and what to do. Without media it is one of pages where these are most of its
texts, else a repository, which reads pages too. A README, LICENSE and the like are no pages or texts, settings (YAML,
TOML, INI) no programs, and a `.git` says nothing about what is in a folder with media: data sets are cloned too.
"""

import itertools
import json
import os
import re
from collections import Counter
from pathlib import Path

from data.compressed import READ_THROUGH, packed_kind
from data.document import DocumentError, Text
from data.endings import FILM_OR_CODE, medium_in, medium_of, remedy_for
from data.formats.accounts import is_about
from data.formats.captioned import read_text
from data.formats.fields import WORDS
from data.formats.lines import LINES, is_array
from data.formats.markdown_folder import ENDINGS as PAGES
from data.formats.media_folder import TABLES, WORD_LIKE
from data.formats.opening import JSON, is_named_lines, is_told, opens_like_json, unknown, what_packed
from data.formats.refusals import what_broken, what_foreign, what_json, wrapped
from data.formats.survey import without_fixtures
from data.formats.walk import Listing
from data.formats.word_lists import classes_remedy, list_remedy
from data.formats.word_tables import table_remedy
from data.markdown import markdown_parts
from data.pointers import awaited, pointer_of

_REFS = re.compile(r"(^|/)(datasets|models|spaces)--[^/]+/refs/")
_WORDS = (".txt", ".caption", ".json")
_OTHERS = (".txt", ".json", ".xml", ".xlsx", ".srt", ".vtt")
_TEXTS = (".rst", ".tex", ".html", ".htm", ".adoc", ".asciidoc", ".org", ".mdx", ".ipynb", ".qmd", ".rmd", ".typ")
"""Endings of texts that may show media, in other ways than pages do."""
_SOURCES = (".rst", ".tex", ".ipynb")
_BUILT = re.compile(r"(requirements[\w.-]*|constraints|cmakelists|robots|humans|manifest|version|todo)\.txt", re.I)
_BUILDS = re.compile(
    r"(build\.gradle|pom\.xml|package\.json|makefile|pyproject\.toml|setup\.cfg|cargo\.toml|cmakelists\.txt|go\.mod|"
    r"_?config\.(toml|ya?ml)|mkdocs\.yml|gemfile)",
    re.IGNORECASE,
)
"""Files that programs, books and sites are built by."""
_LOOKED_AT = 200_000
_NAMES_SOUGHT, _TABLE_BYTES = 50, 2**16
_PAGES_LOOKED_AT, _PAGE_MIB = 200, 1.0
_TEXTS_A_MEDIUM, _TEXTS_WITH_ONE = 10, 3
"""So many texts to each medium, or to one alone, are a folder of texts with a few pictures."""
_PROGRAMS_A_PAIR, _PROGRAMS, _MEDIA_A_SOURCE = 10, 2, 25
_CELL = re.compile(r"[,;|\t\r\n\"']")


class _Names:
    """The names in a folder, counted."""

    def __init__(self, listing: Listing):
        root = listing.root
        self.endings: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.tables: list[str] = []
        self.refused = self.link = ""
        self.others: list[str] = []
        self.num_media = self.films = 0
        self.paths: list[str] = []
        self.pages: list[str] = []
        self.names_of_media: list[str] = []
        media, words, captions = set(), set(), set()
        for name, problem in itertools.islice(listing, _LOOKED_AT):
            # a medium that was not fetched is one of the folder's media
            target = awaited(name)
            name = target if medium_of(target) or remedy_for(target) else name
            stem, ending = os.path.splitext(name)
            ending = ending.lower()
            if os.path.basename(name).startswith("._"):
                continue
            if ending == ".jl" and not problem and is_named_lines(root / name):
                # lines, and no program
                ending = ".jsonl"
            if not problem:
                self.paths.append(name)
            elif not self.link and not name.startswith("."):
                self.link = f", but {name!r} {problem}"
            self.endings[ending] += 1
            known = medium_of(name) if problem else medium_in(root, name)
            if known or remedy_for(name):
                # words may be named after all of a medium's name
                media |= {stem, name}
                if len(self.names_of_media) < _NAMES_SOUGHT:
                    self.names_of_media.append(os.path.basename(name))
                self.num_media += known is not None
                self.films += known is not None and ending[1:] in FILM_OR_CODE
                if not known:
                    self.unread[ending] += 1
            elif ending in _WORDS:
                words.add(stem)
                if ending != ".json":
                    captions.add(stem)
            if ending in TABLES and problem:
                # what is no plain file must not be opened to tell its columns
                self.refused = self.refused or f"; {name!r} {problem}"
            elif ending in TABLES:
                self.tables.append(name)
            elif ending in PAGES and not problem:
                self.pages.append(name)
            elif ending in _OTHERS and len(self.others) < 1000:
                self.others.append(name)
        self.num_pairs = len(media & words)
        self.pairs, self.pairs_of_json = sorted(media & captions), sorted((media & words) - captions)
        likely = (name for name in self.paths if name.lower().endswith(WORD_LIKE))
        self.likely = next((name for name in likely if name[: name.rindex(".")] in media), "")
        self.others = [name for name in self.others if os.path.splitext(name)[0] not in media]

    def told(self) -> str:
        """The media in words."""
        unread = ", ".join(f"{n} {ending} ({remedy_for('x' + ending)})" for ending, n in sorted(self.unread.items()))
        read = f"{self.num_media} media files" if self.num_media else ""
        return " and ".join(filter(None, (read, unread and f"media that are not read: {unread}")))


def _what_else(root: Path, paths: list[str]) -> str:
    """What is wrong with the first JSON of a folder, else its first files, which are of no known kind."""
    for name in itertools.islice(filter(_is_json, paths), 100):
        if why := what_broken(root / name):
            return f", but {name}, which {why}"
    more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
    return f", but files of no known kind ({', '.join(map(repr, paths[:3]))}{more})" if paths else ""


def _is_json(name: str) -> bool:
    """Whether a file is called JSON or lines of it, compressed or not; .jl is more often a program's."""
    name = name.lower()
    plain = name.removesuffix(next((ending for ending in READ_THROUGH if name.endswith(ending)), ""))
    return plain.endswith(JSON) and not plain.endswith(".jl")


def folder_format(path: Path, listing: Listing) -> str:
    """What the folder at `path` holds. Raises ValueError with the formats there are, or what to do."""
    root = listing.root
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return "datasets"
    names = _Names(listing)
    endings = names.endings
    from data.formats.repository import CODE, PROGRAMS

    # an unread ending may be that of code too (.ts)
    code = sum(count for ending, count in endings.items() if ending in CODE and ending not in names.unread)
    programs = sum(count for ending, count in endings.items() if ending in PROGRAMS and ending not in names.unread)
    code, programs = code - names.films, programs - names.films
    texts = endings[".txt"] + endings[".rst"]
    num_media = names.num_media + names.unread.total()
    pages = [name for name in names.pages if not is_about(name)]
    shown = _num_shown(root, pages) if num_media else 0
    sources = sum(name.lower().endswith(_SOURCES) for name in names.paths)
    if names.num_pairs > len(pages) + programs + sources or _is_captioned(names, root, programs, len(pages), shown):
        return "media"
    is_clone, has_tables = (root / ".git").exists(), bool(names.tables) and not shown
    if has_tables and not is_clone and not code and len(names.pages) <= 1 and texts <= 1 and not names.num_pairs:
        raise ValueError(f"{path} has its words in {_tables_remedy(root, names.tables)}")
    packed = [] if num_media else [name for name in names.paths if packed_kind(name)]
    why = _unread_lines(names, root, packed) if _is_card(names) and not code and not names.num_pairs else ""
    if _is_card(names) and not code and not num_media and " is a link out of the folder" in names.link:
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
        why = what_packed(root, names.paths) or names.link or _what_else(root, names.paths)
        raise ValueError(unknown(path, f"holds nothing that is read{why}"))
    tables = [name for name in names.tables if _names_media(root / name, names.names_of_media, whole=bool(shown))]
    if tables:
        raise ValueError(f"{path} has its words in {_tables_remedy(root, tables)}")
    if len(pages) > programs and 2 * shown >= num_media:
        return "markdown"
    is_tree = programs and programs + len(pages) >= num_media
    if is_tree or texts >= _TEXTS_A_MEDIUM * num_media or (num_media == 1 and texts >= _TEXTS_WITH_ONE):
        return "repository"
    is_told = len(pages) >= num_media or shown or 2 * _num_shown(root, names.pages) >= num_media
    if not programs and is_told:
        return "markdown"
    if found := list_remedy(root, names.paths):
        raise ValueError(f"{path} has its words in {found}")
    if _are_named(names, root) or _is_program(names, programs + sources, len(pages)):
        return "repository"
    told = _no_words(names) + (what_packed(root, names.paths) or classes_remedy(root, names.paths))
    if programs or texts or names.pages:
        told += f"; its {'code and texts' if programs else 'texts'} alone are read as format 'repository'"
    raise ValueError(unknown(path, told))


def _is_captioned(names: _Names, root: Path, programs: int, pages: int, shown: int) -> bool:
    """Whether there are pairs of a medium and its words that make the folder one of captions."""
    pairs = without_fixtures([*names.pairs, *(name for name in names.pairs_of_json[:1000] if _has_words(root, name))])
    return bool(pairs) and shown <= len(pairs) and programs + pages <= _PROGRAMS_A_PAIR * len(pairs)


def _has_words(root: Path, stem: str) -> bool:
    """Whether the .json of a name holds words: what else a program has beside its pictures does not."""
    try:
        fields = json.loads(read_text(root, f"{stem}.json", _PAGE_MIB))
    except (DocumentError, ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and any(isinstance(fields.get(key), (str, list)) for key in WORDS)


def _num_texts(names: _Names, root: Path) -> int:
    """How many texts that are no pages a folder has: by their endings, under unknown ones by their first bytes."""
    left = [name for name in names.paths if not is_about(name) and not name.lower().endswith((*PAGES, *WORD_LIKE))]
    told = [name for name in left if name.lower().endswith((".txt", ".xml", *_TEXTS))]
    # of a hub's cache, the file that names a revision
    left = [name for name in left if not _REFS.search(name)]
    rest = (name for name in left if not is_told(name) and not name.lower().endswith((*_TEXTS, *JSON, *TABLES)))
    rest = (name for name in rest if not what_foreign(name) and not packed_kind(name) and not awaited(name))
    return len(told) + sum(_opens_like_text(root / name) for name in itertools.islice(rest, _PAGES_LOOKED_AT))


def _opens_like_text(file: Path) -> bool:
    try:
        with open(file, "rb") as stream:
            head = stream.read(4096)
    except OSError:
        return False
    if not head.strip() or b"\0" in head or pointer_of(head) or head.lstrip()[:1] in (b"{", b"["):
        return False
    # the last character may be cut
    text = head.decode("utf-8", "ignore").encode()
    return len(head) - len(text) < 4 and head.startswith(text)


def _is_program(names: _Names, sources: int, pages: int) -> bool:
    """Whether there are programs, or sources of a book or site, whose pictures are a part of them, and nothing else."""
    built = sum(bool(_BUILDS.fullmatch(_base(name))) for name in names.paths)
    may_be_words = names.likely or names.tables or any(map(_may_hold_words, names.others))
    if not sources or sources + pages + built < _PROGRAMS or may_be_words:
        return False
    unread = names.unread.total()
    return names.num_media + unread <= _MEDIA_A_SOURCE * (sources + pages) and unread <= names.num_media


def _may_hold_words(name: str) -> bool:
    """Whether a file beside media may be a list of their words, and not one that any program has."""
    return not name.lower().endswith((".json", ".xml")) and not is_about(name) and not _BUILT.fullmatch(_base(name))


def _base(name: str) -> str:
    return os.path.basename(name)


def _are_named(names: _Names, root: Path) -> bool:
    """Whether texts that are no pages name half of the first media, as those do that show them."""
    texts = [name for name in names.paths if name.lower().endswith((*_TEXTS, *PAGES)) and not is_about(name)]
    said = "".join(map(_head, (root / name for name in texts[:_PAGES_LOOKED_AT])))
    sought = set(names.names_of_media)
    found = sum(name in said or f"/{os.path.splitext(name)[0]}}}" in said for name in sought)
    return bool(sought) and 2 * found >= len(sought)


def _head(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return stream.read(_TABLE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _names_media(table: Path, names: list[str], *, whole: bool) -> bool:
    """Whether the beginning of a table names one of these media; by less than its `whole` name only in cells."""
    head = _head(table)
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
    for page in pages[:_PAGES_LOOKED_AT]:
        try:
            parts = markdown_parts(
                read_text(root, page, _PAGE_MIB), path=page, is_there=lambda target: os.path.lexists(root / target)
            )
        except DocumentError:
            continue
        shown.update(os.path.normpath(part.path) for part in parts if not isinstance(part, Text))
    return len(shown)


def _tables_remedy(root: Path, tables: list[str]) -> str:
    """What to do about the tables of a folder, as the end of a sentence."""
    # one manifest stands for its folder, so that several tables become as many files
    folders = Counter(os.path.dirname(name) for name in tables)
    first, *others = tables
    alone = folders[os.path.dirname(first)] == 1
    told = table_remedy(root / first, first, alone=alone, sole=not others, root=root)
    if others:
        more = ", ..." if len(others) > 5 else ""
        told += f"; the same with {', '.join(map(repr, others[:5]))}{more}, each into a file of its own"
        told += " (`data check FILE` tells the command)"
    return told


def _is_card(names: _Names) -> bool:
    """Whether the pages and texts in a folder say no more than what it holds."""
    pages = [name for name in names.paths if name.lower().endswith((".md", ".markdown", ".rst", ".txt"))]
    return all(os.path.basename(name).lower().startswith(("readme", "license", "card", "dataset")) for name in pages)


def _unread_lines(names: _Names, root: Path, packed: list[str]) -> str:
    """What the first data of other programs, JSON of no known form or compressed file in a folder are; "" for none."""
    if foreign := next((name for name in names.paths if what_foreign(name)), ""):
        return f", but {foreign}, which {what_foreign(foreign)}"
    named = [name for name in names.paths if name.lower().endswith(LINES)]
    broken = [name for name in named if _is_json(name)][:1]
    named = (name for name in named if _is_json(name) or is_named_lines(root / name))
    lines = [name for name in itertools.islice(named, 100) if opens_like_json(root / name)][:1]
    arrays = (name for name in names.paths if name.lower().endswith(".json"))
    lines += [name for name in itertools.islice(arrays, 100) if is_array(root / name) or wrapped(root / name)][:1]
    found = ((name, what_json(root / name, root=root)) for name in lines)
    told = next((f", but {name}, which {why}" for name, why in found if why), "") or what_packed(root, packed)
    return told or next((f", but {name}, which {why}" for name in broken if (why := what_broken(root / name))), "")


def _no_words(names: _Names) -> str:
    others = ", ".join(repr(name) for name in names.others[:3])
    return (
        f"holds {names.told()} but no words beside them"
        + (f" (files such as {others} have names of none)" if others else "")
        + (f" (rename {names.likely!r} to end in .txt, and its like, if they hold plain words)" if names.likely else "")
        + ': write heron.txt beside heron.jpg, or a metadata.jsonl of lines {"file_name": "heron.jpg", "text": "..."}'
        + (names.refused or names.link.replace(", but", ";", 1))
    )
