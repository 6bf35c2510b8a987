"""Which files a corpus was encoded from, so that a file that changes under an unchanged manifest is noticed.

    shards/00000/media.txt   paths below the source's root, one per line, each once per shard
                 media.npy   for each (RECORD): size, time of change of content and of inode, inode, SHA-256

Files are media, tars, tables, and texts that a manifest names; a missing or refused one has a hash of zeros. Each is
stamped before it is decoded and hashed in threads. `find_changed_files` reads only files whose size, times or inode
differ, and only another hash is a change, so `touch` costs one reading. A file changed within RACY_NS of its stamp is
hashed the next time: a clock's tick may hide a second change. Cost of an untouched corpus: one `stat` per file.
"""

import hashlib
import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brine.common.files import file_digest, replacing
from brine.data.document import Document, DocumentError, Quarantined, media_paths
from brine.data.files.addresses import check_relative, split_address, untagged
from brine.data.files.resolve import resolve_media
from brine.data.files.roots import MediaRoots, locate
from brine.data.formats.source import DocumentSource, recording_text_paths

logger = logging.getLogger("brine.media")

Stamp = tuple[int, int, int, int]
"""Size, times of change of content and of inode, and inode; -1 and zeros for a file that does not exist."""
_TIMES = [("mtime_ns", "<i8"), ("ctime_ns", "<i8")]
RECORD = np.dtype([("size", "<i8"), *_TIMES, ("inode", "<u8"), ("container", "u1"), ("sha256", "u1", 32)])
RACY_NS = 100_000_000
UNUSABLE = bytes(32)  # instead of a hash: the file is missing or refused
CHANGED_WHILE_READ = bytes([1]) * 32  # instead of a hash: the file was written to while it was read
_REMEMBERED = 65_536


@dataclass
class FileRecord:
    """A file as it was found before it was decoded."""

    stamp: Stamp
    container: bool
    sha256: Future


@dataclass(frozen=True)
class FileChanges:
    """What `find_changed_files` found."""

    files: int
    changed: int = 0
    first: str = ""  # path of the first that changed
    shard: int = 0  # number of the shard it belongs to
    digest: str = ""  # hex SHA-256 of the changed files' paths and contents

    @property
    def share(self) -> float:
        """Changed files among all."""
        return self.changed / max(1, self.files)

    def __bool__(self) -> bool:
        return self.changed > 0

    def __str__(self) -> str:
        return f"{self.changed:,} of {self.files:,} media files changed since they were encoded: {self.first!r} first"


class StampedFile(NamedTuple):
    """A file as it was found when its document was read, not yet hashed."""

    stamp: Stamp
    kept: Stamp
    """What the corpus notes: `stamp`, or one that no file has where it may change again within the clock's tick."""
    container: bool


class FileHasher:
    """Hashes stamped files below `root` in threads, each once while it is remembered. Use it as a context manager."""

    def __init__(self, root: Path | MediaRoots, *, max_file_mib: float):
        self.root, self.max_file_mib = root, max_file_mib
        self._known: OrderedDict[tuple[str, StampedFile], FileRecord] = OrderedDict()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="hash")

    def __enter__(self) -> "FileHasher":
        return self

    def __exit__(self, *_) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def record(self, path: str, file: StampedFile) -> FileRecord:
        """The record of a file; its hash is on its way."""
        if (path, file) not in self._known:
            most = float("inf") if file.container else self.max_file_mib
            sha256 = self._threads.submit(_hash, self.root, path, file.stamp, most)
            self._known[path, file] = FileRecord(file.kept, file.container, sha256)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end((path, file))
        return self._known[path, file]


class FileRecorder(FileHasher):
    """Records the files of a source's documents as they are read. Use it as a context manager."""

    def __init__(self, source: DocumentSource, *, max_file_mib: float):
        super().__init__(source.root, max_file_mib=max_file_mib)
        self.source = source
        self._pending: deque[dict[str, FileRecord]] = deque()
        self._stamped: OrderedDict[str, StampedFile] = OrderedDict()

    def items(self, skip: int, undecoded: Container[str]) -> Iterator[Document | Quarantined]:
        """What the source gives after `skip` items; the files of each are recorded before it is handed out.

        undecoded: ids of those among the skipped that could not be decoded, and do not count.
        """
        for item, files in self.stamped_items(skip, undecoded):
            self._pending.append({path: self.record(path, file) for path, file in files.items()})
            yield item

    def stamped_items(
        self, skip: int, undecoded: Container[str]
    ) -> Iterator[tuple[Document | Quarantined, dict[str, StampedFile]]]:
        """As `items`, each with its files, which are stamped and not hashed."""
        containers = () if skip else self.source.containers
        items = iter(self.source.documents())
        while True:
            with recording_text_paths() as texts:
                item = next(items, None)
            if item is None:
                return
            if skip:
                skip -= 1
                if isinstance(item, Document) and item.id in undecoded:
                    self.source.uncount(item)
                continue
            named = [*((path, True) for path in containers), *_files_of(item, texts)]
            containers = ()
            yield item, {path: self._stamp_file(path, container) for path, container in named}

    def take(self) -> dict[str, FileRecord]:
        """Files of the item whose result comes next, in the order in which `items` gave them."""
        return self._pending.popleft()

    def _stamp_file(self, path: str, container: bool) -> StampedFile:
        if path not in self._stamped:
            stamp = _stamp(self.root, path)
            self._stamped[path] = StampedFile(stamp, _racy_safe_stamp(stamp), container)
            if len(self._stamped) > _REMEMBERED:
                self._stamped.popitem(last=False)
        self._stamped.move_to_end(path)
        return self._stamped[path]


