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

A file is told by its content (`opening`), a folder by what is in it: manifests in it decide, or in the folders below it
(of a tree without .git and with no more code than media); then a saved dataset, tars, Parquet files; then a .git
folder; then captions beside media, pages, code. `format=` overrides all of it. Opening reads a little (the first lines
of a file, the names in a folder); everything else happens while `documents()` is iterated.
"""

import itertools
import os
import stat
from pathlib import Path

from data.compressed import READ_THROUGH
from data.document import tagged
from data.endings import medium_of
from data.formats.download import as_given, how_to_download
from data.formats.folders import folder_format
from data.formats.lines import is_array
from data.formats.manifest import FORMS
from data.formats.opening import (
    ENDINGS,
    FORMATS,
    containers,
    containers_by_content,
    ending_for,
    forms_in,
    is_lines,
    json_by_content,
    manifests,
    noting_packed,
    open_file,
    unknown,
)
from data.formats.source import Limits, Source
from data.formats.walk import Listing
from data.links import snapshot_in, stays_within, why_dangling
from data.pointers import pointer_in

__all__ = ["FORMATS", "Limits", "Source", "check_there", "open_source"]

MANIFESTS = ("manifest.jsonl", "manifest.json", "metadata.jsonl")
"""Files that stand for the folder they lie in."""
_LOOKED_AT = 200_000
_ARRAYS_LOOKED_AT = 1000


def open_source(
    path: str | Path, *, format: str | None = None, max_line_mib: float = 16.0, max_file_mib: float = 256.0
) -> Source:
    """The documents at a path: a folder, a .jsonl or .json file, a .tar, a .parquet, or a saved dataset's folder.

    Raises ValueError, with the formats there are, when nothing at the path can be read as one of them.
    """
    given, path, limits = path, Path(path).expanduser(), Limits(max_line_mib, max_file_mib)
    if format is not None and format not in FORMATS:
        raise ValueError(f"format {format!r} is none of {', '.join(FORMATS)}")
    mode = check_there(given)
    if stat.S_ISDIR(mode):
        return _open_folder(path, snapshot_in(path.resolve()), format, limits)
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is no regular file or folder: give one of those")
    try:
        return open_file(path, format, limits)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): change its permissions") from None


def check_there(path: str | Path) -> int:
    """The mode of what lies at a path of documents. Raises ValueError where there is nothing, with what to do."""
    try:
        return os.stat(Path(path).expanduser()).st_mode
    except OSError as error:
        what = f"does not exist or cannot be reached ({error.strerror}){how_to_download(path)}"
        raise ValueError(f"{as_given(path)} {what}") from None


def _open_folder(path: Path, root: Path, format: str | None, limits: Limits) -> Source:
    listing = Listing(root)
    if format is None or format in FORMS or format == "manifest":
        named = [root / name for name in MANIFESTS if _is_inside(root, root / name)]
        for name in () if named else MANIFESTS:
            # passing it over would make something else of the folder
            if (root / name).is_symlink():
                why = why_dangling(root / name) or "give the folder that it leads to, or copy it here"
                raise ValueError(f"{path / name} is a link out of the folder, or to nothing: {why}")
        top = named[:1] or _top_files(root, ".jsonl", known=format is None)
        top = top or _top_files(root, ".json", known=format is None)
        # in a repository such a file is one among others
        top = top or ([] if (root / ".git").exists() else json_by_content(root))
        top = top or _manifests_below(listing, limits, known=format is None)
        if top:
            names = [file.relative_to(root).as_posix() for file in top]
            return noting_packed(manifests(path, root, top, format, limits), read=names)
    if format is None:
        format = folder_format(path, listing)
    if format in ENDINGS.values():
        return noting_packed(containers(path, root, _container_names(path, listing, format), format, limits))
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
        raise ValueError(unknown(path, "has no .jsonl file and no .json array at its top"))
    source = Source(path, format, root, lambda include_decode, skipped: documents(root, limits, skipped), digest(root))
    # a repository counts all binary files
    return source if format == "repository" else noting_packed(source)


def _top_files(root: Path, ending: str, *, known: bool) -> list[Path]:
    """JSONL files or JSON arrays right in a folder; with `known` only those that begin with objects of a known form."""
    endings = tuple(ending + packed for packed in ("", *READ_THROUGH))
    found = {file for file in root.iterdir() if file.name.lower().endswith(endings)}
    # of a file and its compressed twin one is read
    files = [file for file in found if file.suffix.lower() not in READ_THROUGH or file.with_suffix("") not in found]
    files = sorted(file for file in files if _is_inside(root, file))
    if ending == ".json":
        files = [file for file in files if is_array(file) or is_lines(file)]
    found = [file for file in files if not known or forms_in(file)]
    # beside others, one that was not fetched is set aside by name
    return [file for file in files if file in found or pointer_in(file)] if found else []


def _manifests_below(listing: Listing, limits: Limits, *, known: bool) -> list[Path]:
    """Manifests in the folders below one that has none at its top: all of MANIFESTS, else JSONL files or JSON arrays.

    A repository's own test data are no manifests of it: with `known`, more code than media and manifests is a tree
    of code.
    """
    root = listing.root
    if known and any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        return []
    is_clone = (root / ".git").exists()
    if known and is_clone and not _is_data_repository(root):
        return []
    from data.formats.repository import CODE

    named, lines, arrays, code, media, seen = {}, [], [], 0, 0, set()
    for name, problem in itertools.islice(listing.open(), _LOOKED_AT):
        stem, ending = os.path.splitext(name)
        # of a file and its compressed twin one is read
        plain = stem if ending.lower() in READ_THROUGH else name
        ending = os.path.splitext(plain)[1].lower()
        media += medium_of(name) is not None
        code += ending in CODE
        if known and ending in ENDINGS and plain == name:
            return []
        if not problem and "/" in name and ending in (".jsonl", ".json") and plain not in seen:
            seen.add(plain)
            folder, base = os.path.split(plain)
            if base in MANIFESTS:
                named.setdefault(folder, []).append((MANIFESTS.index(base), root / name))
            elif ending == ".jsonl":
                lines.append(root / name)
            elif len(arrays) < _ARRAYS_LOOKED_AT and is_array(root / name):
                arrays.append(root / name)
    # of several in one folder the first of MANIFESTS stands for it
    found = sorted(min(files)[1] for files in named.values())
    for files in (found, lines, arrays):
        files = [file for file in files if not known or forms_in(file, max_line_mib=limits.max_line_mib)]
        if files:
            # a data set's own script is no program with data for its tests
            return files if not known or code <= (1 if is_clone else media + len(files)) else []
    return []


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


def _is_inside(root: Path, file: Path) -> bool:
    """Whether a file is there, and no link out of the folder or pipe."""
    return file.is_file() and stays_within(root, file.resolve())


def _container_names(path: Path, listing: Listing, format: str) -> list[str]:
    root, ending = listing.root, ending_for(format)
    # `._a.tar` is what a Mac noted about a.tar
    plain = [(name, why) for name, why in listing if not os.path.basename(name).startswith("._")]
    names = [tagged(name, ending) for name, _ in plain if name.lower().endswith(ending)]
    names = names or containers_by_content(root, (name for name, why in plain if not why)).get(format, [])
    if format == "datasets":
        from data.formats.parquet import dataset_files

        names = dataset_files(root, names)
    if not names:
        raise ValueError(f"folder {path} holds no {ending} file, which the format {format!r} needs")
    return names
