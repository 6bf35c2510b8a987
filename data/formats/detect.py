"""What one file holds, by its first bytes and its name, and what to do about one that holds no documents.

Tars of any kind, Parquet, Arrow and JSON are recognised whatever their names. Endings decide only where the first bytes
do not, and which files of a folder are looked at. Nothing is read past the first objects.
"""

import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from brine.data.document import DocumentError
from brine.data.files.compressed import (
    STREAMED_EXTENSIONS,
    compressed_content_hint,
    compressed_hint,
    detect_compression,
    open_decompressed,
    unpack_hint,
)
from brine.data.files.extensions import media_type_of
from brine.data.files.pointers import pointer_in
from brine.data.files.signatures import is_tar
from brine.data.files.source_files import LANGUAGES
from brine.data.files.text import strip_bom
from brine.data.formats.lines.fields import folded
from brine.data.formats.lines.lines import LINES, check_encoding, json_items
from brine.data.formats.manifest import RECORD_FORMATS, detect_record_format
from brine.data.formats.notes.refusals import (
    describe_broken_json,
    describe_foreign_file,
    describe_single_file,
    describe_unknown_json,
)

FORMATS = (*RECORD_FORMATS, "manifest", "markdown", "repository", "media", "webdataset", "parquet", "datasets")
EXTENSIONS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "datasets"}
"""Ending of a container -> its format."""
CONTAINER_ENDINGS = {format: ending for ending, format in EXTENSIONS.items()}
JSON = (*LINES, ".json")
_OBJECT = re.compile(rb'[\[\s]*\{\s*("(?:[^"\\]|\\.)*"\s*(:|$)|\}|$)')
_TEXTS = (*JSON, ".txt", ".caption", ".cls", ".md", ".markdown", ".csv", ".tsv", ".html", ".xml", ".yaml")


def format_by_content(file: Path) -> str | None:
    """The format of a container by its first bytes; None for any other file."""
    with open(file, "rb") as stream:
        head = stream.read(512)
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] == b"ARROW1" or (head[:4] == b"\xff" * 4 and 0 < int.from_bytes(head[4:8], "little") < 2**24):
        return "datasets"
    return "webdataset" if is_tar(head) else None


def has_known_extension(name: str) -> bool:
    """Whether a file's ending is that of media, text or code."""
    ending = os.path.splitext(name)[1].lower()
    return media_type_of(name) is not None or ending in _TEXTS or ending in LANGUAGES


def head_of(file: Path, size: int = 2**16, *, decompressed: bool = False) -> bytes:
    """The first bytes of a file; none of one that cannot be read."""
    try:
        with (open_decompressed if decompressed else lambda path: open(path, "rb"))(file) as stream:
            return stream.read(size)
    except OSError:
        return b""


def opens_like_json(file: Path) -> bool:
    """Whether a file begins like an object or an array."""
    return strip_bom(head_of(file, 64, decompressed=True)).lstrip()[:1] in (b"{", b"[")


def without_compression(name: str) -> str:
    """A name without the ending of a compression that is read as a stream (`a.jsonl.gz`)."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in STREAMED_EXTENSIONS else name


def is_named_lines(file: Path) -> bool:
    """Whether a file's ending, or that before a compression's, is one of LINES, and it is not a Julia program."""
    ending = os.path.splitext(without_compression(file.name))[1].lower()
    if ending != ".jl":
        return ending in LINES
    return _OBJECT.match(strip_bom(head_of(file, decompressed=True))) is not None


def is_lines(file: Path, *, least: int = 2) -> bool:
    """Whether a file holds JSON lines of a known record format, at least two: one alone may be a caption."""
    found = [fields for _, fields in itertools.islice(json_items(file, max_line_mib=16.0), 2)]
    return len(found) >= least and all(isinstance(each, dict) and detect_record_format(folded(each)) for each in found)


def record_formats_in(file: Path, *, max_line_mib: float = 16.0) -> set[str]:
    """The known record formats among the first 50 objects of a JSON file."""
    found = itertools.islice(json_items(file, max_line_mib=max_line_mib, checked=False), 50)
    return {detect_record_format(folded(fields)) for _, fields in found if isinstance(fields, dict)} - {None}


def describe_unread_file(root: Path, names: Iterable[str]) -> str:
    """The first file that is foreign, compressed, split, not UTF-8 or of an unknown form, with the remedy; else ""."""
    names = list(names)
    for name in names:
        if why := describe_foreign_file(name):
            return f", but {name}, which {why}"
    for name in names:
        file, is_json = root / name, name.lower().endswith(JSON)
        try:
            why = pointer_in(file) or (unpack_hint(file) if is_json or not has_known_extension(name) else "")
            if is_json and not why:
                check_encoding(file)
        except DocumentError as error:
            return f", but {error}"
        except OSError:
            continue
        plain = without_compression(name).lower()
        if not why and plain.endswith(JSON) and (not plain.endswith(".jl") or is_named_lines(file)):
            why = describe_unknown_json(file, root=root)
        if why := why or (compressed_hint(name) and f"is {compressed_hint(name)}"):
            return f", but {name}, which {why}"
    return ""


def describe_no_json(path: Path, file: Path) -> str:
    """The message for a file without JSON objects of a known record format."""
    packing = detect_compression(file)
    if packing is None and (why := describe_single_file(file)):
        return f"{path} {why}"
    why = describe_unknown_json(file) or (describe_broken_json(file) if file.suffix.lower() in JSON else "")
    if packing and not why:
        return f"{path} {compressed_content_hint(file)}"
    what = f"is compressed ({packing.name}) and " if packing else ""
    what += "holds no JSON object of a known record format in its first lines"
    return unknown_format(path, f"{what}: it {why}" if why else what)


def unknown_format(path: Path, what: str) -> str:
    """The message for a path of no known format."""
    return (
        f"{path} {what}. Formats that are read: {', '.join(FORMATS)} (see data/README.md); give format= when the "
        "content is one of them"
    )
