"""What a file holds, by its first bytes and its name, and the files of a folder by kind.

Tars, Parquet, Arrow and JSON are recognised whatever their names. Endings decide only where the first bytes do not, and
which files of a folder are looked at: `FolderFiles` sorts those by kind in one pass over their names. Which of them
hold documents (`folders/survey.py`), and what the folder is without those (`folders/single_format.py`), follows.
"""

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from brine.data.document import DocumentError
from brine.data.files import compressed
from brine.data.files.compressed import compressed_hint, detect_compression, head_of
from brine.data.files.extensions import SUPPORTED, UNSUPPORTED, media_type_of
from brine.data.files.pointers import dvc_target, pointer_in
from brine.data.files.signatures import is_tar
from brine.data.files.source_files import LANGUAGES
from brine.data.files.text import strip_bom
from brine.data.files.walk import FolderListing
from brine.data.formats.lines.fields import folded
from brine.data.formats.lines.lines import LINES, check_encoding, is_array, json_items
from brine.data.formats.manifest import RECORD_FORMATS, detect_record_format
from brine.data.formats.notes import refusals

FORMATS = (*RECORD_FORMATS, "manifest", "markdown", "repository", "media", "webdataset", "parquet", "datasets")
EXTENSIONS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "datasets"}  # ending of a container -> its format
CONTAINER_ENDINGS = {format: ending for ending, format in EXTENSIONS.items()}
JSON = (*LINES, ".json")
CAPTIONS = (".txt", ".caption", ".json")  # endings of files with the words of the media that have their name
CODE = frozenset(ending for ending, language in LANGUAGES.items() if language not in ("markdown", "rst", "text"))
PROGRAMS = CODE - {".yaml", ".yml", ".toml", ".ini", ".cfg"}
"""Endings of code that data sets do not have as their settings."""
_MAX_FILES, _MAX_UNDETECTED = 200_000, 1000
_MEDIA_ENDINGS = SUPPORTED.keys() | UNSUPPORTED.keys()
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
    """Whether a file's extension is that of media, text or code."""
    ending = os.path.splitext(name)[1].lower()
    return media_type_of(name) is not None or ending in _TEXTS or ending in LANGUAGES


def opens_like_json(file: Path) -> bool:
    """Whether a file begins like an object or an array."""
    return strip_bom(head_of(file, 64, decompressed=True)).lstrip()[:1] in (b"{", b"[")


def without_compression(name: str) -> str:
    """A name without the extension of a compression that is read as a stream (`a.jsonl.gz`)."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in compressed.STREAMED_EXTENSIONS else name


def is_named_lines(file: Path) -> bool:
    """Whether a file's extension, or that before a compression's, is one of LINES, and it is not a Julia program."""
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
        if why := refusals.describe_foreign_file(name):
            return f", but {name}, which {why}"
    for name in names:
        file, is_json = root / name, name.lower().endswith(JSON)
        try:
            why = pointer_in(file) or (compressed.unpack_hint(file) if is_json or not has_known_extension(name) else "")
            if is_json and not why:
                check_encoding(file)
        except DocumentError as error:
            return f", but {error}"
        except OSError:
            continue
        plain = without_compression(name).lower()
        if not why and plain.endswith(JSON) and (not plain.endswith(".jl") or is_named_lines(file)):
            why = refusals.describe_unknown_json(file, root=root)
        if why := why or (compressed_hint(name) and f"is {compressed_hint(name)}"):
            return f", but {name}, which {why}"
    return ""


def describe_no_json(path: Path, file: Path) -> str:
    """The message for a file without JSON objects of a known record format."""
    packing = detect_compression(file)
    if packing is None and (why := refusals.describe_single_file(file)):
        return f"{path} {why}"
    why = refusals.describe_unknown_json(file) or (
        refusals.describe_broken_json(file) if file.suffix.lower() in JSON else ""
    )
    if packing and not why:
        return f"{path} {compressed.compressed_content_hint(file)}"
    what = f"is compressed ({packing.name}) and " if packing else ""
    what += "holds no JSON object of a known record format in its first lines"
    return unknown_format(path, f"{what}: it {why}" if why else what)


def unknown_format(path: Path, what: str) -> str:
    return (
        f"{path} {what}. Formats that are read: {', '.join(FORMATS)} (see data/README.md); give --format "
        "(of `brine data build` and `brine eval`) where the content is one of them"
    )


class ListedFile(NamedTuple):
    """A file by its name: `stem` + `ending` (lower case), whether it is media, and why it must not be opened."""

    name: str
    problem: str
    stem: str
    ending: str
    media: bool
    unread_media: bool
    hidden: bool


class FolderFiles:
    """Files below a folder: of hidden folders too in `files`, without those and links that lead out in `readable`."""

    def __init__(self, listing: FolderListing):
        self.root, self.listing, self.files = listing.root, listing, []
        for name, problem in itertools.islice(listing, _MAX_FILES):
            # `._a.tar` is what a Mac noted about a.tar
            if name.startswith("._") or ("/._" in name and os.path.basename(name).startswith("._")):
                continue
            stem, ending = os.path.splitext(name)
            if ending == ".dvc" and (target := os.path.splitext(dvc_target(name)))[1][1:].lower() in _MEDIA_ENDINGS:
                # media that were not fetched are among the folder's media
                (stem, ending), name = target, dvc_target(name)
            ending, is_hidden = ending.lower(), "/." in f"/{name.rpartition('/')[0]}"
            is_read, is_unread = ending[1:] in SUPPORTED, ending[1:] in UNSUPPORTED
            self.files.append(ListedFile(name, problem, stem, ending, is_read, is_unread, is_hidden))
        self.visible = [file for file in self.files if not file.hidden]
        self.readable = [file for file in self.visible if not file.problem]
        media = [file for file in self.readable if file.media or file.unread_media]
        self.media_names = {name for file in media for name in (file.name, file.stem)}
        self.num_media = sum(file.media for file in media)
        self.is_clone = (self.root / ".git").exists()
        code = (file for file in self.readable if file.ending in PROGRAMS)
        self.code = [f.name for f in code if f.ending not in LINES or not is_named_lines(self.root / f.name)]

    def is_mostly_code(self, num_found: int) -> bool:
        """Whether programs are more than media and so many other files."""
        return len(self.code) > self.num_media + num_found

    @functools.cached_property
    def undetected(self) -> list[str]:
        """The first files whose names do not say what they hold."""
        names = {file.name for file in self.readable}

        def is_undetected(file: ListedFile) -> bool:
            # of a file and its compressed twin one is read
            plain = without_compression(file.name)
            name = plain if plain not in names else file.name
            stem, ending = os.path.splitext(name)
            if has_known_extension(name) and (ending.lower() not in (".txt", ".text") or stem in self.media_names):
                return False
            return not (
                compressed_hint(name)
                or compressed.is_split_part(os.path.basename(name))
                or ending.lower() in EXTENSIONS
            )

        found = (file.name for file in self.readable if is_undetected(file))
        return list(itertools.islice(found, _MAX_UNDETECTED))

    def undetected_json(self, *, on_top: bool) -> list[Path]:
        """JSON of a known record format under names that say nothing, on top or below."""
        found = []
        for name in (name for name in self.undetected if ("/" not in name) == on_top):
            file = self.root / name
            # one object in a text, or among programs and media, may be anything; under a name of no kind it is a line
            least = 2 if has_known_extension(name) or self.num_media or self.code else 1
            with contextlib.suppress(OSError):
                is_json = opens_like_json(file) and (is_array(file) or is_lines(file, least=least))
                found += [file] if is_json and record_formats_in(file) else []
        return found
