"""Every common format in, one kind of thing out: `open_source(path).documents()`.

A file is recognised by its content (`detect`): JSON lines and arrays in one of the record formats (`manifest`), tars
(`webdataset`), Parquet files and data sets saved by Hugging Face `datasets` (`tables/parquet`). Of a folder JSON, tars,
tables and captioned media are read together (`folders/survey`); without those it is one of captions, pages or code
(`folders/single_format`). `format=` overrides all of it, and alone reaches a format of another package: an entry
point of `brine.formats`, (path, limits) -> DocumentSource. What of a folder is not read is counted while its documents
are iterated (`notes/unread_files`).
"""

import functools
import os
import stat
from collections import Counter
from pathlib import Path

from brine.common.files import file_digest
from brine.common.plugins import load_plugin, plugins
from brine.common.remote.mirror import mirror
from brine.common.remote.object_store import RemoteError
from brine.data.document import DocumentError
from brine.data.files.addresses import tagged, untagged
from brine.data.files.compressed import compressed_hint, detect_compression, unpack_hint
from brine.data.files.pointers import missing_file_hint, pointer_in
from brine.data.files.resolve import dangling_link_hint, resolve_user_path, snapshot_in
from brine.data.files.walk import FolderListing, walk
from brine.data.formats import detect
from brine.data.formats.detect import CONTAINER_ENDINGS, FORMATS, FolderFiles, format_by_content, unknown_format
from brine.data.formats.folders import media_folder, text_folder
from brine.data.formats.folders.dataset_card import read_dataset_card
from brine.data.formats.folders.download import display_path, how_to_download
from brine.data.formats.folders.single_format import single_format
from brine.data.formats.folders.survey import MANIFESTS, FolderContents, json_files, survey, top_manifest
from brine.data.formats.lines.lines import check_encoding, is_array, is_spread
from brine.data.formats.manifest import RECORD_FORMATS, manifest_documents
from brine.data.formats.notes.refusals import describe_coco
from brine.data.formats.notes.unread_files import with_unread_files_counted
from brine.data.formats.source import DocumentSource, ReadLimits, container_sha256, files_sha256, join_sources
from brine.data.formats.splits.rules import PathSplits, digest_of_card, digest_of_containers, folders_in
from brine.data.formats.splits.split_lists import digest_of_split_lists
from brine.data.formats.tables.cells import load_pyarrow, num_rows
from brine.data.formats.tables.conversion import table_hint
from brine.data.formats.tables.parquet import check_columns, dataset_files, table_documents
from brine.data.formats.webdataset import webdataset_documents

__all__ = ["FORMATS", "DocumentSource", "ReadLimits", "check_path_exists", "open_source"]

OBJECT_STORES = tuple(f"{scheme}:/" for scheme in ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"))
"""How addresses begin that are opened where they are; those of web pages and hubs are told how to be downloaded. A Path
makes one slash of two."""
_FOLDER_READERS = {
    "media": (media_folder.media_documents, media_folder.media_digest),
    "markdown": (text_folder.markdown_documents, text_folder.markdown_digest),
    "repository": (text_folder.repository_documents, text_folder.repository_digest),
}
"""Format of a folder whose files are a document each -> its documents and its digest."""
FOLDER_FORMATS = frozenset(_FOLDER_READERS)
"""In these the id of a document is its path."""


def open_source(
    path: str | Path, *, format: str | None = None, max_line_mib: float = 16.0, max_file_mib: float = 256.0
) -> DocumentSource:
    """The documents at a path: a folder, a .jsonl or .json file, a .tar, a .parquet, or a saved dataset's folder; or at
    a URL, of which a copy is kept on this machine (`brine.common.remote.mirror`).

    Raises ValueError, with the formats there are, when nothing at the path can be read as one of them.
    """
    path = _mirrored(path) if str(path).startswith(OBJECT_STORES) else path
    given, path, limits = path, Path(path).expanduser(), ReadLimits(max_line_mib, max_file_mib)
    if format is not None and format not in FORMATS:
        others = plugins("brine.formats")
        if format not in others:
            raise ValueError(f"format {format!r} is none of {', '.join([*FORMATS, *others])}")
        return load_plugin(others[format])(path, limits)
    mode = check_path_exists(given)
    if stat.S_ISDIR(mode):
        return _open_folder(path, snapshot_in(path.resolve()), format, limits)
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a regular file or folder: give one of those")
    try:
        return _open_file(path, format, limits)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): change its permissions") from None


