"""Which files of a folder hold documents: JSON, tars, tables and folders of captioned media, found by a look at names.

    found = survey(listing, limits)
    found.json          JSON lines and arrays of a known form
    found.containers    format -> tars or tables, by their names in addresses
    found.media         folders right below the root whose captioned media are read beside those

All that one folder holds is read together: `train.jsonl` and `test.json`, tars and Parquet files, shards with and
without an ending, `train/metadata.jsonl` and `test/` with captions. What stands back, so that nothing is learned twice:

* A `manifest.jsonl`, `manifest.json` or `metadata.jsonl` stands for its folder and what lies below; JSON on top for
  JSON below.
* Of files of one name in several forms (`a.jsonl`, `a.tar`, `a.parquet`) the first is read, in this order; so of
  lines under several endings (`a.jsonl`, `a.ndjson`, `a.jsonlines`, `a.jl`).
* Tars and tables beside JSON that takes media from one of them (`a.tar::1.png`), tars without words and tables without
  words; beside others, tables named after what they tell about them (`metadata.parquet`, `stats`, `index`).
* JSON beside a medium of its name, which is a caption.
* What is a part of a program: JSON below the top where there are more programs than media and such JSON, in a clone
  where there is a second program or no medium; tars and tables below where there are ten times as many programs. But
  files in a `data/` on top and those named after splits, one for training among them, are no part of it, whatever
  scripts lie beside; unless they lie in `tests/`, `fixtures/`, `testdata/` and the like (in `test/` alone), or there
  are over ten programs to each of them that hold more bytes too. A clone with a data set's card (fields at the top of
  README.md) or large files kept apart (`filter=lfs`) is a data set.

Files are told by their endings, else by content: of those whose endings say nothing, and of texts without a medium of
their name, the first 1,000. What is not read is counted by `data.formats.accounts`.
"""

import contextlib
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

from data.archive import tar_index
from data.compressed import READ_THROUGH, is_piece, packed_kind
from data.document import DocumentError, tagged, untagged
from data.endings import ending_of, medium_of, remedy_for
from data.formats.lines import LINES, is_array, json_items
from data.formats.opening import (
    ENDINGS,
    ending_for,
    format_by_content,
    forms_in,
    is_lines,
    is_named_lines,
    is_told,
    opens_like_json,
)
from data.formats.source import Limits
from data.formats.splits import name_of_many
from data.formats.twins import bare, without_twins
from data.formats.walk import Listing
from data.links import stays_within
from data.split_names import split_of_name, words_of_name

MANIFESTS = ("manifest.jsonl", "manifest.json", "metadata.jsonl")
"""Files that stand for the folder they lie in."""
_LOOKED_AT, _ARRAYS_LOOKED_AT, _PEEKED = 200_000, 1000, 1000
_WORDS = ("txt", "caption", "json")
_TEXTS = (".txt", ".text")
_PROGRAMS_A_CONTAINER = 10
"""More programs than so many to each tar or table below a folder make it one of code."""
_FIXTURES = {"tests", "__tests__", "testdata", "test_data", "test-data", "fixtures", "fixture", "spec", "specs"}
_DATA = {"data", "dataset", "datasets", "corpus", "corpora"}
_ABOUT = {"metadata", "meta", "info", "stats", "statistics", "index"}


@dataclass
class Found:
    """The files of a folder that hold documents."""

    json: list[Path] = field(default_factory=list)
    containers: dict[str, list[str]] = field(default_factory=dict)
    media: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.json or self.containers)


