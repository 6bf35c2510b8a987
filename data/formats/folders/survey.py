"""Which files of a folder hold documents: JSON, tars, tables and folders of captioned media, which are read together.

Nothing is read twice: of files of one name the first of JSON lines, JSON, tar and table counts; a manifest stands for
what is beside and below it, JSON on top for JSON below, JSON for the tars and tables that it takes media from; a JSON
beside media of its name is a caption. Nothing is read that belongs to a program: where programs outnumber media and
documents (ten times, for tars and tables), only files in a `data/` on top and those named after splits are data, unless
they are in `tests/` and the like, or programs outweigh them. A clone with a dataset card or large files kept apart
(`filter=lfs`) is a data set.
"""

import contextlib
import itertools
import operator
import os
from dataclasses import dataclass, field
from pathlib import Path

from brine.data.document import DocumentError
from brine.data.files.addresses import tagged, untagged
from brine.data.files.archive import tar_index
from brine.data.files.compressed import head_of, plain_stem
from brine.data.files.extensions import extension_of
from brine.data.files.resolve import stays_within
from brine.data.formats import detect
from brine.data.formats.detect import CAPTIONS, FolderFiles
from brine.data.formats.lines.lines import LINES, is_array, json_items
from brine.data.formats.splits.names import prefer_held_out, split_of_name, words_of_name
from brine.data.formats.splits.rules import shard_group_name
from brine.data.formats.tables.cells import load_pyarrow, open_table
from brine.data.formats.tables.parquet import check_columns, dataset_files

MANIFESTS = ("manifest.jsonl", "manifest.json", "metadata.jsonl")  # files that stand for their folder
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
    top, below = json_files(files)
    top = [file for file in top if detect.record_formats_in(file)]
    # in a tree of code such a file is one among others
    undetected = [] if files.is_clone else files.undetected_json(on_top=True)
    top += [] if files.is_mostly_code(len(undetected)) else undetected
    if not top and not is_saved_dataset(root):
        below |= set() if files.is_clone else set(files.undetected_json(on_top=False))
        top = _no_part_of_a_program(
            files, sorted(f for f in below if detect.record_formats_in(f, max_line_mib=max_line_mib))
        )
    found = FolderContents(_without_twins(top))
    found.containers = _containers(files, found.json)
    read = [file.relative_to(root).as_posix() for file in found.json]
    read += [name for format, names in found.containers.items() if format != "webdataset" for name in names]
    # whatever is on top may name media anywhere
    if found and all("/" in name for name in read):
        read += found.containers.get("webdataset", [])
        captioned = files.media_names & {file.stem for file in files.readable if file.ending in CAPTIONS}
        tops, taken = ({name.split("/")[0] for name in names if "/" in name} for names in (captioned, read))
        found.media = sorted(tops - taken)
    return found


