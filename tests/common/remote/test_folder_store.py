"""Folders at URLs: whole or absent, resumed without sending twice, every byte compared; the cache before them."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from brine.common.files import file_digest
from brine.common.processes import IMPORT_FOLDER
from brine.common.remote.cache import ObjectCache
from brine.common.remote.folder_store import FolderStore, StoredFolder
from brine.common.remote.object_store import RemoteError
from tests.common.remote.fixtures import memory, s3, s3_process

__all__ = ["memory", "s3", "s3_process"]


def make(folder: Path, count: int = 6, size: int = 20_000) -> Path:
    """A folder of `count` files, two of which have equal content."""
    for number in range(count):
        path = folder / f"d{number % 2}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number % (count - 1)]) * (size + number % (count - 1)))
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_a_folder_comes_back_and_equal_files_are_sent_once(memory, tmp_path):
    store, folder = FolderStore(memory), make(tmp_path / "f")
    assert store.find("x") is None and store.names() == []
    sent = store.upload(folder, "x", extra={"step": 3})
    assert len(sent.folder.files) == 6 and len(store.objects.list("objects")) == 5
    again = store.upload(folder, "below/y")
    assert (again.uploaded, again.uploaded_bytes) == (0, 0) and store.names() == ["below/y", "x"]
    assert store.names("below") == ["below/y"]
    found = store.find("x")
    assert (
        found == sent.folder
        and found.extra == {"step": 3}
        and found.num_bytes == sum(map(len, content_of(folder).values()))
    )
    store.download(found, tmp_path / "g")
    assert content_of(tmp_path / "g") == content_of(folder)
    (folder / "d0" / "0.bin").write_bytes(b"new")
    assert store.upload(folder, "x").uploaded == 1
    store.delete("x", among=store.names())
    assert store.names() == ["below/y"] and len(store.objects.list("objects")) == 5
    store.download(store.find("below/y"), tmp_path / "h")
    store.delete("below/y", among=store.names())
    assert store.objects.list() == {}


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../x": [1, "0" * 64]}}, {"files": {"/x": [1, "0" * 64]}}, {"files": {"x": [-1, "0" * 64]}},
        {"files": {"x": [1, "0" * 63]}}, {"files": {"x": [1, "g" * 64]}}, {"files": {"x": [True, "0" * 64]}},
        {"files": []}, {"format": 2}, {"extra": 1}, {"files": {"x": 1}},
    ],
)  # fmt: skip
def test_lists_from_outside_are_checked(memory, change):
    store = FolderStore(memory)
    value = {"format": 1, "name": "x", "files": {"a": [1, "0" * 64]}, "extra": {}}
    store.objects.write("x.folder.json", json.dumps(value).encode())
    assert store.find("x").files == {"a": (1, "0" * 64)}
    store.objects.write("x.folder.json", json.dumps(value | change).encode())
    with pytest.raises(RemoteError):
        store.find("x")
    store.objects.write("x.folder.json", b"no json")
    with pytest.raises(RemoteError, match=r"x\.folder\.json is not a list of files"):
        store.find("x")


def flip(store: FolderStore, sha256: str) -> bytes:
    """Flip a bit of an object in the bucket; returns what it was."""
    name = f"objects/{sha256[:2]}/{sha256}"
    content = store.objects.read(name)
    store.objects.write(name, content[:-1] + bytes([content[-1] ^ 1]))
    return content


def test_a_flipped_bit_is_named_and_never_used(memory, tmp_path):
    store, cache = FolderStore(memory), ObjectCache(tmp_path / "c", max_bytes=10**6)
    found = store.upload(make(tmp_path / "f"), "x").folder
    size, sha256 = found.files["d0/2.bin"]
    content = flip(store, sha256)
    for read in (lambda: store.fetch(found, "d0/2.bin", cache), lambda: store.download(found, tmp_path / "g")):
        with pytest.raises(RemoteError, match=rf"objects/{sha256[:2]}/{sha256} \(d0/2.bin of x\) is damaged"):
            read()
    assert not (tmp_path / "g").exists() and cache.size() == 0 and not list((tmp_path / "c" / "partial").iterdir())
    store.objects.write(f"objects/{sha256[:2]}/{sha256}", content)
    assert store.fetch(found, "d0/2.bin", cache).read_bytes() == content and size == len(content)
    store.download(found, tmp_path / "g")
    assert content_of(tmp_path / "g") == content_of(tmp_path / "f")


def test_what_an_earlier_download_left_and_the_list_does_not_name_is_not_in_the_folder(memory, tmp_path):
    store = FolderStore(memory)
    found = store.upload(make(tmp_path / "f"), "x").folder
    left = tmp_path / ".g.downloading"
    (left / "d0").mkdir(parents=True)
    (left / "other" / "below").mkdir(parents=True)
    outside = tmp_path / "outside.txt"
    outside.write_text("stays")
    for stray in ("stray.bin", "d0/.0.bin.77.tmp", "other/below/x"):
        (left / stray).write_bytes(b"x")
    (left / "link").symlink_to(tmp_path)
    (left / "d0" / "link").symlink_to(outside)
    # what is the same need not come again
    (left / "d0" / "0.bin").write_bytes((tmp_path / "f/d0/0.bin").read_bytes())
    store.download(found, tmp_path / "g")
    assert content_of(tmp_path / "g") == content_of(tmp_path / "f") and outside.read_text() == "stays"
    assert {path.name for path in (tmp_path / "g").iterdir()} == {"d0", "d1"} and not left.exists()


def test_a_cut_copy_is_made_once_more(memory, tmp_path, monkeypatch):
    store, cache = FolderStore(memory), ObjectCache(tmp_path / "c", max_bytes=10**6)
    found, download, calls = store.upload(make(tmp_path / "f"), "x").folder, store.objects.download, []

    def cut(name, path, *, size):
        download(name, path, size=size)
        calls.append(name)
        if len(calls) == 1:
            os.truncate(path, 10)

    monkeypatch.setattr(store.objects, "download", cut)
    assert store.fetch(found, "d1/1.bin", cache).read_bytes() == (tmp_path / "f/d1/1.bin").read_bytes()
    assert len(calls) == 2


def test_the_cache_keeps_its_bound_and_what_was_used_last(memory, tmp_path):
    store, cache = FolderStore(memory), ObjectCache(tmp_path / "c", max_bytes=65_000)
    found, calls = store.upload(make(tmp_path / "f", 12), "x").folder, []
    store.objects.download, download = lambda *a, **k: (calls.append(a), download(*a, **k)), store.objects.download
    paths = [path for path in found.files if path != "d1/11.bin"]
    for path in paths:
        assert store.fetch(found, path, cache).read_bytes() == (tmp_path / "f" / path).read_bytes()
        store.fetch(found, paths[0], cache)
        assert cache.size() <= 65_000
    # the first was always in use, so it was fetched once
    assert len(calls) == len(paths) and len(list((tmp_path / "c" / "objects").glob("??/*"))) == 3
    with pytest.raises(RemoteError, match=r"has 20,0\d\d bytes, the cache .* at most 100: raise BRINE_CACHE_GIB"):
        store.fetch(found, paths[0], ObjectCache(tmp_path / "tiny", max_bytes=100))


READER = """
import sys, random
from pathlib import Path
from brine.common.files import file_digest
from brine.common.remote.cache import ObjectCache
from brine.common.remote.folder_store import FolderStore
url, root, seed = sys.argv[1:]
store, cache = FolderStore(url), ObjectCache(Path(root), max_bytes=65_000)
found = store.find("x")
for path in random.Random(int(seed)).choices(sorted(found.files), k=60):
    for attempt in range(20):
        try:
            assert file_digest(store.fetch(found, path, cache)) == found.files[path][1]
            break
        except FileNotFoundError:
            continue
    else:
        raise SystemExit("always evicted")
    assert cache.size() <= 65_000 + 25_000
