"""Which files of a folder hold documents: JSON, tars, tables and folders of captioned media, which are read together.

What is not read, so that nothing is read twice:

* What is beside or below a `manifest.jsonl`, `manifest.json` or `metadata.jsonl`; JSON below JSON on top.
* Of files of one name in several formats all but the first (`a.jsonl`, `a.ndjson`, `a.json`, `a.tar`, `a.parquet`).
* Tars and tables beside JSON that takes media from one of them, tars and tables without text, and tables named after
  what they say about others (`metadata.parquet`); JSON beside media of its name, which is a caption.
* What is part of a program: JSON below the top where programs outnumber media and such JSON, in a clone where there is
  a second program or no media; tars and tables where there are ten times as many programs. But files in a `data/` on
  top and those named after splits are data, unless they are in `tests/`, `fixtures/` and the like, or programs outweigh
  them. A clone with a dataset card or large files kept apart (`filter=lfs`) is a data set.
"""

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

from brine.data.document import DocumentError
from brine.data.files.addresses import tagged, untagged
from brine.data.files.archive import tar_index
from brine.data.files.compressed import STREAMED_EXTENSIONS, plain_stem
from brine.data.files.extensions import extension_of
from brine.data.formats.detect import (
    CONTAINER_ENDINGS,
    EXTENSIONS,
    format_by_content,
    head_of,
    is_lines,
    is_named_lines,
    record_formats_in,
    without_compression,
)
from brine.data.formats.folders.folder_files import CAPTIONS, FolderFiles, is_inside
from brine.data.formats.lines.lines import LINES, is_array, json_items
from brine.data.formats.splits.names import prefer_held_out, split_of_name, words_of_name
from brine.data.formats.splits.rules import shard_group_name
from brine.data.formats.tables.cells import load_pyarrow, open_table
from brine.data.formats.tables.parquet import check_columns, dataset_files

MANIFESTS = ("manifest.jsonl", "manifest.json", "metadata.jsonl")
"""Files that stand for their folder."""
_MAX_ARRAYS = 1000
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


def survey(files: FolderFiles, max_line_mib: float) -> FolderContents:
    """What a folder holds. An empty one where none of its files holds documents."""
    root = files.root
    if named := top_manifest(root):
        return FolderContents(named)
    top = top_files(root, LINES, known=True) + top_files(root, (".json",), known=True)
    # in a tree of code such a file is one among others
    undetected = [] if files.is_clone else files.undetected_json(on_top=True)
    top += [] if files.is_mostly_code(len(undetected)) else undetected
    if not top and not is_saved_dataset(root):
        top = json_below(files, max_line_mib)
    found = FolderContents(_without_twins(top))
    found.containers = _containers(files, found.json)
    read = [_relative(file, root) for file in found.json]
    read += [name for format, names in found.containers.items() if format != "webdataset" for name in names]
    # whatever is on top may name media anywhere
    if found and all("/" in name for name in read):
        read += found.containers.get("webdataset", [])
        captioned = files.media_names & {file.stem for file in files.readable if file.ending in CAPTIONS}
        found.media = sorted(_top_folders(captioned) - _top_folders(read))
    return found


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _top_folders(names) -> set[str]:
    return {name.split("/")[0] for name in names if "/" in name}