class _Names:
    """The names below a folder, and what of it they and the first bytes of some tell."""

    def __init__(self, listing: Listing):
        from data.formats.repository import PROGRAMS

        self.root = listing.root
        # `._a.tar` is what a Mac noted about a.tar
        plain = (item for item in listing.open() if not os.path.basename(item[0]).startswith("._"))
        self.listed = list(itertools.islice(plain, _LOOKED_AT))
        self.plain = [name for name, problem in self.listed if not problem]
        kinds = [(name, medium_of(name)) for name in self.plain]
        self.num_media = sum(kind is not None for _, kind in kinds)
        named = [name for name, kind in kinds if kind or remedy_for(name)]
        # words may be named after all of a medium's name
        self.media = {*named, *(os.path.splitext(name)[0] for name in named)}
        self.words = {os.path.splitext(name)[0] for name in self.plain if ending_of(name) in _WORDS}
        self.there = set(self.plain)
        code = (name for name in self.plain if os.path.splitext(name)[1].lower() in PROGRAMS)
        self.code = [name for name in code if not (name.lower().endswith(LINES) and is_named_lines(self.root / name))]
        self.untold = list(itertools.islice(filter(self._is_untold, self.plain), _PEEKED))

    @property
    def num_code(self) -> int:
        return len(self.code)

    def data_of(self, files: list[str]) -> list[str]:
        """Those of files with documents that are no part of a program, for its tests or few among much code."""
        found = [name for name in without_fixtures(files) if _is_named_as_data(name)]
        if not any(_is_in_data(name) or _split_of_path(name) == "train" for name in found):
            # a test without anything to train on is that of a program
            return []
        if self.num_code <= _PROGRAMS_A_CONTAINER * len(found):
            return found
        return found if _num_bytes(self.root, found) > _num_bytes(self.root, self.code) else []

    def _is_untold(self, name: str) -> bool:
        stem, ending = os.path.splitext(name)
        if ending.lower() in READ_THROUGH and stem not in self.there:
            # what is compressed is told by its name before that; of a file and its compressed twin one is read
            name, (stem, ending) = stem, os.path.splitext(stem)
        if packed_kind(name) or is_piece(os.path.basename(name)) or ending.lower() in ENDINGS:
            return False
        return not is_told(name) or (ending.lower() in _TEXTS and stem not in self.media)

    def untold_json(self, *, on_top: bool) -> list[Path]:
        """JSON of a known form under names that say nothing, on top or below."""
        return [self.root / name for name in self.untold if ("/" not in name) == on_top and self._holds_json(name)]

    def _holds_json(self, name: str) -> bool:
        file = self.root / name
        try:
            if not opens_like_json(file):
                return False
            # one object in a text, or among programs and media, may be anything; under a name of no kind it is a line
            alone = not is_told(name) and not self.num_media and not self.num_code
            return (is_array(file) or is_lines(file, least=1 if alone else 2)) and bool(forms_in(file))
        except OSError:
            return False


def survey(listing: Listing, limits: Limits) -> Found:
    """What a folder (resolved) holds. An empty one where none of its files holds documents."""
    root = listing.root
    named = [root / name for name in MANIFESTS if is_inside(root, root / name)]
    if named:
        return Found(named[:1])
    names, is_clone = _Names(listing), (root / ".git").exists()
    top = top_files(root, LINES, known=True) + top_files(root, (".json",), known=True)
    # in a tree of code such a file is one among others
    untold = [] if is_clone else names.untold_json(on_top=True)
    top += untold if names.num_code <= names.num_media + len(untold) else []
    found = Found(top)
    if not top and not any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        found.json = _below(names, limits)
    found.json = without_twins(found.json)
    found.containers = _containers(names, found.json, by_content=not is_clone)
    read = [file.relative_to(root).as_posix() for file in found.json]
    read += [name for format, names_of in found.containers.items() if format != "webdataset" for name in names_of]
    # whatever lies on top may name media anywhere
    if found and all("/" in name for name in read):
        read += found.containers.get("webdataset", [])
        tops = {name.split("/")[0] for name in read if "/" in name}
        captioned = {name.split("/")[0] for name in names.media & names.words if "/" in name}
        found.media = sorted(captioned - tops)
    return found


def top_files(root: Path, plain: tuple[str, ...], *, known: bool) -> list[Path]:
    """Files of lines or JSON arrays right in a folder; with `known` only those that begin with objects of a known form.

    plain: their endings, LINES or that of arrays.
    """
    endings = tuple(ending + packed for ending in plain for packed in ("", *READ_THROUGH))
    found = {file for file in root.iterdir() if file.name.lower().endswith(endings)}
    # of a file and its compressed twin one is read
    files = [file for file in found if file.suffix.lower() not in READ_THROUGH or file.with_suffix("") not in found]
    files = sorted(file for file in files if is_inside(root, file))
    files = list(filter(is_named_lines if plain == LINES else _is_many, files))
    return [file for file in files if not known or forms_in(file)]