print("read")
"""


def run(code: str, *arguments: str) -> subprocess.Popen:
    env, pipe = os.environ | {"PYTHONPATH": IMPORT_FOLDER}, subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments], env=env, text=True, stdout=pipe, stderr=pipe
    )


@pytest.mark.slow
def test_processes_share_a_cache_smaller_than_the_folder(tmp_path):
    pytest.importorskip("fsspec", reason="the extra [remote]")
    url = f"file://{tmp_path}/store"
    FolderStore(url).upload(make(tmp_path / "f", 12), "x")
    readers = [run(READER, url, str(tmp_path / "c"), str(seed)) for seed in range(3)]
    for reader in readers:
        out, errors = reader.communicate(timeout=120)
        assert out == "read\n", errors
    assert ObjectCache(tmp_path / "c", max_bytes=65_000).size() <= 65_000


UPLOADER = """
import sys
from pathlib import Path
from brine.common.remote.folder_store import FolderStore
print(FolderStore(sys.argv[1]).upload(Path(sys.argv[2]), "x").uploaded)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [0, 3, 5])
def test_a_kill_in_mid_upload_leaves_nothing_and_the_next_one_continues(s3, tmp_path, stop_at):
    """Stopped at the first object, in the middle, and at the last object or the list, by SIGKILL."""
    url, folder = f"{s3.url}/p", make(tmp_path / "f")
    s3.faults.hold_upload = stop_at
    uploader = run(UPLOADER, url, str(folder))
    try:
        assert s3.holding.wait(60)
        uploader.send_signal(signal.SIGKILL)
    finally:
        uploader.kill()
        uploader.communicate(timeout=30)
    store = FolderStore(url)
    assert store.find("x") is None and store.names() == []
    there = len(store.objects.list("objects"))
    assert there <= 5
    sent = store.upload(folder, "x")
    assert sent.uploaded <= 6 - there and len(store.objects.list("objects")) == 5
    store.download(store.find("x"), tmp_path / "g")
    assert content_of(tmp_path / "g") == content_of(folder)


@pytest.mark.slow
def test_faults_while_a_folder_comes_and_goes(s3, tmp_path):
    store, folder = FolderStore(f"{s3.url}/p"), make(tmp_path / "f", 10)
    s3.faults.throttle, s3.faults.cut_uploads, s3.faults.cut_downloads, s3.faults.delay_s = 5, 3, 4, 0.02
    timer = threading.Timer(0.3, lambda: setattr(s3.faults, "throttle", 3))
    timer.start()
    store.upload(folder, "x")
    store.download(store.find("x"), tmp_path / "g")
    timer.join()
    assert content_of(tmp_path / "g") == content_of(folder)
    assert s3.faults.cut_downloads == s3.faults.cut_uploads == 0


def test_equal_folders_have_equal_lists():
    files = {"b": (1, "1" * 64), "a": (2, "2" * 64)}
    other = StoredFolder("x", dict(sorted(files.items())))
    assert StoredFolder("x", files).digest == other.digest == StoredFolder.parse(other.to_bytes(), what="x").digest


def test_a_file_that_changes_meanwhile_is_an_error(memory, tmp_path, monkeypatch):
    store, folder = FolderStore(memory), make(tmp_path / "f")
    upload = store.objects.upload

    def change(path, name):
        upload(path, name)
        path.write_bytes(b"other")

    monkeypatch.setattr(store.objects, "upload", change)
    with pytest.raises(RemoteError, match="changed while it was uploaded"):
        store.upload(folder, "x")
    assert store.find("x") is None and file_digest(folder / "d0" / "0.bin")
