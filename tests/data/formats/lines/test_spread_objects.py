"""JSON objects written over several lines: read where their form is known, else told as what they are."""

import json

import pytest

from brine.data.formats.lines.lines import is_spread, json_items
from brine.data.formats.open import open_source
from tests.data.format_files import read, texts

TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
DOCUMENTS = {
    "chat": TALK,
    "llava": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "native": {"id": "a", "content": [{"type": "text", "text": "Hello"}]},
    "text": {"text": "Hello {\n}"},
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
@pytest.mark.parametrize("value", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_file_of_one_object(tmp_path, value, name):
    (tmp_path / name).write_text(json.dumps(value, indent=2))
    (document,), bad = read(tmp_path / name)
    assert not bad and "Hello" in texts(document)


WRITTEN = {
    "one after another": lambda a, b: f"{a}\n{b}\n",
    "without a break": lambda a, b: a + b,
    "a mark and carriage returns": lambda a, b: "\ufeff" + f"{a}\n\n{b}".replace("\n", "\r\n"),
    "tabs": lambda a, b: f"{a}\n{b}".replace("  ", "\t"),
}


@pytest.mark.parametrize("joined", WRITTEN.values(), ids=WRITTEN)
def test_several_objects_are_told_once(tmp_path, joined):
    file = tmp_path / "a.jsonl"
    file.write_text(joined(*(json.dumps({"text": text}, indent=2) for text in "ab")), newline="")
    documents, (bad,) = read(file)
    assert not documents and "jq -c" in bad.reason
    with pytest.raises(ValueError, match="jq -c"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "content, told",
    [
        ('{\n "text": oops\n}', "not JSON"),
        ('{\n "text": "a"', "not JSON"),
        ('{\n "text": "a"\n}\n]', "more follows"),
        ('{\n "text": "a"\n},\n{"text": "c"}', "more follows"),
        ('{\n "text": oops\n}\n{\n "text": "c"\n}', "in the first object"),
        ('{\n "text": 3\n}', "entry 1"),
        ('{\n "text": "\udc80"\n}', "entry 1"),
    ],
    ids=["broken", "cut", "a bracket", "commas", "broken and more", "a number", "no UTF-8"],
)
def test_what_is_wrong_is_told_once(tmp_path, content, told):
    file = tmp_path / "a.jsonl"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    documents, (bad,) = read(file)
    assert not documents and told in bad.reason


def test_an_object_over_the_limit(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "a" * 3_000_000}, indent=1))
    ((_, item),) = json_items(file, max_line_mib=1.0)
    assert "longer than" in str(item)


TOLD = {
    "of a known form": ({"chat.json": TALK}, "is one document"),
    "several": ({"a.json": TALK, "b.json": TALK}, "is one document"),
    "of no form": ({"a.json": {"smell": "x"}}, "has the fields 'smell'"),
    "a list of documents": ({"a.json": {"version": {"n": 1}, "train": [TALK]}}, "a list of objects under 'train'"),
}


@pytest.mark.parametrize("files, words", TOLD.values(), ids=TOLD)
def test_what_is_told_of_a_folder(tmp_path, files, words):
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value, indent=2))
    with pytest.raises(ValueError, match="holds nothing that is read") as caught:
        open_source(tmp_path)
    assert words in str(caught.value) and "not JSON" not in str(caught.value)


def test_lines_are_not_spread(tmp_path):
    for content in ('{"a": 1}', '{"a":\n1}', "", "[\n{", "{\n{", "{", "{ x\n"):
        (tmp_path / "a").write_text(content)
        assert not is_spread(tmp_path / "a")
