"""Every common format in, one kind of thing out: `open_source(path).documents()`.

    content-parts    JSONL of chat content parts, the native form          `data.document`
    chat             {"messages": [{"role", "content"}]}                   chat.py
    llava            LLaVA's JSON array or JSONL                           llava.py
    obelics          {"texts": [...], "images": [...]}                     obelics.py
    captioned        one medium and its words a line, or words alone       captioned.py
    manifest         JSONL whose lines are told apart one by one           manifest.py
    markdown         a folder of pages with pictures                       markdown_folder.py
    repository       a source tree, .gitignore respected                   repository.py
    media            media files with same-named .txt captions             media_folder.py
    webdataset       .tar shards, read in place                            webdataset.py
    parquet          Parquet files (extra `hf`)                            parquet.py
    datasets         a dataset saved by Hugging Face `datasets` (extra `hf`)   parquet.py

A file is told by its content, a folder by what is in it: a manifest in it decides; then a saved dataset, tars,
Parquet files; then a .git folder; then captions beside media, pages, code. `format=` overrides all of it. Opening
reads a little (the first lines of a file, the names in a folder); everything else happens while `documents()` is
iterated.
"""

import itertools
import os
import stat
from collections import Counter
from pathlib import Path

from data.document import DocumentError
from data.endings import medium_of
from data.formats.lines import is_array, json_items
from data.formats.manifest import FORMS, form_of, manifest_documents
from data.formats.source import Limits, Source, container_sha256, file_sha256, files_sha256
from data.formats.walk import walk

__all__ = ["FORMATS", "Limits", "Source", "open_source"]

FORMATS = (*FORMS, "manifest", "markdown", "repository", "media", "webdataset", "parquet", "datasets")
MANIFESTS = ("manifest.jsonl", "manifest.json", "metadata.jsonl")
"""Files that stand for the folder they lie in."""
_ENDINGS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "datasets"}
_LOOKED_AT = 200_000


def open_source(
    path: str | Path, *, format: str | None = None, max_line_mib: float = 16.0, max_file_mib: float = 256.0
) -> Source:
    """The documents at a path: a folder, a .jsonl or .json file, a .tar, a .parquet, or a saved dataset's folder.

    Raises ValueError, with the formats there are, when nothing at the path can be read as one of them.
    """
    path, limits = Path(path).expanduser(), Limits(max_line_mib, max_file_mib)
    if format is not None and format not in FORMATS:
        raise ValueError(f"format {format!r} is none of {', '.join(FORMATS)}")
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ValueError(f"{path} does not exist or cannot be reached ({error.strerror})") from None
    if stat.S_ISDIR(mode):
        return _open_folder(path, path.resolve(), format, limits)
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is no regular file or folder: give one of those")
    try:
        return _open_file(path, format, limits)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): change its permissions") from None


def _open_file(path: Path, format: str | None, limits: Limits) -> Source:
    real = path.resolve()
    if format is None:
        format = _ENDINGS.get(path.suffix.lower()) or _sniffed(real)
    if format in ("webdataset", "parquet", "datasets"):
        return _containers(path, real.parent, [real.name], format, limits)
    if format in ("markdown", "repository", "media"):
        raise ValueError(f"{path} is a file, but the format {format!r} is a folder's: give the folder")
    return _manifests(path, real.parent, [real], format, limits)


def _sniffed(file: Path) -> str | None:
    with open(file, "rb") as stream:
        head = stream.read(512)
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] == b"ARROW1":
        return "datasets"
    return "webdataset" if head[257:262] == b"ustar" else None


def _manifests(path: Path, root: Path, files: list[Path], format: str | None, limits: Limits) -> Source:
    """A source of JSON files; its format is looked for in the first objects when it is not given."""
    form = format if format in FORMS else None
    if format is None:
        forms = _forms(files[0], max_line_mib=limits.max_line_mib)
        if not forms and files[0].suffix.lower() != ".jsonl" and not is_array(files[0]):
            raise ValueError(_unknown(path, "holds no JSON object of a known form in its first lines"))
        format = forms.pop() if len(forms) == 1 else "manifest"

    def read(include_decode: bool, skipped: Counter):
        return manifest_documents(
            files,
            root=root,
            form=form,
            max_line_mib=limits.max_line_mib,
            max_file_mib=limits.max_file_mib,
            include_decode=include_decode,
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
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))