def _mirrored(address: str | Path) -> Path:
    """The copy on this machine of what is in an object store. Raises ValueError, with the command that downloads it,
    where it cannot be reached."""
    try:
        return mirror(address)
    except RemoteError as error:
        raise ValueError(
            f"{display_path(address)} does not exist or cannot be reached ({error}){how_to_download(address)}"
        ) from None


def check_path_exists(path: str | Path) -> int:
    """The mode of what is at a path of documents; a folder's for a URL, which is not asked. Raises ValueError where
    there is nothing, with what to do."""
    if str(path).startswith(OBJECT_STORES):
        return stat.S_IFDIR
    try:
        return os.stat(Path(path).expanduser()).st_mode
    except OSError as error:
        what = missing_file_hint(Path(path).expanduser())
        what = what or f"does not exist or cannot be reached ({error.strerror}){how_to_download(path)}"
        raise ValueError(f"{display_path(path)} {what}") from None


def _open_file(path: Path, format: str | None, limits: ReadLimits) -> DocumentSource:
    # a link that a person named is followed, and media are looked for beside its target
    file = resolve_user_path(path)
    if problem := pointer_in(file) or unpack_hint(file):
        raise ValueError(f"{path} {problem}")
    format = format or format_by_content(file) or detect.EXTENSIONS.get(path.suffix.lower())
    if format in CONTAINER_ENDINGS:
        return _containers(path, file.parent, [tagged(file.name, CONTAINER_ENDINGS[format])], format, limits)
    if format in _FOLDER_READERS:
        raise ValueError(f"{path} is a file, but format {format!r} needs a folder: give the folder")
    return _manifests(path, file.parent, [file], format, limits)


def _open_folder(path: Path, root: Path, format: str | None, limits: ReadLimits) -> DocumentSource:
    is_manifest, standing = format in (*RECORD_FORMATS, "manifest"), top_manifest(root)
    links = [name for name in MANIFESTS if (root / name).is_symlink()] if not standing else []
    if (format is None or is_manifest) and links:
        # ignoring it would make something else of the folder
        why = dangling_link_hint(root / links[0]) or "give the folder that it leads to, or copy it here"
        raise ValueError(f"{path / links[0]} is a link out of the folder, or to nothing: {why}")
    if format is None and standing:
        return _together(path, root, FolderContents(standing), limits)
    if is_manifest and standing:
        return _with_unread_files_counted(_manifests(path, root, standing, format, limits), standing)
    files = FolderFiles(FolderListing(root))
    if format is None and (found := survey(files, limits.max_line_mib)):
        return _together(path, root, found, limits)
    if is_manifest:
        top, below = json_files(files)
        json = [file for file in top if detect.is_named_lines(file)] or top or sorted(below)
        if not json:
            why = f"has no .jsonl file and no .json array at its top{files.listing.first_problem()}"
            raise ValueError(unknown_format(path, why))
        return _with_unread_files_counted(_manifests(path, root, json, format, limits), json)
    format = format or single_format(path, files)
    if format in CONTAINER_ENDINGS:
        names = _container_names(path, files, format)
        return _with_unread_files_counted(_containers(path, root, names, format, limits))
    documents, digest = _FOLDER_READERS[format]

    def read(_, skipped: Counter):
        yield from documents(root, limits, skipped)
        skipped.update(f"note: {note}" for note in read_dataset_card(root).notes())
        # a repository counts all binary files
        names = (name for name, why in walk(root) if not why) if format != "repository" else ()
        skipped.update(kind for name in names if (kind := compressed_hint(name)))

    return DocumentSource(path, format, root, read, functools.partial(digest, root))


