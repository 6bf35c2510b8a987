"""Folders known by what they were made from: a stage's key is its configuration, its inputs' digests and the revision
of its code, so that everybody who needs the same result finds it made.

    ROOT/<stage>/<digest of the key>/    what was made; stage.json holds the key, `done` is written last
    ROOT/<stage>/<digest of the key>.lock

A key never holds a path, a number of workers or a time. Whoever finds a folder without `done` holds its lock first and
continues there; others wait for the lock, which the kernel releases when its process dies. Files of a finished folder
lose their write bits. Nothing is deleted here.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from brine.common.files import deciding, digest, read_json, to_plain, write_json

DONE_FILE, STAGE_FILE = "done", "stage.json"
POLL_S = 0.2
LOCK_TIMEOUT_S = 4 * 3600.0
logger = logging.getLogger("brine.store")


def store_key(config: Any, inputs: Mapping[str, str], *, revision: int) -> dict[str, Any]:
    """A stage's key: the settings that affect its result, {input: digest} and the revision of its code."""
    return {"config": deciding(config), "inputs": dict(inputs), "revision": revision}


class ContentStore:
    """The stored folders under a root."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def path(self, stage: str, key: Mapping[str, Any]) -> Path:
        """The folder of a stage with this key, whether or not it is there."""
        return self.root / stage / digest(deciding(key))

    def find(self, stage: str, key: Mapping[str, Any]) -> Path | None:
        """The finished folder of a stage with this key, or None."""
        folder = self.path(stage, key)
        return folder if (folder / DONE_FILE).is_file() else None

    @contextlib.contextmanager
    def locked(self, stage: str, key: Mapping[str, Any]) -> Iterator[Path]:
        """Hold the lock of a stage's folder, after whoever holds it now; yields the folder."""
        folder = self.path(stage, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(lock_path(folder), what=f"{stage}/{folder.name}"):
            yield folder

    def get_or_build(
        self, stage: str, key: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any] | None]
    ) -> Path:
        """The finished folder of a stage, made by `build(folder)` if nobody has; what it returns (plain JSON) is kept
        under `result` in `done`. `build` must continue from what an interrupted call left in the folder."""
        if (found := self.find(stage, key)) is not None:
            return found
        with self.locked(stage, key) as folder:
            if not (folder / DONE_FILE).is_file():
                folder.mkdir(exist_ok=True)
                write_json(folder / STAGE_FILE, key)
                result = to_plain(build(folder) or {})
                self.finish(folder, {"key": to_plain(key), "result": result})
        return folder

    @staticmethod
    def finish(folder: Path, mark: Mapping[str, Any]) -> None:
        """Write the mark of a finished folder, then take the write bits of its files."""
        write_json(folder / DONE_FILE, mark)
        for parent, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(parent, name)
                if not os.path.islink(path):
                    os.chmod(path, os.stat(path).st_mode & ~0o222)

    @staticmethod
    def result(folder: Path) -> dict[str, Any]:
        """What `build` returned for a finished folder."""
        return (read_json(folder / DONE_FILE) or {}).get("result") or {}


def lock_path(folder: Path) -> Path:
    """The lock file of a stored folder."""
    return folder.with_name(f"{folder.name}.lock")


@contextlib.contextmanager
def file_lock(path: Path, *, what: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold a lock file, waiting for the process that holds it. Raises TimeoutError after `timeout_s`."""
    handle = wait_for_lock(path, what=what, timeout_s=timeout_s)
    try:
        yield
    finally:
        unlock(handle)


def wait_for_lock(
    path: Path, *, what: str, timeout_s: float = LOCK_TIMEOUT_S, meanwhile: Callable[[], object] = lambda: None
) -> int:
    """A handle that holds a lock file until it is given to `unlock`, after whoever holds it now. meanwhile: called
    every POLL_S while it is held by another. Raises TimeoutError after `timeout_s`."""
    start, told = time.monotonic(), False
    while (handle := try_lock(path)) is None:
        if not told:
            logger.info("%s: %s is at work on it; waiting", what, lock_holder(path))
            told = True
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {lock_holder(path)} to finish {what}: end it, or wait")
        time.sleep(POLL_S)
        meanwhile()
    return handle


def try_lock(path: Path) -> int | None:
    """A handle that holds a lock file until it is given to `unlock`; None while another one holds it.

    The file stays: deleting it would let two processes hold locks of two files of one name.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        logger.warning("%s: its file system has no locks (%s): let no other process use it", path, error)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


def unlock(handle: int) -> None:
    """Release a lock; closing alone would not, where a forked worker holds a copy of the handle."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def lock_holder(path: Path) -> str:
    """Who wrote into a lock file last."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"
