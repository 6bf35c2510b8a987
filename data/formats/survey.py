"""Which files of a folder hold documents: JSON, tars, tables and folders of captioned media, which are read together.

What is not read, so that nothing is read twice:

* What lies beside or below a `manifest.jsonl`, `manifest.json` or `metadata.jsonl`; JSON below JSON on top.
* Of files of one name in several formats all but the first (`a.jsonl`, `a.ndjson`, `a.json`, `a.tar`, `a.parquet`).
* Tars and tables beside JSON that takes media from one of them, tars and tables without text, and tables named after
  what they tell about others (`metadata.parquet`); JSON beside a medium of its name, which is a caption.
* What is part of a program: JSON below the top where programs outnumber media and such JSON, in a clone where there is
  a second program or no medium; tars and tables where there are ten times as many programs. But files in a `data/` on
  top and those named after splits are data, unless they lie in `tests/`, `fixtures/` and the like, or programs outweigh
  them. A clone with a data set's card or large files kept apart (`filter=lfs`) is a data set.

Files are recognised by their endings; of those whose endings say nothing the first 1,000 by content.
"""

import contextlib
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

from brine.data.document import DocumentError
from brine.data.files.addresses import tagged, untagged
from brine.data.files.archive import tar_index
from brine.data.files.compressed import STREAMED_EXTENSIONS, compressed_hint, is_split_part, plain_stem
from brine.data.files.extensions import conversion_hint, extension_of, media_type_of
from brine.data.files.resolve import stays_within
from brine.data.files.walk import FolderListing
from brine.data.formats.folders.repository import PROGRAMS
from brine.data.formats.lines.lines import LINES, is_array, json_items
from brine.data.formats.opening import (
    EXTENSIONS,
    extension_for,
    format_by_content,
    has_known_extension,
    is_lines,
    is_named_lines,
    opens_like_json,
    record_formats_in,
    without_compression,
)
from brine.data.formats.source import ReadLimits
from brine.data.formats.splits.names import prefer_held_out, split_of_name, words_of_name
from brine.data.formats.splits.rules import shard_group_name
from brine.data.formats.tables.cells import load_pyarrow, open_table
from brine.data.formats.tables.parquet import check_columns, dataset_files

MANIFESTS = ("manifest.jsonl", "manifest.json", "metadata.jsonl")
"""Files that stand for the folder they lie in."""
_MAX_NAMES, _MAX_ARRAYS, _MAX_UNDETECTED = 200_000, 1000, 1000
_WORDS = ("txt", "caption", "json")
_TEXTS = (".txt", ".text")
# more programs than so many to each tar or table below a folder make it one of code
_PROGRAMS_PER_CONTAINER = 10
_FIXTURES = {"tests", "__tests__", "testdata", "test_data", "test-data", "fixtures", "fixture", "spec", "specs"}
_DATA = {"data", "dataset", "datasets", "corpus", "corpora"}
_ABOUT = {"metadata", "meta", "info", "stats", "statistics", "index"}


@dataclass
class FolderContents:
    """The files of a folder that hold documents."""

    json: list[Path] = field(default_factory=list)
    containers: dict[str, list[str]] = field(default_factory=dict)
    media: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.json or self.containers)


class _FolderNames:
    """The names below a folder, and the kinds of files they and the first bytes of some show."""

    def __init__(self, listing: FolderListing):
        self.root = listing.root
        # `._a.tar` is what a Mac noted about a.tar
        plain = (item for item in listing.open() if not os.path.basename(item[0]).startswith("._"))
        self.listed = list(itertools.islice(plain, _MAX_NAMES))
        self.plain = [name for name, problem in self.listed if not problem]
        kinds = [(name, media_type_of(name)) for name in self.plain]
        self.num_media = sum(kind is not None for _, kind in kinds)
        named = [name for name, kind in kinds if kind or conversion_hint(name)]
        # words may be named after all of a medium's name
        self.media = {*named, *(os.path.splitext(name)[0] for name in named)}
        self.words = {os.path.splitext(name)[0] for name in self.plain if extension_of(name) in _WORDS}
        self.name_set = set(self.plain)
        code = (name for name in self.plain if os.path.splitext(name)[1].lower() in PROGRAMS)
        self.code = [name for name in code if not (name.lower().endswith(LINES) and is_named_lines(self.root / name))]
        self.undetected = list(itertools.islice(filter(self._is_undetected, self.plain), _MAX_UNDETECTED))

    @property
    def num_code(self) -> int:
        return len(self.code)

    def data_of(self, files: list[str]) -> list[str]:
        """Those of files with documents that are no part of a program, for its tests or few among much code."""
        found = [name for name in without_fixtures(files) if _is_named_as_data(name)]
        if not any(_is_in_data(name) or _split_of_path(name) == "train" for name in found):
            # a test without anything to train on is that of a program
            return []
        if self.num_code <= _PROGRAMS_PER_CONTAINER * len(found):
            return found
        return found if _num_bytes(self.root, found) > _num_bytes(self.root, self.code) else []

    def _is_undetected(self, name: str) -> bool:
        # of a file and its compressed twin one is read
        if (plain := without_compression(name)) not in self.name_set:
            name = plain
        stem, ending = os.path.splitext(name)
        if compressed_hint(name) or is_split_part(os.path.basename(name)) or ending.lower() in EXTENSIONS:
            return False
        return not has_known_extension(name) or (ending.lower() in _TEXTS and stem not in self.media)

    def undetected_json(self, *, on_top: bool) -> list[Path]:
        """JSON of a known record format under names that say nothing, on top or below."""
        return [self.root / name for name in self.undetected if ("/" not in name) == on_top and self._holds_json(name)]

    def _holds_json(self, name: str) -> bool:
        file = self.root / name
        # one object in a text, or among programs and media, may be anything; under a name of no kind it is a line
        least = 2 if has_known_extension(name) or self.num_media or self.num_code else 1
        try:
            is_json = opens_like_json(file) and (is_array(file) or is_lines(file, least=least))
            return is_json and bool(record_formats_in(file))
        except OSError:
            return False