def _together(path: Path, root: Path, found: FolderContents, limits: ReadLimits) -> DocumentSource:
    card = read_dataset_card(root)
    files = [file.relative_to(root).as_posix() for file in found.json]
    files += [name for names in found.containers.values() for name in names]
    splits = PathSplits([*files, *folders_in(root, found.media)], files=True, card=card)
    sources = [_manifests(path, root, found.json, None, limits, splits)] if found.json else []
    sources += [_containers(path, root, names, format, limits, splits) for format, names in found.containers.items()]
    if found.media:
        read = functools.partial(media_folder.media_documents, root, limits, within=found.media, splits=splits)
        digest = functools.partial(media_folder.media_digest, root, within=found.media)
        sources.append(DocumentSource(path, "media", root, lambda _, skipped: read(skipped), digest))
    source, notes = join_sources(path, root, sources), card.notes()
    return _with_unread_files_counted(source, found.json, splits=splits, counted=found.media, notes=notes)


def _with_unread_files_counted(source: DocumentSource, files: list[Path] = (), **options) -> DocumentSource:
    names = [file.relative_to(source.root).as_posix() for file in files]
    return with_unread_files_counted(source, read=[*names, *source.containers], **options)


def _container_names(path: Path, files: FolderFiles, format: str) -> list[str]:
    root, ending = files.root, CONTAINER_ENDINGS[format]
    names = [tagged(file.name, ending) for file in files.files if file.name.lower().endswith(ending)]
    if not names:
        undetected = (
            file.name for file in files.files if not file.problem and not detect.has_known_extension(file.name)
        )
        undetected = (name for name in undetected if not compressed_hint(name))
        names = [tagged(name, ending) for name in undetected if format_by_content(root / name) == format]
    names = dataset_files(root, names) if format == "datasets" else names
    if not names:
        why = f"holds no {ending} file, which the format {format!r} needs{files.listing.first_problem()}"
        raise ValueError(f"folder {path} {why}")
    return names


def _manifests(
    path: Path, root: Path, files: list[Path], format: str | None, limits: ReadLimits, splits: PathSplits | None = None
) -> DocumentSource:
    """A source of JSON files, whose format is detected if not given. Raises ValueError for none or no UTF-8."""
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
        found = detect.record_formats_in(first, max_line_mib=limits.max_line_mib)
        if not found and first.suffix.lower() != ".jsonl" and not is_array(first):
            raise ValueError(detect.describe_no_json(path, first))
        if len(files) == 1 and found == {"captioned"} and (why := describe_coco(first)):
            raise ValueError(f"{path} {why}")
        format = found.pop() if len(found) == 1 else "manifest"

    def digest(media: bool) -> str:
        names = [file.relative_to(root).as_posix() for file in files]
        found = files_sha256(root, names, label="manifests", whole=lambda _: True) if names[1:] else file_digest(first)
        return digest_of_split_lists(root, digest_of_containers(root, found))

    def count() -> int | None:
        if any(is_array(file) or is_spread(file) or detect_compression(file) for file in files):
            return None
        return sum(map(_num_lines, files))

    read = functools.partial(manifest_documents, files, root, record_format, limits, splits)
    return DocumentSource(path, format, root, read, digest, count, json_files=tuple(files))


def _num_lines(file: Path) -> int:
    with open(file, "rb") as stream:
        return sum(block.count(b"\n") or block.count(b"\r") for block in iter(lambda: stream.read(2**20), b""))


def _containers(
    path: Path, root: Path, names: list[str], format: str, limits: ReadLimits, splits: PathSplits | None = None
) -> DocumentSource:
    """A source of tars or tables; pyarrow is imported now, so that its absence is reported before any work."""
    if format != "webdataset":
        load_pyarrow()
        check_columns(root / untagged(names[0]))
    documents = webdataset_documents if format == "webdataset" else table_documents

    def count() -> int | None:
        try:
            return None if format == "webdataset" else sum(num_rows(root / untagged(name)) for name in names)
        except (DocumentError, OSError):
            return None

    return DocumentSource(
        path,
        format,
        root,
        lambda _, skipped: documents(root, names, limits, skipped, splits),
        lambda media: digest_of_card(root, container_sha256(root, names, label=format, media=media)),
        count,
        tuple(names),
    )
