"""Folders kept below a URL, each whole or absent: files by their SHA-256, then a list of them as the last object.

    <url>/objects/ab/<sha256>    one file's content, kept once whatever the number of folders that have it
    <url>/<name>.folder.json     {"format", "files": {path: [bytes, sha256]}, ...}: the folder `name`, complete

A kill in mid-upload leaves objects that no list names, and the next upload skips those that are there; a folder that
is uploaded again under its name is replaced at once, since its former objects stay until they are deleted. Downloads
compare every file with its SHA-256. Lists come from outside: their paths stay below the folder and their sizes are
bounded by the cache. What a download that was killed or failed leaves, `.NAME.downloading`, the next one continues.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brine.common.files import file_digest, sync_folder
from brine.common.remote.cache import ObjectCache, download_checked, sha256_of
from brine.common.remote.object_store import MissingObjectError, ObjectStore, RemoteConfig, RemoteError, check_name

FORMAT = 1
SUFFIX = ".folder.json"
DOWNLOADING = ".downloading"
"""How the name of a folder ends that is being downloaded; it begins with a dot."""
THREADS = 8


@dataclass(frozen=True)
class StoredFolder:
    """The list of a folder's files."""

    name: str
    files: dict[str, tuple[int, str]]
    """Relative path -> bytes and SHA-256."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What whoever uploaded it noted, plain JSON."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    def to_bytes(self) -> bytes:
        """The object's content; equal folders have equal bytes."""
        value = {"format": FORMAT, "name": self.name, "files": self.files, "extra": self.extra}
        return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=0).encode()

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the list, and so of the whole folder."""
        return sha256_of(self.to_bytes())

    @classmethod
    def parse(cls, content: bytes, *, what: str) -> "StoredFolder":
        """The list in an object's content. Raises RemoteError for anything else."""
        try:
            value = json.loads(content)
            if value["format"] != FORMAT:
                raise RemoteError(f"{what} has format {value['format']}, not {FORMAT}: use the version that wrote it")
            files = {}
            for path, (size, sha256) in value["files"].items():
                check_name(path)
                if type(size) is not int or size < 0 or len(sha256) != 64 or int(sha256, 16) < 0:
                    raise ValueError
                files[path] = (size, sha256)
            if not isinstance(value["extra"], dict) or not isinstance(value["name"], str):
                raise ValueError
            return cls(value["name"], files, value["extra"])
        except RemoteError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RemoteError(f"{what} is not a list of files: upload the folder again") from None


@dataclass(frozen=True)
class UploadResult:
    """What an upload did."""

    folder: StoredFolder
    uploaded: int
    """Files whose content was not there."""
    uploaded_bytes: int


