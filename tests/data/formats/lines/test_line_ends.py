"""JSON lines under their other endings (.ndjson, .jsonlines, .jl) are what .jsonl is, in every place.

Beside images they were no words of them, and several together were learned as the raw text of a repository.
"""

import bz2
import gzip
import json
import lzma

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import follow_command, media, read, texts
from tests.data.formats.splits.test_rules import fill, rows

ENDINGS = ["jsonl", "ndjson", "jsonlines", "jl", "NDJSON", "JL", "ndjson.gz", "jsonlines.bz2", "jl.xz", "jl.gz"]
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
endings = pytest.mark.parametrize("ending", ENDINGS)


def lines(*words, ending: str, **beside) -> bytes:
    content = rows({"text": word} | beside for word in words).encode()
    return PACK.get(ending.rpartition(".")[2], bytes)(content)


def told(path) -> list[str]:
    source = open_source(path)
    list(source.documents())
    return source.summary_lines()


@endings
@pytest.mark.parametrize("name", ["train", "rows", "metadata"])
def test_beside_the_images_that_they_name(tmp_path, ending, name):
    fill(tmp_path, {f"{name}.{ending}": lines("A heron.", ending=ending, image="a.png"), "a.png": b"x"})
    (document,), bad = read(tmp_path)
    assert not bad and [path for _, path in media(document)] == ["a.png"] and texts(document) == "A heron."
    assert not [line for line in told(tmp_path) if "files skipped" in line]


@endings
def test_names_of_splits_and_folders(tmp_path, ending):
    fill(
        tmp_path / "on top",
        {f"{name}.{ending}": lines(name, ending=ending) for name in ("train", "test-00000-of-00001")},
    )
    fill(tmp_path / "below", {f"{name}/a.{ending}": lines(name, ending=ending) for name in ("train", "test")})
    fill(
        tmp_path / "media",
        {f"{name}/a.{ending}": lines(name, ending=ending, image="1.png") for name in ("train", "test")},
    )
    fill(tmp_path / "media", {"train/1.png": b"x", "test/1.png": b"x"})
    for kind in ("on top", "below", "media"):
        documents, bad = read(tmp_path / kind)
        assert not bad and {texts(document).split("-")[0]: document.split for document in documents} == {
            "train": "train",
            "test": "test",
        }
    assert not read(tmp_path / "media")[1]


def test_all_together(tmp_path):
    fill(tmp_path, {f"{ending[:3]}{n}.{ending}": lines(f"{n}", ending=ending) for n, ending in enumerate(ENDINGS)})
    fill(tmp_path, {"notes.txt": "words", "p/1.png": b"x"})
    assert sorted(texts(document) for document in read(tmp_path)[0]) == sorted(map(str, range(len(ENDINGS))))


@pytest.mark.parametrize("first, second", [("jsonl", "ndjson"), ("ndjson", "jsonlines"), ("jsonlines", "jl.gz")])
def test_of_one_name_one_is_read(tmp_path, first, second):
    fill(tmp_path, {f"a.{first}": lines("A", ending=first), f"a.{second}": lines("B", ending=second)})
    assert [texts(document) for document in read(tmp_path)[0]] == ["A"]
    assert any(f"a.{second}" in line for line in told(tmp_path))


JULIA = {"a.jl": "[1, 2]\n", "b.jl": "function f(x)\n  x\nend\n", "test.jl": "using Test\n", "c.jl": "# {}\n"}


def test_programs_in_julia_stay_programs(tmp_path):
    fill(tmp_path, JULIA | {"README.md": "# f"})
    source = open_source(tmp_path)
    assert source.format == "repository"
    documents = list(source.documents())
    assert {document.id for document in documents} == {*JULIA, "README.md"}
    assert {document.kind for document in documents if document.id in JULIA} == {"code"}
    fill(tmp_path, {"more/rows.jsonl": rows([{"text": "x"}]), **{f"{n}.jl": "x = 1" for n in range(30)}})
    assert open_source(tmp_path).format == "repository"


