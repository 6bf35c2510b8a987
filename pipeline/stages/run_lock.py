"""The lock of a run folder: one process works there, and ranks that wait for rank 0 see whether it is alive.

`flock` is released by the kernel when its process dies, however it dies.
"""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from brine.common.content_store import lock_holder, try_lock
from brine.training.parallel.distributed import RankFailedError, World

logger = logging.getLogger("brine.pipeline")

LOCK_NAME = "lock"
ORPHAN_GRACE_S = 10.0
POLL_S = 5.0
"""How often ranks hear of rank 0 while it is at work alone."""
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
T = TypeVar("T")


class RunLockedError(ValueError):
    """Another process works in the run folder."""


def acquire_lock(folder: Path) -> int:
    """Lock a run folder for this process; returns the handle of the lock, for `brine.common.content_store.unlock`.

    Raises RunLockedError that names the process holding it, ValueError where the folder cannot be written.
    """
    path, start = folder / LOCK_NAME, time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while (handle := try_lock(path)) is None:
            holder = lock_holder(path)
            # data workers of a killed run hold the lock until they notice
            if not _has_ended(holder) or time.monotonic() - start > ORPHAN_GRACE_S:
                raise RunLockedError(
                    f"{folder} is in use by {holder}: wait for it, end it, or choose another run folder"
                )
            time.sleep(0.1)
    except OSError as error:
        raise ValueError(f"the run folder {folder} cannot be made or written ({error}): choose another") from error
    return handle


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


@contextmanager
def refusals_named(what: str) -> Iterator[None]:
    """Make a ValueError, in one sentence that names the file, of a permission that is missing or a read-only disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_PERMISSION:
            raise
        raise ValueError(
            f"{what}: {error.filename} may not be used ({error.strerror}): change its permissions, or give another "
            "folder by --runs or --store"
        ) from None


def on_main_rank(world: World, call: Callable[[], T], *, poll_s: float = POLL_S) -> T:
    """What `call` returns on rank 0, on every rank, however long it takes: the others hear of rank 0 every `poll_s`, as
    a collective would time out. `call` is made in a thread, and returns plain values. Raises its ValueError on every
    rank."""
    if world.size == 1:
        return call()
    word, value = "wait", None
    if not world.is_main:
        while word == "wait":
            word, value = world.broadcast(None)
        if word == "trouble":
            raise ValueError(value)
        return value
    try:
        value = call_in_thread(call, meanwhile=lambda: world.broadcast(("wait", None)), poll_s=poll_s)
    except ValueError as error:
        world.broadcast(("trouble", str(error)))
        raise
    world.broadcast(("done", value))
    return value


def call_in_thread(call: Callable[[], T], *, meanwhile: Callable[[], object], poll_s: float = POLL_S) -> T:
    """What `call` returns, made in a thread while this one calls `meanwhile` every `poll_s`."""
    with ThreadPoolExecutor(1, thread_name_prefix="main-rank") as thread:
        future = thread.submit(call)
        while not wait([future], timeout=poll_s).done:
            meanwhile()
    return future.result()


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
