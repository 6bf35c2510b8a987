"""Finished stages go to an object store and come back, once each; what is there is complete, or an error."""

import os
from pathlib import Path

import pytest

from brine.common.content_store import ContentStore, store_key
from brine.common.remote.folder_store import FolderStore
from brine.common.remote.object_store import RemoteError
from brine.common.remote.stage_transfer import pull, push
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