def _is_many(file: Path) -> bool:
    """Whether a .json is an array or lines: one object alone may be a caption, but nobody compresses those."""
    return is_array(file) or is_lines(file, least=1 if file.suffix.lower() in READ_THROUGH else 2)


def _may_be_lines(file: Path) -> bool:
    """Whether one object follows another in the beginning of a file, or it is compressed: a cheap look at many."""
    if file.suffix.lower() in READ_THROUGH:
        return True
    try:
        with open(file, "rb") as stream:
            head = stream.read(2**20)
    except OSError:
        return False
    return any(mark in head for mark in (b"}\n{", b"}\r\n{", b"}\r{"))


def manifests_below(listing: Listing, limits: Limits, *, known: bool) -> list[Path]:
    """The JSON files below a folder that has none on top."""
    return _below(_Names(listing), limits, known=known)


def _below(names: _Names, limits: Limits, *, known: bool = True) -> list[Path]:
    """In each folder one of MANIFESTS, which stands for what lies below it too; elsewhere JSON lines and arrays.

    A repository's own test data are no manifests of it: with `known` they are left out.
    """
    standing: dict[str, tuple[int, Path]] = {}
    others: list[tuple[str, Path]] = []
    seen, arrays = set(), 0
    for name in names.plain:
        stem, ending = os.path.splitext(name)
        # of a file and its compressed twin one is read
        plain = stem if ending.lower() in READ_THROUGH else name
        stem, ending = os.path.splitext(plain)
        if "/" not in name or ending.lower() not in (*LINES, ".json") or plain in seen:
            continue
        seen.add(plain)
        folder, base = os.path.split(plain)
        if base in MANIFESTS:
            entry = (MANIFESTS.index(base), names.root / name)
            standing[folder] = min(entry, standing.get(folder, entry))
        elif ending.lower() in LINES:
            others += [(folder, names.root / name)] if is_named_lines(names.root / name) else []
        elif (plain != name or arrays < _ARRAYS_LOOKED_AT) and stem not in names.media:
            arrays += plain == name
            file = names.root / name
            others += [(folder, file)] if is_array(file) or (_may_be_lines(file) and _is_many(file)) else []
    is_clone = (names.root / ".git").exists()
    if known and not is_clone:
        others += [(file.parent.relative_to(names.root).as_posix(), file) for file in names.untold_json(on_top=False)]

    def stands_above(folder: str) -> bool:
        steps = folder.split("/")
        return any("/".join(steps[:count]) in standing for count in range(1, len(steps) + 1))

    found = {file for _, file in standing.values()} | {file for folder, file in others if not stands_above(folder)}
    files = sorted(file for file in found if not known or forms_in(file, max_line_mib=limits.max_line_mib))
    if not known or not files:
        return files
    paths = [file.relative_to(names.root).as_posix() for file in files]
    if is_clone and _is_data_repository(names.root):
        kept = without_fixtures(paths) if names.num_code else paths
    # a data set's own script is no program with data for its tests
    elif (names.num_code <= 1 and names.num_media) if is_clone else names.num_code <= names.num_media + len(files):
        kept = paths
    else:
        kept = names.data_of(paths)
    return [names.root / name for name in kept]


def _is_data_repository(root: Path) -> bool:
    """Whether a repository is that of a data set: large files kept apart, or a card with fields at its top."""
    found = ((root / ".gitattributes", b"filter=lfs"), (root / "README.md", b"---\n"))
    for file, mark in found:
        try:
            with open(file, "rb") as stream:
                head = stream.read(2**16) if file.is_file() and not file.is_symlink() else b""
        except OSError:
            continue
        if mark in head if mark == b"filter=lfs" else head.startswith(mark):
            return True
    return False


def _is_named_as_data(name: str) -> bool:
    """Whether a file lies in a folder for data, or it or one of its folders is named after a split."""
    return _is_in_data(name) or bool(_split_of_path(name))


def _is_in_data(name: str) -> bool:
    # deeper ones are parts of programs too (`src/data/prices.json`)
    return "/" in name and name.lower().split("/")[0] in _DATA


def _split_of_path(name: str) -> str:
    *folders, file = name.split("/")
    found = [*filter(None, map(split_of_name, (*folders, name_of_many(file))))]
    return next((split for split in found if split != "train"), found[0] if found else "")


