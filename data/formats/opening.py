"""A file's half of opening: which format it holds, and a source of it.

    open_file(path, format, limits)         a source of the file at `path`
    manifests(path, root, files, ...)       a source of JSON files, given or found in a folder
    containers(path, root, names, ...)      a source of tars or tables, given or found in a folder

A file is told by its content. Opening reads a little (the first lines); everything else happens while the documents
are iterated.
"""

import itertools
from collections import Counter
from pathlib import Path

from data.document import DocumentError
from data.formats.lines import check_encoding, is_array, json_items
from data.formats.manifest import FORMS, form_of, manifest_documents
from data.formats.source import Limits, Source, container_sha256, file_sha256, files_sha256
from data.links import is_stored

FORMATS = (*FORMS, "manifest", "markdown", "repository", "media", "webdataset", "parquet", "datasets")
ENDINGS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "datasets"}
"""Ending of a container -> its format."""


def open_file(path: Path, format: str | None, limits: Limits) -> Source:
    """The source of one file. Raises ValueError, with the formats there are, or OSError."""
    real, above = path.resolve(), path.absolute().parent.resolve()
    # a link that a person named is followed, and media are looked for beside its target; one into a store of bytes
    # stands for the file itself
    file = above / path.name if is_stored(above, real) else real
    if format is None:
        format = ENDINGS.get(path.suffix.lower()) or _sniffed(file)
    if format in ("webdataset", "parquet", "datasets"):
        return containers(path, file.parent, [file.name], format, limits)
    if format in ("markdown", "repository", "media"):
        raise ValueError(f"{path} is a file, but the format {format!r} is a folder's: give the folder")
    return manifests(path, file.parent, [file], format, limits)


def _sniffed(file: Path) -> str | None:
    with open(file, "rb") as stream:
        head = stream.read(512)
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] == b"ARROW1":
        return "datasets"
    return "webdataset" if head[257:262] == b"ustar" else None


def manifests(path: Path, root: Path, files: list[Path], format: str | None, limits: Limits) -> Source:
    """A source of JSON files; its format is looked for in the first objects when it is not given.

    Raises ValueError when none is found, or when the one file is of another encoding than UTF-8.
    """
    form = format if format in FORMS else None
    if len(files) == 1:
        # said once; among several files one of another encoding is set aside
        check_encoding(files[0])
    if format is None:
        forms = forms_in(files[0], max_line_mib=limits.max_line_mib)
        if not forms and files[0].suffix.lower() != ".jsonl" and not is_array(files[0]):
            raise ValueError(unknown(path, "holds no JSON object of a known form in its first lines"))
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
        )

    def digest(media: bool) -> str:
        if len(files) == 1:
            return file_sha256(files[0])
        names = [file.relative_to(root).as_posix() for file in files]
        return files_sha256(root, names, label="manifests", whole=lambda _: True)

    def count() -> int | None:
        if any(is_array(file) for file in files):
            return None
        return sum(_num_lines(file) for file in files)

    return Source(path, format, root, read, digest, count)


def _num_lines(file: Path) -> int:
    with open(file, "rb") as stream:
        return sum(block.count(b"\n") or block.count(b"\r") for block in iter(lambda: stream.read(2**20), b""))


def containers(path: Path, root: Path, names: list[str], format: str, limits: Limits) -> Source:
    """A source of tars or tables; pyarrow is asked for now, so that its absence is told before any work."""
    if format == "webdataset":
        from data.formats.webdataset import webdataset_documents as documents
    else:
        from data.formats.cells import load_pyarrow
        from data.formats.parquet import check_columns
        from data.formats.parquet import table_documents as documents

        load_pyarrow()
        check_columns(root / names[0])
    return Source(
        path,
        format,
        root,
        lambda include_decode, skipped: documents(root, names, limits, skipped),
        lambda media: container_sha256(root, names, label=format, media=media),
        lambda: None if format == "webdataset" else _num_rows(root, names),
        tuple(names),
    )


def _num_rows(root: Path, names: list[str]) -> int | None:
    from data.formats.cells import num_rows

    try:
        return sum(num_rows(root / name) for name in names)
    except (DocumentError, OSError):
        return None


def forms_in(file: Path, *, max_line_mib: float = 16.0) -> set[str]:
    """The known forms among the first 50 objects of a JSON file."""
    found = itertools.islice(json_items(file, max_line_mib=max_line_mib), 50)
    return {form_of(fields) for _, fields in found if isinstance(fields, dict)} - {None}


def unknown(path: Path, what: str) -> str:
    """The message for what is of no format."""
    return (
        f"{path} {what}. Formats that are read: {', '.join(FORMATS)} (see data/README.md); give format= when the "
        "content is one of them"
    )
