"""A checkpoint is complete or absent, and one that cannot be used says why."""

import json
import os

import pytest
import torch

from brine.training.checkpoint.async_checkpoint import AsyncCheckpointer
from brine.training.checkpoint.checkpoint import (
    CheckpointError,
    check,
    latest_checkpoint,
    list_checkpoints,
    load_weights,
)
from brine.training.optimizer import Optimizer
from tests.training.tiny_run import SHARD, TinyModel, events, final_bytes, tiny_config, tiny_train


def save(folder, step=4, **state):
    model, saver = TinyModel(), AsyncCheckpointer(folder, keep=9)
    path = saver.begin(step=step, model=model, optimizer=Optimizer(model, tiny_config()), state=state)
    saver.wait()
    saver.close()
    return path


def ignore(*_, **__):
    """Events that a test does not look at."""


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def remove(path):
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "os.rename",
        "brine.training.checkpoint.async_checkpoint.write_json",
        "brine.training.checkpoint.async_checkpoint.file_digest",
    ],
)
def test_death_while_saving_leaves_the_old_one(tmp_path, monkeypatch, moment):
    class Death(BaseException):
        """Like a kill: no handler may tidy up."""

    def die(*_):
        raise Death

    save(tmp_path, step=4)
    monkeypatch.setattr(moment, die)
    with pytest.raises(Death):
        save(tmp_path, step=8)
    monkeypatch.undo()
    assert [one.step for one in list_checkpoints(tmp_path)] == [4]
    assert latest_checkpoint(tmp_path, on_event=ignore).step == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [SHARD, "state.json"])
@pytest.mark.parametrize("damage", [truncate, flip, remove], ids=lambda f: f.__name__)
def test_damaged_checkpoint_is_set_aside_and_the_one_before_serves(tmp_path, damage, name):
    tiny_train(tmp_path / "straight")
    tiny_train(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000012"
    if (damage, name) == (flip, "state.json"):
        (newest / name).write_text((newest / name).read_text().replace("{", "[", 1))
    else:
        damage(newest / name)
    tiny_train(tmp_path / "run")
    (event,) = events(tmp_path / "run", "checkpoint_damaged")
    assert name in event["message"] and "step_00000012" in event["message"]
    assert events(tmp_path / "run", "resumed")[0]["step"] == 8
    assert (newest.parent / "step_00000012.bad").exists()
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "straight")


def test_damage_is_named(tmp_path):
    path = save(tmp_path)
    truncate(path / SHARD)
    with pytest.raises(CheckpointError, match=rf"{SHARD} is truncated: \d+ bytes of \d+"):
        check(path)
    with pytest.raises(CheckpointError, match=r"step_00000004 cannot be read .*delete the folder"):
        load_weights(path, model=TinyModel())


def test_checkpoint_of_another_shape_is_a_mistake_and_not_skipped(tmp_path):
    tiny_train(tmp_path)
    named = r"shape: .*is \(32, 16\) there and \(32, 24\) in the model.*and \d+ more"
    with pytest.raises(CheckpointError, match=named):
        tiny_train(tmp_path, model=TinyModel(width=24))
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 2


def test_checkpoint_of_another_optimizer_is_refused(tmp_path):
    tiny_train(tmp_path, config=tiny_config(optimizer="muon"))
    with pytest.raises(CheckpointError, match=r"muon/blocks\.\d\.weight/momentum_buffer.*another optimizer"):
        tiny_train(tmp_path)


def test_folder_without_weights_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_weights(tmp_path, model=TinyModel())


def test_same_step_is_replaced(tmp_path):
    save(tmp_path, step=4, mark=1)
    save(tmp_path, step=4, mark=2)
    assert [one.state["mark"] for one in list_checkpoints(tmp_path)] == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]


def test_state_is_json_and_weights_are_safetensors(tmp_path):
    tiny_train(tmp_path)
    newest = tmp_path / "checkpoints" / "step_00000012"
    assert sorted(os.listdir(newest)) == [SHARD, "state.json"]
    state = json.loads((newest / "state.json").read_text())
    assert (state["step"], state["sequence_index"], state["scheduled"]) == (12, 48, True)
    restored = TinyModel(seed=3)
    load_weights(newest, model=restored)
    assert not torch.equal(restored.head.weight, TinyModel(seed=3).head.weight)
