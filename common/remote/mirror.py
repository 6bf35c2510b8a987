"""A source of documents at a URL, copied to the cache folder and read there like any other.

    ROOT/sources/<sha256 of the URL>/data/...     the objects under their names
                                     mirror.json  {object: [bytes, tag of the store, SHA-256 of the copy]}

The next call lists the objects again and copies those whose size or tag (an ETag, or a time of change) differ; what is
not at the URL goes here too, also what a call that was killed had copied. A copy that was cut short or altered on this
disk is noticed by size and SHA-256 and made again. Names of objects are plain relative paths, or an error; count and
size are bounded.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from brine.common.content_store import file_lock
from brine.common.files import file_digest, read_json, write_json
from brine.common.formatting import counted
from brine.common.remote.cache import LOCK_TIMEOUT_S, cache_bytes, cache_root, sha256_of
from brine.common.remote.folder_store import keep_only
from brine.common.remote.object_store import ObjectInfo, ObjectStore, RemoteError, check_name, url_of

MAX_OBJECTS = 10_000_000
THREADS = 8


def mirror(url: str | Path, *, root: Path | None = None, max_bytes: int | None = None) -> Path:
    """The local copy of an object or of all objects below a prefix, brought up to date; a file or a folder.

    max_bytes: most that it may take (BRINE_CACHE_GIB). Raises RemoteError where there is nothing at the URL, it is
    larger, or a name is not a plain relative path.
    """
    given, root = url_of(url), cache_root() if root is None else root
    if given is None:
        raise RemoteError(f"{url} is not a URL")
    max_bytes = cache_bytes() if max_bytes is None else max_bytes
    parent, _, last = given.rpartition("/")
    single = ObjectStore(parent).info(last) if parent and not parent.endswith(":/") and last else None
    store = ObjectStore(given if single is None else parent)
    objects = store.list() if single is None else {last: single}
    # what a console leaves for an empty folder
    objects = {name: info for name, info in objects.items() if not name.endswith("/")}
    if not objects:
        raise RemoteError(f"{given} holds no object: see its address and bucket")
    total = sum(info.size for info in objects.values())
    if len(objects) > MAX_OBJECTS or total > max_bytes:
        raise RemoteError(
            f"{given} has {counted(len(objects), 'object')} of {counted(total, 'byte')}, more than {MAX_OBJECTS:,} or "
            f"{max_bytes:,}: name a part of it, or raise BRINE_CACHE_GIB"
        )
    for name in objects:
        check_name(name)
    folder = root / "sources" / sha256_of(given.encode())[:32]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "lock", what=given, timeout_s=LOCK_TIMEOUT_S):
        _copy(store, objects, folder)
    return folder / "data" / last if single is not None else folder / "data"


def _copy(store: ObjectStore, objects: dict[str, ObjectInfo], folder: Path) -> None:
    noted: dict[str, list] = read_json(folder / "mirror.json") or {}
    data, lock = folder / "data", threading.Lock()
    changed = [name for name, info in objects.items() if not _is_copied(data / name, info, noted.get(name))]
    gone = [name for name in noted if name not in objects]

    def copy(name: str) -> None:
        target, size = data / name, objects[name].size
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name[:100]}.{os.getpid()}.partial")
        try:
            store.download(name, partial, size=size)
            if partial.stat().st_size != size:
                raise RemoteError(f"{store.address(name)} changed while it was copied: give the same command again")
            sha256 = file_digest(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        status = target.stat()
        with lock:
            noted[name] = [size, objects[name].tag, sha256, status.st_mtime_ns]

    for name in gone:
        del noted[name]
    # also what came before a kill and is not noted
    keep_only(data, objects)
    try:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="mirror") as threads:
            list(threads.map(copy, changed))
    finally:
        # what arrived before an error need not come again
        if changed or gone:
            write_json(folder / "mirror.json", dict(sorted(noted.items())))


def _is_copied(path: Path, info: ObjectInfo, noted: list | None) -> bool:
    if noted is None or [info.size, info.tag] != noted[:2]:
        return False
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_size != info.size:
        return False
    return status.st_mtime_ns == noted[3] or file_digest(path) == noted[2]
