"""What is written has the mode that the user's umask gives any new file: weights, checkpoints, records, the lock."""

import os
from pathlib import Path

import pytest
import torch

from brine.common.files import write_json, write_text
from brine.common.tensor_files import save_tensors
from brine.pipeline.stages.stage_store import StageStore
from tests.training.tiny_run import tiny_config, tiny_train


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027], ids=lambda umask: f"{umask:03o}")
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def test_tensors(umask, tmp_path):
    """Written first, over a file that is there, and with words in the header."""
    folder = tmp_path / "tensors"
    folder.mkdir()
    for name, words in (("new", None), ("new", None), ("words", {"b": "c"})):
        save_tensors({"a": torch.zeros(3)}, folder / name, metadata=words)
    assert set(modes(folder).values()) == {0o666 & ~umask}


def test_records_and_checkpoints(umask, tmp_path):
    folder = tmp_path / "run"
    with StageStore(folder):
        write_json(folder / "a.json", [1])
        write_text(folder / "b.txt", "c")
        tiny_train(folder / "small", config=tiny_config(num_steps=4))
    found = modes(folder)
    assert {name: mode for name, mode in found.items() if mode != 0o666 & ~umask} == {}
    assert any(name.endswith(".safetensors") for name in found) and "lock" in found
