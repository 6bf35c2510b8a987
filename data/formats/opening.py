"""A file's half of opening: which format it holds, and a source of it.

    open_file(path, format, limits)         a source of the file at `path`
    manifests(path, root, files, ...)       a source of JSON files, given or found in a folder
    containers(path, root, names, ...)      a source of tars or tables, given or found in a folder

A file is told by its content, whatever its name: tars of any kind, Parquet, Arrow, JSON. Opening reads a little (the
first lines); everything else happens while the documents are iterated.
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

from data.archive import is_tar
from data.compressed import READ_THROUGH, how_to_unpack, open_plain, packed_kind, packing_in, what_is_packed
from data.document import DocumentError, tagged, untagged
from data.endings import medium_of
from data.formats.fields import folded
from data.formats.lines import LINES, check_encoding, is_array, is_spread, json_items
from data.formats.manifest import FORMS, form_of, manifest_documents
from data.formats.refusals import coco, what_alone, what_broken, what_foreign, what_json
from data.formats.source import NOTE, Limits, Source, container_sha256, file_sha256, files_sha256
from data.formats.split_lists import digest_of_lists
from data.formats.splits import NamedSplits, digest_of_card, digest_of_holders
from data.formats.walk import walk
from data.formats.word_tables import table_remedy
from data.links import behind_links
from data.pointers import pointer_in
from data.text import without_marks
from data.workbench.source import LANGUAGES

FORMATS = (*FORMS, "manifest", "markdown", "repository", "media", "webdataset", "parquet", "datasets")
ENDINGS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "datasets"}
"""Ending of a container -> its format."""
JSON = (*LINES, ".json")
"""Endings of JSON."""
_NAMED_FIELD = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*(?::|$)')
_TEXTS = (*JSON, ".txt", ".caption", ".cls", ".md", ".markdown", ".csv", ".tsv", ".html", ".xml", ".yaml")


def open_file(path: Path, format: str | None, limits: Limits) -> Source:
    """The source of one file. Raises ValueError, with the formats there are, or OSError."""
    # a link that a person named is followed, and media are looked for beside its target
    file = behind_links(path)
    problem = pointer_in(file) or how_to_unpack(file)
    if problem:
        raise ValueError(f"{path} {problem}")
    if format is None:
        format = format_by_content(file) or ENDINGS.get(path.suffix.lower())
    if format in ENDINGS.values():
        return containers(path, file.parent, [tagged(file.name, ending_for(format))], format, limits)
    if format in ("markdown", "repository", "media"):
        raise ValueError(f"{path} is a file, but the format {format!r} is a folder's: give the folder")
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


def ending_for(format: str) -> str:
    """The ending of a format's containers."""
    return next(ending for ending, name in ENDINGS.items() if name == format)


def is_told(name: str) -> bool:
    """Whether a file's ending says what it holds: that of a medium, a text, or code."""
    ending = os.path.splitext(name)[1].lower()
    return medium_of(name) is not None or ending in _TEXTS or ending in LANGUAGES


def opens_like_json(file: Path) -> bool:
    """Whether a file begins like an object or an array."""
    try:
        with open_plain(file) as stream:
            return without_marks(stream.read(64)).lstrip()[:1] in (b"{", b"[")
    except OSError:
        return False


def is_named_lines(file: Path) -> bool:
    """Whether a file's ending, or that before a compression's, is one of LINES, and it is no program in Julia."""
    name = file.name.lower()
    ending = os.path.splitext(name.removesuffix(next((end for end in READ_THROUGH if name.endswith(end)), "")))[1]
    return ending in LINES and (ending != ".jl" or (opens_like_json(file) and _opens_object(file)))


def _opens_object(file: Path) -> bool:
    """Whether the first line is an object or the beginning of one, or an array holds one first (no `[1, 2]`)."""
    try:
        with open_plain(file) as stream:
            line = without_marks(stream.read(2**20)).lstrip().splitlines()[0].rstrip().decode("utf-8", "replace")
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


def noting_packed(source: Source) -> Source:
    """The source of a folder that also counts what was passed over there because it is compressed or split."""

    def documents(include_decode: bool, skipped: Counter):
        yield from source.read(include_decode, skipped)
        for name, why in walk(source.root):
            if not why and (kind := packed_kind(name)):
                skipped[kind] += 1

    return dataclasses.replace(source, read=documents)


def noting(source: Source, notes: Iterable[str]) -> Source:
    """The source of a folder that also tells these sentences."""
    notes = [f"{NOTE}{note}" for note in notes]

    def documents(include_decode: bool, skipped: Counter):
        yield from source.read(include_decode, skipped)
        skipped.update(notes)

    return dataclasses.replace(source, read=documents) if notes else source


def what_packed(root: Path, names: Iterable[str]) -> str:
    """What is foreign, compressed, split or of another encoding in a folder where nothing is read, with the remedy."""
    names = list(names)
    if foreign := next((name for name in names if what_foreign(name)), ""):
        return f", but {foreign}, which {what_foreign(foreign)}"
    for name in names:
        try:
            what = pointer_in(root / name)
            if not what and (not is_told(name) or name.lower().endswith(JSON)):
                what = how_to_unpack(root / name)
            if not what and name.lower().endswith(JSON):
                check_encoding(root / name)
        except DocumentError as error:
            return f", but {error}"
        except OSError:
            continue
        plain, ending = os.path.splitext(name)
        plain = plain if ending.lower() in READ_THROUGH else name
        is_json = plain.lower().endswith(JSON) and (not plain.lower().endswith(".jl") or is_named_lines(root / name))
        why = what_json(root / name, root=root) if not what and is_json else ""
        if what := what or why or (packed_kind(name) and f"is {packed_kind(name)}"):
            return f", but {name}, which {what}"
    return ""


