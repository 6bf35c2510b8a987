"""One digest of all files that a source's documents are made from, by content: equal on another path or machine.

The paths and hashes of a source are remembered in a folder, in the form of a corpus's file records
(`file_records`), so that the documents are read and the files hashed once: afterwards a file costs one `stat`, and is
read again only where its size, times or inode changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np

from brine.common.content_store import file_lock
from brine.common.files import sync_folder
from brine.data.corpus.file_records import FileRecorder, find_changed_files, save_file_records
from brine.data.formats.source import DocumentSource

SHARD = Path("shards") / "00000"
MOST_REMEMBERED = 64
"""Sources that are remembered in a folder; the ones used longest ago are forgotten."""


def media_digest(source: DocumentSource, memory: Path, *, manifest: str, max_file_mib: float) -> str:
    """Hex SHA-256 of the relative paths and contents of a source's media, tars, tables and named texts.

    memory: a folder that remembers what was hashed. manifest: the digest of the source's words and names
    (`fingerprint(media=False)`), on which the paths depend.
    """
    folder = _remembered(source, memory, manifest, max_file_mib)
    memory.mkdir(parents=True, exist_ok=True)
    # processes that begin at the same moment hash once
    with file_lock(memory / f"{folder.name}.lock", what=f"the media of {source.path}"):
        known = (folder / SHARD / "media.npy").is_file()
        if not known or find_changed_files(folder, source.root, max_file_mib=max_file_mib):
            _record(source, folder, max_file_mib=max_file_mib)
        hashes = recorded_hashes(folder)
        os.utime(folder)
    _forget(memory, most=MOST_REMEMBERED)
    return _digest_of(hashes)


def changed_while_encoded(
    corpus: Path, source: DocumentSource, memory: Path, *, media: str, manifest: str, max_file_mib: float
) -> str | None:
    """A file that is no longer as it was when `media_digest` gave `media` for the other arguments, or that has changed
    since it was encoded into `corpus`: its relative path, or "a media file" where it is not known which. None where all
    are the same. Cost: one `stat` per file."""
    if changes := find_changed_files(corpus, source.root, max_file_mib=max_file_mib):
        return changes.first
    hashes = recorded_hashes(corpus)
    if _digest_of(hashes) == media:
        return None
    folder = _remembered(source, memory, manifest, max_file_mib)
    before = recorded_hashes(folder) if folder.is_dir() else {}
    differing = (path for path in sorted({*before, *hashes}) if before.get(path) != hashes.get(path))
    return next(differing, "a media file")


def _remembered(source: DocumentSource, memory: Path, manifest: str, max_file_mib: float) -> Path:
    return memory / hashlib.sha256(f"{source.root}\0{manifest}\0{max_file_mib}".encode()).hexdigest()[:32]


def _digest_of(hashes: dict[str, bytes]) -> str:
    found = hashlib.sha256()
    for path, sha256 in sorted(hashes.items()):
        found.update(path.encode() + b"\0" + sha256)
    return found.hexdigest()


def recorded_hashes(folder: Path) -> dict[str, bytes]:
    """{relative path: SHA-256} of the files that a corpus, or what is remembered of a source, was made from."""
    found: dict[str, bytes] = {}
    for part in sorted((folder / "shards").glob("[0-9]" * 5)):
        paths = (part / "media.txt").read_text(encoding="utf-8").split("\n")[:-1]
        hashes = np.load(part / "media.npy", allow_pickle=False)["sha256"]
        found |= dict(zip(paths, map(bytes, hashes), strict=True))
    return found


def _forget(memory: Path, *, most: int) -> None:
    """Delete what was remembered longest ago. Whoever needs it hashes again."""
    folders = [path for path in memory.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[most:]:
        shutil.rmtree(folder, ignore_errors=True)


def _record(source: DocumentSource, folder: Path, *, max_file_mib: float) -> None:
    """Hash every file of a source into `folder`, whole or not at all."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / SHARD).mkdir(parents=True)
    files = {}
    with FileRecorder(source, max_file_mib=max_file_mib) as recorder:
        for _ in recorder.items(0, ()):
            files |= recorder.take()
        save_file_records(partial / SHARD, files)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    sync_folder(folder.parent)