def _containers(path: Path, root: Path, names: list[str], format: str, limits: Limits) -> Source:
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


def _open_folder(path: Path, root: Path, format: str | None, limits: Limits) -> Source:
    if format is None or format in FORMS or format == "manifest":
        named = [root / name for name in MANIFESTS if _is_inside(root, root / name)]
        top = named[:1] or _top_files(root, "*.jsonl", known=format is None)
        top = top or _top_files(root, "*.json", known=format is None)
        if top:
            return _manifests(path, root, top, format, limits)
    if format is None:
        format = _folder_format(path, root)
    if format in _ENDINGS.values():
        return _containers(path, root, _container_names(path, root, format), format, limits)
    if format == "markdown":
        from data.formats.markdown_folder import markdown_digest as digest
        from data.formats.markdown_folder import markdown_documents as documents
    elif format == "repository":
        from data.formats.repository import repository_digest as digest
        from data.formats.repository import repository_documents as documents
    elif format == "media":
        from data.formats.media_folder import media_digest as digest
        from data.formats.media_folder import media_documents as documents
    else:
        raise ValueError(_unknown(path, "has no .jsonl file and no .json array at its top"))
    return Source(path, format, root, lambda include_decode, skipped: documents(root, limits, skipped), digest(root))


def _folder_format(path: Path, root: Path) -> str:
    """What a folder without a manifest holds, by the names in it."""
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return "datasets"
    endings: Counter[str] = Counter()
    media, words = set(), set()
    for name, _ in itertools.islice(walk(root), _LOOKED_AT):
        stem, ending = os.path.splitext(name)
        endings[ending.lower()] += 1
        if medium_of(name):
            media.add(stem)
        elif ending.lower() in (".txt", ".caption", ".json"):
            words.add(stem)
    for ending, format in _ENDINGS.items():
        if endings[ending]:
            return format
    if (root / ".git").exists():
        return "repository"
    from data.formats.repository import CODE

    pages = endings[".md"] + endings[".markdown"]
    code = sum(count for ending, count in endings.items() if ending in CODE)
    if len(media & words) > pages + code:
        return "media"
    if pages and not code:
        return "markdown"
    if code or pages or endings[".txt"] or endings[".rst"]:
        return "repository"
    what = f"holds {len(media)} media files but no words beside them" if media else "holds nothing that is read"
    raise ValueError(_unknown(path, what))


def _top_files(root: Path, pattern: str, *, known: bool) -> list[Path]:
    """JSONL files or JSON arrays right in a folder; with `known` only those that begin with objects of a known form."""
    files = sorted(file for file in root.glob(pattern) if _is_inside(root, file))
    if pattern == "*.json":
        files = [file for file in files if is_array(file)]
    return [file for file in files if not known or _forms(file)]


def _is_inside(root: Path, file: Path) -> bool:
    """Whether a file is there, and no link out of the folder or pipe."""
    return file.is_file() and file.resolve().is_relative_to(root)


def _forms(file: Path, *, max_line_mib: float = 16.0) -> set[str]:
    """The known forms among the first 50 objects of a JSON file."""
    found = itertools.islice(json_items(file, max_line_mib=max_line_mib), 50)
    return {form_of(fields) for _, fields in found if isinstance(fields, dict)} - {None}


def _container_names(path: Path, root: Path, format: str) -> list[str]:
    ending = next(ending for ending, name in _ENDINGS.items() if name == format)
    names = [name for name, _ in walk(root) if name.lower().endswith(ending)]
    if format == "datasets":
        from data.formats.parquet import dataset_files

        names = dataset_files(root, names)
    if not names:
        raise ValueError(f"folder {path} holds no {ending} file, which the format {format!r} needs")
    return names


def _unknown(path: Path, what: str) -> str:
    return (
        f"{path} {what}. Formats that are read: {', '.join(FORMATS)} (see data/README.md); give format= when the "
        "content is one of them"
    )
