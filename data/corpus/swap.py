"""A corpus that is rebuilt: the former one stays whole until the new one is.

    corpus/                what is finished, and is read by whoever opens it
    corpus.rebuilding/     the new one, which resumes where it was stopped
    corpus.replaced/       the former one, between two renames

A build that is stopped or fails leaves the former corpus as it was; the disk holds both meanwhile, except for shards
that the new one keeps, which are hard links. A folder that is a link stays one. One process at a time builds.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brine.common.files import read_json
from brine.common.renamed import current_file
from brine.data.corpus.shards import shard_path, write_json

logger = logging.getLogger("brine.store")

FILTER_LOG = "filter_log"
"""Folder of a corpus's filter passes."""


class CorpusLockedError(ValueError):
    """A folder in which no corpus can be built now; the message names it and the remedy."""


def rebuild_path(folder: Path) -> Path:
    """The folder in which a corpus is built again while the former one in `folder` stays."""
    return folder.resolve().with_name(folder.resolve().name + ".rebuilding")


def replaced_path(folder: Path) -> Path:
    """The folder of a former corpus while another takes its name."""
    return folder.resolve().with_name(folder.resolve().name + ".replaced")


def recover_swap(folder: Path) -> None:
    """Repair what stopped between the two renames of `swap_in`."""
    folder, former, new = folder.resolve(), replaced_path(folder), rebuild_path(folder)
    if not former.is_dir():
        return
    if not folder.exists() and not read_json(new / "meta.json"):
        os.rename(former, folder)
        return
    if not folder.exists():
        os.rename(new, folder)
    shutil.rmtree(former)


def link_shards(folder: Path, new: Path, stop: int) -> None:
    """Give a new build the shards below a number of a corpus in `folder`, by hard links where the disk has them."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    (new / "shards").mkdir()
    for number in range(stop):
        shutil.copytree(shard_path(folder, number), shard_path(new, number), copy_function=link)


@contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Make a folder and keep other builds out of it.

    Raises CorpusLockedError where another process builds there. The folder itself is locked, so that nothing is left
    behind and a rename takes the lock along.
    """
    real = folder.resolve()
    try:
        real.mkdir(parents=True, exist_ok=True)
        handle = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CorpusLockedError(f"the folder {folder} cannot be made or written ({error}): choose another") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # whoever held it may have finished meanwhile and renamed it
            taken = not real.exists() or not os.path.samestat(os.fstat(handle), os.stat(real))
        # any other OSError: a file system without locks
        except OSError as error:
            taken = isinstance(error, BlockingIOError)
        if taken:
            raise CorpusLockedError(
                f"another process builds a corpus in {folder}: wait for it or end it, or give another folder"
            )
        yield
    finally:
        os.close(handle)


def init_build_folder(folder: Path, identity: dict) -> bool:
    """Empty a folder for a build, which another build may have begun; False where it holds something else."""
    if any(folder.iterdir()) and not (folder / "building.json").is_file():
        return False
    # the mark goes last, so that a stop here leaves a beginning
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "building.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    write_json(folder / "building.json", identity)
    return True


def swap_in(new: Path, folder: Path, *, keep_filter_log: bool) -> None:
    """Put a finished corpus in place of a former one. keep_filter_log: else it becomes `filter_log.former`."""
    folder, former = folder.resolve(), replaced_path(folder)
    filter_log, kept = current_file(folder / FILTER_LOG), new / (FILTER_LOG + ".former" * (not keep_filter_log))
    if filter_log.is_dir():
        shutil.copytree(filter_log, kept, dirs_exist_ok=True)
        if not keep_filter_log:
            logger.warning("%s: the filter log of the former corpus is kept in %s", folder, folder / kept.name)
    # `recover_swap` repairs a stop between the two renames
    os.rename(folder, former)
    os.rename(new, folder)
    shutil.rmtree(former)
