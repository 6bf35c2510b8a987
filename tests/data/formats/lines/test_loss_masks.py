"""Marks of what is not to be learned: on messages, on parts and on whole objects, in every form that has words."""

import json

import pytest

from brine.data.formats.lines.loss_masks import LOSS_KEYS, LOSS_OFF_KEYS
from brine.data.formats.open import open_source
from tests.data.format_files import read, texts
from tests.data.media_files import manifest

QUESTION = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "GOOD"}


def chat(*messages, **beside):
    return {"id": "c", "messages": [QUESTION, *messages]} | beside


def from_value(mark):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "BAD"} | mark, {"from": "gpt", "value": "GOOD"}]
    return {"id": "c", "conversations": turns}


def on_message(mark):
    return chat({"role": "assistant", "content": "BAD"} | mark, GOOD)


def on_part(mark):
    parts = [{"type": "text", "text": "BAD"} | mark, {"type": "text", "text": "GOOD"}]
    return chat({"role": "assistant", "content": parts})


def on_native_part(mark):
    return {"id": "c", "content": [{"type": "text", "text": "BAD"} | mark, {"type": "text", "text": "GOOD"}]}


def learned(tmp_path, fields):
    """(text that is learned, text that is only read) of the one document, which must not be set aside."""
    (document,), bad = read(manifest(tmp_path, [fields]))
    assert not bad
    return texts(document, loss_mask=True), texts(document, loss_mask=False)


def reason(tmp_path, fields):
    documents, (bad,) = read(manifest(tmp_path, [fields]))
    assert not documents
    return bad.reason


@pytest.mark.slow
@pytest.mark.parametrize("form", [on_message, from_value, on_part, on_native_part])
@pytest.mark.parametrize("mark", LOSS_KEYS)
def test_each_mark_in_each_form(tmp_path, mark, form):
    is_off = mark in LOSS_OFF_KEYS
    for off in (is_off, int(is_off), float(is_off), "yes" if is_off else "no", f" {is_off} ", str(float(is_off))):
        if form is on_native_part and mark == "learn" and off is not False:
            continue
        good, only_read = learned(tmp_path, form({mark: off}))
        assert good == "GOOD" and "BAD" in only_read
    if form is not on_native_part:
        # what tables have where a mark is missing
        for nothing in (None, float("nan"), ""):
            assert "BAD" in learned(tmp_path, form({mark: nothing}))[0]
    assert "BAD" in learned(tmp_path, form({mark: mark not in LOSS_OFF_KEYS}))[0]


@pytest.mark.parametrize(
    "value", [0.5, 2, -1, "nothing", "2", [0], {"a": 1}], ids=["half", "two", "minus", "word", "text", "list", "object"]
)
@pytest.mark.parametrize("form", [on_message, from_value, on_part, on_native_part])
def test_a_mark_of_a_wrong_type_is_set_aside(tmp_path, form, value):
    assert "loss mask 'weight' must be true, false, 0 or 1" in reason(tmp_path, form({"weight": value}))


