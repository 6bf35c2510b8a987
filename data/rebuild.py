"""A corpus that is made again: the former one stays whole until the new one is.

    corpus/                what is finished, and is read by whoever opens it
    corpus.rebuilding/     the new one, which goes on where it was stopped
    corpus.replaced/       the former one, for the moment between two renames

A build that is stopped or fails leaves the former corpus as it was; the disk holds both meanwhile, but for shards that
the new one keeps, which are links. `recover` puts right what stopped between the renames. A folder that is a link stays
one to where the corpus is. Filter rounds are good for one corpus alone: where the new one is another they are kept as
`rounds.former`, for whoever wants to look at them.
"""

import logging
import os
import shutil
from pathlib import Path

from data.shards import read_json, write_json

logger = logging.getLogger("brine.store")


def beside(folder: Path) -> Path:
    """Where a corpus is made again while the former one in `folder` stays."""
    # a link stays one to where the corpus is
    folder = folder.resolve()
    return folder.with_name(folder.name + ".rebuilding")


def former_of(folder: Path) -> Path:
    """Where a corpus is for the moment in which another takes its place."""
    folder = folder.resolve()
    return folder.with_name(folder.name + ".replaced")


def recover(folder: Path) -> None:
    """Put right what stopped between the renames of a corpus and the one that takes its place."""
    folder, former, new = folder.resolve(), former_of(folder), beside(folder)
    if not former.is_dir():
        return
    if folder.exists():
        shutil.rmtree(former)
    elif read_json(new / "meta.json"):
        os.rename(new, folder)
        shutil.rmtree(former)
    else:
        os.rename(former, folder)


def keep_shards(folder: Path, new: Path, stop: int) -> None:
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


def begin(folder: Path, identity: dict) -> bool:
    """Make an empty folder for a build, in place of another one's beginning; False where it holds something else."""
    if folder.exists():
        if not (folder / "building.json").is_file() and any(folder.iterdir()):
            return False
        shutil.rmtree(folder.resolve())
    folder.resolve().mkdir(parents=True)
    write_json(folder / "building.json", identity)
    return True


def take_place(new: Path, folder: Path, *, keep_rounds: bool) -> None:
    """Put a finished corpus in the place of a former one; keep_rounds: its filter rounds are good for the new one."""
    folder, former = folder.resolve(), former_of(folder)
    rounds, kept = folder / "rounds", new / ("rounds" if keep_rounds else "rounds.former")
    if rounds.is_dir():
        shutil.copytree(rounds, kept, dirs_exist_ok=True)
        if not keep_rounds:
            logger.warning("%s: the filter rounds of the former corpus are kept in %s", folder, folder / kept.name)
    # whoever stops between the two renames leaves what `recover` puts right
    os.rename(folder, former)
    os.rename(new, folder)
    shutil.rmtree(former)
