"""Which links may be followed: those that stay in the folder, and those into the store that the folder is a view of.

    datasets--org--name/snapshots/<revision>/a.tar -> ../../blobs/<hash>        a download of the Hugging Face hub
    repository/images/a.png -> ../.git/annex/objects/../<key>                   a repository of git-annex or DataLad

These tools keep a file's bytes in a store, under a hash, and the file as a link into it. A root inside such a folder
may reach that one store, which is derived from the root's own path; a link to another data set's blobs, or a store that
is a link itself, is refused. Extensions are those of the link's name, since blobs have none.
"""

import functools
import os
import stat
from pathlib import Path


def stays_within(root: Path, real: Path) -> bool:
    """Whether `real` (links followed) lies in `root` (resolved) or in the store that belongs to it."""
    return real.is_relative_to(root) or is_stored(root, real)


def is_stored(root: Path, real: Path) -> bool:
    """Whether `real` (links followed) lies in the store that belongs to `root` (resolved)."""
    return any(real.is_relative_to(store) for store in _stores(str(root)))


@functools.lru_cache(maxsize=64)
def _stores(root: str) -> tuple[Path, ...]:
    """The stores of files' bytes that the folder `root` is a view of."""
    found, below = [], Path(root)
    for folder in (below, *below.parents):
        candidates = [folder / ".git" / "annex" / "objects"]
        # a revision's folder lies between: snapshots/<revision>
        if folder.name == "snapshots" and folder != below:
            candidates.append(folder.parent / "blobs")
        found += [store for store in candidates if _is_real_folder(store)]
    return tuple(found)


def _is_real_folder(path: Path) -> bool:
    """Whether a folder is there, and no part of its path that a stranger may have written is a link."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode) and path.resolve() == path
    except OSError:
        return False


def snapshot_in(folder: Path) -> Path:
    """The snapshot to read in a hub's cache folder: of a data set, its `snapshots`, or the cache of one data set alone.

    Any other folder is given back as it is. Raises ValueError when there are several and none is named as the main one,
    and where the store of bytes is a link.
    """
    if folder.name == "snapshots" and is_hub_folder(folder.parent):
        folder = folder.parent
    if not is_hub_folder(folder):
        below = _data_sets(folder)
        if not below:
            return folder
        if len(below) > 1:
            raise ValueError(f"{folder} is a hub's cache of {len(below)} data sets: give one of them ({_some(below)})")
        folder = below[0]
    there = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir() and not path.is_symlink())
    try:
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    named = [path for path in there if path.name == main] or there
    if len(named) != 1:
        names = _some(there) or "none"
        raise ValueError(f"{folder} is a hub's cache folder of several or no snapshots: give one of them ({names})")
    return named[0]


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder is that of one data set in a hub's cache: views of revisions beside the bytes they share."""
    return (folder / "snapshots").is_dir() and (folder / "blobs").is_dir()


def _data_sets(folder: Path) -> list[Path]:
    """The data sets in a cache folder, which may hold models as well."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith("datasets--"))
    except OSError:
        return []
    return [folder / name for name in names if is_hub_folder(folder / name)]


def _some(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths[:4]) + (", ..." if len(paths) > 4 else "")


def linked_store(root: Path) -> str:
    """What to do where the store of a snapshot's bytes is itself a link, which is not followed; "" where it is none."""
    for folder in (root, *root.parents):
        blobs = folder.parent / "blobs"
        if folder.name == "snapshots" and blobs.is_symlink():
            return (
                f"{str(blobs)!r} is a link to another place, which is not followed: move the data set's whole folder "
                "there and give that, or copy the files by `cp -rL SNAPSHOT NEW` and give NEW"
            )
    return ""


def resolve_user_path(path: Path) -> Path:
    """The file that a path a person gave leads to, with its own name and place where its bytes lie in a store.

    Each link on the way is followed; one into the store of the folder that it lies in stands for the file itself.
    """
    path = path.absolute()
    for _ in range(40):
        above = path.parent.resolve()
        here = above / path.name
        if not here.is_symlink() or is_stored(above, here.resolve()):
            return here
        path = above / os.readlink(here)
    return path.resolve()


def dangling_link_hint(path: str | Path) -> str:
    """What to do about the link `path` whose target is not there, as the end of a message; empty when it is unknown."""
    try:
        target = os.readlink(path)
    except OSError:
        return ""
    if ".git/annex/objects/" in target:
        return "its content is not in this copy: `git annex get` fetches it"
    if "/blobs/" in target:
        if linked := linked_store(Path(path).absolute().parent):
            return linked
        return "its download is not complete: download the data set again"
    return ""
