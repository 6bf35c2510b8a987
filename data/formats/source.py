"""A source of documents: what `open_source` returns, read the same way every time; and what all readers share.

    source.documents()          Document or Quarantined, in an order that is always the same
    source.fingerprint()        changes when the source does
    source.num_documents_hint   how many to expect, for a progress bar

Documents that name no split get one here (`splits.hash_split`). An id that comes twice becomes `<id>~2` and shares the
split of the first; ids are held in memory, about 120 bytes per document.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brine.common.files import file_digest
from brine.data.document import SPLITS, Document, DocumentError, Quarantined, Text
from brine.data.files.addresses import untagged
from brine.data.files.compressed import compressed_hint
from brine.data.files.extensions import conversion_hint, extension_of
from brine.data.files.pointers import dvc_target
from brine.data.files.resolve import resolve_media
from brine.data.files.roots import MediaRoots
from brine.data.files.text import decode_text
from brine.data.formats.splits.hash_split import with_splits
from brine.data.formats.splits.rules import FROM_FIELD

NOTE_PREFIX = "note: "  # start of a key of `DocumentSource.skipped` that is a remark on documents which were read
UNREAD_SPLIT = "of split "  # start of a key for files that are named after a split and were not read


@dataclass(frozen=True)
class ReadLimits:
    """Bounds on what is read. Raises ValueError for one that is not positive."""

    max_line_mib: float = 16.0
    """Longest JSON line, array element or text member of a tar, in MiB."""
    max_file_mib: float = 256.0
    """Largest text or media file, in MiB."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be a number of MiB above 0, not {value!r}")


@dataclass(frozen=True)
class DocumentSource:
    """Documents at a path, in one of `brine.data.formats.detect.FORMATS`."""

    path: Path
    format: str
    """One of FORMATS."""
    root: Path | MediaRoots
    """Resolved folder that media paths are relative to, or one for each source of several."""
    read: Callable[[bool, Counter], Iterator[Document | Quarantined]]
    """(include_decode, skipped) -> documents before splits and id checks; counts files and notes in `skipped`."""
    digest: Callable[[bool], str]
    """(media) -> hex SHA-256 of the source as it is now, with the sizes and times of its media where asked."""
    count: Callable[[], int | None] = lambda: None
    """About how many documents there are."""
    containers: tuple[str, ...] = ()
    """Tars and tables that the documents are in, relative to `root`."""
    json_files: tuple[Path, ...] = ()
    """JSON files that the documents are in."""
    described: tuple[dict[str, Any], ...] = ()
    """Where this one joins several (`joined`): name, consent, path, format and digest of each, and of a pool of
    pseudo-labels the models that gave them."""
    skipped: Counter = field(default_factory=Counter)
    """Reason -> files without a record (binary files, links ...), and notes, by the latest whole reading."""
    split_origins: dict[str, Counter] = field(default_factory=dict)
    """Where splits came from -> split -> documents, as far as the latest reading came, less those `uncount`ed."""
    extensions: Counter = field(default_factory=Counter)
    """Ending -> media of the documents, as far as the latest reading came; "" for cells of tables."""

    def documents(self, *, include_decode: bool = False) -> Iterator[Document | Quarantined]:
        """Every document, and one Quarantined for each thing that gives none, in a fixed order.

        include_decode: also those meant for decoder tests alone, as split `test`.
        """
        skipped: Counter = Counter()
        self.split_origins.clear()
        self.extensions.clear()
        yield from self._counted(with_splits(self.read(include_decode, skipped)))
        self.skipped.clear()
        self.skipped.update(skipped)

    def summary_lines(self) -> list[str]:
        """What the latest reading found, one line each: media, splits, skipped files, notes."""
        endings = [f"{count:,} .{ending[:20]}" for ending, count in sorted(self.extensions.items()) if ending and count]
        splits = (
            f"by {origin} ({', '.join(f'{split} {counts[split]:,}' for split in SPLITS if counts[split])})"
            for origin, counts in sorted(self.split_origins.items())
            if counts.total()
        )
        lines = [f"media by extension: {', '.join(endings)}"] if endings else []
        lines += [f"splits: {', '.join(splits)}"] if self.split_origins else []
        skipped, noted = [], []
        for reason, count in sorted(self.skipped.items()):
            if reason.startswith(UNREAD_SPLIT):
                split, _, what = reason.removeprefix(UNREAD_SPLIT).partition(": ")
                lines.append(f"NOT READ although named after a split ({split}): {count:,} {what[:300]}")
            elif reason.startswith(NOTE_PREFIX):
                noted.append(f"noted: {reason.removeprefix(NOTE_PREFIX)[:300]} ({count:,})")
            else:
                skipped.append(f"{count:,} {reason[:300]}")
        return lines + ([f"files skipped: {'; '.join(skipped)}"] if skipped else []) + noted

    def uncount(self, document: Document) -> None:
        """Take a document that turned out to be unusable while it was decoded out of the counts of splits and media."""
        self._count(document, -1)

    def _count(self, document: Document, by: int) -> None:
        origin = getattr(document.split, "origin", FROM_FIELD)
        self.split_origins.setdefault(origin, Counter())[str(document.split)] += by
        for part in document.parts:
            if not isinstance(part, Text):
                self.extensions[extension_of(part.path)] += by

    def fingerprint(self, *, media: bool = True) -> str:
        """Hex SHA-256 that changes when the source does: contents of text, size and time of change of media.

        Without `media`: names of files and contents of text alone; `brine.data.corpus.file_records` keeps the rest.
        """
        return self.digest(media)

    @property
    def location(self) -> str:
        """Where the documents are; of several joined sources their names."""
        return str(self.path if self.described else self.path.resolve())

    @property
    def num_documents_hint(self) -> int | None:
        """About how many documents to expect; None when only reading would tell."""
        return self.count()

    def _counted(self, items: Iterable[Document | Quarantined]) -> Iterator[Document | Quarantined]:
        seen: set[str] = set()
        copies: Counter[str] = Counter()
        for item in items:
            if isinstance(item, Document):
                name = item.id
                while item.id in seen:
                    copies[name] += 1
                    item = dataclasses.replace(item, id=f"{name}~{copies[name] + 1}")
                seen.add(item.id)
                self._count(item, 1)
            yield item


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
    containers, json_files = (
        sum((getattr(each, name) for each in sources), ()) for name in ("containers", "json_files")
    )
    return DocumentSource(path, format, root, read, digest, count, containers, json_files)