def is_saved_dataset(root: Path) -> bool:
    """Whether Hugging Face `datasets` saved a data set in the folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def top_manifest(root: Path) -> list[Path]:
    """The first of MANIFESTS in a folder, as a list of one or none."""
    files = (root / name for name in MANIFESTS)
    return [file for file in files if file.is_file() and stays_within(root, file.resolve())][:1]


def json_files(files: FolderFiles) -> tuple[list[Path], set[Path]]:
    """JSON files on top of a folder, and below it; the first of MANIFESTS stands for all in its folder."""
    root, seen, num_arrays = files.root, set(), 0
    standing: dict[str, tuple[int, Path]] = {}
    found: list[tuple[str, Path]] = []
    for name in (file.name for file in files.readable):
        # of a file and its compressed twin one is read
        plain, file = detect.without_compression(name), root / name
        (stem, ending), (folder, base) = os.path.splitext(plain), os.path.split(plain)
        if ending.lower() not in detect.JSON or plain in seen:
            continue
        seen.add(plain)
        if folder and base in MANIFESTS:
            entry = (MANIFESTS.index(base), file)
            standing[folder] = min(entry, standing.get(folder, entry))
        elif ending.lower() in LINES:
            found += [(folder, file)] if detect.is_named_lines(file) else []
        elif not folder or plain != name or (num_arrays < _MAX_ARRAYS and stem not in files.media_names):
            num_arrays += bool(folder)
            # one object alone may be a caption, and is not compressed then; of many files below lines are looked for
            least, ends = (1, ()) if plain != name else (2, (b"}\n{", b"}\r\n{", b"}\r{") if folder else ())
            may_be = not ends or any(end in head_of(file, 2**20) for end in ends)
            found += [(folder, file)] if is_array(file) or (may_be and detect.is_lines(file, least=least)) else []
    below = {file for _, file in standing.values()}
    below |= {
        file
        for folder, file in found
        if folder and standing.keys().isdisjoint(map(str, (folder, *Path(folder).parents)))
    }
    return sorted(file for folder, file in found if not folder), below


def _no_part_of_a_program(files: FolderFiles, json: list[Path]) -> list[Path]:
    paths, num_code = [file.relative_to(files.root).as_posix() for file in json], len(files.code)
    attributes, card = (
        head_of(file) if file.is_file() and not file.is_symlink() else b""
        for file in (files.root / ".gitattributes", files.root / "README.md")
    )
    if files.is_clone and (b"filter=lfs" in attributes or card.startswith(b"---\n")):
        paths = without_fixtures(paths) if num_code else paths
    # a data set's own script is no program with data for its tests
    elif (num_code > 1 or not files.num_media) if files.is_clone else files.is_mostly_code(len(json)):
        paths = _data_among_code(files, paths)
    return [files.root / name for name in paths]


def _data_among_code(files: FolderFiles, names: list[str]) -> list[str]:
    """Those of files with documents that are no part of a program, for its tests or few among much code."""
    data = {name for name in names if _is_in_data(name)}
    splits = {name: _split_of_path(name) for name in without_fixtures(names)}
    found = [name for name in splits if name in data or splits[name]]
    # a test without anything to train on is that of a program
    if not any(name in data or splits[name] == "train" for name in found):
        return []
    sizes = (
        sum(os.stat(files.root / name).st_size for name in names if os.path.exists(files.root / name))
        for names in (found, files.code)
    )
    return found if len(files.code) <= _PROGRAMS_PER_CONTAINER * len(found) or operator.gt(*sizes) else []


def _is_in_data(name: str) -> bool:
    # deeper ones are parts of programs too (`src/data/prices.json`)
    return "/" in name and name.lower().split("/")[0] in _DATA


def _split_of_path(name: str) -> str:
    *folders, file = name.split("/")
    return prefer_held_out(filter(None, map(split_of_name, (*folders, shard_group_name(file)))))


def without_fixtures(names: list[str]) -> list[str]:
    """Names of data without those that the tests of a program read."""
    kept = [name for name in names if not _FIXTURES.intersection(name.lower().split("/")[:-1])]
    # a folder `test` alone is that of a program's tests, beside others that of a data set
    return kept if any(_is_in_data(name) or "test" not in name.lower().split("/")[:-1] for name in kept) else []


def _containers(files: FolderFiles, json: list[Path]) -> dict[str, list[str]]:
    root = files.root
    found = {
        format: [tagged(file.name, ending) for file in files.visible if file.ending == ending]
        for ending, format in detect.EXTENSIONS.items()
    }
    by_head: list[tuple[str, str]] = []
    for name in () if files.is_clone else files.undetected:
        with contextlib.suppress(OSError):
            by_head += [(format, name)] if (format := detect.format_by_content(root / name)) else []
    # in a tree of code such a file is one among others
    for format, name in () if files.is_mostly_code(len(by_head)) else by_head:
        found[format].append(tagged(name, detect.CONTAINER_ENDINGS[format]))
    found["datasets"] = dataset_files(root, found["datasets"])
    paths = [untagged(name) for names in found.values() for name in names]
    if files.is_mostly_code(_PROGRAMS_PER_CONTAINER * len(paths)):
        # others are those that the tests of a program read
        data = _data_among_code(files, [name for name in paths if "/" in name])
        found = {key: [name for name in found[key] if "/" not in name or untagged(name) in data] for key in found}
    found = {format: sorted(names) for format, names in found.items() if names}
    if len(found) + bool(json) < 2:
        return found
    taken, kept = {_key(file.relative_to(root).as_posix()) for file in json}, {}
    objects = (item for file in json[:20] for _, item in itertools.islice(json_items(file, max_line_mib=16.0), 50))
    texts = [repr(fields).lower() for fields in objects if isinstance(fields, dict)]
    for format, names in found.items():
        new = [name for name in names if _key(untagged(name)) not in taken]
        taken |= {_key(untagged(name)) for name in names}
        # JSON takes media from one of them
        if any(f"{detect.CONTAINER_ENDINGS[format]}::" in text for text in texts):
            continue
        if format == "webdataset":
            new = new if not json or any(_has_words(root / untagged(name)) for name in new[:3]) else []
        else:
            new = [name for name in new if _is_table_of_words(root, name)]
        kept |= {format: new} if new else {}
    return kept


def _key(path: str) -> tuple[str, str]:
    """What files of one name in several formats share: their folder, and their name without extension and number."""
    folder, name = os.path.split(path)
    return folder, shard_group_name(name).strip("-_. ").casefold()


def _has_words(tar: Path) -> bool:
    try:
        if not tar.stat().st_size:
            return False
        members = itertools.islice(tar_index(tar).members, 1000)
        return any(extension_of(member) in ("txt", "caption", "json", "cls") for member in members)
    except (DocumentError, OSError):
        # reading reports what cannot be read
        return True


def _is_table_of_words(root: Path, name: str) -> bool:
    if "/" not in name and not _ABOUT.isdisjoint(words_of_name(name)[:1]):
        return False
    try:
        load_pyarrow()
        open_table(root / untagged(name))
        check_columns(root / untagged(name))
    except (ValueError, DocumentError, OSError):
        return False
    return True


def _without_twins(files: list[Path]) -> list[Path]:
    """The JSON files without arrays, and lines of another extension, that have the name of other lines."""
    endings = {file: os.path.splitext(detect.without_compression(file.name))[1].lower() for file in files}
    named = sorted(filter(detect.is_named_lines, files), key=lambda file: LINES.index(endings[file]))
    first = {(file.parent, plain_stem(file)): file for file in reversed(named)}
    kept = [f for f in files if endings[f] not in LINES or first.get((f.parent, plain_stem(f)), f) == f]
    arrays = set(filter(is_array, kept))
    lines = {_key(str(file)) for file in kept if file not in arrays}
    return sorted(file for file in kept if file not in arrays or _key(str(file)) not in lines)
