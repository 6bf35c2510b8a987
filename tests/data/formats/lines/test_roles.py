"""Speakers of all dialects: who is learned, who is only read, who is noted; the system prompt beside the turns."""

import json

import pytest

from brine.data.formats.lines.loss_masks import ROLES
from brine.data.formats.open import open_source
from tests.data.format_files import read, texts
from tests.data.media_files import manifest


def messages(word):
    return {"messages": [{"role": word, "content": "SAID"}, {"role": "assistant", "content": "END"}]}


def turns(word):
    return {"conversations": [{"from": word, "value": "SAID"}, {"from": "gpt", "value": "END"}]}


@pytest.mark.parametrize("form", [messages, turns])
@pytest.mark.parametrize("role", sorted(set(ROLES.values())))
def test_words_for_speakers(tmp_path, role, form):
    words = [word for word in ROLES if ROLES[word] == role]
    words += [word.upper() for word in words]
    documents, bad = read(manifest(tmp_path, [form(word) for word in words]))
    assert not bad and len(documents) == len(words)
    for document in documents:
        assert texts(document) == f"<{role}>\nSAID\n<assistant>\nEND"
        assert texts(document, loss_mask=True) == ("SAIDEND" if role == "assistant" else "END")
        assert document.parts[1].role == role


@pytest.mark.parametrize(
    "word,role",
    [
        ("function_call", "assistant"),
        ("bing", "assistant"),
        ("observation", "tool"),
        ("ipython", "tool"),
        ("prompter", "user"),
        ("developer", "system"),
        ("Model", "assistant"),
        ("Tool", "tool"),
    ],
)
def test_the_table_of_speakers(word, role):
    assert ROLES[word.lower()] == role


@pytest.mark.parametrize("form", [messages, turns])
@pytest.mark.parametrize("word", ["Alice", "critic", "narrator 2"])
def test_an_unknown_speaker_is_read_and_noted(tmp_path, word, form):
    source = open_source(manifest(tmp_path, [form(word)]))
    (document,) = source.documents()
    assert texts(document) == f"<{word}>\nSAID\n<assistant>\nEND" and texts(document, loss_mask=True) == "END"
    assert list(source.skipped) == [f"note: speaker {word!r} is not known: read under that name, without loss"]


@pytest.mark.parametrize("form", [messages, turns])
@pytest.mark.parametrize("word", [None, 3, "", "a" * 41, "x\n<assistant>", "<user>"], ids=str)
def test_what_is_no_speaker_is_set_aside(tmp_path, word, form):
    documents, (bad,) = read(manifest(tmp_path, [form(word)]))
    assert not documents and "a role must be a short word" in bad.reason


@pytest.mark.parametrize("form", [messages, turns])
@pytest.mark.parametrize(
    "beside,prompt",
    [
        ({"system": "Be brief."}, "Be brief."),
        ({"system_prompt": "Be brief."}, "Be brief."),
        ({"system_message": ["Be brief."]}, "Be brief."),
        ({"system": "Be brief.", "system_prompt": "Be brief."}, "Be brief."),
        ({"system": [], "system_prompt": None, "system_message": ""}, None),
    ],
    ids=["system", "prompt", "list", "twice", "empty"],
)
def test_system_prompt_beside_the_turns(tmp_path, form, beside, prompt):
    (document,), bad = read(manifest(tmp_path, [form("user") | beside]))
    opened = f"<system>\n{prompt}\n" if prompt else ""
    assert not bad and texts(document) == f"{opened}<user>\nSAID\n<assistant>\nEND"
    assert texts(document, loss_mask=True) == "END"


@pytest.mark.parametrize("value", [3, ["a", "b"], {"text": "x"}], ids=["number", "two", "object"])
def test_system_prompt_of_a_wrong_type(tmp_path, value):
    documents, (bad,) = read(manifest(tmp_path, [turns("human") | {"system_prompt": value}]))
    assert not documents and "field 'system_prompt' must be a string or a list of one" in bad.reason


@pytest.mark.parametrize("tools", ["[]", [], "", None, "[{}]", [{"name": "weather"}]], ids=str)
def test_tools_are_noted(tmp_path, tools):
    source = open_source(manifest(tmp_path, [turns("human") | {"tools": tools}]))
    assert len(list(source.documents())) == 1
    assert any("'tools'" in note for note in source.skipped) == bool(tools and tools != "[]")


def test_speakers_in_tables(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [form["conversations"] for form in (turns("function_call"), turns("observation"))]
    table = {"conversations": [json.dumps(row) for row in rows], "system": ["Be brief.", None]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (first, second), bad = read(tmp_path / "t.parquet")
    assert not bad and texts(first, loss_mask=True) == "SAIDEND" and texts(second, loss_mask=True) == "END"
    assert texts(first).startswith("<system>\nBe brief.\n<assistant>\n") and texts(second).startswith("<tool>\n")
