"""A prompt longer than anything trained on is told once, with both numbers; folders that do not say still load."""

import json
import logging
import shutil

import pytest

from brine.data.packing.length_schedule import LengthSchedule
from brine.inference.generate import main
from brine.inference.load import CONFIG, load, save_model


@pytest.fixture
def folder(model_folder, tmp_path):
    """A model folder that says that it was trained on 40 tokens at once."""
    one = load(model_folder)
    folder = tmp_path / "model"
    save_model(folder, one.model, encode_config=one.encode_config, tokenizer=one.tokenizer, trained_context_tokens=40)
    return folder


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_folder_says_its_length(folder, model_folder):
    assert json.loads((folder / CONFIG).read_text())["trained_context_tokens"] == 40
    assert load(folder).trained_context_tokens == 40
    assert "trained_context_tokens" not in json.loads((model_folder / "large_salt" / "model" / CONFIG).read_text())
    assert load(model_folder).trained_context_tokens is None


LONG = {
    "prompt": (["ab" * 4000], 1, ("8,000", "up to 1", "40")),
    "answer": (["ab"], 5000, ("2 tokens", "5,000", "40")),
    "together": (["x" * 30], 11, ("30", "11", "40")),
    "ids": ([[60] * 41], 1, ("41", "40")),
}


@pytest.mark.parametrize(("parts", "max_tokens", "numbers"), LONG.values(), ids=list(LONG))
def test_a_long_prompt_is_told_once(folder, caplog, parts, max_tokens, numbers):
    loaded = load(folder)
    for _ in range(3):
        # told at the call, before anything is read
        loaded.generate(parts, max_tokens=max_tokens)
    (said,) = warnings_of(caplog)
    assert all(number in said for number in numbers)


def test_a_chat_tells_it_too(folder, caplog):
    loaded = load(folder)
    loaded.chat([{"role": "user", "content": "x" * 100}], max_tokens=1)
    loaded.generate(["x" * 100])
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("where", ["short", "old-folder"])
def test_nothing_is_told_without_cause(folder, model_folder, caplog, where):
    if where == "short":
        load(folder).generate(["x" * 30], max_tokens=10)
    else:
        load(model_folder).generate(["x" * 3000], max_tokens=10)
    assert not warnings_of(caplog)


def test_the_command_line_answers_all_the_same(folder, caplog, capsys):
    assert main([str(folder), "--prompt", "x" * 100, "--max-tokens", "2", "--device", "cpu"]) == 0
    assert len(warnings_of(caplog)) == 1 and "100" in caplog.text


@pytest.mark.parametrize("value", ["many", 0, -5, 2.5, True, [40]], ids=str)
def test_a_length_that_is_none_is_named(folder, tmp_path, value):
    broken = shutil.copytree(folder, tmp_path / "broken")
    configs = json.loads((broken / CONFIG).read_text()) | {"trained_context_tokens": value}
    (broken / CONFIG).write_text(json.dumps(configs))
    with pytest.raises(ValueError, match="trained_context_tokens"):
        load(broken)


@pytest.mark.parametrize(
    ("steps", "num_rows", "longest"),
    [
        ((), 10, 512),
        (("0:128", "0.5:256"), 10, 256),
        (("0:128", "0.5:4096"), 10, 512),
        (("0:128", "0.9:256"), 1, 128),
    ],
    ids=["whole", "grows", "beyond-a-row", "step-without-a-row"],
)
def test_the_longest_that_a_schedule_shows(steps, num_rows, longest):
    assert LengthSchedule.parse(steps).max_segment_tokens(512, num_rows) == longest
