"""Why a file may be missing: it still lies in an archive in one of the folders that its path leads through.

    archive_beside(root, "images/a.jpg")    "; the archive 'images.zip' lies there: unpack it by `unzip images.zip` ..."

Data sets are published as a table of words and `images.zip`; every line then names a file that is not there. Nothing is
opened: names of folders are read, each once while it does not change, the first _LOOKED_AT of each. An archive whose
name is that of a folder or file on the path is taken for the right one before others.
"""

import functools
import os
import re
import shlex
from pathlib import Path

_COMMANDS = (
    (re.compile(r"\.zip$", re.I), "unzip {name}"),
    (re.compile(r"\.7z$", re.I), "7z x {name}"),
    (re.compile(r"\.rar$", re.I), "unrar x {name}"),
    (re.compile(r"\.(tar|tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst|lz4))$", re.I), "tar -xf {name}"),
)
_LOOKED_AT = 5000

# a piece of lines or of a table holds no media
_ARCHIVES = re.compile(r"\.(zip|z\d\d|tar|tgz|tbz2?|txz|7z|rar)(\.|$)", re.IGNORECASE)


def archive_beside(root: Path, path: str) -> str:
    """What to do about a file that is not there, where an archive or a piece of one is; "" where none is."""
    folders = [part for part in os.path.normpath(path).split(os.sep)[:-1] if part]
    words = {word.lower() for word in (*folders, os.path.splitext(os.path.basename(path))[0])}
    for depth in range(len(folders), -1, -1):
        folder = os.path.join(root, *folders[:depth])
        try:
            found = _archives(folder, os.stat(folder).st_mtime_ns)
        except OSError:
            continue
        if found:
            named = [name for name in found if re.split(r"[._-]", name.lower())[0] in words]
            return _told((named or found)[0], len(found), os.path.join(*folders[:depth], ""))
    return ""


@functools.lru_cache(maxsize=1024)
def _archives(folder: str, changed_ns: int) -> tuple[str, ...]:
    """Names of the archives in a folder as it was at a time, and of pieces of them."""
    from data.compressed import is_piece

    found = []
    with os.scandir(folder) as entries:
        for _, entry in zip(range(_LOOKED_AT), entries, strict=False):
            name = entry.name
            if (
                name.isprintable()
                and (_command(name) or (is_piece(name) and _ARCHIVES.search(name)))
                and entry.is_file()
            ):
                found.append(name)
    return tuple(sorted(found))


def _command(name: str) -> str:
    return next((command for pattern, command in _COMMANDS if pattern.search(name)), "")


def _told(name: str, count: int, folder: str) -> str:
    from data.compressed import is_piece, piece_remedy

    others = f" (one of {count})" if count > 1 else ""
    if is_piece(name):
        return f"; the archive that lies there {piece_remedy(name)}, then unpack it"
    command = _command(name).format(name=shlex.quote(name))
    return f"; the archive {folder + name!r}{others} lies there: unpack it in its folder by `{command}`"
