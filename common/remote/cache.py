"""A folder of this machine for downloaded objects, of bounded size: those used longest ago go first.

    ROOT/objects/ab/<sha256>    one object, which has that hash
    ROOT/locks/ab.lock          held while an object is downloaded, so that processes do not download it twice
    ROOT/partial/               what is being downloaded

Any number of processes may share it. An object appears by rename, after its hash was checked. It may be deleted at any
time, so a reader opens it at once and asks again where it is gone; what is open stays readable. The bound holds for
what lies here; what is deleted while it is open takes its place on the disk until it is closed.
"""

import contextlib
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from brine.common.content_store import file_lock
from brine.common.files import file_digest
from brine.common.remote.object_store import RemoteError

DEFAULT_GIB = 50.0
STALE_S = 24 * 3600.0
LOCK_TIMEOUT_S = 3600.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_root() -> Path:
    """BRINE_CACHE, or `brine` in the user's folder for caches."""
    given = os.environ.get("BRINE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given).expanduser() if given else Path(base).expanduser() / "brine"


def cache_bytes() -> int:
    """BRINE_CACHE_GIB in bytes, 50 GiB if not given."""
    given = os.environ.get("BRINE_CACHE_GIB", "")
    try:
        gib = float(given or DEFAULT_GIB)
    except ValueError:
        gib = 0.0
    if not gib > 0:
        raise ValueError(f"BRINE_CACHE_GIB={given!r} must be a number of GiB above 0")
    return int(gib * 2**30)


class ObjectCache:
    """Objects by their SHA-256 below a folder."""

    def __init__(self, root: Path | None = None, *, max_bytes: int | None = None):
        self.root = cache_root() if root is None else Path(root)
        self.max_bytes = cache_bytes() if max_bytes is None else max_bytes

    def path(self, sha256: str) -> Path:
        """Where an object lies when it is here."""
        if not _SHA256.fullmatch(sha256):
            raise RemoteError(f"{sha256[:80]!r} is not a SHA-256")
        return self.root / "objects" / sha256[:2] / sha256

    def fetch(self, sha256: str, size: int, download: Callable[[Path], None], *, what: str) -> Path:
        """Path of an object, downloaded by `download(path)` where it is not here. Open it at once.

        what: the object, for messages. Raises RemoteError where it has another hash or size twice, or is larger than
        the cache.
        """
        path = self.path(sha256)
        if self._is_here(path, size):
            return path
        if size > self.max_bytes:
            raise RemoteError(
                f"{what} has {size:,} bytes, the cache {self.root} at most {self.max_bytes:,}: raise BRINE_CACHE_GIB"
            )
        for folder in (path.parent, self.root / "locks", self.root / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.root / "locks" / f"{sha256[:2]}.lock", what=what, timeout_s=LOCK_TIMEOUT_S):
            if self._is_here(path, size):
                return path
            self._evict(size)
            partial = self.root / "partial" / f"{sha256[:16]}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
            try:
                download_checked(download, partial, size=size, sha256=sha256, what=what)
                os.rename(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def _is_here(self, path: Path, size: int) -> bool:
        try:
            if path.stat().st_size != size:
                return False
            os.utime(path)
        except OSError:
            return False
        return True

    def _evict(self, size: int) -> None:
        """Delete objects, the one used longest ago first, until `size` bytes more find room."""
        with file_lock(self.root / "evict.lock", what="the cache", timeout_s=LOCK_TIMEOUT_S):
            found = []
            for path in (self.root / "objects").glob("??/*"):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
            coming = 0
            for partial in (self.root / "partial").iterdir():
                with contextlib.suppress(OSError):
                    if time.time() - partial.stat().st_mtime > STALE_S:
                        partial.unlink()
                    else:
                        coming += partial.stat().st_size
            total = sum(each[1] for each in found) + coming + size
            for _, bytes_, path in sorted(found):
                if total <= self.max_bytes:
                    return
                path.unlink(missing_ok=True)
                total -= bytes_

    def size(self) -> int:
        """Bytes of the objects that are here."""
        total = 0
        for path in (self.root / "objects").glob("??/*"):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total


def download_checked(download: Callable[[Path], None], path: Path, *, size: int, sha256: str, what: str) -> None:
    """Have an object at `path` by `download(path)`, made once more where its size or SHA-256 differ.

    what: the object, for messages. Raises RemoteError where they differ twice; what is at `path` then is no object.
    """
    for _ in range(2):
        download(path)
        if path.stat().st_size == size and file_digest(path) == sha256:
            return
    raise RemoteError(
        f"{what} is damaged: twice its content differed from the SHA-256 noted at upload; delete the object and upload "
        "it again"
    )


def sha256_of(content: bytes) -> str:
    """Hex SHA-256 of a small content."""
    return hashlib.sha256(content).hexdigest()
