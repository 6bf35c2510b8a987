"""Marks that stand beside the turns for some of them, in the dialects of other programs."""

import json

import pytest

from brine.data.formats.lines.loss_masks import MASKED_ROLE_KEYS, TOKEN_MASK_KEYS, TRAINED_ROLE_KEYS, loss_polarity
from brine.data.formats.open import open_source
from tests.data.format_files import read, texts
from tests.data.formats.test_webdataset_names import tar
from tests.data.media_files import manifest


def nemo(*speakers, **beside):
    return {"conversations": [{"from": who, "value": f"{who}!"} for who in speakers]} | beside


def chat(*speakers, **beside):
    return {"messages": [{"role": who, "content": f"{who}!"} for who in speakers]} | beside


def learned(tmp_path, fields) -> str:
    (document,), bad = read(manifest(tmp_path, [fields]))
    assert not bad
    return texts(document, loss_mask=True)


def noted(tmp_path, fields) -> list[str]:
    source = open_source(manifest(tmp_path, [fields]))
    assert len(list(source.documents())) == 1
    return [reason for reason in source.skipped if reason.startswith("note: ")]


MASKED = {
    "nemo": (nemo("User", "Assistant", mask="User", system="", type="VALUE_TO_TEXT"), "Assistant!"),
    "two with names": (nemo("Ann", "Bob", "Ann", mask="Bob"), "Ann!Ann!"),
    "the other of two": (nemo("Ann", "Bob", mask="Ann"), "Bob!"),
    "case": (nemo("USER", "assistant", mask="user"), "assistant!"),
    "a role in other words": (nemo("human", "gpt", mask="User"), "gpt!"),
    "a list": (chat("customer", "narrator", "assistant", mask=["customer", "narrator"]), "assistant!"),
    "in messages": (chat("user", "assistant", "Expert", mask="user"), "assistant!Expert!"),
    "tools are read only": (chat("user", "assistant", "tool", "assistant", mask="user"), "assistant!assistant!"),
    "roles to train": (chat("user", "assistant", "tool", roles_to_train=["assistant", "tool"]), "assistant!tool!"),
    "one role to train": (chat("user", "assistant", "Expert", roles_to_train="Expert"), "Expert!"),
    "train user": (nemo("human", "gpt", roles_to_train=["human"]), "human!"),
    "a mark a turn": (chat("user", "assistant", "assistant", loss_mask=[0, 0, 1]), "assistant!"),
    "weights": (chat("user", "assistant", "user", "assistant", weights=[0, 1, 0, 0]), "assistant!"),
    "masks": (nemo("human", "gpt", "gpt", mask=[1, 0, 1]), "gpt!"),
    "marks as text": (chat("user", "assistant", "assistant", loss_mask=["0", "0", "1"]), "assistant!"),
    "a setting as text": (chat("user", "assistant", train_on_inputs="False", mask_history="false"), "assistant!"),
    "booleans": (nemo("human", "gpt", train=[True, True]), "human!gpt!"),
    "its own mark is nearer": (
        {"messages": [{"role": "user", "content": "q", "weight": 1}, {"role": "assistant", "content": "a"}],
         "mask": "user"},
        "qa",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fields, words", MASKED.values(), ids=MASKED)
def test_marks_beside_the_turns(tmp_path, fields, words):
    assert learned(tmp_path, fields) == words
    assert not noted(tmp_path, fields)


@pytest.mark.parametrize("name", MASKED_ROLE_KEYS)
def test_each_name_of_silent_speakers(tmp_path, name):
    assert learned(tmp_path, nemo("Ann", "Bob") | {name: "Ann"}) == "Bob!"


@pytest.mark.parametrize("name", TRAINED_ROLE_KEYS)
def test_each_name_of_learned_speakers(tmp_path, name):
    assert learned(tmp_path, chat("user", "assistant", "Ann") | {name: ["ann"]}) == "Ann!"


REFUSED = {
    "only the silent one speaks": (nemo("User", mask="User"), "masked from the loss ('mask')"),
    "the assistant is silent": (nemo("User", "Assistant", mask="Assistant"), "masked from the loss ('mask')"),
    "nobody to train": (
        chat("user", "assistant", roles_to_train=["critic"]),
        "masked from the loss ('roles_to_train')",
    ),
    "a list of other length": (chat("user", "assistant", loss_mask=[1]), "'loss_mask' is a list of loss masks"),
    "nothing of each": (chat("user", "assistant", loss_mask=[0, 0]), "masked from the loss ('loss_mask')"),
    "history": (chat("user", "assistant", mask_history=True), "'mask_history' leaves turns out"),
    "history as text": (chat("user", "assistant", mask_history="True"), "'mask_history' leaves turns out"),
    "unwanted": (chat("user", "assistant", label=False), "'label' says that the answer is a bad one"),
    "kto": (nemo("human", "gpt", kto_tag=False), "'kto_tag' says"),
    "labels of tokens": (chat("user", "assistant", labels=[-100, -100, 5]), "tokens of another tokenizer"),
    "a text of tokens": ({"text": "x", "completion_mask": [0, 1]}, "'completion_mask' masks tokens of"),
    "native": ({"id": "n", "content": [{"type": "text", "text": "x"}], "assistant_masks": [0, 1]}, "masks tokens of"),
}


@pytest.mark.parametrize("fields, words", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_set_aside(tmp_path, fields, words):
    documents, (bad,) = read(manifest(tmp_path, [fields]))
    assert not documents and words in bad.reason


NOTED = {
    "a setting": (chat("user", "assistant", train_on_eos="turn"), "'train_on_eos' beside the turns is a setting"),
    "all learned": (chat("user", "assistant", train_on_inputs=True), "'train_on_inputs' beside the turns"),
    "a wider loss": (nemo("human", "gpt", assistant_only_loss=False), "'assistant_only_loss'"),
    "nobody of that name": (nemo("human", "gpt", mask="Zoe"), "'mask' beside the content is neither"),
    "another word": (chat("user", "assistant", sft_loss_type="x"), "'sft_loss_type' beside the content looks like"),
    "a preference": (chat("user", "assistant", rejected="no"), "'rejected' beside the turns was not read"),
}


@pytest.mark.parametrize("fields, words", NOTED.values(), ids=NOTED)
def test_what_is_not_read_is_noted(tmp_path, fields, words):
    (note,) = noted(tmp_path, fields)
    assert words in note


@pytest.mark.parametrize(
    "beside",
    [
        {"train_on_inputs": False}, {"assistant_only_loss": True}, {"label": True}, {"label": 0}, {"mask": None},
        {"labels": [3, 4]}, {"attention_mask": [1, 1]}, {"is_train": True}, {"mask": ""},
    ],
    ids=str,
)  # fmt: skip
def test_what_says_nothing_new_is_not_noted(tmp_path, beside):
    assert learned(tmp_path, chat("user", "assistant") | beside) == "assistant!"


SPELT = (
    "lossMask",
    "loss_scale",
    "Loss-Mask",
    "LOSS_MASK",
    "isTrainable",
    "computeLoss",
    "noLoss",
    "includeInLoss",
    "Weight",
)


@pytest.mark.parametrize("name", SPELT)
def test_spellings_of_one_mark(tmp_path, name):
    off = not loss_polarity(name)
    messages = [{"role": "assistant", "content": "BAD", name: off}, {"role": "assistant", "content": "GOOD"}]
    assert learned(tmp_path, {"messages": messages}) == "GOOD"
    documents, _ = read(manifest(tmp_path, [{"messages": messages[1:], name: off}]))
    assert not documents


@pytest.mark.parametrize("name", ["model", "trainer", "weightlifting", "maskedman", "", "lost", "lesson"])
def test_what_is_no_mark(name):
    assert loss_polarity(name) is None


def test_in_tables_and_tars(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [nemo("Ann", "Bob", mask="Ann"), nemo("Ann", "Bob", mask="Bob")]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert [texts(document, loss_mask=True) for document in read(tmp_path / "t.parquet")[0]] == ["Bob!", "Ann!"]
    pq.write_table(pa.table({"text": ["a", "b"], "completion_mask": [[0, 1], []]}), tmp_path / "t.parquet")
    (document,), (bad,) = read(tmp_path / "t.parquet")
    assert texts(document) == "b" and "'completion_mask'" in bad.reason
    assert "labels" in TOKEN_MASK_KEYS
    tar(tmp_path / "s.tar", [(f"{number}.json", json.dumps(row)) for number, row in enumerate(rows)])
    assert [texts(document, loss_mask=True) for document in read(tmp_path / "s.tar")[0]] == ["Bob!", "Ann!"]