@pytest.mark.parametrize(
    "fields,words",
    [
        (on_message({"weight": 1, "masked": True}), "loss masks 'weight', 'masked' contradict"),
        (on_part({"learn": True, "train": 0}), "loss masks 'learn', 'train' contradict"),
        (on_message({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}), "content parts"),
        (chat(GOOD | {"weight": 0}), "masked from the loss ('weight')"),
        (
            chat(GOOD | {"content": [{"type": "text", "text": "x", "trainable": False}]}),
            "masked from the loss ('trainable')",
        ),
        (chat(GOOD, train=False), "masked from the loss ('train')"),
        (chat(GOOD, loss_mask=[0, 1, 1]), "'loss_mask' is a list of loss masks: put each into its message"),
        ({"id": "c", "content": [{"type": "text", "text": "x", "trainable": 0}]}, "masked from the loss ('trainable')"),
        ({"id": "c", "content": [{"type": "text", "text": "x"}], "masked": True}, "masked from the loss ('masked')"),
        ({"text": "words", "train": False}, "field 'train' masks the whole"),
        ({"texts": ["a"], "images": [None], "learn": 0}, "field 'learn' masks the whole"),
        ({"file_name": "a.png", "text": "x", "masked": 1}, "field 'masked' masks the whole"),
    ],
    ids=lambda value: value[:30].replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_leaves_no_target_or_no_meaning_is_set_aside(tmp_path, fields, words):
    assert words in reason(tmp_path, fields)


BESIDE = {
    "caption": {"file_name": "a.png", "caption": "x"},
    "text": {"text": "x"},
    "native": {"id": "c", "content": [{"type": "text", "text": "x"}]},
    "chat": {"messages": [QUESTION, GOOD]},
    "llava": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "pages": {"texts": ["x"], "images": [None]},
}


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": "0"},
        {"trainable": "false"},
        {"train": "no"},
        {"loss_mask": "0.0"},
        {"masked": "True"},
        {"weight": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("fields", BESIDE.values(), ids=BESIDE)
def test_a_mark_that_is_text_says_what_it_says(tmp_path, fields, mark):
    (field,) = mark
    assert f"{field!r}" in reason(tmp_path, fields | mark) and "from the loss" in reason(tmp_path, fields | mark)


def test_the_own_word_of_the_native_form_as_text(tmp_path):
    assert learned(tmp_path, BESIDE["native"] | {"learn": "false"}) == ("", "x")
    assert "'learn'" in reason(tmp_path, BESIDE["chat"] | {"learn": "False"})
    assert "'learn'" in reason(tmp_path, BESIDE["caption"] | {"learn": "0"})


@pytest.mark.parametrize("mark", [{"weight": "1"}, {"learn": "TRUE"}, {"masked": "no"}, {"train": ""}], ids=str)
@pytest.mark.parametrize("fields", BESIDE.values(), ids=BESIDE)
def test_a_mark_that_is_text_lets_learn(tmp_path, fields, mark):
    source = open_source(manifest(tmp_path, [fields | mark]))
    (document,) = source.documents()
    assert texts(document, loss_mask=True) and not source.skipped


@pytest.mark.parametrize("mark", [{"weight": "0.5"}, {"mask": "a_mask"}, {"learn": "perhaps"}, {"train": "2"}], ids=str)
@pytest.mark.parametrize("fields", BESIDE.values(), ids=BESIDE)
def test_another_text_beside_the_content_is_noted(tmp_path, fields, mark):
    source = open_source(manifest(tmp_path, [fields | mark]))
    (document,) = source.documents()
    ((note, _),) = source.skipped.items()
    assert texts(document, loss_mask=True) and "is neither true, false, 0 nor 1 and was not read" in note


def test_the_nearest_mark_decides(tmp_path):
    parts = [{"type": "text", "text": "kept", "learn": True}, {"type": "text", "text": "left"}]
    assert learned(tmp_path, chat(GOOD | {"content": parts, "weight": 0}))[0] == "kept"
    assert learned(tmp_path, chat(GOOD | {"train": True}, GOOD | {"content": "left"}, train=False))[0] == "GOOD"
    assert learned(tmp_path, {"messages": [QUESTION | {"train": True}, GOOD]})[0] == "qGOOD"
    assert learned(tmp_path, {"messages": [QUESTION | {"masked": False}]})[0] == "q"
    # beside the messages, true says no more than the default
    assert learned(tmp_path, chat(GOOD, train=True, loss_mask=1))[0] == "GOOD"
    words = [{"type": "text", "text": "a", "weight": 1}, {"type": "text", "text": "b"}]
    assert learned(tmp_path, {"id": "n", "content": words, "train": False})[0] == "a"


@pytest.mark.parametrize(
    "fields,words",
    [
        (on_message({"quality": 3}), "field 'quality' beside messages"),
        (on_message({"reasoning_content": "hm"}), "field 'reasoning_content' beside messages"),
        (from_value({"emotion": "joy"}), "field 'emotion' beside turns"),
        (on_part({"cache_control": {"type": "x"}}), "field 'cache_control' of content parts"),
        (on_native_part({"lern": False}), "field 'lern' of content parts"),
        (chat(GOOD, weight=0.25), "field 'weight' beside the content"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_an_unknown_field_is_noted(tmp_path, fields, words):
    source = open_source(manifest(tmp_path, [fields, fields]))
    assert len(list(source.documents())) == 2
    ((note, count),) = source.skipped.items()
    assert note.startswith("note: ") and words in note and count == 2


def test_nothing_is_noted_of_empty_fields(tmp_path):
    source = open_source(manifest(tmp_path, [on_message({"quality": None, "name": "", "weight": 0, "tool_calls": []})]))
    assert len(list(source.documents())) == 1 and not source.skipped


@pytest.mark.parametrize("as_json", [False, True], ids=["structs", "json-text"])
def test_marks_in_tables(tmp_path, as_json):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    bad = {"role": "assistant", "content": "BAD", "weight": 0, "masked": None}
    rows = [[QUESTION, bad, GOOD], [QUESTION, GOOD | {"masked": True}, GOOD | {"content": "TOO"}]]
    column = [json.dumps(row) for row in rows] if as_json else rows
    pq.write_table(pa.table({"messages": column}), tmp_path / "t.parquet")
    documents, none = read(tmp_path / "t.parquet")
    assert not none and [texts(document, loss_mask=True) for document in documents] == ["GOOD", "TOO"]
    pq.write_table(pa.table({"text": ["a", "b"], "train": [True, False], "mask": [0.5, 0.0]}), tmp_path / "t.parquet")
    (document,), (aside,) = read(tmp_path / "t.parquet")
    assert texts(document) == "a" and "field 'train'" in aside.reason
