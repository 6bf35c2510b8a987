"""The folder of corpora and runs that stages work in, separate from their results: whose it is, and one command at a
time.

It is kept between commands, so that a demo continues where it was ended. Unless it is named it belongs to one user, one
commit and one corpus, since the runs of others would be reported as this one's (toys have a folder in it); a tree that
differs from its commit begins anew. A copy without `.git` is taken at its word: who changes it changes its COMMIT, too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from typing import IO, Any


def default_work(machine_info: dict[str, Any], *, corpus: Path | None = None) -> Path:
    """Its path, of what `benchmarks.gpu.child` found out of this machine and checkout."""
    known, user = machine_info.get("commit"), os.getuid()
    if not known or machine_info.get("dirty"):
        return Path(tempfile.mkdtemp(prefix=f"brine-gpu-{user}-"))
    name = f"brine-gpu-{user}-{known[:12]}"
    if corpus is not None:
        try:
            found = corpus.resolve().stat()
            identity = f"{corpus.resolve()} {found.st_size} {found.st_mtime_ns}"
        except OSError:
            # whoever opens it will say so
            identity = str(corpus)
        name += f"-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return Path(tempfile.gettempdir()) / name


def check_folder(folder: Path) -> None:
    """Make it. Raises ValueError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} is no folder to write results into ({error.strerror}): name another") from None


def lock_work_folder(folder: Path) -> IO[str]:
    """Take the folder for this process -> a file to keep open. Raises ValueError where another command has it."""
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ValueError(f"another command works in {folder}: wait for it, or name another --work") from None
    except OSError as error:
        lock.close()
        raise ValueError(f"{folder} knows no locks ({error.strerror}): name a --work on another disk") from None
    return lock
