"""Every common format in, one kind of thing out: `open_source(path).documents()`.

    content-parts    JSONL of chat content parts, the native form          `brine.data.document`
    chat, llava      {"messages": [...]}, {"conversations": [...]}         lines/chat.py
    obelics          {"texts": [...], "images": [...]}                     lines/parts.py
    captioned        one medium and its text a line, or text alone         folders/captioned.py
    manifest         JSONL whose lines are recognised one by one           manifest.py
    markdown         a folder of pages with images                         folders/markdown.py
    repository       a source tree, .gitignore respected                   folders/repository.py
    media            media files with captions of the same name            folders/media_folder.py
    webdataset       .tar shards, read in place                            webdataset.py
    parquet          Parquet files (extra `hf`)                            tables/parquet.py
    datasets         a dataset saved by Hugging Face `datasets` (extra `hf`)   tables/parquet.py

A file is recognised by its content (`opening`). Of a folder JSON, tars, tables and captioned media are read together
(`survey`); without those it is one of captions, pages or code (`folders/sorting.py`). `format=` overrides all of it.
What of a folder is not read is counted while its documents are iterated (`notes/unread_files.py`).
"""

import functools
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from brine.data.files.addresses import tagged
from brine.data.files.compressed import compressed_hint
from brine.data.files.links import dangling_link_hint, snapshot_in
from brine.data.files.pointers import missing_file_hint
from brine.data.files.walk import FolderListing
from brine.data.formats.folders.card import read_dataset_card
from brine.data.formats.folders.download import display_path, how_to_download
from brine.data.formats.folders.markdown import markdown_digest, markdown_documents
from brine.data.formats.folders.media_folder import media_digest, media_documents
from brine.data.formats.folders.repository import repository_digest, repository_documents
from brine.data.formats.folders.sorting import folder_format
from brine.data.formats.lines.lines import LINES
from brine.data.formats.manifest import RECORD_FORMATS
from brine.data.formats.notes.unread_files import with_unread_files_counted
from brine.data.formats.opening import (
    EXTENSIONS,
    FORMATS,
    containers,
    extension_for,
    format_by_content,
    has_known_extension,
    join_sources,
    manifests,
    open_file,
    unknown,
    with_folder_notes,
)
from brine.data.formats.source import DocumentSource, ReadLimits
from brine.data.formats.splits.rules import PathSplits, folders_in
from brine.data.formats.survey import MANIFESTS, FolderContents, is_inside, manifests_below, survey, top_files
from brine.data.formats.tables.parquet import dataset_files

__all__ = ["FORMATS", "DocumentSource", "ReadLimits", "check_path_exists", "open_source"]


def open_source(
    path: str | Path, *, format: str | None = None, max_line_mib: float = 16.0, max_file_mib: float = 256.0
) -> DocumentSource:
    """The documents at a path: a folder, a .jsonl or .json file, a .tar, a .parquet, or a saved dataset's folder.

    Raises ValueError, with the formats there are, when nothing at the path can be read as one of them.
    """
    given, path, limits = path, Path(path).expanduser(), ReadLimits(max_line_mib, max_file_mib)
    if format is not None and format not in FORMATS:
        raise ValueError(f"format {format!r} is none of {', '.join(FORMATS)}")
    mode = check_path_exists(given)
    if stat.S_ISDIR(mode):
        return _open_folder(path, snapshot_in(path.resolve()), format, limits)
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a regular file or folder: give one of those")
    try:
        return open_file(path, format, limits)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): change its permissions") from None


def check_path_exists(path: str | Path) -> int:
    """The mode of what lies at a path of documents. Raises ValueError where there is nothing, with what to do."""
    try:
        return os.stat(Path(path).expanduser()).st_mode
    except OSError as error:
        what = missing_file_hint(Path(path).expanduser())
        what = what or f"does not exist or cannot be reached ({error.strerror}){how_to_download(path)}"
        raise ValueError(f"{display_path(path)} {what}") from None


