"""Which format a file holds, and sources of files: one file, JSON files, tars and tables.

A file is recognised by its content, whatever its name: tars of any kind, Parquet, Arrow, JSON. Opening reads the first
lines; everything else happens while the documents are iterated.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from brine.common.files import file_digest
from brine.data.document import DocumentError
from brine.data.files.addresses import tagged, untagged
from brine.data.files.compressed import (
    STREAMED_EXTENSIONS,
    compressed_content_hint,
    compressed_hint,
    detect_compression,
    open_decompressed,
    unpack_hint,
)
from brine.data.files.extensions import media_type_of
from brine.data.files.links import resolve_user_path
from brine.data.files.pointers import pointer_in
from brine.data.files.signatures import is_tar
from brine.data.files.source_files import LANGUAGES
from brine.data.files.text import strip_bom
from brine.data.files.walk import walk
from brine.data.formats.lines.fields import folded
from brine.data.formats.lines.lines import LINES, check_encoding, is_array, is_spread, json_items
from brine.data.formats.manifest import RECORD_FORMATS, detect_record_format, manifest_documents
from brine.data.formats.notes.refusals import (
    describe_broken_json,
    describe_coco,
    describe_foreign_file,
    describe_single_file,
    describe_unknown_json,
)
from brine.data.formats.source import (
    NOTE_PREFIX,
    DocumentSource,
    ReadLimits,
    container_sha256,
    files_sha256,
)
from brine.data.formats.splits.rules import PathSplits, digest_of_card, digest_of_containers
from brine.data.formats.splits.split_lists import digest_of_split_lists
from brine.data.formats.tables.cells import load_pyarrow, num_rows
from brine.data.formats.tables.conversion import table_hint
from brine.data.formats.tables.parquet import check_columns, table_documents
from brine.data.formats.webdataset import webdataset_documents

FORMATS = (*RECORD_FORMATS, "manifest", "markdown", "repository", "media", "webdataset", "parquet", "datasets")
EXTENSIONS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "datasets"}
"""Ending of a container -> its format."""
JSON = (*LINES, ".json")
_NAMED_FIELD = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*(?::|$)')
_TEXTS = (*JSON, ".txt", ".caption", ".cls", ".md", ".markdown", ".csv", ".tsv", ".html", ".xml", ".yaml")


def open_file(path: Path, format: str | None, limits: ReadLimits) -> DocumentSource:
    """The source of one file. Raises ValueError, with the formats there are, or OSError."""
    # a link that a person named is followed, and media are looked for beside its target
    file = resolve_user_path(path)
    if problem := pointer_in(file) or unpack_hint(file):
        raise ValueError(f"{path} {problem}")
    if format is None:
        format = format_by_content(file) or EXTENSIONS.get(path.suffix.lower())
    if format in EXTENSIONS.values():
        return containers(path, file.parent, [tagged(file.name, extension_for(format))], format, limits)
    if format in ("markdown", "repository", "media"):
        raise ValueError(f"{path} is a file, but format {format!r} needs a folder: give the folder")
    return manifests(path, file.parent, [file], format, limits)


def format_by_content(file: Path) -> str | None:
    """The format of a container by its first bytes, whatever its name; None for any other file."""
    with open(file, "rb") as stream:
        head = stream.read(512)
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] == b"ARROW1" or (head[:4] == b"\xff" * 4 and 0 < int.from_bytes(head[4:8], "little") < 2**24):
        return "datasets"
    return "webdataset" if is_tar(head) else None


def extension_for(format: str) -> str:
    """The ending of a format's containers."""
    return next(ending for ending, name in EXTENSIONS.items() if name == format)


def has_known_extension(name: str) -> bool:
    """Whether a file's ending says what it holds: that of a medium, a text, or code."""
    ending = os.path.splitext(name)[1].lower()
    return media_type_of(name) is not None or ending in _TEXTS or ending in LANGUAGES


def opens_like_json(file: Path) -> bool:
    """Whether a file begins like an object or an array."""
    try:
        with open_decompressed(file) as stream:
            return strip_bom(stream.read(64)).lstrip()[:1] in (b"{", b"[")
    except OSError:
        return False


