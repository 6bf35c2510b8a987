"""A corpus that is rebuilt: the former one stays whole until the new one is.

    corpus/                what is finished, and is read by whoever opens it
    corpus.rebuilding/     the new one, which resumes where it was stopped
    corpus.replaced/       the former one, between two renames

A build that is stopped or fails leaves the former corpus as it was; the disk holds both meanwhile, but for shards that
the new one keeps, which are hard links. `recover_swap` repairs a stop between the renames. A folder that is a link
stays one. Rule logs belong to one corpus; those of another are kept as `filter_log.former`. One process at a time
builds.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brine.data.corpus.shards import read_json, write_json

logger = logging.getLogger("brine.store")


class CorpusLockedError(ValueError):
    """A folder in which no corpus can be built now; the message names it and the remedy."""


def rebuild_path(folder: Path) -> Path:
    """Where a corpus is made again while the former one in `folder` stays."""
    # a link stays one to where the corpus is
    folder = folder.resolve()
    return folder.with_name(folder.name + ".rebuilding")


def replaced_path(folder: Path) -> Path:
    """Where a corpus is for the moment in which another takes its place."""
    folder = folder.resolve()
    return folder.with_name(folder.name + ".replaced")


def recover_swap(folder: Path) -> None:
    """Put right what stopped between the renames of a corpus and the one that takes its place."""
    folder, former, new = folder.resolve(), replaced_path(folder), rebuild_path(folder)
    if not former.is_dir():
        return
    if folder.exists():
        shutil.rmtree(former)
    elif read_json(new / "meta.json"):
        os.rename(new, folder)
        shutil.rmtree(former)
    else:
        os.rename(former, folder)


def link_shards(folder: Path, new: Path, stop: int) -> None:
    """Give a new build the shards below a number of a corpus in `folder`, by links where the disk has them."""
    (new / "shards").mkdir()
    for number in range(stop):
        name = f"{number:05d}"
        shutil.copytree(folder / "shards" / name, new / "shards" / name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Make a folder and keep other builds out of it. Raises CorpusLockedError where another process builds there.

    The folder itself is locked, so that nothing is left behind and a rename takes the lock along.
    """
    place = folder.resolve()
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CorpusLockedError(f"the folder {folder} cannot be made or written ({error}): choose another") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # whoever held it may have finished meanwhile and renamed it
            taken = not place.exists() or not os.path.samestat(os.fstat(handle), os.stat(place))
        except BlockingIOError:
            taken = True
        except OSError:
            # a file system without locks
            taken = False
        if taken:
            raise CorpusLockedError(
                f"another process builds a corpus in {folder}: wait for it or end it, or give another folder"
            )
        yield
    finally:
        os.close(handle)


def init_build_folder(folder: Path, identity: dict) -> bool:
    """Empty a folder for a build, in place of another one's beginning; False where it holds something else."""
    if any(folder.iterdir()) and not (folder / "building.json").is_file():
        return False
    # the mark goes last, so that who is stopped here leaves a beginning
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "building.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    write_json(folder / "building.json", identity)
    return True


def swap_in(new: Path, folder: Path, *, keep_filter_log: bool) -> None:
    """Put a finished corpus in the place of a former one; keep_filter_log: the filter log applies to the new one."""
    folder, former = folder.resolve(), replaced_path(folder)
    filter_log, kept = folder / "filter_log", new / ("filter_log" if keep_filter_log else "filter_log.former")
    if filter_log.is_dir():
        shutil.copytree(filter_log, kept, dirs_exist_ok=True)
        if not keep_filter_log:
            logger.warning("%s: the filter log of the former corpus is kept in %s", folder, folder / kept.name)
    # whoever stops between the two renames leaves what `recover_swap` puts right
    os.rename(folder, former)
    os.rename(new, folder)
    shutil.rmtree(former)
