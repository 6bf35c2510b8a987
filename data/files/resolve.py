"""The real file behind a path, checked before it is opened, and what to do about one that is missing.

A link may lead to a file in the same root, or into the store of hashed bytes that the root is a view of:

    datasets--org--name/snapshots/<revision>/a.tar -> ../../blobs/<hash>        a download of the Hugging Face hub
    repository/images/a.png -> ../.git/annex/objects/../<key>                   a repository of git-annex or DataLad

The store is derived from the root's path; one that is a link itself, or another data set's, is refused. Files are
checked by stat alone, so that a pipe or a device cannot block; only those below 1 KiB, perhaps pointers, are read.
`archive_hint` looks for a packed `images.zip` in the folders of a missing path (the first 5,000 names of each).
"""

import functools
import itertools
import os
import re
import shlex
import stat
from pathlib import Path

from brine.data.files.addresses import DocumentError, check_relative
from brine.data.files.compressed import is_split_part, split_part_hint
from brine.data.files.extensions import stem_of
from brine.data.files.pointers import MAX_BYTES, missing_file_hint, pointer_in
from brine.data.files.roots import MediaRoots, locate

_UNPACK = (
    (r"\.zip$", "unzip {}"),
    (r"\.7z$", "7z x {}"),
    (r"\.rar$", "unrar x {}"),
    (r"\.(tar|tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst|lz4))$", "tar -xf {}"),
)
# parts of split lines or tables hold no media
_PART_OF_ARCHIVE = re.compile(r"\.(zip|z\d\d|tar|tgz|tbz2?|txz|7z|rar)(\.|$)", re.IGNORECASE)


def resolve_media(root: Path | MediaRoots, path: str, *, max_file_mib: float) -> Path:
    """The real file of a manifest path below `root`: regular, not empty, at most `max_file_mib`.

    Raises DocumentError.
    """
    given = check_relative(path)
    root, path = locate(root, path)
    try:
        real = Path(os.path.realpath(root / path, strict=True))
        status = os.stat(real)
        if not stays_within(root, real):
            problem = f"is a link out of the manifest's folder: {linked_store(root) or 'copy it here'}"
        elif not stat.S_ISREG(status.st_mode):
            problem = "is not a regular file"
        elif status.st_size == 0:
            problem = "is empty (0 bytes)"
        elif status.st_size > max_file_mib * 2**20:
            problem = f"has {status.st_size / 2**20:.0f} MiB, over max_file_mib={max_file_mib:g}"
        else:
            problem = pointer_in(real) if status.st_size < MAX_BYTES else ""
    except FileNotFoundError:
        if hint := dangling_link_hint(root / path):
            problem = f"is a link: {hint}"
        else:
            slashes = ", with its backslashes: write '/' between folders" if "\\" in path else ""
            problem = missing_file_hint(root / path) or f"does not exist{slashes or archive_hint(root, path)}"
    except OSError as error:
        problem = f"cannot be reached: {error.strerror}"
    if problem:
        raise DocumentError(f"file {given!r} {problem}")
    return real


def archive_hint(root: Path, path: str) -> str:
    """How to unpack the archive, in the nearest folder that has one, that may hold a missing file; "" for none."""
    folders = [part for part in os.path.normpath(path).split(os.sep)[:-1] if part]
    words = {word.lower() for word in (*folders, stem_of(path))}
    for depth in range(len(folders), -1, -1):
        folder = os.path.join(root, *folders[:depth])
        try:
            found = _archives(folder, os.stat(folder).st_mtime_ns)
        except OSError:
            continue
        if found:
            name = next((name for name in found if re.split(r"[._-]", name.lower())[0] in words), found[0])
            if is_split_part(name):
                return f"; an archive that may hold it {split_part_hint(name)}, then unpack it"
            archive = repr(os.path.join(*folders[:depth], "") + name) + (f" (one of {len(found)})" if found[1:] else "")
            command = _unpack_command(name).format(shlex.quote(name))
            return f"; the archive {archive} may hold it: unpack it in its folder by `{command}`"
    return ""