def without_compression(name: str) -> str:
    """A name without the ending of a compression that is read as a stream (`a.jsonl.gz`), whatever its case."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in STREAMED_EXTENSIONS else name


def is_named_lines(file: Path) -> bool:
    """Whether a file's ending, or that before a compression's, is one of LINES, and it is not a Julia program."""
    ending = os.path.splitext(without_compression(file.name))[1].lower()
    return ending in LINES and (ending != ".jl" or (opens_like_json(file) and _opens_object(file)))


def _opens_object(file: Path) -> bool:
    """Whether the first line is an object or the beginning of one, or an array holds one first (no `[1, 2]`)."""
    try:
        with open_decompressed(file) as stream:
            line = strip_bom(stream.read(2**20)).lstrip().splitlines()[0].rstrip().decode("utf-8", "replace")
        if line.startswith("{"):
            try:
                json.loads(line)
            except json.JSONDecodeError as error:
                # one over several lines has no mistake before its line's end
                is_cut = error.pos >= len(line) or error.msg.startswith(("Unterminated", "Invalid control"))
                return is_cut and (is_spread(file) or _NAMED_FIELD.match(line) is not None)
            return True
        first = next(json_items(file, max_line_mib=16.0, checked=False), (0, None))[1]
    except (DocumentError, OSError, RecursionError):
        return False
    return isinstance(first, dict)


def with_folder_notes(source: DocumentSource, notes: Iterable[str], *, count_archives: bool) -> DocumentSource:
    """The source of a folder that also counts these notes, and compressed or split files there."""

    def documents(include_decode: bool, skipped: Counter):
        yield from source.read(include_decode, skipped)
        skipped.update(NOTE_PREFIX + note for note in notes)
        files = (name for name, why in walk(source.root) if not why) if count_archives else ()
        skipped.update(kind for name in files if (kind := compressed_hint(name)))

    return dataclasses.replace(source, read=documents)


def describe_archives(root: Path, names: Iterable[str]) -> str:
    """What is foreign, compressed, split or of another encoding in a folder where nothing is read, with the remedy."""
    names = list(names)
    if foreign := next((f", but {name}, which {why}" for name in names if (why := describe_foreign_file(name))), ""):
        return foreign
    for name in names:
        try:
            what = pointer_in(root / name)
            if not what and (not has_known_extension(name) or name.lower().endswith(JSON)):
                what = unpack_hint(root / name)
            if not what and name.lower().endswith(JSON):
                check_encoding(root / name)
        except DocumentError as error:
            return f", but {error}"
        except OSError:
            continue
        plain = without_compression(name).lower()
        is_json = plain.endswith(JSON) and (not plain.endswith(".jl") or is_named_lines(root / name))
        why = describe_unknown_json(root / name, root=root) if not what and is_json else ""
        if what := what or why or (compressed_hint(name) and f"is {compressed_hint(name)}"):
            return f", but {name}, which {what}"
    return ""


def is_lines(file: Path, *, least: int = 2) -> bool:
    """Whether a file holds JSON lines of a known record format, at least two: one alone may be a caption."""
    found = [fields for _, fields in itertools.islice(json_items(file, max_line_mib=16.0), 2)]
    return len(found) >= least and all(isinstance(each, dict) and detect_record_format(folded(each)) for each in found)


def manifests(
    path: Path, root: Path, files: list[Path], format: str | None, limits: ReadLimits, splits: PathSplits | None = None
) -> DocumentSource:
    """A source of JSON files; its format is looked for in the first objects when it is not given.

    Raises ValueError when none is found, or when the one file is not in UTF-8.
    """
    record_format, first = format if format in RECORD_FORMATS else None, files[0]
    if first.suffix.lower() in (".csv", ".tsv"):
        raise ValueError(f"{path} is the table {table_hint(first, first.name)}")
    if len(files) == 1:
        empty = "is empty (0 bytes): what was to write it failed, so write it again"
        if problem := pointer_in(first) or ("" if first.stat().st_size else empty):
            raise ValueError(f"{path if path.is_file() else path / first.name} {problem}")
        # said once; among several files one of another encoding is quarantined
        check_encoding(first)
    if format is None:
        found = record_formats_in(first, max_line_mib=limits.max_line_mib)
        if not found and first.suffix.lower() != ".jsonl" and not is_array(first):
            raise ValueError(_no_json(path, first))
        if len(files) == 1 and found == {"captioned"} and (why := describe_coco(first)):
            raise ValueError(f"{path} {why}")
        format = found.pop() if len(found) == 1 else "manifest"

    def read(include_decode: bool, skipped: Counter):
        return manifest_documents(
            files,
            root=root,
            record_format=record_format,
            max_line_mib=limits.max_line_mib,
            max_file_mib=limits.max_file_mib,
            include_decode=include_decode,
            notes=skipped,
            splits=splits,
        )

    def digest(media: bool) -> str:
        if len(files) == 1:
            found = file_digest(first)
        else:
            names = [file.relative_to(root).as_posix() for file in files]
            found = files_sha256(root, names, label="manifests", whole=lambda _: True)
        return digest_of_split_lists(root, digest_of_containers(root, found))

    def count() -> int | None:
        is_long = any(is_array(file) or is_spread(file) or detect_compression(file) for file in files)
        return None if is_long else sum(map(_num_lines, files))

    return DocumentSource(path, format, root, read, digest, count)


def _no_json(path: Path, file: Path) -> str:
    """The message for a file without JSON objects of a known record format."""
    packing = detect_compression(file)
    if packing is None and (why := describe_single_file(file)):
        return f"{path} {why}"
    why = describe_unknown_json(file) or (describe_broken_json(file) if file.suffix.lower() in JSON else "")
    if packing and not why:
        return f"{path} {compressed_content_hint(file)}"
    what = f"is compressed ({packing.name}) and " if packing else ""
    what += "holds no JSON object of a known record format in its first lines"
    return unknown(path, f"{what}: it {why}" if why else what)


def join_sources(path: Path, root: Path, sources: list[DocumentSource]) -> DocumentSource:
    """One source of several that share a root: their documents one after another."""
    if len(sources) == 1:
        return sources[0]

    def read(include_decode: bool, skipped: Counter):
        for source in sources:
            yield from source.read(include_decode, skipped)

    def digest(media: bool) -> str:
        return hashlib.sha256("\0".join(source.digest(media) for source in sources).encode()).hexdigest()

    def count() -> int | None:
        counts = [source.count() for source in sources]
        return None if None in counts else sum(counts)

    format = " + ".join(dict.fromkeys(source.format for source in sources))
    names = tuple(name for source in sources for name in source.containers)
    return DocumentSource(path, format, root, read, digest, count, names)


def _num_lines(file: Path) -> int:
    with open(file, "rb") as stream:
        return sum(block.count(b"\n") or block.count(b"\r") for block in iter(lambda: stream.read(2**20), b""))


def containers(
    path: Path, root: Path, names: list[str], format: str, limits: ReadLimits, splits: PathSplits | None = None
) -> DocumentSource:
    """A source of tars or tables; pyarrow is imported now, so that its absence is reported before any work."""
    if format != "webdataset":
        load_pyarrow()
        check_columns(root / untagged(names[0]))
    documents = webdataset_documents if format == "webdataset" else table_documents

    def read(include_decode: bool, skipped: Counter):
        return documents(root, names, limits, skipped, splits)

    def digest(media: bool) -> str:
        return digest_of_card(root, container_sha256(root, names, label=format, media=media))

    def count() -> int | None:
        try:
            return None if format == "webdataset" else sum(num_rows(root / untagged(name)) for name in names)
        except (DocumentError, OSError):
            return None

    return DocumentSource(path, format, root, read, digest, count, tuple(names))


def record_formats_in(file: Path, *, max_line_mib: float = 16.0) -> set[str]:
    """The known record formats among the first 50 objects of a JSON file."""
    found = itertools.islice(json_items(file, max_line_mib=max_line_mib, checked=False), 50)
    return {detect_record_format(folded(fields)) for _, fields in found if isinstance(fields, dict)} - {None}


def unknown(path: Path, what: str) -> str:
    """The message for what is of no format."""
    return (
        f"{path} {what}. Formats that are read: {', '.join(FORMATS)} (see data/README.md); give format= when the "
        "content is one of them"
    )
