"""A source of documents: whatever `open_source` opened, read the same way every time.

    source.documents()          Document or Quarantined, in an order that is always the same
    source.fingerprint()        changes when the source does
    source.num_documents_hint   how many to expect, for a progress bar

What all formats share is done here: splits for documents that name none (`data.formats.splits`), and ids that come
twice: outside the native and the captioned form (whose reader sets a second bearer of an id aside) ids are loose,
LLaVA's files repeat the picture's. So a second one is called `<id>~2`, and nothing is lost; it shares the split of
the first. The ids seen are held in memory: about 120 bytes a document.
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

from data.document import SPLITS, Document, Quarantined, Text, untagged
from data.endings import ending_of
from data.formats.splits import OWN, with_splits

NOTE = "note: "
"""What a reason in `Source.skipped` begins with that tells something about documents which were read."""

LOST = "of split "
"""What a reason begins with that tells of files which are named after a split and were not read."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what is read. Raises ValueError when one is no positive number."""

    max_line_mib: float = 16.0
    """Longest JSON line, array element or text member of a tar, in MiB."""
    max_file_mib: float = 256.0
    """Largest text or media file, in MiB."""

    def __post_init__(self):
        for name in ("max_line_mib", "max_file_mib"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be a number of MiB above 0, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Source:
    """Documents at a path, in one of `data.formats.FORMATS`."""

    path: Path
    """What was opened."""
    format: str
    """One of FORMATS."""
    root: Path
    """Resolved folder that media paths are relative to."""
    read: Callable[[bool, Counter], Iterator[Document | Quarantined]]
    """(include_decode, skipped) -> documents before splits and id checks; counts in `skipped` what it passes over."""
    digest: Callable[[bool], str]
    """(media) -> hex SHA-256 of the source as it is now, with the sizes and times of its media where asked."""
    count: Callable[[], int | None] = lambda: None
    """About how many documents there are."""
    containers: tuple[str, ...] = ()
    """Tars and tables that the documents are in, relative to `root`."""
    skipped: Counter = field(default_factory=Counter)
    """Reason -> files passed over without a record (binary files, links ...), by the latest whole reading."""
    splits_from: dict[str, Counter] = field(default_factory=dict)
    """Where splits came from -> split -> documents, as far as the latest reading came, less those `set_aside`."""
    endings: Counter = field(default_factory=Counter)
    """Ending -> media of the documents, as far as the latest reading came; "" for cells of tables."""

    def documents(self, *, include_decode: bool = False) -> Iterator[Document | Quarantined]:
        """Every document, and one Quarantined for each thing that gives none, in an order that is always the same.

        `include_decode` adds the lines of a captioned manifest meant for decoder tests alone, as split `test`.
        """
        skipped: Counter = Counter()
        self.splits_from.clear()
        self.endings.clear()
        yield from self._counted(self._distinct(with_splits(self.read(include_decode, skipped))))
        self.skipped.clear()
        self.skipped.update(skipped)

    def told(self) -> list[str]:
        """What the latest reading has to tell, a line each: media, splits, what was passed over, notes."""
        lines = []
        if known := [f"{count:,} .{ending[:20]}" for ending, count in sorted(self.endings.items()) if ending and count]:
            lines.append(f"media by ending: {', '.join(known)}")
        if self.splits_from:
            found = (
                f"by {origin} ({', '.join(f'{split} {counts[split]:,}' for split in SPLITS if counts[split])})"
                for origin, counts in sorted(self.splits_from.items())
                if counts.total()
            )
            lines.append(f"splits: {', '.join(found)}")
        for reason, count in sorted(self.skipped.items()):
            if reason.startswith(LOST):
                split, _, what = reason.removeprefix(LOST).partition(": ")
                lines.append(f"NOT READ although named after a split ({split}): {count:,} {what[:300]}")
        passed = [item for item in sorted(self.skipped.items()) if not item[0].startswith((NOTE, LOST))]
        if passed:
            lines.append(f"files passed over: {'; '.join(f'{count:,} {reason[:300]}' for reason, count in passed)}")
        noted = [item for item in sorted(self.skipped.items()) if item[0].startswith(NOTE)]
        return lines + [f"noted: {reason.removeprefix(NOTE)[:300]} ({count:,})" for reason, count in noted]

    def set_aside(self, document: Document) -> None:
        """Take a document out of the counts of splits and media that turned out to be unusable while it was decoded."""
        self.splits_from[getattr(document.split, "origin", OWN)][str(document.split)] -= 1
        self.endings.subtract(_endings_of(document))

    def fingerprint(self, *, media: bool = True) -> str:
        """Hex SHA-256 that changes when the source does: contents of text, size and time of change of media.

        Without `media`: names of files and contents of text alone, not of tars and tables. What these and media hold is
        noted by whoever encodes them (`data.media_record`).
        """
        return self.digest(media)

    @property
    def num_documents_hint(self) -> int | None:
        """About how many documents to expect; None when only reading would tell."""
        return self.count()

    def _counted(self, items: Iterable[Document | Quarantined]) -> Iterator[Document | Quarantined]:
        for item in items:
            if isinstance(item, Document):
                split = str(item.split)
                origin = getattr(item.split, "origin", OWN)
                self.splits_from.setdefault(origin, Counter())[split] += 1
                self.endings.update(_endings_of(item))
            yield item

    def _distinct(self, items: Iterable[Document | Quarantined]) -> Iterator[Document | Quarantined]:
        seen: set[str] = set()
        copies: Counter[str] = Counter()
        for item in items:
            if isinstance(item, Document) and item.id in seen:
                name = item.id
                while item.id in seen:
                    copies[name] += 1
                    item = dataclasses.replace(item, id=f"{name}~{copies[name] + 1}")
            if isinstance(item, Document):
                seen.add(item.id)
            yield item


def _endings_of(document: Document) -> list[str]:
    return [ending_of(part.path) for part in document.parts if not isinstance(part, Text)]


_texts: ContextVar[list[str] | None] = ContextVar("texts", default=None)


@contextlib.contextmanager
def reading() -> Iterator[list[str]]:
    """Collects the paths of texts that documents are made from (`note_text`) while it is open."""
    paths: list[str] = []
    token = _texts.set(paths)
    try:
        yield paths
    finally:
        _texts.reset(token)


def note_text(path: str) -> None:
    """Tell whoever collects them that a document is made from the text file at `path`, relative to the root."""
    paths = _texts.get()
    if paths is not None:
        paths.append(path)


def file_sha256(file: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_sha256(
    root: Path, files: Iterable[str], *, label: str, whole: Callable[[str], bool], media: bool = True
) -> str:
    """Hex SHA-256 over files below `root` (relative paths, sorted): their paths, size and content of those that `whole`
    names, and with `media` size and time of change of the others."""
    digest = hashlib.sha256(label.encode())
    for name in sorted(files):
        path = root / untagged(name)
        if not media and not whole(name):
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            continue
        try:
            status = os.stat(path)
            marks = [name.encode("utf-8", "surrogateescape"), str(status.st_size).encode()]
            if whole(name):
                marks.append(file_sha256(path).encode())
            else:
                marks.append(str(status.st_mtime_ns).encode())
        # a file that went or may not be read is a change, not an error: reading will set it aside
        except OSError:
            marks = [name.encode("utf-8", "surrogateescape"), b"unreadable"]
        for mark in marks:
            digest.update(len(mark).to_bytes(8, "little") + mark)
    return digest.hexdigest()


def container_sha256(root: Path, files: Iterable[str], *, label: str, media: bool = True) -> str:
    """Hex SHA-256 over tars or tables: path, and with `media` size, time of change, and the first and last 64 KiB."""
    files = sorted(files)
    digest = hashlib.sha256(files_sha256(root, files, label=label, whole=lambda _: False, media=media).encode())
    for name in files if media else ():
        with open(root / untagged(name), "rb") as stream:
            digest.update(stream.read(2**16))
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 2**16))
            digest.update(stream.read())
    return digest.hexdigest()
