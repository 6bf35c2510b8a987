"""Model folders: what is saved is what is loaded, and a folder that does not fit says so."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from brine.inference.load import CONFIG, TOKENIZER, WEIGHTS, load, load_weights, save_model
from brine.inference.prompt import batch_prompts
from brine.model.transformer import Transformer


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the model folder, to be broken."""
    return shutil.copytree(model_folder / "large_salt" / "model", tmp_path / "model")


def test_run_stage_and_model_folder_all_load(model_folder):
    stage = model_folder / "large_salt"
    loaded = [load(path) for path in (model_folder, str(stage), stage / "model")]
    assert {one.folder for one in loaded} == {stage / "model"}
    assert not loaded[0].model.training


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_round_trip_is_exact(model_folder, tmp_path, config, tied, make_document):
    first = load(model_folder)
    model = Transformer(replace(config, tie_embeddings=tied, rope_sections=(4, 2, 2)))
    save_model(tmp_path / "model", model, encode_config=first.encode_config, tokenizer=first.tokenizer)
    again = load(tmp_path)
    assert again.model.config == model.config and again.encode_config == first.encode_config
    assert again.tokenizer.to_str() == first.tokenizer.to_str()
    for (name, a), (other, b) in zip(model.state_dict().items(), again.model.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    inputs = batch_prompts([make_document(1)])
    assert torch.equal(again.model(inputs), model(inputs))


def test_saving_replaces_and_leaves_nothing_behind(folder):
    one = load(folder)
    with torch.no_grad():
        one.model.norm.weight.fill_(3.0)
    save_model(folder, one.model, encode_config=one.encode_config, tokenizer=one.tokenizer)
    assert load(folder).model.norm.weight[0] == 3.0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS, TOKENIZER]


def test_a_save_that_dies_leaves_the_old_model(folder, monkeypatch):
    """The new files are written elsewhere until they are whole."""
    one = load(folder)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    # by the module: the package exports the function `load` under the same name
    monkeypatch.setattr(sys.modules["brine.inference.load"], "save_tensors", die)
    with pytest.raises(KeyboardInterrupt):
        save_model(folder, one.model, encode_config=one.encode_config, tokenizer=one.tokenizer)
    load(folder)


@pytest.mark.parametrize("new_is_there", [True, False])
def test_a_save_after_a_kill_between_its_renames_loses_no_file(folder, new_is_there):
    """The former folder was renamed already; the new one was, or was not."""
    one, old = load(folder), folder.with_name(".model.old")
    if new_is_there:
        shutil.copytree(folder, old)
    else:
        folder.rename(old)
    (old / "notes.txt").write_text("mine")
    save_model(folder, one.model, encode_config=one.encode_config, tokenizer=one.tokenizer)
    assert (folder / "notes.txt").read_text() == "mine" and not old.exists()
    load(folder)


def test_checkpoint_of_another_shape_is_named(folder):
    configs = json.loads((folder / CONFIG).read_text())
    configs["model"]["mlp_dim"] *= 2
    (folder / CONFIG).write_text(json.dumps(configs))
    with pytest.raises(ValueError, match=r"model\.safetensors.*another shape.*gate_up.*\(128, 48\).*\(256, 48\).*more"):
        load(folder)


def test_nothing_is_copied_from_weights_that_do_not_fit(config):
    model, other = Transformer(config), Transformer(replace(config, num_layers=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"blocks\.2.* is missing"):
        load_weights(model, other.state_dict())
    with pytest.raises(ValueError, match="unknown to the model"):
        load_weights(other, before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def broken_config(folder):
    (folder / CONFIG).write_text("{")


def config_of_another_program(folder):
    (folder / CONFIG).write_text('{"hidden_size": 3}')


def config_of_another_version(folder):
    configs = json.loads((folder / CONFIG).read_text())
    configs["model"]["num_experts"] = 8
    (folder / CONFIG).write_text(json.dumps(configs))


def truncated_weights(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def missing_tensor(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["norm.weight"]
    save_file(tensors, folder / WEIGHTS)


def missing_weights(folder):
    (folder / WEIGHTS).unlink()


def broken_tokenizer(folder):
    (folder / TOKENIZER).write_text("{}")


def other_patches(folder):
    configs = json.loads((folder / CONFIG).read_text())
    configs["encode"]["patch_size"] = 8
    (folder / CONFIG).write_text(json.dumps(configs))


@pytest.mark.parametrize(
    "damage, hint",
    [
        (broken_config, "cannot be read as JSON"),
        (config_of_another_program, '"model" and "encode"'),
        (config_of_another_version, "num_experts"),
        (truncated_weights, "not a whole safetensors file"),
        (missing_tensor, "norm.weight is missing"),
        (missing_weights, "no finished model"),
        (broken_tokenizer, "tokenizer.json"),
        (other_patches, "mixes two models"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_named(folder, damage, hint):
    damage(folder)
    with pytest.raises(ValueError, match=hint):
        load(folder)


def test_a_folder_without_a_model_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "runs")
    with pytest.raises(ValueError, match=r"uv run train\.py"):
        load(tmp_path)
