"""A model that was trained on a few conversations answers them, from Python and on the command line.

Everything lies on one way here: the chat format and its marks, the tokenizer, rows, training, the model folder, prompts
and where an answer ends. What is marked as not to be learned stands there more often than the right answers.
"""

import io
import json
import os

import pytest

from brine.evals.config import EvalConfig
from brine.inference.generate import main
from brine.inference.load import load
from brine.model.config import ModelConfig
from brine.pipeline import run as train
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.training.config import RuntimeConfig, TrainConfig
from tests.inference.encode_chat import encode_chat

pytestmark = pytest.mark.slow

BRIEF = {"role": "system", "content": "Brief."}


def said(question, answer, *, system=True, **mark):
    """Two messages, and the system's before them."""
    start = [BRIEF] if system else []
    return [*start, {"role": "user", "content": question}, {"role": "assistant", "content": answer, **mark}]


COLOUR = said("colour?", "grey", system=False)
CONVERSATIONS = {
    "system": said("bird?", "a heron"),
    "plain": said("tree?", "an elm,\ntall", system=False),
    "turns": [*said("bird?", "a heron"), *COLOUR],
    "tool": [
        {"role": "user", "content": "sum?"}, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "four"}
    ],
}  # fmt: skip
# the same questions, answered otherwise before something that is learned
MARKED = [
    [*said("bird?", "a duck", loss_mask=False), *COLOUR],
    [*said("bird?", "a duck", weight=0), *COLOUR],
    [*said("tree?", "no tree", system=False, train=False), *COLOUR],
    [*said("tree?", "no tree", system=False, loss_mask=0), *COLOUR],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The trained model's run."""
    base = tmp_path_factory.mktemp("chat")
    lines = [{"messages": messages, "split": "train"} for messages in [*CONVERSATIONS.values(), *MARKED, *MARKED]]
    lines.append({"messages": CONVERSATIONS["plain"], "split": "validation"})
    (base / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    large = TrainConfig(
        model=ModelConfig(dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64, window=None),
        num_steps=60, global_batch_size=8, micro_batch_size=8, warmup_steps=5, learning_rate=1e-2, log_every=60,
        checkpoint_every=1000,
    )  # fmt: skip
    recipe = Recipe(
        name="chat",
        corpus=CorpusConfig(manifest=base / "chats.jsonl", vocab_size=300),
        packing=PackingConfig(seq_len=64, image_budget=0, audio_budget=0, video_budget=0, blank_fraction=0.0),
        large=large,
        arms=("baseline",),
        evals=EvalConfig(seq_len=64, bootstrap_resamples=100),
        runtime=RuntimeConfig(compile=False, num_threads=1, device="cpu", dtype="float32", num_loader_workers=0),
    )
    before = os.umask(0o077)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.evaluate_stage, "report", lambda run: None)
            return train.run_pipeline(recipe, runs=base / "runs")
    finally:
        os.umask(before)


@pytest.mark.slow
def test_every_file_of_a_run_follows_a_strict_umask(folder):
    for path in sorted(folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_every_conversation_was_read(folder):
    assert (folder / "encoded" / "quarantine.jsonl").read_text() == ""


def test_the_model_says_how_much_it_saw_at_once(folder):
    """A document sees itself alone: rows may be longer than anything that was trained on."""
    longest = max(len(encode_chat(load(folder), messages[:-1])) for messages in CONVERSATIONS.values())
    assert longest < load(folder).trained_context_tokens < 64
    assert load(folder).trained_roles == ("assistant", "system", "tool", "user")


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_was_learned_comes_back_and_ends(folder, name):
    *asked, answer = CONVERSATIONS[name]
    found = load(folder).chat(asked, max_tokens=40)
    assert found.text == answer["content"]
    assert found.message == answer


def test_the_command_line_answers_the_same(folder, capsys):
    options = ["--chat", "--max-tokens", "40", "--device", "cpu", "--dtype", "float32"]
    assert main([str(folder), *options, "--system", "Brief.", "--message", "bird?"]) == 0
    assert main([str(folder), *options, "--message", "tree?"]) == 0
    assert capsys.readouterr().out == "a heron\nan elm,\ntall\n"


def test_a_conversation_of_several_questions(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("bird?\ncolour?\n"))
    options = ["--chat", "--system", "Brief.", "--max-tokens", "40", "--device", "cpu", "--dtype", "float32"]
    assert main([str(folder), *options]) == 0
    assert capsys.readouterr().out == "a heron\ngrey\n"


def test_words_alone_go_on_as_text(folder):
    """Without the markers of a conversation the model is not asked, and what it writes does not end there."""
    assert "".join(load(folder).generate(["bird?"], max_tokens=8)) != "a heron"