@functools.lru_cache(maxsize=1024)
def _archives(folder: str, _changed_ns: int) -> tuple[str, ...]:
    with os.scandir(folder) as files:
        named = [file for file in itertools.islice(files, 5000) if file.name.isprintable()]
        return tuple(sorted(file.name for file in named if _is_archive(file.name) and file.is_file()))


def _is_archive(name: str) -> bool:
    return bool(_unpack_command(name) or (is_split_part(name) and _PART_OF_ARCHIVE.search(name)))


def _unpack_command(name: str) -> str:
    return next((command for pattern, command in _UNPACK if re.search(pattern, name, re.IGNORECASE)), "")


def stays_within(root: Path, real: Path) -> bool:
    """Whether `real` (links followed) is in `root` (resolved) or in the store that belongs to it."""
    return real.is_relative_to(root) or is_stored(root, real)


def is_stored(root: Path, real: Path) -> bool:
    """Whether `real` (links followed) is in the store that belongs to `root` (resolved)."""
    return any(real.is_relative_to(store) for store in _stores(root))


@functools.lru_cache(maxsize=64)
def _stores(root: Path) -> tuple[Path, ...]:
    candidates = [folder / ".git" / "annex" / "objects" for folder in (root, *root.parents)]
    candidates += [folder.parent / "blobs" for folder in root.parents if folder.name == "snapshots"]
    # no part of the path that a stranger may have written is a link
    return tuple(path for path in candidates if os.path.isdir(path) and path.resolve() == path)


def snapshot_in(folder: Path) -> Path:
    """The snapshot to read in a hub's cache folder, else the folder. ValueError for several without a main one."""
    if folder.name == "snapshots" and is_hub_folder(folder.parent):
        folder = folder.parent
    if not is_hub_folder(folder):
        data_sets = sorted(path for path in folder.glob("datasets--*") if is_hub_folder(path))
        if not data_sets:
            return folder
        if len(data_sets) > 1:
            raise ValueError(
                f"{folder} is a hub's cache of {len(data_sets)} data sets: give one of them ({_some(data_sets)})"
            )
        folder = data_sets[0]
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir() and not path.is_symlink())
    try:
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    named = [path for path in snapshots if path.name == main] or snapshots
    if len(named) != 1:
        names = _some(snapshots) or "none"
        raise ValueError(f"{folder} is a hub's cache folder of several or no snapshots: give one of them ({names})")
    return named[0]


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder is that of one data set in a hub's cache: views of revisions beside the bytes they share."""
    return (folder / "snapshots").is_dir() and (folder / "blobs").is_dir()


def _some(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:4])) + (", ..." if len(paths) > 4 else "")


def linked_store(root: Path) -> str:
    """What to do where the store of a snapshot's bytes is a link, which is not followed; "" where it is not."""
    for folder in (root, *root.parents):
        blobs = folder.parent / "blobs"
        if folder.name == "snapshots" and blobs.is_symlink():
            return (
                f"{str(blobs)!r} is a link, which is not followed: move the data set's whole folder "
                "there and give that, or copy the files by `cp -rL SNAPSHOT NEW` and give NEW"
            )
    return ""


def dangling_link_hint(path: str | Path) -> str:
    """What to do about the link `path` whose target does not exist, as the end of a message; empty when unknown."""
    target = os.readlink(path) if os.path.islink(path) else ""
    if ".git/annex/objects/" in target:
        return "its content is not in this copy: `git annex get` fetches it"
    if "/blobs/" in target:
        linked = linked_store(Path(path).absolute().parent)
        return linked or "its download is not complete: download the data set again"
    return ""


def resolve_user_path(path: Path) -> Path:
    """The file that a user's path leads to; a link into the store of its folder keeps the link's name."""
    path = path.absolute()
    for _ in range(40):
        folder = path.parent.resolve()
        path = folder / path.name
        if not path.is_symlink() or is_stored(folder, path.resolve()):
            return path
        path = folder / os.readlink(path)
    return path.resolve()