_texts: ContextVar[list[str] | None] = ContextVar("texts", default=None)


@contextlib.contextmanager
def recording_text_paths() -> Iterator[list[str]]:
    """Collects the paths of texts that documents are made from (`record_text_path`) while it is open."""
    paths: list[str] = []
    token = _texts.set(paths)
    try:
        yield paths
    finally:
        _texts.reset(token)


def record_text_path(path: str) -> None:
    """Record that a document is made from the text file at `path`, relative to the root."""
    if (paths := _texts.get()) is not None:
        paths.append(path)


def read_text(root: Path, path: str, max_file_mib: float) -> str:
    """A text file below `root` (resolved), its line ends made "\\n". Raises DocumentError, as for other encodings."""
    record_text_path(path)
    return decode_text(resolve_media(root, path, max_file_mib=max_file_mib).read_bytes(), f"file {path!r}")


def skip_file(path: str, skipped: Counter, problem: str = "") -> None:
    """Count a file of no document, with the remedy; whoever opened the folder counts compressed ones."""
    ending = extension_of(path)
    if remedy := conversion_hint(path):
        skipped[f"media file .{ending}: {remedy}"] += 1
    elif problem:
        skipped[f"file that {problem}"] += 1
    elif dvc_target(path):
        skipped["file .dvc, not fetched: `dvc pull` fetches it"] += 1
    elif not compressed_hint(path):
        skipped[f"file .{ending[:20]}" if ending else "file without an extension"] += 1


def each_document(
    files: Iterable[tuple[str, str]], read: Callable[[str], Document | None]
) -> Iterator[Document | Quarantined]:
    """A document, or none, for each (path, problem), made by `read`; a Quarantined where that raises DocumentError."""
    for path, problem in files:
        try:
            if problem:
                raise DocumentError(f"file {path!r} {problem}")
            if (document := read(path)) is not None:
                yield document
        except DocumentError as error:
            yield Quarantined(path, path, str(error))


def files_sha256(
    root: Path, files: Iterable[str], *, label: str, whole: Callable[[str], bool], media: bool = True
) -> str:
    """Hex SHA-256 over relative paths: contents where `whole`, else (with `media`) sizes and times of change."""
    digest = hashlib.sha256(label.encode())
    for name in sorted(files):
        path, key = root / untagged(name), name.encode("utf-8", "surrogateescape")
        if not media and not whole(name):
            digest.update(key + b"\0")
            continue
        try:
            status = os.stat(path)
            state = file_digest(path) if whole(name) else str(status.st_mtime_ns)
            marks = [key, str(status.st_size).encode(), state.encode()]
        # a file that is gone or unreadable is a change, not an error: reading will quarantine it
        except OSError:
            marks = [key, b"unreadable"]
        for mark in marks:
            digest.update(len(mark).to_bytes(8, "little") + mark)
    return digest.hexdigest()


def container_sha256(root: Path, files: Iterable[str], *, label: str, media: bool = True) -> str:
    """Hex SHA-256 over tars or tables: path, and with `media` size, time of change, and the first and last 64 KiB."""
    found = files_sha256(root, files, label=label, whole=lambda _: False, media=media)
    digest = hashlib.sha256(found.encode())
    for name in sorted(files) if media else ():
        with open(root / untagged(name), "rb") as stream:
            digest.update(stream.read(2**16))
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 2**16))
            digest.update(stream.read())
    return digest.hexdigest()