def save_file_records(folder: Path, files: dict[str, FileRecord]) -> None:
    """Write media.txt and media.npy of a shard; waits for the hashes."""
    (folder / "media.txt").write_text("".join(f"{path}\n" for path in files), encoding="utf-8")
    rows = [(*file.stamp, file.container, np.frombuffer(file.sha256.result(), np.uint8)) for file in files.values()]
    np.save(folder / "media.npy", np.array(rows, RECORD), allow_pickle=False)


def find_changed_files(folder: Path, root: Path | MediaRoots, *, max_file_mib: float) -> FileChanges:
    """Files that differ from those that the corpus in `folder` was encoded from; touched ones get their new times."""
    files = changed = unrecorded = 0
    first, shard, digest, hashes = "", 0, hashlib.sha256(), {}
    for number, part in enumerate(sorted((folder / "shards").glob("[0-9]" * 5))):
        try:
            paths = (part / "media.txt").read_text(encoding="utf-8").split("\n")[:-1]
            record = np.load(part / "media.npy", allow_pickle=False)
            if record.dtype != RECORD or record.shape != (len(paths),):
                raise ValueError
        except (OSError, ValueError, EOFError):
            unrecorded += 1
            continue
        files += len(paths)
        stamps = zip(*(record[name].tolist() for name in ("size", "mtime_ns", "ctime_ns", "inode")), strict=True)
        touched = False
        for row, (path, known) in enumerate(zip(paths, stamps, strict=True)):
            stamp = _stamp(root, path)
            if stamp == known:
                continue
            container, sha256 = record["container"][row], record["sha256"][row].copy()
            if (path, stamp) not in hashes:
                hashes[path, stamp] = _hash(root, path, stamp, float("inf") if container else max_file_mib)
            if hashes[path, stamp] == sha256.tobytes():
                record[row], touched = (*_racy_safe_stamp(stamp), container, sha256), True
                continue
            if not changed:
                first, shard = path, number
            changed += 1
            digest.update(path.encode() + b"\0" + hashes[path, stamp])
        if touched:
            # a corpus that may only be read is compared again each time
            try:
                with replacing(part / "media.npy", "wb") as file:
                    np.save(file, record, allow_pickle=False)
            except OSError as error:
                logger.debug("%s could not be updated: %s", part / "media.npy", error)
    if unrecorded:
        logger.warning(
            "%s: %d shards do not record their files, so changed media go unnoticed there; delete the folder to encode "
            "it again", folder, unrecorded,
        )  # fmt: skip
    return FileChanges(files, changed, first, shard, digest.hexdigest() if changed else "")


def _files_of(item: Document | Quarantined, texts: list[str]) -> Iterator[tuple[str, bool]]:
    """(path, whether it is a container) of the files an item was or would be made from."""
    named = [item.file] if isinstance(item, Quarantined) else media_paths(item)
    for path in dict.fromkeys([*named, *texts]):
        address = split_address(path)
        path = untagged(address[0]) if address else path
        try:
            # a record of a line has a name that is not a path, or none
            if path and path.isprintable() and check_relative(path):
                yield path, address is not None
        except DocumentError:
            continue


def _stamp(root: Path | MediaRoots, path: str) -> Stamp:
    try:
        folder, inner = locate(root, path)
        found = os.stat(f"{folder}/{inner}")
    except (OSError, ValueError):
        return -1, 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _racy_safe_stamp(stamp: Stamp) -> Stamp:
    """The stamp, or one that no file has where the file has only just changed and may again within the clock's tick."""
    is_racy = time.time_ns() - max(stamp[1], stamp[2]) < RACY_NS
    return (stamp[0], stamp[1], 0, stamp[3]) if is_racy else stamp


def _hash(root: Path | MediaRoots, path: str, stamp: Stamp, max_file_mib: float) -> bytes:
    """SHA-256 of a file that may be opened and is still as `stamp` says; UNUSABLE or CHANGED_WHILE_READ otherwise."""
    try:
        digest = bytes.fromhex(file_digest(resolve_media(root, path, max_file_mib=max_file_mib)))
    except (DocumentError, OSError):
        return UNUSABLE
    return digest if _stamp(root, path) == stamp else CHANGED_WHILE_READ