def survey(listing: FolderListing, limits: ReadLimits) -> FolderContents:
    """What a folder (resolved) holds. An empty one where none of its files holds documents."""
    root = listing.root
    named = [root / name for name in MANIFESTS if is_inside(root, root / name)]
    if named:
        return FolderContents(named[:1])
    names, is_clone = _FolderNames(listing), (root / ".git").exists()
    top = top_files(root, LINES, known=True) + top_files(root, (".json",), known=True)
    # in a tree of code such a file is one among others
    undetected = [] if is_clone else names.undetected_json(on_top=True)
    top += undetected if names.num_code <= names.num_media + len(undetected) else []
    found = FolderContents(top)
    if not top and not any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        found.json = _below(names, limits)
    found.json = drop_duplicate_files(found.json)
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
    """Files of lines or JSON arrays right in a folder; with `known` only those of a known record format.

    plain: their endings, LINES or that of arrays.
    """
    extensions = tuple(ending + packed for ending in plain for packed in ("", *STREAMED_EXTENSIONS))
    found = {file for file in root.iterdir() if file.name.lower().endswith(extensions)}
    # of a file and its compressed twin one is read
    files = (file for file in found if not _is_compressed(file) or file.with_suffix("") not in found)
    files = sorted(file for file in files if is_inside(root, file))
    files = list(filter(is_named_lines if plain == LINES else _is_many, files))
    return [file for file in files if not known or record_formats_in(file)]


def _is_many(file: Path) -> bool:
    """Whether a .json is an array or lines: one object alone may be a caption, and is not compressed then."""
    return is_array(file) or is_lines(file, least=1 if _is_compressed(file) else 2)


def _is_compressed(file: Path) -> bool:
    return file.suffix.lower() in STREAMED_EXTENSIONS


def _may_be_lines(file: Path) -> bool:
    """Whether one object follows another in the beginning of a file, or it is compressed: a cheap look at many."""
    head = b"" if _is_compressed(file) else _head(file, 2**20)
    return _is_compressed(file) or any(mark in head for mark in (b"}\n{", b"}\r\n{", b"}\r{"))


def _head(file: Path, size: int) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read(size)
    except OSError:
        return b""


def manifests_below(listing: FolderListing, limits: ReadLimits, *, known: bool) -> list[Path]:
    """The JSON files below a folder that has none on top."""
    return _below(_FolderNames(listing), limits, known=known)


def _below(names: _FolderNames, limits: ReadLimits, *, known: bool = True) -> list[Path]:
    """In each folder one of MANIFESTS, which stands for what lies below it too; elsewhere JSON lines and arrays.

    A repository's own test data are no manifests of it: with `known` they are left out.
    """
    standing: dict[str, tuple[int, Path]] = {}
    others: list[tuple[str, Path]] = []
    seen, arrays = set(), 0
    for name in names.plain:
        # of a file and its compressed twin one is read
        plain = without_compression(name)
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
        elif (plain != name or arrays < _MAX_ARRAYS) and stem not in names.media:
            arrays += plain == name
            file = names.root / name
            others += [(folder, file)] if is_array(file) or (_may_be_lines(file) and _is_many(file)) else []
    is_clone = (names.root / ".git").exists()
    for file in names.undetected_json(on_top=False) if known and not is_clone else ():
        others.append((file.parent.relative_to(names.root).as_posix(), file))
    found = {file for _, file in standing.values()}
    found |= {file for folder, file in others if standing.keys().isdisjoint((folder, *_folders_above(folder)))}
    files = sorted(file for file in found if not known or record_formats_in(file, max_line_mib=limits.max_line_mib))
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


def _folders_above(folder: str) -> list[str]:
    steps = folder.split("/")
    return ["/".join(steps[:count]) for count in range(1, len(steps))]


