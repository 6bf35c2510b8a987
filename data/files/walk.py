"""The files below a folder, in a fixed order (names byte by byte, folder by folder), without ever leaving it.

Decided by `lstat` alone; nothing is opened. Folders behind links are not entered. A link to a file inside is skipped,
since its target is met anyway, but for one with a medium's extension, which may belong to the text beside it; a link
into the store of a hub's snapshot or of git-annex (`brine.data.files.links`) is a plain file; a link that leads out, a
pipe or a device is a problem with a reason. Folders that tools made are not entered either: version control, installed
packages, virtual environments, and this project's own runs and encoded corpora, which may lie inside their source.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from brine.data.files.extensions import media_type_of
from brine.data.files.links import dangling_link_hint, is_hub_folder, is_stored, linked_store

MAX_DEPTH = 64
"""Folders inside folders that are entered; deeper ones are counted as skipped."""
_NEVER = frozenset({".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", "__MACOSX"})
# a folder that holds all of one of these was made by a tool; a run that has just begun holds its lock alone
_MADE = tuple(map(frozenset, (["pyvenv.cfg"], ["lock", "encoded"], ["lock", "corpus"], ["shards", "building.json"])))
_MADE += (frozenset({"shards", "meta.json"}),)


def walk(
    root: Path, *, enter: Callable[[str], bool] | None = None, skipped: Counter | None = None
) -> Iterator[tuple[str, str]]:
    """(path, problem) of the files below `root` (resolved); `enter` is asked about each folder by its path.

    Raises ValueError when the folder itself cannot be listed.
    """
    skipped = Counter() if skipped is None else skipped
    try:
        os.scandir(root).close()
    except OSError as error:
        raise ValueError(f"folder {root} cannot be listed ({error.strerror}): change its permissions") from None
    yield from _below(root, "", 0, enter or (lambda _: True), skipped)


class FolderListing:
    """What `walk` gives for a folder, remembered and no further than somebody has iterated."""

    def __init__(self, root: Path):
        self.root = root
        self._seen: list[tuple[str, str]] = []
        self._rest = walk(root)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        number = 0
        while True:
            if number == len(self._seen):
                item = next(self._rest, None)
                if item is None:
                    return
                self._seen.append(item)
            yield self._seen[number]
            number += 1

    def first_problem(self) -> str:
        """The first entry that is no file to be read, and why, as the end of a sentence; "" where all are files."""
        return next((f", but {name!r} {why}" for name, why in self if why and not name.startswith(".")), "")

    def open(self) -> Iterator[tuple[str, str]]:
        """Those below no hidden folder."""
        return ((name, why) for name, why in self if "/." not in f"/{name.rpartition('/')[0]}")


def is_visible(folder: str) -> bool:
    """Whether a folder's name does not hide it."""
    return not os.path.basename(folder).startswith(".")


def _below(
    root: Path, folder: str, depth: int, enter: Callable[[str], bool], skipped: Counter
) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(root / folder) as entries:
            names = sorted((entry.name for entry in entries), key=os.fsencode)
    except OSError:
        skipped["unreadable folder"] += 1
        return
    if depth and (names == ["lock"] or any(made.issubset(names) for made in _MADE)):
        skipped["folder of tools or too deep"] += 1
        return
    # bytes under hash names, of all revisions; what they are, a snapshot's names say
    is_hub = {"blobs", "snapshots"}.issubset(names) and is_hub_folder(root / folder)
    for name in names:
        path = f"{folder}/{name}" if folder else name
        if is_hub and name in ("blobs", "snapshots"):
            skipped["folder of a hub's cache: give it by itself"] += name == "snapshots"
            continue
        try:
            mode = os.lstat(root / path).st_mode
        except OSError:
            skipped["gone while reading"] += 1
            continue
        if stat.S_ISDIR(mode):
            if name in _NEVER or depth >= MAX_DEPTH:
                skipped["folder of tools or too deep"] += 1
            elif enter(path):
                yield from _below(root, path, depth + 1, enter, skipped)
        elif not path.isprintable() or len(path) > 900:
            yield path.encode("ascii", "backslashreplace").decode()[:900], "has an unprintable or overlong name"
        elif stat.S_ISLNK(mode):
            problem = _link_problem(root, path, skipped)
            if problem is not None:
                yield path, problem
        else:
            yield path, "" if stat.S_ISREG(mode) else "is not a regular file"


def _link_problem(root: Path, path: str, skipped: Counter) -> str | None:
    """Why a link is no file to be read; empty when it is one, None for one whose target is met anyway."""
    try:
        real = Path(os.path.realpath(root / path, strict=True))
    except OSError as error:
        return f"is a link that leads nowhere ({dangling_link_hint(root / path) or error.strerror})"
    if is_stored(root, real):
        return "" if real.is_file() else "is not a regular file"
    if not real.is_relative_to(root):
        return f"is a link out of the folder: {linked_store(root) or 'copy it here, or give its own folder'}"
    # a medium may lie under another name beside its words; of texts and tables one is enough
    if media_type_of(path) is not None and real.is_file():
        return ""
    skipped["link to something in the folder"] += 1
    return None
