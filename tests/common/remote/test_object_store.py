"""Objects behind URLs: names that stay inside, faults that are tried again, errors that name the object."""

import os
import pickle
import time
from pathlib import Path

import pytest

from brine.common.remote.object_store import (
    MissingObjectError,
    ObjectStore,
    RemoteConfig,
    RemoteError,
    check_name,
    is_url,
    url_of,
)
from tests.common.remote.fixtures import memory, s3, s3_process

__all__ = ["memory", "s3", "s3_process"]


def test_urls_survive_being_paths():
    assert url_of(Path("s3://bucket/a/b")) == "s3://bucket/a/b" == url_of("s3://bucket/a/b/")
    assert url_of(Path("file:///tmp/x")) == "file:///tmp/x" and url_of("memory://x") == "memory://x"
    assert url_of("a/b") is None and url_of(Path("/a/b")) is None and url_of(None) is None
    assert not is_url("C:/x") and not is_url("notes: today") and is_url(Path("gs://x/y"))


@pytest.mark.parametrize("name", ["../a", "a/../b", "/a", "a//b", "", "a/.", "a\\b", "a\nb", "x" * 1001])
def test_names_that_could_leave_the_folder_are_refused(name):
    with pytest.raises(RemoteError, match="is not a plain relative path"):
        check_name(name)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_objects_come_back(kind, memory, tmp_path):
    store = ObjectStore(memory if kind == "memory" else f"file://{tmp_path}/store")
    assert store.list() == {} and store.info("a/b") is None
    store.write("a/b", b"content")
    store.write("c", b"")
    store = pickle.loads(pickle.dumps(store))
    assert store.read("a/b") == b"content" and store.info("a/b").size == 7 and store.info("a") is None
    assert list(store.list()) == ["a/b", "c"] and list(store.list("a")) == ["a/b"]
    store.download("a/b", tmp_path / "x", size=7)
    assert (tmp_path / "x").read_bytes() == b"content"
    with pytest.raises(RemoteError, match="has 7 bytes instead of 8: delete it and upload it again"):
        store.download("a/b", tmp_path / "x", size=8)
    with pytest.raises(RemoteError, match="has 7 bytes, more than the 3 that are read"):
        store.read("a/b", max_bytes=3)
    store.delete("a/b")
    store.delete("a/b")
    with pytest.raises(MissingObjectError, match="a/b is not there"):
        store.read("a/b")


def test_unknown_schemes_and_bad_settings_are_one_sentence(monkeypatch):
    with pytest.raises(RemoteError, match="nosuch://x"):
        ObjectStore("nosuch://x").list()
    with pytest.raises(RemoteError, match="needs a URL"):
        ObjectStore("a/b")
    monkeypatch.setenv("BRINE_REMOTE_ATTEMPTS", "many")
    with pytest.raises(ValueError, match="BRINE_REMOTE_ATTEMPTS='many' is not a number"):
        RemoteConfig.from_environment()


@pytest.mark.slow
def test_throttled_cut_and_hanging_requests_are_tried_again(s3, tmp_path):
    store, content = ObjectStore(f"{s3.url}/p"), os.urandom(300_000)
    (tmp_path / "f").write_bytes(content)
    s3.faults.throttle, s3.faults.cut_uploads = 2, 2
    store.upload(tmp_path / "f", "a")
    assert s3.faults.throttle == s3.faults.cut_uploads == 0
    s3.faults.throttle, s3.faults.cut_downloads = 2, 1
    store.download("a", tmp_path / "g", size=len(content))
    assert (tmp_path / "g").read_bytes() == content and s3.faults.cut_downloads == s3.faults.throttle == 0
    store = ObjectStore(f"{s3.url}/p", RemoteConfig(timeout_s=1.0, attempts=3, backoff_s=0.01))
    s3.faults.hang = 1
    began = time.monotonic()
    assert store.read("a") == content and time.monotonic() - began < 20


@pytest.mark.slow
def test_a_store_that_stays_down_or_forbids_is_an_error_that_names_the_object(s3, monkeypatch):
    store = ObjectStore(f"{s3.url}/p", RemoteConfig(timeout_s=1.0, attempts=2, backoff_s=0.01))
    s3.faults.throttle = 99
    with pytest.raises(RemoteError, match=rf"{s3.url}/p/a failed 2 times .*give the same command again"):
        store.read("a")
    s3.faults.throttle = 0
    with pytest.raises(MissingObjectError, match="b/a is not there"):
        ObjectStore("s3://there-is-no-such-bucket/b").read("a")
    s3.close()
    with pytest.raises(RemoteError, match="failed 2 times"):
        store.read("a")