PROGRAMS = {
    "a list of numbers": '[1, 2, 3]\nprintln("x")\n',
    "a list over lines": "[\n  1,\n  2\n]\n",
    "a list of texts": '["a", "b"] .|> println\n',
    "a comprehension": "[x^2 for x in 1:3]\n",
    "a list of lists": "[[1, 2], [3, 4]]\n",
    "a pair in braces": '{"a" => 1}\n',
    "braces": "{x, y} = f()\n",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize(
    "others",
    [{}, {"README.md": "# f"}, {"src/b.jl": "[4]\n"}, {"b.jl": '{"a":1}\n'}],
    ids=["alone", "card", "two", "JSON"],
)
def test_a_program_in_julia_may_begin_with_a_bracket(tmp_path, program, others):
    """Programs that all begin so were refused, for "a document must be a JSON object, not list"."""
    fill(tmp_path, {"a.jl": program} | others)
    documents, bad = read(tmp_path)
    assert open_source(tmp_path).format == "repository" and not bad
    assert f"a.jl\n{program}" in [texts(document) for document in documents]


LINES_OF_JL = {
    "a line": '{"text": "x"}\n',
    "a mark": '\ufeff{"text": "x"}\n',
    "a blank line": '\n{"text": "x"}\n',
    "an object over lines": '{\n  "text": "x"\n}\n',
    "an array": '[\n{"text": "x"}]\n',
    "a conversation": '[{"role": "assistant", "content": "x"}]\n[{"role": "assistant", "content": "x"}]\n',
}


@pytest.mark.parametrize("content", LINES_OF_JL.values(), ids=LINES_OF_JL)
def test_objects_under_julia_s_ending_are_documents(tmp_path, content):
    fill(tmp_path, {"a.jl": content, "b.jsonl": rows([{"text": "y"}])})
    documents, bad = read(tmp_path)
    assert not bad and {"x", "y"} == {texts(document).splitlines()[-1] for document in documents}


@pytest.mark.parametrize("ending", ENDINGS[1:4])
def test_lines_of_no_known_form_are_named(tmp_path, ending):
    fill(tmp_path, {f"a.{ending}": rows([{"smell": 1}]), "README.md": "# card"})
    with pytest.raises(ValueError, match=rf"a\.{ending}, which has the fields 'smell'"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"text": \0}\n', b"\x1f\x8b\x08junk"], ids=repr
)
def test_odd_bytes_are_no_documents(tmp_path, content):
    for ending in ("ndjson", "jl"):
        fill(tmp_path, {f"a.{ending}": content, "b.jsonl": rows([{"text": "x"}])})
    assert [texts(document) for document in read(tmp_path)[0]] == ["x"]


WRAPPED = {
    "data": {"data": [{"text": "one"}, {"text": "two"}]},
    "version first": {"version": "1", "rows": [{"text": "one"}, {"text": "two"}]},
    "examples": {"examples": [{"messages": [{"role": "assistant", "content": word}]} for word in ("one", "two")]},
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("beside", ["jsonl", "ndjson", "jl"])
def test_rows_inside_one_object_beside_others_are_named(tmp_path, wrapped, beside):
    fill(tmp_path, {f"a.{beside}": rows([{"text": "x"}]), "d.json": json.dumps(wrapped)})
    assert [texts(document) for document in read(tmp_path)[0]] == ["x"]
    (line,) = [line for line in told(tmp_path) if "d.json" in line]
    assert "1 file .json of one object with lists of rows (`brine data convert FILE` writes a manifest)" in line
    # the remedy, followed
    with pytest.raises(ValueError) as error:
        open_source(tmp_path / "d.json")
    follow_command(str(error.value))
    found = "".join(texts(document) for document in read(tmp_path)[0])
    assert "one" in found and "two" in found and "x" in found


@pytest.mark.parametrize("others", [{"README.md": "# card"}, {"LICENSE": "x", "dataset_card.md": "x"}, {}], ids=str)
def test_rows_inside_one_object_are_no_text(tmp_path, others):
    fill(tmp_path, {"d.json": json.dumps(WRAPPED["data"])} | others)
    with pytest.raises(ValueError, match=r"d\.json.+one object with a list of objects under 'data'"):
        open_source(tmp_path)


def test_rows_inside_one_object_among_texts_are_noted(tmp_path):
    fill(tmp_path, {"d.json": json.dumps(WRAPPED["data"]), "a.py": "x", "b.py": "y", "c.txt": "z"})
    assert any("JSON of documents was read as plain text" in line for line in told(tmp_path))
