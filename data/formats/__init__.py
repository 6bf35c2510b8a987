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

A file is told by its content (`opening`), a folder by what is in it: JSON, tars and tables, and what of captioned media
lies beside them, are read together (`survey`); where there is none of those, it is one of captions beside media, of
pages or of code (`folders`). `format=` overrides all of it. Opening reads a little (the first lines of a file, the
names in a folder); everything else happens while `documents()` is iterated. What of a folder is not read is counted
then (`accounts`).
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data.compressed import packed_kind
from data.document import tagged
from data.formats.accounts import accounted
from data.formats.card import read_card
from data.formats.download import as_given, how_to_download
from data.formats.folders import folder_format
from data.formats.lines import LINES
from data.formats.manifest import FORMS
from data.formats.opening import (
    ENDINGS,
    FORMATS,
    containers,
    ending_for,
    format_by_content,
    is_told,
    joined,
    manifests,
    noting,
    noting_packed,
    open_file,
    unknown,
)
from data.formats.source import Limits, Source
from data.formats.splits import NamedSplits, folders_in
from data.formats.survey import MANIFESTS, Found, is_inside, manifests_below, survey, top_files
from data.formats.walk import Listing
from data.links import snapshot_in, why_dangling
from data.pointers import why_missing

__all__ = ["FORMATS", "Limits", "Source", "check_there", "open_source"]


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
        what = why_missing(Path(path).expanduser())
        what = what or f"does not exist or cannot be reached ({error.strerror}){how_to_download(path)}"
        raise ValueError(f"{as_given(path)} {what}") from None


def _open_folder(path: Path, root: Path, format: str | None, limits: Limits) -> Source:
    listing = Listing(root)
    if format is None or format in FORMS or format == "manifest":
        for name in () if any(is_inside(root, root / name) for name in MANIFESTS) else MANIFESTS:
            # passing it over would make something else of the folder
            if (root / name).is_symlink():
                why = why_dangling(root / name) or "give the folder that it leads to, or copy it here"
                raise ValueError(f"{path / name} is a link out of the folder, or to nothing: {why}")
    if format is None and (found := survey(listing, limits)):
        return _together(path, root, found, limits)
    if format in FORMS or format == "manifest":
        files = [root / name for name in MANIFESTS if is_inside(root, root / name)][:1]
        files = files or top_files(root, LINES, known=False) or top_files(root, (".json",), known=False)
        files = files or manifests_below(listing, limits, known=False)
        if not files:
            raise ValueError(
                unknown(path, f"has no .jsonl file and no .json array at its top{listing.first_problem()}")
            )
        return _accounted(manifests(path, root, files, format, limits), files)
    format = format or folder_format(path, listing)
    if format in ENDINGS.values():
        return _accounted(containers(path, root, _container_names(path, listing, format), format, limits))
    source = noting(_of_files(path, root, format, limits), read_card(root).notes())
    # a repository counts all binary files
    return source if format == "repository" else noting_packed(source)


def _of_files(
    path: Path, root: Path, format: str, limits: Limits, *, within: list[str] | None = None,
    splits: NamedSplits | None = None,
) -> Source:  # fmt: skip
    """A source of files that are a document each; with `within` of the media in these folders alone."""
    if format == "media":
        from data.formats.media_folder import media_digest, media_documents

        def read(include_decode: bool, skipped: Counter):
            return media_documents(root, limits, skipped, within=within, splits=splits)

        return Source(path, format, root, read, media_digest(root, within=within))
    if format == "markdown":
        from data.formats.markdown_folder import markdown_digest as digest
        from data.formats.markdown_folder import markdown_documents as documents
    else:
        from data.formats.repository import repository_digest as digest
        from data.formats.repository import repository_documents as documents
    return Source(path, format, root, lambda include_decode, skipped: documents(root, limits, skipped), digest(root))


def _together(path: Path, root: Path, found: Found, limits: Limits) -> Source:
    """A source of all that a folder holds, whose names say together what is held out."""
    card = read_card(root)
    files = [file.relative_to(root).as_posix() for file in found.json]
    files += [name for names in found.containers.values() for name in names]
    splits = NamedSplits([*files, *folders_in(root, found.media)], files=True, card=card)
    sources = [manifests(path, root, found.json, None, limits, splits)] if found.json else []
    for format, names in found.containers.items():
        sources.append(containers(path, root, names, format, limits, splits))
    if found.media:
        sources.append(_of_files(path, root, "media", limits, within=found.media, splits=splits))
    return _accounted(joined(path, root, sources), found.json, splits=splits, counted=found.media, notes=card.notes())


def _accounted(source: Source, files: list[Path] = (), **options) -> Source:
    names = [file.relative_to(source.root).as_posix() for file in files]
    return accounted(source, read=[*names, *source.containers], **options)


def _container_names(path: Path, listing: Listing, format: str) -> list[str]:
    root, ending = listing.root, ending_for(format)
    # `._a.tar` is what a Mac noted about a.tar
    plain = [(name, why) for name, why in listing if not os.path.basename(name).startswith("._")]
    names = [tagged(name, ending) for name, _ in plain if name.lower().endswith(ending)]
    names = names or _by_content(root, (name for name, why in plain if not why), format)
    if format == "datasets":
        from data.formats.parquet import dataset_files

        names = dataset_files(root, names)
    if not names:
        raise ValueError(
            f"folder {path} holds no {ending} file, which the format {format!r} needs{listing.first_problem()}"
        )
    return names


def _by_content(root: Path, names: Iterable[str], format: str) -> list[str]:
    untold = (name for name in names if not is_told(name) and not packed_kind(name))
    return [tagged(name, ending_for(format)) for name in untold if format_by_content(root / name) == format]