def _open_folder(path: Path, root: Path, format: str | None, limits: ReadLimits) -> DocumentSource:
    listing = FolderListing(root)
    is_manifest = format in RECORD_FORMATS or format == "manifest"
    standing = [root / name for name in MANIFESTS if is_inside(root, root / name)][:1]
    if (format is None or is_manifest) and not standing:
        for name in MANIFESTS:
            # ignoring it would make something else of the folder
            if (root / name).is_symlink():
                why = dangling_link_hint(root / name) or "give the folder that it leads to, or copy it here"
                raise ValueError(f"{path / name} is a link out of the folder, or to nothing: {why}")
    if format is None and (found := survey(listing, limits)):
        return _together(path, root, found, limits)
    if is_manifest:
        files = standing or top_files(root, LINES, known=False) or top_files(root, (".json",), known=False)
        files = files or manifests_below(listing, limits, known=False)
        if not files:
            raise ValueError(
                unknown(path, f"has no .jsonl file and no .json array at its top{listing.first_problem()}")
            )
        return _with_unread_files_counted(manifests(path, root, files, format, limits), files)
    format = format or folder_format(path, listing)
    if format in EXTENSIONS.values():
        names = _container_names(path, listing, format)
        return _with_unread_files_counted(containers(path, root, names, format, limits))
    source = _of_files(path, root, format, limits)
    # a repository counts all binary files
    return with_folder_notes(source, read_dataset_card(root).notes(), count_archives=format != "repository")


def _of_files(
    path: Path, root: Path, format: str, limits: ReadLimits, *, within: list[str] | None = None,
    splits: PathSplits | None = None,
) -> DocumentSource:  # fmt: skip
    """A source of files that are a document each; with `within` of the media in these folders alone."""
    documents, digest = {
        "media": (media_documents, media_digest),
        "markdown": (markdown_documents, markdown_digest),
        "repository": (repository_documents, repository_digest),
    }[format]
    if format == "media":
        documents = functools.partial(documents, within=within, splits=splits)
        digest = functools.partial(digest, within=within)
    return DocumentSource(
        path, format, root, lambda _, skipped: documents(root, limits, skipped), functools.partial(digest, root)
    )


def _together(path: Path, root: Path, found: FolderContents, limits: ReadLimits) -> DocumentSource:
    """A source of all that a folder holds, whose names say together what is held out."""
    card = read_dataset_card(root)
    files = [file.relative_to(root).as_posix() for file in found.json]
    files += [name for names in found.containers.values() for name in names]
    splits = PathSplits([*files, *folders_in(root, found.media)], files=True, card=card)
    sources = [manifests(path, root, found.json, None, limits, splits)] if found.json else []
    sources += [containers(path, root, names, format, limits, splits) for format, names in found.containers.items()]
    if found.media:
        sources.append(_of_files(path, root, "media", limits, within=found.media, splits=splits))
    return _with_unread_files_counted(
        join_sources(path, root, sources), found.json, splits=splits, counted=found.media, notes=card.notes()
    )


def _with_unread_files_counted(source: DocumentSource, files: list[Path] = (), **options) -> DocumentSource:
    names = [file.relative_to(source.root).as_posix() for file in files]
    return with_unread_files_counted(source, read=[*names, *source.containers], **options)


def _container_names(path: Path, listing: FolderListing, format: str) -> list[str]:
    root, ending = listing.root, extension_for(format)
    # `._a.tar` is what a Mac noted about a.tar
    plain = [(name, why) for name, why in listing if not os.path.basename(name).startswith("._")]
    names = [tagged(name, ending) for name, _ in plain if name.lower().endswith(ending)]
    names = names or _by_content(root, (name for name, why in plain if not why), format)
    names = dataset_files(root, names) if format == "datasets" else names
    if not names:
        raise ValueError(
            f"folder {path} holds no {ending} file, which the format {format!r} needs{listing.first_problem()}"
        )
    return names


def _by_content(root: Path, names: Iterable[str], format: str) -> list[str]:
    undetected = (name for name in names if not has_known_extension(name) and not compressed_hint(name))
    return [tagged(name, extension_for(format)) for name in undetected if format_by_content(root / name) == format]