def is_saved_dataset(root: Path) -> bool:
    """Whether Hugging Face `datasets` saved a data set in the folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def top_manifest(root: Path) -> list[Path]:
    """The first of MANIFESTS in a folder, as a list of one or none."""
    return [root / name for name in MANIFESTS if is_inside(root, root / name)][:1]


def top_files(root: Path, plain: tuple[str, ...], *, known: bool) -> list[Path]:
    """Files of lines (`plain` is LINES) or arrays right in a folder; with `known` those of a known record format."""
    extensions = tuple(ending + packed for ending in plain for packed in ("", *STREAMED_EXTENSIONS))
    found = {file for file in root.iterdir() if file.name.lower().endswith(extensions)}
    # of a file and its compressed twin one is read
    files = sorted(file for file in found if not _is_compressed(file) or file.with_suffix("") not in found)
    is_it = is_named_lines if plain == LINES else _is_many
    return [file for file in files if is_inside(root, file) and is_it(file) and (not known or record_formats_in(file))]


def _is_many(file: Path) -> bool:
    """Whether a .json is an array or lines: one object alone may be a caption, and is not compressed then."""
    return is_array(file) or is_lines(file, least=1 if _is_compressed(file) else 2)


def _is_compressed(file: Path) -> bool:
    return file.suffix.lower() in STREAMED_EXTENSIONS


def _may_be_many(file: Path) -> bool:
    """The same with a cheap look at lines first, since there may be very many files."""
    is_likely = _is_compressed(file) or any(end in head_of(file, 2**20) for end in (b"}\n{", b"}\r\n{", b"}\r{"))
    return is_array(file) or (is_likely and _is_many(file))


def json_below(files: FolderFiles, max_line_mib: float, *, known: bool = True) -> list[Path]:
    """In each folder below one of MANIFESTS, which stands for what is below it too; elsewhere JSON lines and arrays.

    A repository's own test data are no manifests of it: with `known` they are left out.
    """
    root, seen, num_arrays = files.root, set(), 0
    standing: dict[str, tuple[int, Path]] = {}
    others: list[tuple[str, Path]] = []
    for name in (file.name for file in files.readable if "/" in file.name):
        # of a file and its compressed twin one is read
        plain, file = without_compression(name), root / name
        stem, ending = os.path.splitext(plain)
        if ending.lower() not in (*LINES, ".json") or plain in seen:
            continue
        seen.add(plain)
        folder, base = os.path.split(plain)
        if base in MANIFESTS:
            entry = (MANIFESTS.index(base), file)
            standing[folder] = min(entry, standing.get(folder, entry))
        elif ending.lower() in LINES:
            others += [(folder, file)] if is_named_lines(file) else []
        elif (plain != name or num_arrays < _MAX_ARRAYS) and stem not in files.media_names:
            num_arrays += plain == name
            others += [(folder, file)] if _may_be_many(file) else []
    undetected = files.undetected_json(on_top=False) if known and not files.is_clone else ()
    others += [(_relative(file.parent, root), file) for file in undetected]
    found = {file for _, file in standing.values()}
    found |= {file for folder, file in others if standing.keys().isdisjoint(map(str, (folder, *Path(folder).parents)))}
    kept = sorted(file for file in found if not known or record_formats_in(file, max_line_mib=max_line_mib))
    if not known or not kept:
        return kept
    paths = [_relative(file, root) for file in kept]
    if files.is_clone and _is_data_repository(root):
        paths = without_fixtures(paths) if files.code else paths
    # a data set's own script is no program with data for its tests
    elif files.is_mostly_code(len(kept)) if not files.is_clone else len(files.code) > 1 or not files.num_media:
        paths = _data_among_code(files, paths)
    return [root / name for name in paths]


def _is_data_repository(root: Path) -> bool:
    """Whether a repository is that of a data set: large files kept apart, or a card with fields at its top."""
    attributes, card = (
        head_of(file) if file.is_file() and not file.is_symlink() else b""
        for file in (root / ".gitattributes", root / "README.md")
    )
    return b"filter=lfs" in attributes or card.startswith(b"---\n")


def _data_among_code(files: FolderFiles, names: list[str]) -> list[str]:
    """Those of files with documents that are no part of a program, for its tests or few among much code."""
    found = [name for name in without_fixtures(names) if _is_in_data(name) or _split_of_path(name)]
    if not any(_is_in_data(name) or _split_of_path(name) == "train" for name in found):
        # a test without anything to train on is that of a program
        return []
    is_much = len(files.code) <= _PROGRAMS_PER_CONTAINER * len(found)
    return found if is_much or _num_bytes(files.root, found) > _num_bytes(files.root, files.code) else []


def _is_in_data(name: str) -> bool:
    # deeper ones are parts of programs too (`src/data/prices.json`)
    return "/" in name and name.lower().split("/")[0] in _DATA


def _split_of_path(name: str) -> str:
    *folders, file = name.split("/")
    return prefer_held_out(filter(None, map(split_of_name, (*folders, shard_group_name(file)))))


def _num_bytes(root: Path, names: list[str]) -> int:
    return sum(os.stat(root / name).st_size for name in names if os.path.exists(root / name))


def without_fixtures(names: list[str]) -> list[str]:
    """Names of data without those that the tests of a program read."""
    kept = [name for name in names if not _FIXTURES.intersection(name.lower().split("/")[:-1])]
    # a folder `test` alone is that of a program's tests, beside others that of a data set
    return kept if any(_is_in_data(name) or "test" not in name.lower().split("/")[:-1] for name in kept) else []


def _containers(files: FolderFiles, json: list[Path]) -> dict[str, list[str]]:
    root = files.root
    found = {
        format: [tagged(file.name, ending) for file in files.visible if file.ending == ending]
        for ending, format in EXTENSIONS.items()
    }
    by_head = {} if files.is_clone else {name: _format_of(root / name) for name in files.undetected}
    by_head = {name: format for name, format in by_head.items() if format}
    # in a tree of code such a file is one among others
    for name, format in () if files.is_mostly_code(len(by_head)) else by_head.items():
        found[format].append(tagged(name, CONTAINER_ENDINGS[format]))
    found["datasets"] = dataset_files(root, found["datasets"])
    paths = [untagged(name) for names in found.values() for name in names]
    if files.is_mostly_code(_PROGRAMS_PER_CONTAINER * len(paths)):
        # others are those that the tests of a program read
        kept = {*_data_among_code(files, [name for name in paths if "/" in name])}
        kept |= {name for name in paths if "/" not in name}
        found = {format: [name for name in names if untagged(name) in kept] for format, names in found.items()}
    found = {format: sorted(names) for format, names in found.items() if names}
    return found if len(found) + bool(json) < 2 else _joined(root, found, json)


def _format_of(file: Path) -> str | None:
    try:
        return format_by_content(file)
    except OSError:
        return None


def _joined(root: Path, found: dict[str, list[str]], json: list[Path]) -> dict[str, list[str]]:
    """Those of the containers that are read beside other files."""
    taken = {_key(_relative(file, root)) for file in json}
    named, kept = _formats_named(json), {}
    for format, names in found.items():
        new = [name for name in names if _key(untagged(name)) not in taken]
        taken |= set(map(_key, map(untagged, names)))
        if format == "webdataset":
            new = new if not json or any(_has_words(root, name) for name in new[:3]) else []
        elif format not in named:
            new = [name for name in new if _is_table_of_words(root, name)]
        if new and format not in named:
            kept[format] = new
    return kept


def _key(path: str) -> tuple[str, str]:
    """What files of one name in several formats share: their folder, and their name without ending and number."""
    folder, name = os.path.split(path)
    return folder, shard_group_name(name).strip("-_. ").casefold()


def _formats_named(json: list[Path]) -> set[str]:
    """Formats of the containers that the first objects of some JSON files take media from."""
    objects = (item for file in json[:20] for _, item in itertools.islice(json_items(file, max_line_mib=16.0), 50))
    texts = [repr(fields).lower() for fields in objects if isinstance(fields, dict)]
    return {format for ending, format in EXTENSIONS.items() if any(f"{ending}::" in text for text in texts)}


def _has_words(root: Path, name: str) -> bool:
    try:
        if not (root / untagged(name)).stat().st_size:
            return False
        members = tar_index(root / untagged(name)).members
    except (DocumentError, OSError):
        # reading reports what cannot be read
        return True
    return any(extension_of(member) in ("txt", "caption", "json", "cls") for member in itertools.islice(members, 1000))


def _is_table_of_words(root: Path, name: str) -> bool:
    if "/" not in name and words_of_name(name)[:1] and words_of_name(name)[0] in _ABOUT:
        return False
    try:
        load_pyarrow()
        open_table(root / untagged(name))
        check_columns(root / untagged(name))
    except (ValueError, DocumentError, OSError):
        return False
    return True


def _without_twins(files: list[Path]) -> list[Path]:
    """The JSON files without arrays, and lines of another ending, that have the name of other lines."""
    first: dict[tuple[Path, str], Path] = {}
    for file in sorted(filter(is_named_lines, files), key=_ending_rank):
        first.setdefault((file.parent, plain_stem(file)), file)
    files = [
        file for file in files if _ending_rank(file) < 0 or first.get((file.parent, plain_stem(file)), file) == file
    ]
    arrays = set(filter(is_array, files))
    lines = {_key(str(file)) for file in files if file not in arrays}
    return sorted(file for file in files if file not in arrays or _key(str(file)) not in lines)


def _ending_rank(file: Path) -> int:
    """The index of a file's ending in LINES, before that of a compression; -1 for another."""
    ending = os.path.splitext(without_compression(file.name))[1].lower()
    return LINES.index(ending) if ending in LINES else -1
