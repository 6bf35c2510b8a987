"""Checkpoints at a URL: whole, the last few, and enough to resume a run whose folder is lost, bit for bit."""

import shutil

import pytest

from brine.common.remote.folder_store import FolderStore
from brine.common.remote.object_store import ObjectStore, RemoteError
from brine.training.checkpoint.checkpoint import CheckpointError, list_checkpoints
from brine.training.config import RuntimeConfig
from brine.training.runtime import Runtime, resolve_runtime
from tests.common.remote.fixtures import memory, s3, s3_process
from tests.training.tiny_run import events, final_bytes, tiny_config, tiny_train

__all__ = ["memory", "s3", "s3_process"]


def steps(url: str, stage: str = "run/small") -> list[str]:
    return FolderStore(f"{url}/{stage}").names()


@pytest.mark.slow
def test_a_run_whose_disk_is_lost_resumes_from_the_url_with_the_same_bits(memory, tmp_path):
    tiny_train(tmp_path / "alone")
    folder, runtime = tmp_path / "run" / "small", Runtime(remote_checkpoints=memory)
    tiny_train(folder, runtime=runtime, config=tiny_config(keep_checkpoints=3))
    assert final_bytes(folder) == final_bytes(tmp_path / "alone")
    assert steps(memory)[-1] == "step_00000012" and 1 <= len(steps(memory)) <= 3
    assert not list((folder / "checkpoints").glob(".uploading_*"))
    # lost before its last checkpoint was sent
    store = FolderStore(f"{memory}/run/small")
    middle = folder / "checkpoints" / "step_00000008"
    store.upload(middle, "step_00000008")
    store.delete("step_00000012", among=store.names())
    shutil.rmtree(folder)
    tiny_train(folder, runtime=runtime)
    assert final_bytes(folder) == final_bytes(tmp_path / "alone")
    assert [event["step"] for event in events(folder, "checkpoint_downloaded")] == [8]
    assert [event["step"] for event in events(folder, "resumed")] == [8]


def test_a_store_that_is_down_costs_no_training_and_is_tried_again(memory, tmp_path, monkeypatch):
    monkeypatch.setenv("BRINE_REMOTE_ATTEMPTS", "1")
    folder, upload, calls = tmp_path / "run" / "small", ObjectStore.upload, []

    def broken(self, path, name):
        calls.append(name)
        if len(calls) <= 2:
            raise RemoteError(f"{self.address(name)} failed")
        upload(self, path, name)

    monkeypatch.setattr(ObjectStore, "upload", broken)
    tiny_train(folder, runtime=Runtime(remote_checkpoints=memory))
    assert events(folder, "checkpoint_upload_failed") and steps(memory)[-1] == "step_00000012"
    monkeypatch.setattr(ObjectStore, "list", lambda *_: (_ for _ in ()).throw(RemoteError("the store failed")))
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="the store failed"):
        tiny_train(folder, runtime=Runtime(remote_checkpoints=memory))


def test_a_damaged_checkpoint_at_the_url_gives_way_to_the_one_before(memory, tmp_path):
    folder = tmp_path / "run" / "small"
    tiny_train(folder)
    store = FolderStore(f"{memory}/run/small")
    for found in list_checkpoints(folder / "checkpoints")[-2:]:
        listed = store.upload(found.folder, found.folder.name).folder
    _, sha256 = next(each for path, each in listed.files.items() if path.endswith(".safetensors"))
    name = f"objects/{sha256[:2]}/{sha256}"
    content = store.objects.read(name)
    store.objects.write(name, content[:-1] + bytes([content[-1] ^ 1]))
    before = list_checkpoints(folder / "checkpoints")[-2].step
    shutil.rmtree(folder)
    tiny_train(folder, runtime=Runtime(remote_checkpoints=memory))
    assert [event["step"] for event in events(folder, "resumed")] == [before]
    assert "is damaged" in events(folder, "checkpoint_damaged")[0]["message"]


@pytest.mark.slow
def test_checkpoints_reach_s3_through_faults(s3, tmp_path):
    folder = tmp_path / "run" / "small"
    s3.faults.throttle, s3.faults.cut_uploads = 3, 2
    tiny_train(folder, runtime=Runtime(remote_checkpoints=f"{s3.url}/p"))
    expected = final_bytes(folder)
    assert s3.faults.throttle == s3.faults.cut_uploads == 0 and steps(f"{s3.url}/p")[-1] == "step_00000012"
    shutil.rmtree(folder)
    tiny_train(folder, runtime=Runtime(remote_checkpoints=f"{s3.url}/p"))
    assert final_bytes(folder) == expected and events(folder, "checkpoint_downloaded")


@pytest.mark.slow
def test_the_url_decides_nothing(tmp_path):
    first = resolve_runtime(RuntimeConfig(), folder=tmp_path)
    text = (tmp_path / "runtime.json").read_text()
    second = resolve_runtime(RuntimeConfig(remote_checkpoints="s3://bucket/x"), folder=tmp_path)
    assert second.remote_checkpoints == "s3://bucket/x" and (tmp_path / "runtime.json").read_text() == text
    assert first.remote_checkpoints is None
    with pytest.raises(ValueError, match="give a URL such as s3://bucket/folder"):
        RuntimeConfig(remote_checkpoints="/here")
