"""Finished stages go to an object store and come back, once each; what is there is complete, or an error."""

import os
from pathlib import Path

import pytest

from brine.common.content_store import ContentStore, store_key
from brine.common.remote.folder_store import FolderStore
from brine.common.remote.object_store import RemoteError
from brine.common.remote.stage_transfer import pull, push
from brine.pipeline.stages.shared_stages import delete, unneeded
from brine.pipeline.stages.store_command import main
from tests.common.remote.fixtures import memory

__all__ = ["memory"]


def make_run(runs: Path, name: str, **stages: int) -> None:
    """A run that links to stages, each made from a number."""
    store = ContentStore(runs / ".store")
    (runs / name).mkdir(parents=True)
    for stage, number in stages.items():

        def build(folder: Path, number: int = number) -> dict:
            (folder / "sub").mkdir()
            (folder / "sub" / "file").write_text(f"made from {number}")
            return {"number": number}

        folder = store.get_or_build(stage, store_key({"n": number}, {}, revision=1), build)
        os.symlink(os.path.relpath(folder, runs / name), runs / name / stage)


def test_stages_are_sent_once_and_come_back(memory, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    make_run(here, "a", encoded=1, small=2)
    make_run(here, "b", encoded=1, small=3)
    assert push(here / "a", here / ".store", memory).sent == 2
    assert push(here / "b", here / ".store", memory).sent == 1 and push(here / "a", here / ".store", memory).sent == 0
    found = pull("b", there, there / ".store", memory)
    assert found.sent == 2 and (there / "b/small/sub/file").read_text() == "made from 3"
    assert pull("a", there, there / ".store", memory).sent == 1
    assert (there / "a/encoded").resolve() == (there / "b/encoded").resolve()
    assert ContentStore.result((there / "a/small").resolve()) == {"number": 2}
    assert not os.access(there / "a/small/sub/file", os.W_OK) or os.geteuid() == 0
    assert pull("a", there, there / ".store", memory).sent == 0


def test_what_is_not_there_or_damaged_or_in_the_way_is_one_sentence(memory, tmp_path, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    make_run(here, "a", encoded=1)
    (here / "empty").mkdir()
    with pytest.raises(RemoteError, match="links to no finished stage"):
        push(here / "empty", here / ".store", memory)
    push(here / "a", here / ".store", memory)
    with pytest.raises(RemoteError, match="has no run 'b': it has a"):
        pull("b", there, there / ".store", memory)
    make_run(there, "a", encoded=2)
    with pytest.raises(RemoteError, match="is another stage than the one at"):
        pull("a", there, there / ".store", memory)
    assert (there / "a/encoded/sub/file").read_text() == "made from 2"
    store = FolderStore(memory)
    for bad in ({"../x": "encoded/0123456789"}, {"x": "../../0123456789"}, {"x": "encoded/.."}, {"x": 1}, []):
        store.put_list("runs/c", {"stages": bad})
        with pytest.raises(RemoteError):
            pull("c", tmp_path / "new", tmp_path / "new" / ".store", memory)
    assert not (tmp_path / "new").exists()
    assert main(["push", str(here / "a"), memory, "--runs", str(here)]) == 0
    assert '"sent": 0' in capsys.readouterr().out
    assert main(["pull", "b", memory, "--runs", str(here)]) == 2
    assert "has no run 'b'" in capsys.readouterr().err


def test_a_repeated_training_comes_back(memory, tmp_path):
    """Its folder has a number after the digest: it was sent and never came back."""
    here, there = tmp_path / "here", tmp_path / "there"
    make_run(here, "a", small=1)
    (here / "a/small").resolve().rename(again := (here / "a/small").resolve().with_name("0123456789abcdef-2"))
    (here / "a/small").unlink()
    (here / "a/small").symlink_to(again)
    push(here / "a", here / ".store", memory)
    assert pull("a", there, there / ".store", memory).stages == ("small/0123456789abcdef-2",)
    assert (there / "a/small/sub/file").read_text() == "made from 1"


def test_a_pulled_run_is_known_to_a_store_that_lies_elsewhere(memory, tmp_path):
    here, store = tmp_path / "here", tmp_path / "disk/store"
    make_run(here, "a", small=1)
    ((here / "a/small").resolve() / "outputs.json").write_text("[]")
    push(here / "a", here / ".store", memory)
    assert main(["pull", "a", memory, "--runs", str(tmp_path / "mine"), "--store", str(store)]) == 0
    assert (tmp_path / "mine/a/small/sub/file").exists()
    # as from the runs of somebody else who uses the store
    (tmp_path / "theirs").mkdir()
    assert unneeded(store, tmp_path / "theirs") == []


def test_what_is_pulled_is_linked_under_its_lock(memory, tmp_path, monkeypatch):
    """A stage that was here and not linked yet could be deleted while the next one came."""
    here, there = tmp_path / "here", tmp_path / "there"
    make_run(here, "a", encoded=1, small=2)
    for stage in ("encoded", "small"):
        ((here / "a" / stage).resolve() / "outputs.json").write_text("[]")
    push(here / "a", here / ".store", memory)
    download = FolderStore.download

    def collect(self, stored, folder):
        delete(there / ".store", there, unneeded(there / ".store", there))
        download(self, stored, folder)

    monkeypatch.setattr(FolderStore, "download", collect)
    pull("a", there, there / ".store", memory)
    assert [(there / "a" / stage / "sub/file").exists() for stage in ("encoded", "small")] == [True, True]
