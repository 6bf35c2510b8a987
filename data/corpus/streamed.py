"""A corpus at a URL: its index on this machine, the arrays of its shards fetched when they are read.

    upload_corpus("corpus", "s3://bucket/corpus")     after `brine data build`; whole or absent
    local_corpus("s3://bucket/corpus")                a folder that `EncodedCorpus.open` opens

The folder holds index, documents, tokenizer, filter log and `streamed.json`: the URL, and the list of all files with
their SHA-256 as they were when it was made, so that another corpus under the same URL never mixes into it. Arrays go
through the cache of objects (`brine.common.remote.cache`), which may be smaller than the corpus and shared by loader
workers and by other processes; one that was evicted is fetched again.
"""

import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from brine.common.content_store import file_lock
from brine.common.files import read_json, write_json
from brine.common.remote.cache import LOCK_TIMEOUT_S, ObjectCache, cache_root, sha256_of
from brine.common.remote.folder_store import FolderStore, StoredFolder, UploadResult
from brine.common.remote.object_store import RemoteError, url_of
from brine.data.sequence import FIELDS

STREAMED_FILE = "streamed.json"
NAME = "corpus"
_ARRAYS = {f"{name}.npy" for name in FIELDS}


def upload_corpus(folder: Path, url: str) -> UploadResult:
    """Upload a finished corpus. Raises RemoteError where it is not one, or the store fails."""
    if not (folder / "meta.json").is_file():
        raise RemoteError(f"{folder} holds no finished corpus: build it first")
    # of a build that was replaced, or of one that is streamed itself
    skipped = (STREAMED_FILE, "building.json")
    if (folder / STREAMED_FILE).is_file():
        raise RemoteError(f"{folder} is itself the local part of a corpus at a URL: use that URL")
    return FolderStore(url).upload(
        folder, NAME, keep=lambda path: path not in skipped and not path.rpartition("/")[2].startswith(".")
    )


def local_corpus(path: str | Path) -> Path:
    """A folder of this machine with the corpus at a URL, made if it is not there; other paths come back as they are.

    Raises RemoteError where the URL has no complete corpus.
    """
    if (url := url_of(path)) is None:
        return Path(path)
    found = FolderStore(url).find(NAME)
    if found is None:
        raise RemoteError(f"{url} holds no complete corpus: upload one with `brine data build ... --out {url}`")
    return _index_folder(url, found, cache_root())


def has_corpus(url: str | Path) -> bool:
    """Whether a URL holds a complete corpus."""
    return FolderStore(url).find(NAME) is not None


def _index_folder(url: str, found: StoredFolder, root: Path) -> Path:
    folder = root / "corpora" / sha256_of(f"{url}\0{found.digest}".encode())[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    if "meta.json" not in found.files:
        raise RemoteError(f"{url} lists no meta.json: upload the corpus again")
    with file_lock(folder.with_name(f"{folder.name}.lock"), what=url, timeout_s=LOCK_TIMEOUT_S):
        if not (folder / STREAMED_FILE).is_file():
            FolderStore(url).download(found, folder, paths=[path for path in found.files if not _is_array(path)])
            write_json(folder / STREAMED_FILE, {"url": url, "list": found.to_bytes().decode()})
    return folder


def _is_array(path: str) -> bool:
    shards, _, rest = path.partition("/")
    return shards == "shards" and rest.count("/") == 1 and rest.rpartition("/")[2] in _ARRAYS


class StreamedShards:
    """Arrays of a corpus's shards, fetched when they are read. Of those in the cache some are kept open."""

    def __init__(self, folder: Path, url: str, listed: StoredFolder, cache: ObjectCache):
        self.folder, self.cache, self.listed = folder, cache, listed
        self.store = FolderStore(url)
        self.max_open_bytes = cache.max_bytes // 4
        self._open: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock, self._pid = threading.Lock(), os.getpid()

    @classmethod
    def of(cls, folder: Path) -> "StreamedShards | None":
        """Those of a corpus folder that `local_corpus` made; None for any other folder."""
        noted = read_json(folder / STREAMED_FILE)
        if noted is None:
            return None
        listed = StoredFolder.parse(noted["list"].encode(), what=str(folder / STREAMED_FILE))
        return cls(folder, noted["url"], listed, ObjectCache())

    def array(self, path: Path) -> np.ndarray:
        """The array that would lie at a path of the folder. Raises OSError or ValueError where it cannot be had."""
        name = path.relative_to(self.folder).as_posix()
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()
        with self._lock:
            if name not in self._open:
                self._open[name] = self._load(name)
            self._open.move_to_end(name)
            while len(self._open) > 1 and sum(each.nbytes for each in self._open.values()) > self.max_open_bytes:
                self._open.popitem(last=False)
            return self._open[name]

    def _load(self, name: str) -> np.ndarray:
        if name not in self.listed.files:
            raise RemoteError(f"{self.store.url} lists no {name}: upload the corpus again")
        for _ in range(5):
            path = self.store.fetch(self.listed, name, self.cache)
            try:
                return np.load(path, mmap_mode="r", allow_pickle=False)
            # evicted by another process before it was opened
            except FileNotFoundError:
                continue
        raise RemoteError(f"the cache {self.cache.root} is too small for its readers: raise BRINE_CACHE_GIB")

    def close(self) -> None:
        """Close the arrays that are open."""
        self._open.clear()