def _num_bytes(root: Path, names: list[str]) -> int:
    found = 0
    for name in names:
        with contextlib.suppress(OSError):
            found += os.stat(root / name).st_size
    return found


def without_fixtures(names: list[str]) -> list[str]:
    """Names of data without those that the tests of a program read."""
    kept = [name for name in names if not _FIXTURES.intersection(name.lower().split("/")[:-1])]
    # a folder `test` alone is that of a program's tests, beside others that of a data set
    return kept if any(_is_in_data(name) or "test" not in name.lower().split("/")[:-1] for name in kept) else []


def is_inside(root: Path, file: Path) -> bool:
    """Whether a file is there, and no link out of the folder or pipe."""
    return file.is_file() and stays_within(root, file.resolve())


def _containers(names: _Names, json: list[Path], *, by_content: bool) -> dict[str, list[str]]:
    root, found = names.root, {}
    for name, _ in names.listed:
        ending = os.path.splitext(name)[1].lower()
        if ending in ENDINGS:
            found.setdefault(ENDINGS[ending], []).append(tagged(name, ending))
    told: list[tuple[str, str]] = []
    for name in names.untold if by_content else ():
        try:
            format = format_by_content(root / name)
        except OSError:
            continue
        told += [(format, tagged(name, ending_for(format)))] if format is not None else []
    # in a tree of code such a file is one among others
    for format, name in told if names.num_code <= names.num_media + len(told) else ():
        found.setdefault(format, []).append(name)
    if "datasets" in found:
        from data.formats.parquet import dataset_files

        found["datasets"] = dataset_files(root, found["datasets"])
    paths = [untagged(name) for format in found for name in found[format]]
    if names.num_code > names.num_media + _PROGRAMS_A_CONTAINER * len(paths):
        # others are those that the tests of a program read
        kept = {*names.data_of([name for name in paths if "/" in name]), *(name for name in paths if "/" not in name)}
        found = {format: [name for name in found[format] if untagged(name) in kept] for format in found}
    found = {format: sorted(found[format]) for format in ENDINGS.values() if found.get(format)}
    if len(found) + bool(json) < 2:
        return found
    return _joined(root, found, json)


def _joined(root: Path, found: dict[str, list[str]], json: list[Path]) -> dict[str, list[str]]:
    """Those of the containers that are read beside other files."""
    taken = {(file.parent.relative_to(root).as_posix(), bare(file.name)) for file in json}
    named = _formats_named(json)
    kept: dict[str, list[str]] = {}
    for format, containers in found.items():
        keys = {
            name: (os.path.dirname(untagged(name)) or ".", bare(os.path.basename(untagged(name))))
            for name in containers
        }
        containers = [name for name in containers if keys[name] not in taken]
        taken |= set(keys.values())
        if format in named:
            continue
        if format == "webdataset":
            told = not json or any(_has_words(root, name) for name in containers[:3])
            containers = containers if told else []
        else:
            containers = [name for name in containers if _is_table_of_words(root, name)]
        if containers:
            kept[format] = containers
    return kept


def _formats_named(json: list[Path]) -> set[str]:
    """Formats of the containers that the first objects of some JSON files take media from."""
    found: set[str] = set()
    for file in json[:20]:
        for _, fields in itertools.islice(json_items(file, max_line_mib=16.0), 50):
            text = repr(fields) if isinstance(fields, dict) else ""
            found |= {format for ending, format in ENDINGS.items() if f"{ending}::" in text.lower()}
    return found


def _has_words(root: Path, name: str) -> bool:
    try:
        members = tar_index(root / untagged(name)).members
    except (DocumentError, OSError):
        # what cannot be read is told while reading
        return True
    return any(ending_of(member) in (*_WORDS, "cls") for member in itertools.islice(members, 1000))


def _is_table_of_words(root: Path, name: str) -> bool:
    from data.formats.cells import load_pyarrow, open_table
    from data.formats.parquet import check_columns

    first = words_of_name(os.path.basename(untagged(name)))[:1]
    if first and first[0] in _ABOUT and not any(step for step in os.path.dirname(name).split("/")):
        return False
    try:
        load_pyarrow()
        open_table(root / untagged(name))
        check_columns(root / untagged(name))
    except (ValueError, DocumentError, OSError):
        return False
    return True
