"""The lock of a run folder: one process works there, and ranks that wait for rank 0 see whether it is alive.

`flock` is released by the kernel when its process dies, however it dies.
"""

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from brine.training.parallel.distributed import RankFailedError

logger = logging.getLogger("brine.pipeline")

LOCK_NAME = "lock"
ORPHAN_GRACE_S = 10.0


class RunLockedError(ValueError):
    """Another process works in the run folder."""


def acquire_lock(folder: Path) -> int:
    """Lock a run folder for this process; returns the handle of the lock, to be given to `release_lock`.

    Raises RunLockedError that names the process holding it, ValueError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ValueError(f"the run folder {folder} cannot be made or written ({error}): choose another") from error
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "an unknown process"
            # data workers of a killed run hold the lock until they notice
            if not _has_ended(holder) or time.monotonic() - start > ORPHAN_GRACE_S:
                os.close(handle)
                raise RunLockedError(
                    f"{folder} is in use by {holder}: wait for it, end it, or choose another run folder"
                ) from None
            time.sleep(0.1)
        except OSError as error:
            logger.warning("%s: its file system has no locks (%s): let no other process use it", folder, error)
            break
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


def release_lock(handle: int) -> None:
    """Release a lock; closing alone would not, where a forked data worker holds a copy of the handle."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def is_run_locked(folder: Path) -> bool:
    """Does a living process hold the run folder's lock?"""
    try:
        with open(Path(folder) / LOCK_NAME, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return False
            fcntl.flock(file, fcntl.LOCK_UN)
            return False
    except FileNotFoundError:
        return False


def wait_for(ready: Callable[[], bool], *, run_folder: Path, what: str, timeout_s: float, poll_s: float = 0.2) -> None:
    """Wait until `ready()`, while rank 0 works on `what`.

    Raises RankFailedError when rank 0 has released the run folder's lock, TimeoutError after `timeout_s`.
    """
    start = time.monotonic()
    while not ready():
        if not is_run_locked(run_folder) and not ready():
            raise RankFailedError(f"rank 0 ended before {what} was done: see its message; the same command resumes")
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(
                f"waited {timeout_s:.0f} s for rank 0 to finish {what}: raise the time-out or look at it"
            )
        time.sleep(poll_s)


def _has_ended(holder: str) -> bool:
    words = holder.split()
    if len(words) != 4 or not words[1].isdecimal() or words[3] != socket.gethostname():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
