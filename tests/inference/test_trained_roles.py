"""A model that saw no conversation says so when asked in one; a run whose better stages are unfinished says so."""

import json
import logging
import shutil

import pytest

from brine.inference.generate import main
from brine.inference.load import CONFIG, find_model_folder, load, save_model, unfinished_stages

USER = [{"role": "user", "content": "What is it?"}]


@pytest.fixture
def folder_of(model_folder, tmp_path):
    """Factory of model folders that say who spoke in training."""

    def make(roles):
        one = load(model_folder)
        save_model(tmp_path / "m", one.model, encode_config=one.encode_config, tokenizer=one.tokenizer,
                   trained_roles=roles)  # fmt: skip
        return tmp_path / "m"

    return make


@pytest.mark.parametrize(
    ("roles", "told"), [([], 1), (["assistant", "user"], 0), (["gpt"], 0), (None, 0)],
    ids=["none", "chats", "others", "old-folder"],
)  # fmt: skip
def test_a_chat_with_a_model_that_never_saw_one_is_told_once(folder_of, caplog, roles, told):
    loaded = load(folder_of(roles))
    assert loaded.trained_roles == (None if roles is None else tuple(roles))
    for _ in range(2):
        loaded.chat(USER, max_tokens=1)
    loaded.generate("def ", max_tokens=1)
    assert len(caplog.records) == told
    assert ("trained on no conversation" in caplog.text) == bool(told)


@pytest.mark.parametrize("roles", ["user", [1], {"user": 1}, 3], ids=str)
def test_roles_of_another_type_are_refused(folder_of, roles):
    folder = folder_of([])
    configs = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(configs | {"trained_roles": roles}))
    with pytest.raises(ValueError, match="trained_roles"):
        load(folder)


STAGES = {
    "salt-half": (["small"], ["large_salt"], "large_salt is not trained to the end, so that small is taken"),
    "both-half": (["small"], ["large_salt", "large_baseline"], "large_salt and large_baseline are not"),
    "baseline-done": (["large_baseline", "small"], ["large_salt"], "so that large_baseline is taken"),
    "all-done": (["large_salt", "small"], [], ""),
    "worse-half": (["large_salt"], ["small"], ""),
    "not-begun": (["small"], [], ""),
}


@pytest.mark.parametrize(("done", "half", "told"), STAGES.values(), ids=list(STAGES))
def test_a_run_whose_better_stages_are_unfinished_says_so(model_folder, tmp_path, caplog, done, half, told):
    """The small model answered in place of the large one that was half trained, without a word."""
    for name in done:
        shutil.copytree(model_folder / "large_salt", tmp_path / name)
    for name in half:
        (tmp_path / name / "checkpoints" / "step_00000002").mkdir(parents=True)
    for name in (*done, *half):
        (tmp_path / name / "stage.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert main([str(tmp_path), "--prompt", "a", "--max-tokens", "1", "--device", "cpu", "--dtype", "float32"]) == 0
    assert told in caplog.text and bool(told) == bool(caplog.text)
    assert unfinished_stages(tmp_path) == half
    caplog.clear()
    # who names a stage means it
    find_model_folder(tmp_path / done[0])
    assert not caplog.text


@pytest.mark.parametrize("name", ["README.md", "notes/a.txt", "model.gguf"])
def test_what_somebody_put_into_a_model_folder_stays(folder_of, name):
    folder = folder_of([])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    folder_of(["user"])
    assert (folder / name).read_text() == "mine" and load(folder).trained_roles == ("user",)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