def _is_data_repository(root: Path) -> bool:
    """Whether a repository is that of a data set: large files kept apart, or a card with fields at its top."""
    attributes, card = (
        _head(file, 2**16) if file.is_file() and not file.is_symlink() else b""
        for file in (root / ".gitattributes", root / "README.md")
    )
    return b"filter=lfs" in attributes or card.startswith(b"---\n")


def _is_named_as_data(name: str) -> bool:
    """Whether a file lies in a folder for data, or it or one of its folders is named after a split."""
    return _is_in_data(name) or bool(_split_of_path(name))


def _is_in_data(name: str) -> bool:
    # deeper ones are parts of programs too (`src/data/prices.json`)
    return "/" in name and name.lower().split("/")[0] in _DATA


def _split_of_path(name: str) -> str:
    *folders, file = name.split("/")
    return prefer_held_out(filter(None, map(split_of_name, (*folders, shard_group_name(file)))))


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


def _containers(names: _FolderNames, json: list[Path], *, by_content: bool) -> dict[str, list[str]]:
    root, found = names.root, {}
    for name, _ in names.listed:
        ending = os.path.splitext(name)[1].lower()
        if ending in EXTENSIONS:
            found.setdefault(EXTENSIONS[ending], []).append(tagged(name, ending))
    by_head: list[tuple[str, str]] = []
    for name in names.undetected if by_content else ():
        with contextlib.suppress(OSError):
            if (format := format_by_content(root / name)) is not None:
                by_head.append((format, tagged(name, extension_for(format))))
    # in a tree of code such a file is one among others
    for format, name in by_head if names.num_code <= names.num_media + len(by_head) else ():
        found.setdefault(format, []).append(name)
    if "datasets" in found:
        found["datasets"] = dataset_files(root, found["datasets"])
    paths = [untagged(name) for format in found for name in found[format]]
    if names.num_code > names.num_media + _PROGRAMS_PER_CONTAINER * len(paths):
        # others are those that the tests of a program read
        kept = {*names.data_of([name for name in paths if "/" in name]), *(name for name in paths if "/" not in name)}
        found = {format: [name for name in found[format] if untagged(name) in kept] for format in found}
    found = {format: sorted(found[format]) for format in EXTENSIONS.values() if found.get(format)}
    if len(found) + bool(json) < 2:
        return found
    return _joined(root, found, json)


def _joined(root: Path, found: dict[str, list[str]], json: list[Path]) -> dict[str, list[str]]:
    """Those of the containers that are read beside other files."""
    taken = {(file.parent.relative_to(root).as_posix(), base_name(file.name)) for file in json}
    named, kept = _formats_named(json), {}
    for format, containers in found.items():
        keys = {name: _key(untagged(name)) for name in containers}
        containers = [name for name in containers if keys[name] not in taken]
        taken |= set(keys.values())
        if format == "webdataset":
            containers = containers if not json or any(_has_words(root, name) for name in containers[:3]) else []
        elif format not in named:
            containers = [name for name in containers if _is_table_of_words(root, name)]
        if containers and format not in named:
            kept[format] = containers
    return kept


def _key(path: str) -> tuple[str, str]:
    return os.path.dirname(path) or ".", base_name(os.path.basename(path))


def _formats_named(json: list[Path]) -> set[str]:
    """Formats of the containers that the first objects of some JSON files take media from."""
    found: set[str] = set()
    for file in json[:20]:
        for _, fields in itertools.islice(json_items(file, max_line_mib=16.0), 50):
            text = repr(fields) if isinstance(fields, dict) else ""
            found |= {format for ending, format in EXTENSIONS.items() if f"{ending}::" in text.lower()}
    return found


def _has_words(root: Path, name: str) -> bool:
    try:
        if not (root / untagged(name)).stat().st_size:
            return False
        members = tar_index(root / untagged(name)).members
    except (DocumentError, OSError):
        # what cannot be read is told while reading
        return True
    return any(extension_of(member) in (*_WORDS, "cls") for member in itertools.islice(members, 1000))


def _is_table_of_words(root: Path, name: str) -> bool:
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


def drop_duplicate_files(files: list[Path]) -> list[Path]:
    """The JSON files without arrays and lines that have the name of other lines."""
    if len(files) < 2:
        return files
    first: dict[tuple[Path, str], Path] = {}
    for file in sorted(filter(is_named_lines, files), key=_ending_rank):
        first.setdefault((file.parent, plain_stem(file)), file)
    files = [
        file for file in files if _ending_rank(file) < 0 or first.get((file.parent, plain_stem(file)), file) == file
    ]
    lines = {file: (file.parent, base_name(file.name)) for file in files if not is_array(file)}
    keys = set(lines.values())
    return sorted(file for file in files if file in lines or (file.parent, base_name(file.name)) not in keys)


def base_name(name: str) -> str:
    """A file's name without its ending and number."""
    return shard_group_name(name).strip("-_. ").casefold()


def _ending_rank(file: Path) -> int:
    """The index of a file's ending in LINES, before that of a compression; -1 for another."""
    ending = os.path.splitext(without_compression(file.name))[1].lower()
    return LINES.index(ending) if ending in LINES else -1
