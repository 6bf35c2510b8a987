"""The real file of a media path, checked before it is opened, and what to do about one that is missing.

After following links a file must lie in its root, or in the store that the root is a view of
(`brine.data.files.links`). It is examined by stat only, so that a pipe or a device cannot block; one below 1 KiB is
read, since it may be a pointer to content that was not fetched (`brine.data.files.pointers`).

Data sets are published as a table and `images.zip`: every line then names a missing file. `archive_hint` looks for such
an archive in the folders of the path; only names are read, the first 5,000 of a folder, once while it does not change.
"""

import functools
import os
import re
import shlex
import stat
from pathlib import Path

from brine.data.errors import DocumentError
from brine.data.files.addresses import check_relative
from brine.data.files.compressed import is_split_part, split_part_hint
from brine.data.files.links import dangling_link_hint, linked_store, stays_within
from brine.data.files.pointers import MAX_BYTES, missing_file_hint, pointer_in

_UNPACK = (
    (re.compile(r"\.zip$", re.I), "unzip {name}"),
    (re.compile(r"\.7z$", re.I), "7z x {name}"),
    (re.compile(r"\.rar$", re.I), "unrar x {name}"),
    (re.compile(r"\.(tar|tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst|lz4))$", re.I), "tar -xf {name}"),
)
_MAX_NAMES = 5000
# parts of split lines or tables hold no media
_ARCHIVES = re.compile(r"\.(zip|z\d\d|tar|tgz|tbz2?|txz|7z|rar)(\.|$)", re.IGNORECASE)


def resolve_media(root: Path, path: str, *, max_file_mib: float) -> Path:
    """The real file of a manifest path below `root` (resolved): regular, not empty, of at most `max_file_mib`.

    Raises DocumentError with the reason.
    """
    check_relative(path)
    try:
        real = Path(os.path.realpath(root / path, strict=True))
        status = os.stat(real)
    except FileNotFoundError:
        raise DocumentError(f"file {path!r} {_missing_reason(root, path)}") from None
    except OSError as error:
        raise DocumentError(f"file {path!r} cannot be reached: {error.strerror}") from None
    if not stays_within(root, real):
        remedy = linked_store(root) or "copy it here"
        raise DocumentError(f"file {path!r} is a link out of the manifest's folder: {remedy}")
    if not stat.S_ISREG(status.st_mode):
        raise DocumentError(f"file {path!r} is not a regular file")
    if status.st_size == 0:
        raise DocumentError(f"file {path!r} is empty (0 bytes)")
    if status.st_size > max_file_mib * 2**20:
        raise DocumentError(f"file {path!r} has {status.st_size / 2**20:.0f} MiB, over max_file_mib={max_file_mib:g}")
    if status.st_size < MAX_BYTES:
        try:
            pointer = pointer_in(real)
        except OSError as error:
            raise DocumentError(f"file {path!r} cannot be read ({error.strerror})") from None
        if pointer:
            raise DocumentError(f"file {path!r} {pointer}")
    return real


def _missing_reason(root: Path, path: str) -> str:
    if hint := dangling_link_hint(root / path):
        return f"is a link: {hint}"
    slashes = ", with its backslashes: write '/' between folders" if "\\" in path else ""
    return missing_file_hint(root / path) or f"does not exist{slashes or archive_hint(root, path)}"


def archive_hint(root: Path, path: str) -> str:
    """How to unpack the archive that may hold the missing file `path`; "" where no archive lies on the way.

    The nearest folder counts; in it an archive named like a folder or file of the path comes first.
    """
    folders = [part for part in os.path.normpath(path).split(os.sep)[:-1] if part]
    words = {word.lower() for word in (*folders, os.path.splitext(os.path.basename(path))[0])}
    for depth in range(len(folders), -1, -1):
        folder = os.path.join(root, *folders[:depth])
        try:
            found = _archives(folder, os.stat(folder).st_mtime_ns)
        except OSError:
            continue
        if found:
            name = next((name for name in found if re.split(r"[._-]", name.lower())[0] in words), found[0])
            if is_split_part(name):
                return f"; the archive that lies there {split_part_hint(name)}, then unpack it"
            place = repr(os.path.join(*folders[:depth], "") + name)
            others = f" (one of {len(found)})" if len(found) > 1 else ""
            command = _unpack_command(name).format(name=shlex.quote(name))
            return f"; the archive {place}{others} lies there: unpack it in its folder by `{command}`"
    return ""


@functools.lru_cache(maxsize=1024)
def _archives(folder: str, changed_ns: int) -> tuple[str, ...]:
    """Names of the archives, and of parts of split ones, in a folder as it was at `changed_ns`."""
    with os.scandir(folder) as entries:
        names = [entry for _, entry in zip(range(_MAX_NAMES), entries, strict=False) if entry.name.isprintable()]
        return tuple(sorted(entry.name for entry in names if _is_archive(entry.name) and entry.is_file()))


def _is_archive(name: str) -> bool:
    return bool(_unpack_command(name) or (is_split_part(name) and _ARCHIVES.search(name)))


def _unpack_command(name: str) -> str:
    return next((command for pattern, command in _UNPACK if pattern.search(name)), "")
