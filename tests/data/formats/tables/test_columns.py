"""Columns of tables as other programs write them, and as nobody should: words, media and marks are read or named.

An image that stood in its column as numbers or as base64 left a caption that was learned as a text of its own; text
that was stored as bytes was learned as the address of its cell; of two columns of one name the last one won.
"""

import json
from decimal import Decimal

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import media, read, texts
from tests.data.media_files import picture

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"


def write(path, columns: dict, *, names=None):
    """A table of these columns, Parquet or Arrow by its ending; `names` may hold one twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table(list(columns.values()), names=names) if names else pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(made, path)
    else:
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, made.schema) as writer:
            writer.write_table(made)
    return path


def noted(path) -> dict[str, int]:
    source = open_source(path)
    list(source.documents())
    return dict(source.skipped)


ODD_WORDS = {
    "bytes": pa.array(["größe".encode()], pa.binary()),
    "large": pa.array(["größe"], pa.large_string()),
    "dictionary": pa.array(["größe"]).dictionary_encode(),
    "list": pa.array([["größe"]]),
}


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("words", ODD_WORDS.values(), ids=ODD_WORDS)
def test_words_in_columns_of_odd_types(tmp_path, ending, words):
    path = write(tmp_path / f"t.{ending}", {"text": words, "id": pa.array([b"one"], pa.binary())})
    (document,), bad = read(path)
    assert not bad and (document.id, texts(document)) == ("one", "größe")


ODD_MEDIA = {
    "large bytes": pa.array([PNG], pa.large_binary()),
    "bytes of one length": pa.array([PNG], pa.binary(len(PNG))),
    "struct": pa.array([{"bytes": PNG, "path": "../../x.png"}]),
    "list of one": pa.array([[PNG]]),
}


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("cells", ODD_MEDIA.values(), ids=ODD_MEDIA)
@pytest.mark.parametrize("name", ["image", "a/b::c%", "", "größe"])
def test_media_in_columns_of_odd_types_and_names(tmp_path, ending, cells, name):
    (document,), bad = read(write(tmp_path / f"t.{ending}", {name: cells, "text": ["x"]}))
    assert not bad and len(media(document)) == 1 and media(document)[0][1].startswith(f"t.{ending}::0/")


HOSTILE_MEDIA = {
    "pixels": [[[1, 2], [3, 4]]],
    "bytes as numbers": [list(PNG)],
    "number": [7],
    "object": [{"height": 3, "width": 4}],
    "climbs": ["../x.png"],
    "absolute": ["/etc/passwd"],
    "remote": ["https://host/x.png?w=3"],
    "base64": ["iVBORw0KGgoAAAANSUhEUgAA"],
    "base64 with its type": ["data:image/png;base64,iVBORw0KGgo="],
}


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("column", HOSTILE_MEDIA.values(), ids=HOSTILE_MEDIA)
@pytest.mark.parametrize("name", ["image", "img", "images", "image_path"])
def test_a_column_of_media_that_holds_none_leaves_no_text(tmp_path, ending, column, name):
    documents, (bad,) = read(write(tmp_path / f"t.{ending}", {name: column, "text": ["x"]}))
    assert not documents
    assert any(words in bad.reason for words in (f"field '{name}'", "leaves the manifest's folder", "not relative"))


@pytest.mark.parametrize("value", ["train2017/000123", "scan"], ids=["folder", "name"])
def test_what_may_be_a_path_is_looked_for(tmp_path, value):
    (document,), bad = read(write(tmp_path / "t.parquet", {"image": [value], "text": ["x"]}))
    assert not bad and [path for _, path in media(document)] == [value]


@pytest.mark.parametrize("name", ["url", "picture_url", "scan", "mask"])
def test_an_address_in_any_column_leaves_no_text(tmp_path, name):
    documents, (bad,) = read(write(tmp_path / "t.parquet", {name: ["https://host/x.jpg?w=3"], "caption": ["x"]}))
    assert not documents and (f"field '{name}' names the media file" in bad.reason or "remote" in bad.reason)


@pytest.mark.parametrize("name", ["blob", "embedding"])
def test_bytes_of_no_known_medium_are_noted(tmp_path, name):
    path = write(tmp_path / "t.parquet", {name: pa.array([b"\1\2\3"], pa.binary()), "text": ["x"]})
    assert [texts(document) for document in read(path)[0]] == ["x"]
    assert noted(path) == {f"note: column '{name}' holds bytes of no known format and was not read": 1}


def test_an_empty_cell_beside_words_is_noted(tmp_path):
    path = write(tmp_path / "t.parquet", {"image": ["a.png", None], "text": ["one", "two"]})
    documents, bad = read(path)
    assert not bad and [len(media(document)) for document in documents] == [1, 0]
    told = "note: field 'image' holds no media: the text was read alone"
    assert noted(path) == {told: 1}
    (tmp_path / "m.jsonl").write_text('{"image": null, "text": "x"}\n{"text": "alone"}\n')
    assert noted(tmp_path / "m.jsonl") == {told: 1}


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("name", ["text", "image", "id"])
def test_two_columns_of_one_name_are_told(tmp_path, ending, name):
    """The first of them was passed over without a word."""
    columns = {"one": ["a"], "two": ["b"], "three": ["c"]}
    documents, (bad,) = read(write(tmp_path / f"t.{ending}", columns, names=[name, name, "caption"]))
    assert not documents and f"several columns are called '{name}'" in bad.reason


BAD_WORDS = {
    "not UTF-8": (pa.array([b"\xff\xfe"], pa.binary()), "bytes that are not UTF-8 text"),
    "numbers": (pa.array([3]), "must be of type str, not int"),
    "times": (pa.array([3], pa.timestamp("s")), "must be of type str, not datetime"),
    "object": (pa.array([{"en": "x"}]), "must be of type str, not dict"),
    "NUL": (pa.array(["\0"]), ""),
}


@pytest.mark.parametrize("words, told", BAD_WORDS.values(), ids=BAD_WORDS)
def test_words_of_a_wrong_type_are_set_aside(tmp_path, words, told):
    documents, bad = read(write(tmp_path / "t.parquet", {"text": words}))
    assert [text for document in documents for text in texts(document)] == (["\0"] if not told else [])
    assert all(told in item.reason for item in bad) and len(documents) + len(bad) == 1


OFF = {
    "bool": pa.array([False, True]),
    "int8": pa.array([0, 1], pa.int8()),
    "half": pa.array([0, 1], pa.int8()).cast(pa.float16()),
    "with nothing": pa.array([0, None], pa.float64()),
    "text": pa.array(["False", "True"]),
    "digits": pa.array(["0", "1"]),
    "text with nothing": pa.array(["no", ""]),
}


@pytest.mark.parametrize("marks", OFF.values(), ids=OFF)
def test_marks_in_columns_of_odd_types(tmp_path, marks):
    documents, (bad,) = read(write(tmp_path / "t.parquet", {"text": ["a", "b"], "train": marks}))
    assert [texts(document) for document in documents] == ["b"] and "field 'train' masks the whole sample" in bad.reason


NO_SWITCH = {"text": ["some"], "decimal": pa.array([Decimal(0)], pa.decimal128(3, 0)), "object": [{"a": 0}]}


@pytest.mark.parametrize("marks", NO_SWITCH.values(), ids=NO_SWITCH)
def test_a_mark_beside_the_words_that_is_no_switch_is_noted(tmp_path, marks):
    """It was passed over without a word, where a manifest has a note."""
    path = write(tmp_path / "t.parquet", {"text": ["a"], "train": marks})
    assert len(read(path)[0]) == 1
    assert noted(path) == {"note: field 'train' beside the content is neither true, false, 0 nor 1 and was not read": 1}


@pytest.mark.parametrize("as_json", [False, True], ids=["structs", "json-text"])
@pytest.mark.parametrize("value", [0.5, "0.5", "half", 2], ids=str)
def test_a_mark_on_a_message_that_is_no_switch_is_set_aside(tmp_path, value, as_json):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "BAD", "weight": value}]
    column = [json.dumps(messages)] if as_json else [messages]
    documents, (bad,) = read(write(tmp_path / "t.parquet", {"messages": column}))
    assert not documents and "loss mask 'weight' must be true, false, 0 or 1" in bad.reason


@pytest.mark.parametrize("form", ["text", "messages"])
def test_a_list_of_marks_beside_the_words_is_set_aside(tmp_path, form):
    said = {"text": ["a b"], "messages": [[{"role": "assistant", "content": "BAD"}]]}[form]
    documents, (bad,) = read(write(tmp_path / "t.parquet", {form: said, "loss_mask": [[0, 1]]}))
    assert not documents and "'loss_mask' is a list of loss masks" in bad.reason


@pytest.mark.parametrize("folder", ["", "train/", "a/b/"])
def test_files_beside_a_table(tmp_path, folder, tokenizer, config):
    """As Hugging Face's folders with a metadata.parquet have them; a path from the top of the source holds too."""
    from brine.data.encode import encode

    picture(tmp_path / folder / "1.png", 16, 16)
    picture(tmp_path / "top" / "2.png", 16, 16)
    names = ["1.png", "top/2.png", "gone.png"]
    write(tmp_path / folder / "metadata.parquet", {"file_name": names, "text": ["x"] * 3})
    documents, bad = read(tmp_path)
    assert not bad
    assert [media(document)[0][1] for document in documents] == [f"{folder}1.png", "top/2.png", f"{folder}gone.png"]
    for document in documents[:2]:
        encode(document, root=tmp_path.resolve(), tokenizer=tokenizer, config=config)


def test_a_saved_dataset_names_no_file_elsewhere(tmp_path):
    """What its state names is taken from the files in its folder, and a state that is none is none."""
    write(tmp_path / "secret.arrow", {"text": ["secret"]})
    for name, state in {
        "out": {"_data_files": [{"filename": "../secret.arrow"}, {"filename": "/etc/passwd"}, {"filename": "a.arrow"}]},
        "odd": {"_data_files": "a.arrow"},
        "list": [1],
    }.items():
        write(tmp_path / "saved" / name / "a.arrow", {"text": [name]})
        (tmp_path / "saved" / name / "state.json").write_text(json.dumps(state))
    (tmp_path / "saved" / "dataset_dict.json").write_text("[[[[")
    documents, bad = read(tmp_path / "saved")
    assert not bad and sorted(texts(document) for document in documents) == ["list", "odd", "out"]