def is_lines(file: Path, *, least: int = 2) -> bool:
    """Whether a file holds JSON lines of a known form, two of them at least: one alone may be a caption."""
    found = list(itertools.islice(json_items(file, max_line_mib=16.0), 2))
    return len(found) >= least and all(isinstance(fields, dict) and form_of(folded(fields)) for _, fields in found)


def manifests(
    path: Path, root: Path, files: list[Path], format: str | None, limits: Limits, splits: NamedSplits | None = None
) -> Source:
    """A source of JSON files; its format is looked for in the first objects when it is not given.

    Raises ValueError when none is found, or when the one file is of another encoding than UTF-8.
    """
    form = format if format in FORMS else None
    if files[0].suffix.lower() in (".csv", ".tsv"):
        raise ValueError(f"{path} is the table {table_remedy(files[0], files[0].name)}")
    if len(files) == 1:
        if problem := pointer_in(files[0]):
            raise ValueError(f"{path if path.is_file() else path / files[0].name} {problem}")
        if not files[0].stat().st_size:
            what = "is empty (0 bytes): what was to write it failed, so write it again"
            raise ValueError(f"{path if path.is_file() else path / files[0].name} {what}")
        # said once; among several files one of another encoding is set aside
        check_encoding(files[0])
    if format is None:
        forms = forms_in(files[0], max_line_mib=limits.max_line_mib)
        if not forms and files[0].suffix.lower() != ".jsonl" and not is_array(files[0]):
            packing = packing_in(files[0])
            if packing is None and (why := what_alone(files[0])):
                raise ValueError(f"{path} {why}")
            what = f"is compressed ({packing.name}) and " if packing else ""
            what += "holds no JSON object of a known form in its first lines"
            why = what_json(files[0]) or (what_broken(files[0]) if files[0].suffix.lower() in JSON else "")
            if packing and not why:
                raise ValueError(f"{path} {what_is_packed(files[0])}")
            raise ValueError(unknown(path, f"{what}: it {why}" if why else what))
        if len(files) == 1 and forms == {"captioned"} and (why := coco(files[0])):
            raise ValueError(f"{path} {why}")
        format = forms.pop() if len(forms) == 1 else "manifest"

    def read(include_decode: bool, skipped: Counter):
        return manifest_documents(
            files,
            root=root,
            form=form,
            max_line_mib=limits.max_line_mib,
            max_file_mib=limits.max_file_mib,
            include_decode=include_decode,
            notes=skipped,
            splits=splits,
        )

    def digest(media: bool) -> str:
        if len(files) == 1:
            return digest_of_lists(root, digest_of_holders(root, file_sha256(files[0])))
        names = [file.relative_to(root).as_posix() for file in files]
        found = files_sha256(root, names, label="manifests", whole=lambda _: True)
        return digest_of_lists(root, digest_of_holders(root, found))

    def count() -> int | None:
        if any(is_array(file) or is_spread(file) or packing_in(file) for file in files):
            return None
        return sum(_num_lines(file) for file in files)

    return Source(path, format, root, read, digest, count)


def joined(path: Path, root: Path, sources: list[Source]) -> Source:
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
    return Source(path, format, root, read, digest, count, tuple(name for each in sources for name in each.containers))


def _num_lines(file: Path) -> int:
    with open(file, "rb") as stream:
        return sum(block.count(b"\n") or block.count(b"\r") for block in iter(lambda: stream.read(2**20), b""))


def containers(
    path: Path, root: Path, names: list[str], format: str, limits: Limits, splits: NamedSplits | None = None
) -> Source:
    """A source of tars or tables; pyarrow is asked for now, so that its absence is told before any work."""
    if format == "webdataset":
        from data.formats.webdataset import webdataset_documents as documents
    else:
        from data.formats.cells import load_pyarrow
        from data.formats.parquet import check_columns
        from data.formats.parquet import table_documents as documents

        load_pyarrow()
        check_columns(root / untagged(names[0]))
    return Source(
        path,
        format,
        root,
        lambda include_decode, skipped: documents(root, names, limits, skipped, splits),
        lambda media: digest_of_card(root, container_sha256(root, names, label=format, media=media)),
        lambda: None if format == "webdataset" else _num_rows(root, names),
        tuple(names),
    )


def _num_rows(root: Path, names: list[str]) -> int | None:
    from data.formats.cells import num_rows

    try:
        return sum(num_rows(root / untagged(name)) for name in names)
    except (DocumentError, OSError):
        return None


def forms_in(file: Path, *, max_line_mib: float = 16.0) -> set[str]:
    """The known forms among the first 50 objects of a JSON file."""
    found = itertools.islice(json_items(file, max_line_mib=max_line_mib, checked=False), 50)
    return {form_of(folded(fields)) for _, fields in found if isinstance(fields, dict)} - {None}


def unknown(path: Path, what: str) -> str:
    """The message for what is of no format."""
    return (
        f"{path} {what}. Formats that are read: {', '.join(FORMATS)} (see data/README.md); give format= when the "
        "content is one of them"
    )
