"""The files below a folder, in a fixed order (names byte by byte, folder by folder), without ever leaving it.

Nothing is opened; `lstat` decides. Folders behind links are not entered, nor those that tools made: version control,
packages, virtual environments, this project's runs and corpora. A link to a file inside is skipped, since its target is
listed anyway, except one with a media extension, which may belong to the text beside it; a link into the folder's store
(`brine.data.files.resolve`) is a regular file; a link that leads out, a pipe or a device is a problem with a reason.
"""

import copy
import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from brine.data.files.extensions import media_type_of
from brine.data.files.resolve import dangling_link_hint, is_hub_folder, is_stored, linked_store

MAX_DEPTH = 64  # folders inside folders that are entered; deeper ones are counted as skipped
_NEVER = {".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", "__MACOSX"}
# a tool made a folder that holds all of one of these; a run that has just begun holds only its lock
_MADE = ({"pyvenv.cfg"}, {"lock", "encoded"}, {"lock", "corpus"}, {"shards", "building.json"}, {"shards", "meta.json"})
_TOOLS = "folder of tools or too deep"


def walk(
    root: Path, *, enter: Callable[[str], bool] = lambda _: True, skipped: Counter | None = None
) -> Iterator[tuple[str, str]]:
    """(path, problem) of files below `root` (resolved). enter(path): whether to. ValueError if it cannot be listed."""
    try:
        os.scandir(root).close()
    except OSError as error:
        raise ValueError(f"folder {root} cannot be listed ({error.strerror}): change its permissions") from None
    yield from _below(root, "", 0, enter, Counter() if skipped is None else skipped)


class FolderListing:
    """What `walk` gives for a folder, remembered; it is walked only as far as somebody has iterated."""

    def __init__(self, root: Path):
        self.root = root
        self._items = itertools.tee(walk(root), 1)[0]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return copy.copy(self._items)

    def first_problem(self) -> str:
        """The first visible file with a problem, as the end of a sentence; "" without one."""
        return next((f", but {name!r} {why}" for name, why in self if why and not name.startswith(".")), "")

    def open(self) -> Iterator[tuple[str, str]]:
        """Those that are not below a hidden folder."""
        return ((name, why) for name, why in self if "/." not in f"/{name.rpartition('/')[0]}")


def is_visible(folder: str) -> bool:
    """Whether a folder's name does not hide it."""
    return not os.path.basename(folder).startswith(".")


def _below(root: Path, folder: str, depth: int, enter: Callable, skipped: Counter) -> Iterator[tuple[str, str]]:
    try:
        names = sorted(os.listdir(root / folder), key=os.fsencode)
    except OSError:
        skipped["unreadable folder"] += 1
        return
    if depth and (names == ["lock"] or any(made.issubset(names) for made in _MADE)):
        skipped[_TOOLS] += 1
        return
    # bytes under hash names, of all revisions; a snapshot's names say what they are
    is_hub = {"blobs", "snapshots"}.issubset(names) and is_hub_folder(root / folder)
    for name in names:
        path = f"{folder}/{name}" if folder else name
        if is_hub and name in ("blobs", "snapshots"):
            skipped["folder of a hub's cache: give it separately"] += name == "snapshots"
            continue
        try:
            mode = os.lstat(root / path).st_mode
        except OSError:
            skipped["gone while reading"] += 1
            continue
        if stat.S_ISDIR(mode):
            if name in _NEVER or depth >= MAX_DEPTH:
                skipped[_TOOLS] += 1
            elif enter(path):
                yield from _below(root, path, depth + 1, enter, skipped)
        elif not path.isprintable() or len(path) > 900:
            yield path.encode("ascii", "backslashreplace").decode()[:900], "has an unprintable or overlong name"
        elif not stat.S_ISLNK(mode):
            yield path, "" if stat.S_ISREG(mode) else "is not a regular file"
        elif (problem := _link_problem(root, path)) is not None:
            yield path, problem
        else:
            skipped["link to something in the folder"] += 1


def _link_problem(root: Path, path: str) -> str | None:
    """Why a link is not a file to be read; empty when it is one, None for one whose target is listed anyway."""
    try:
        real = Path(os.path.realpath(root / path, strict=True))
    except OSError as error:
        return f"is a link that leads nowhere ({dangling_link_hint(root / path) or error.strerror})"
    if is_stored(root, real):
        return "" if real.is_file() else "is not a regular file"
    if not real.is_relative_to(root):
        return f"is a link out of the folder: {linked_store(root) or 'copy it here, or give that folder'}"
    return "" if media_type_of(path) is not None and real.is_file() else None
