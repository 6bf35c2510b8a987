"""Training that begins with given weights: what a path means, what fits, and bits that go on."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from brine.common.files import read_jsonl
from brine.inference.load import WEIGHTS, save_model
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from brine.training.checkpoint.checkpoint import list_checkpoints
from brine.training.checkpoint.init_from import check_fits, differing_settings, find_initial_weights
from brine.training.config import TrainConfig
from brine.training.optimizer import Optimizer
from tests.training.tiny_run import (
    SHARD,
    TinyModel,
    final_bytes,
    final_tensors,
    tiny_config,
    tiny_rows,
    tiny_source,
    tiny_train,
)

CONSTANT = {"warmup_steps": 0, "final_lr_fraction": 1.0, "checkpoint_every": 3}
"""A learning rate that never changes."""
SHAPE = ModelConfig(vocab_size=40, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, window=9)


def test_the_first_step_has_the_loss_of_the_given_weights(tmp_path):
    config = tiny_config(num_steps=1, warmup_steps=0, log_every=1)
    given = TinyModel(seed=7)
    tiny_train(tmp_path / "old", config=config, model=given)
    path = list_checkpoints(tmp_path / "old" / "checkpoints")[-1].folder
    tiny_train(tmp_path / "new", config=config, initial=find_initial_weights(path))
    batch = tiny_rows(0, 4)
    logits = given(batch.inputs) @ given.head_weight.T
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten().long(), ignore_index=-100)
    assert read_jsonl(tmp_path / "new" / "metrics.jsonl")[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)


def later(config, *, steps: int):
    """The sequences after the first `steps` steps."""
    source = tiny_source(config)
    first = steps * config.global_batch_size
    return dataclasses.replace(source, open=lambda start: source.open(start + first))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_kept_optimizer_goes_on_as_if_never_stopped(optimizer, tmp_path):
    """6 steps, then 6 more with the weights and the optimizer that they left, are 12 steps at a constant rate; with a
    fresh optimizer they are not."""
    half, whole = (tiny_config(num_steps=steps, optimizer=optimizer, **CONSTANT) for steps in (6, 12))
    tiny_train(tmp_path / "whole", config=whole)
    tiny_train(tmp_path / "half", config=half)
    checkpoint = list_checkpoints(tmp_path / "half" / "checkpoints")[-1].folder
    found = {}
    for kept in (True, False):
        initial = find_initial_weights(checkpoint, init_optimizer=kept)
        # its own weights must not matter
        tiny_train(
            tmp_path / str(kept), config=half, model=TinyModel(seed=9), sequences=later(half, steps=6), initial=initial
        )
        found[kept] = final_tensors(tmp_path / str(kept))
    expected = final_tensors(tmp_path / "whole")
    assert found[True].keys() == expected.keys()
    assert all(torch.equal(found[True][name], expected[name]) for name in expected)
    assert not all(torch.equal(found[False][name], expected[name]) for name in expected if name.startswith("model/"))
    started = read_jsonl(tmp_path / "True" / "events.jsonl")[0]
    assert started["init_digest"] == initial.digest


def test_a_continued_training_resumes_to_the_bit_without_the_weights_it_began_with(tmp_path):
    """The first checkpoint of the new run holds them, optimizer state included; a rollback finds them there too."""
    config = tiny_config(num_steps=6)
    tiny_train(tmp_path / "old", config=config)

    class Killed(Exception):
        pass

    def kill(step):
        if step == 2:
            raise Killed

    path = list_checkpoints(tmp_path / "old" / "checkpoints")[-1].folder
    tiny_train(tmp_path / "straight", config=config, initial=find_initial_weights(path, init_optimizer=True))
    with pytest.raises(Killed):
        initial = find_initial_weights(path, init_optimizer=True)
        tiny_train(tmp_path / "killed", config=config, initial=initial, on_step=kill)
    shutil.rmtree(tmp_path / "old")
    tiny_train(tmp_path / "killed", config=config, initial=initial)
    assert final_bytes(tmp_path / "killed") == final_bytes(tmp_path / "straight")


@pytest.fixture
def stage(tmp_path) -> Path:
    """A finished stage of a real model with one checkpoint of its last step, 3, and its model folder."""
    return make_stage(tmp_path / "runs" / "old" / "large_baseline")


def make_stage(folder: Path, *, optimizer: str = "adamw", shape: ModelConfig = SHAPE) -> Path:
    from brine.data.config import EncodeConfig
    from brine.data.tokenizer import train_tokenizer
    from brine.training.checkpoint.async_checkpoint import AsyncCheckpointer

    tokenizer = train_tokenizer(["some words"], 267)
    shape = dataclasses.replace(shape, vocab_size=267, **{f"{m}_dim": d for m, d in EncodeConfig().dims.items()})
    model = Transformer(shape, generator=torch.Generator().manual_seed(4))
    trained = Optimizer(model, TrainConfig(model=shape, optimizer=optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    trained.step(1e-3)
    saver = AsyncCheckpointer(folder / "checkpoints")
    saver.begin(step=3, model=model, optimizer=trained, state={"sequence_index": 0})
    saver.wait()
    saver.close()
    save_model(folder / "model", model, encode_config=EncodeConfig(), tokenizer=tokenizer)
    (folder / "done").write_text(json.dumps({"result": {"step": 3}}))
    return folder


def weights_of(initial, config: TrainConfig) -> tuple[dict, dict]:
    """Weights and optimizer state of a model that began with these weights."""
    model = Transformer(config.model, generator=torch.Generator().manual_seed(0))
    optimizer = Optimizer(model, config)
    initial.load(model, optimizer)
    return model.state_dict(), optimizer.state_tensors()


def config_of(initial, **changes) -> TrainConfig:
    return TrainConfig(model=initial.config, **changes)


def test_a_run_a_stage_a_model_folder_and_a_checkpoint_mean_the_same_weights(stage):
    expected = load_file(stage / "model" / WEIGHTS)
    paths = (stage.parent, stage, stage / "model", stage / "checkpoints" / "step_00000003")
    found = [find_initial_weights(path) for path in paths]
    assert len({each.digest for each in found[:3]}) == 1 and found[3].digest != found[0].digest
    for initial in found:
        check_fits(initial, config_of(initial), name="large", given="old")
        weights, state = weights_of(initial, config_of(initial))
        assert weights.keys() == expected.keys() and not state
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
        assert initial.tokenizer is not None and initial.tokenizer.is_file()
    kept = find_initial_weights(stage.parent, init_optimizer=True)
    assert kept.digest == found[3].digest
    weights, state = weights_of(kept, config_of(kept))
    assert {float(value) for name, value in state.items() if name.endswith("/step")} == {1.0}
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_the_digest_is_of_the_weights_wherever_they_lie(stage, tmp_path):
    before = [find_initial_weights(stage, init_optimizer=kept).digest for kept in (False, True)]
    shutil.copytree(stage, tmp_path / "elsewhere" / "copy")
    assert before == [
        find_initial_weights(tmp_path / "elsewhere" / "copy", init_optimizer=kept).digest for kept in (False, True)
    ]
    weights = load_file(stage / "model" / WEIGHTS)
    weights["norm.weight"][0] += 1
    save_file(weights, stage / "model" / WEIGHTS)
    assert find_initial_weights(stage).digest != before[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": 32}, r"is \(267, 16\) there and \(267, 32\) in the model; .*, and \d+ more\): give --large.model"),
        ({"num_layers": 3}, r"blocks\.2\.[\w.]+ is missing"),
        ({"num_layers": 1}, r"blocks\.1\.[\w.]+ is unknown to the model"),
    ],
)
def test_weights_of_another_shape_are_refused_by_name(changes, said, stage):
    initial = find_initial_weights(stage)
    other = dataclasses.replace(initial.config, **changes)
    with pytest.raises(ValueError, match="large.init_from = runs/old: .*" + said) as error:
        check_fits(initial, TrainConfig(model=other), name="large", given="runs/old")
    assert "\n" not in str(error.value)


def test_settings_without_a_shape_are_told(stage):
    initial = find_initial_weights(stage)
    wider = dataclasses.replace(initial.config, window=33)
    check_fits(initial, TrainConfig(model=wider), name="large", given="old")
    assert differing_settings(initial, wider) == ["window: 9 -> 33"]


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_the_state_of_another_optimizer_is_refused(before, now, tmp_path):
    initial = find_initial_weights(make_stage(tmp_path / "stage", optimizer=before), init_optimizer=True)
    check_fits(initial, config_of(initial, optimizer=before), name="large", given="old")
    with pytest.raises(ValueError, match=f"is of other optimizers .* and optimizer = '{now}' is asked for"):
        check_fits(initial, config_of(initial, optimizer=now), name="large", given="old")


def test_without_a_checkpoint_of_the_last_step_no_optimizer_is_kept(stage):
    with pytest.raises(ValueError, match="kept no checkpoint of its last step"):
        (stage / "done").write_text(json.dumps({"result": {"step": 7}}))
        find_initial_weights(stage, init_optimizer=True)
    shutil.rmtree(stage / "checkpoints")
    with pytest.raises(ValueError, match=r"kept no checkpoint of its last step.*leave out init_optimizer"):
        find_initial_weights(stage, init_optimizer=True)
    assert find_initial_weights(stage).checkpoint is None


def test_damaged_weights_are_refused(stage):
    file = stage / "checkpoints" / "step_00000003" / SHARD
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"was altered after it was written.*give another checkpoint"):
        find_initial_weights(stage, init_optimizer=True)
    weights = stage / "model" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        initial = find_initial_weights(stage)
        check_fits(initial, config_of(initial), name="large", given="old")


@pytest.mark.parametrize("fields", [{"init_optimizer": True}, {"init_digest": "ab"}], ids=str)
def test_what_follows_from_given_weights_needs_some(fields):
    with pytest.raises(ValueError, match="needs init_from"):
        TrainConfig(**fields)