class FolderStore:
    """Folders below a URL."""

    def __init__(self, url: str | Path, config: RemoteConfig | None = None):
        self.objects = ObjectStore(url, config)
        self.url = self.objects.url

    def upload(
        self,
        folder: Path,
        name: str,
        *,
        extra: dict | None = None,
        keep: Callable[[str], bool] = lambda path: True,
        stopped: Callable[[], bool] = lambda: False,
    ) -> UploadResult:
        """Upload a folder that nobody writes to: objects first, its list last. keep: which relative paths to take.
        stopped: asked before each file, by other threads; where it is true, the upload ends.

        Links to files are followed. Raises RemoteError where an object cannot be written, where a file changes
        meanwhile, and where the upload was stopped.
        """
        folder, paths = Path(folder), []
        for parent, folders, names in os.walk(folder, followlinks=False):
            folders.sort()
            paths += [Path(parent, name).relative_to(folder).as_posix() for name in names]
        paths = sorted(path for path in paths if keep(path) and (folder / path).is_file())
        for path in paths:
            check_name(path)

        def upload(path: str) -> tuple[int, str, bool]:
            if stopped():
                raise RemoteError(f"the upload of {name} to {self.url} was stopped: upload the folder again")
            return self._upload_file(folder / path)

        with ThreadPoolExecutor(THREADS, thread_name_prefix="upload") as threads:
            found = list(threads.map(upload, paths))
        files = {path: (size, sha256) for path, (size, sha256, _) in zip(paths, found, strict=True)}
        listed = StoredFolder(name, files, extra or {})
        self.objects.write(f"{name}{SUFFIX}", listed.to_bytes())
        new = [size for size, _, is_new in found if is_new]
        return UploadResult(listed, len(new), sum(new))

    def _upload_file(self, path: Path) -> tuple[int, str, bool]:
        before, sha256 = path.stat(), file_digest(path)
        name, size = _object_name(sha256), before.st_size
        info = self.objects.info(name)
        is_new = info is None or info.size != size
        if is_new:
            self.objects.upload(path, name)
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
            raise RemoteError(f"{path} changed while it was uploaded: upload the folder when nobody writes to it")
        return size, sha256, is_new

    def put_list(self, name: str, extra: dict) -> None:
        """Write a list without files, for what it notes alone."""
        self.objects.write(f"{name}{SUFFIX}", StoredFolder(name, {}, extra).to_bytes())

    def find(self, name: str) -> StoredFolder | None:
        """The list of a complete folder; None where there is none."""
        key = f"{name}{SUFFIX}"
        try:
            return StoredFolder.parse(self.objects.read(key), what=self.objects.address(key))
        except MissingObjectError:
            return None

    def names(self, below: str = "") -> list[str]:
        """Names of the complete folders, in order; below: a prefix folder."""
        return [name.removesuffix(SUFFIX) for name in self.objects.list(below) if name.endswith(SUFFIX)]

    def fetch(self, folder: StoredFolder, path: str, cache: ObjectCache) -> Path:
        """Path in the cache of one of a folder's files. Open it at once."""
        size, sha256 = folder.files[path]
        name = _object_name(sha256)
        download = lambda target: self.objects.download(name, target, size=size)  # noqa: E731
        return cache.fetch(sha256, size, download, what=self._what(folder, path))

    def _what(self, folder: StoredFolder, path: str) -> str:
        return f"{self.objects.address(_object_name(folder.files[path][1]))} ({path} of {folder.name})"

    def download(self, stored: StoredFolder, folder: Path, *, paths: Iterable[str] | None = None) -> None:
        """Download files of a folder into a new one, which appears by rename, each compared with its SHA-256.

        What an earlier download left is used where it is the same, and else deleted."""
        folder = Path(folder)
        partial = folder.with_name(f".{folder.name}{DOWNLOADING}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        wanted = sorted(stored.files if paths is None else paths)
        # of equal files, one after another: a store in memory gives its readers one position
        groups: dict[str, list[str]] = {}
        for path in wanted:
            groups.setdefault(stored.files[path][1], []).append(path)

        def download(paths: list[str]) -> None:
            for path in paths:
                self._download_file(stored, path, partial / path)

        with ThreadPoolExecutor(THREADS, thread_name_prefix="download") as threads:
            list(threads.map(download, groups.values()))
        keep_only(partial, set(wanted))
        try:
            os.rename(partial, folder)
        except OSError:
            # another process was first
            if not folder.exists():
                raise
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(folder.parent)

    def _download_file(self, stored: StoredFolder, path: str, target: Path) -> None:
        size, sha256 = stored.files[path]
        if target.is_file() and target.stat().st_size == size and file_digest(target) == sha256:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        name, partial = _object_name(sha256), target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
        try:
            download_checked(
                lambda to: self.objects.download(name, to, size=size), partial, size=size, sha256=sha256,
                what=self._what(stored, path),
            )  # fmt: skip
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self, name: str, *, among: Iterable[str]) -> None:
        """Delete a folder: its list first, then the objects that no list of `among` names. Only for a URL that has one
        writer, since a folder on its way elsewhere may count on an object that goes."""
        doomed = self.find(name)
        self.objects.delete(f"{name}{SUFFIX}")
        if doomed is None:
            return
        others = [self.find(other) for other in among if other != name]
        kept = {sha256 for other in others if other is not None for _, sha256 in other.files.values()}
        for sha256 in {sha256 for _, sha256 in doomed.files.values()} - kept:
            self.objects.delete(_object_name(sha256))


def keep_only(folder: Path, names: Container[str]) -> None:
    """Delete the files and links below a folder whose relative paths are not among `names`, and folders that are empty
    then. Links are not followed."""
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in [*files, *folders]:
            path = Path(parent, name)
            if path.is_dir() and not path.is_symlink():
                # one that holds something stays
                with contextlib.suppress(OSError):
                    path.rmdir()
            elif path.relative_to(folder).as_posix() not in names:
                path.unlink(missing_ok=True)


def _object_name(sha256: str) -> str:
    return f"objects/{sha256[:2]}/{sha256}"
