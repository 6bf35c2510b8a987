"""One answer to where a model runs and in what precision, for every command."""

import json

import pytest
import torch

from brine.inference.load import CONFIG, find_model_folder, load
from brine.model.config import ModelConfig
from brine.model.device import autocast, native_dtype, resolve_compute_dtype, resolve_device
from brine.model.transformer import Transformer


def cards(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_is_the_card_where_there_is_one(monkeypatch):
    cards(monkeypatch, 0)
    assert resolve_device() == torch.device("cpu")
    cards(monkeypatch, 2)
    assert resolve_device().type == "cuda" and resolve_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("name", "count", "why"),
    [("cuda", 0, "sees no GPU"), ("cuda:2", 2, "sees 2 GPUs"), ("gpu", 0, "is unknown: give auto, cpu, cuda")],
)
def test_a_device_that_is_not_there_is_told(monkeypatch, name, count, why):
    cards(monkeypatch, count)
    with pytest.raises(ValueError, match=why):
        resolve_device(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meta", "xpu", "hpu", "vulkan", "mkldnn", "privateuseone", "cpu:0", "cpu:7"])
def test_a_device_that_torch_only_knows_by_name_is_refused(name):
    """They went through, and ended in tracebacks of whatever met them first."""
    with pytest.raises(ValueError, match=f"^device = '{name}', but [^\n]*: give auto, cpu, cuda, or cuda:1"):
        resolve_device(name)


@pytest.mark.parametrize(("major", "dtype"), [(7, torch.float32), (8, torch.bfloat16), (9, torch.bfloat16)])
def test_native_dtype_follows_the_card(monkeypatch, major, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    assert native_dtype("cuda:0") == dtype


def test_names_of_dtypes():
    assert resolve_compute_dtype("float32", "cpu") is None
    assert resolve_compute_dtype("bfloat16", "cpu") == torch.bfloat16
    with pytest.raises(ValueError, match="choose one of auto"):
        resolve_compute_dtype("half", "cpu")


def test_autocast_without_a_dtype_changes_nothing():
    a = torch.ones(2, 2)
    with autocast("cpu", None):
        assert (a @ a).dtype == torch.float32
    with autocast(torch.device("cpu"), torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16


def test_a_model_remembers_no_backend(model_folder):
    """A model that was trained with a card's kernels is loaded where there is none."""
    folder = find_model_folder(model_folder)
    assert "attention_backend" not in json.loads((folder / CONFIG).read_text())["model"]
    assert load(folder).model.attention_backend == "auto"
    assert load(folder, attention_backend="reference").model.blocks[0].attn.backend == "reference"
    model = Transformer(ModelConfig(dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16))
    model.attention_backend = "triton"
    assert {block.attn.backend for block in model.blocks} == {"triton"} and "triton" not in str(model.config)
