"""Numbers beside an image are no caption: boxes of YOLO, outlines, classes; what a JSON beside one holds is named."""

import json

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import read, texts
from tests.data.formats.test_containers import tar

BOX = "0 0.5 0.5 0.1 0.1\n"
ASIDE = {
    "boxes": (BOX, "holds boxes or outlines in numbers (YOLO) and no text"),
    "two boxes": (BOX + "14 0.25 .5 1e-2 1\r\n", "(YOLO)"),
    "outlines": ("0 0.1 0.2 0.3 0.4 0.5 0.6\n3 0.1 0.2 0.3 0.4\n", "(YOLO)"),
    "scores": ("0 0.5 0.5 0.1 0.1 0.98\n\n", "(YOLO)"),
    "corners": ("12, 40, 180, 220\n", "holds numbers and no text"),
    "depths": ("-1.5\n+2.25\n3.\n", "holds numbers and no text"),
}


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return root


@pytest.mark.parametrize("content, words", ASIDE.values(), ids=ASIDE)
def test_numbers_beside_an_image_are_set_aside(tmp_path, content, words):
    """The numbers of boxes were learned as captions, without a word on it."""
    files = {"1.jpg": "", "1.txt": content, "train/2.png": "", "train/2.png.txt": content, "classes.txt": "cat\ndog\n"}
    documents, bad = read(put(tmp_path, files))
    assert not documents and len(bad) == 2 and all(words in item.reason for item in bad)
    source = open_source(tmp_path)
    list(source.documents())
    assert source.skipped["text without media"] == 1


@pytest.mark.parametrize("content", ["7", "7\n", "3 wrens", "a 1 2 3", "1984: a year", "1 0.5 0.5 0.1 cat", "0x1f 3"])
def test_words_and_a_digit_stay_captions(tmp_path, content):
    (document,), bad = read(put(tmp_path, {"1.jpg": "", "1.txt": content}))
    assert not bad and texts(document) == content


def test_one_number_beside_names_of_classes_is_a_class(tmp_path):
    _, (bad,) = read(put(tmp_path, {"a/1.jpg": "", "a/1.txt": "7", "a/classes.txt": "cat\n"}))
    assert "holds the number of a class and no text" in bad.reason


def test_words_beside_numbers_are_read(tmp_path):
    files = {
        "1.jpg": "",
        "1.txt": BOX,
        "1.caption": "a wren",
        "2.jpg": "",
        "2.txt": BOX,
        "2.json": {"caption": "a tit"},
    }
    documents, bad = read(put(tmp_path, files))
    assert not bad and [texts(document) for document in documents] == ["a wren", "a tit"]
    # a sound's and a video's numbers may be what is said
    documents, bad = read(put(tmp_path / "s", {"1.wav": "", "1.txt": "1 2 3 4 5"}))
    assert not bad and texts(documents[0]) == "1 2 3 4 5"


@pytest.mark.parametrize("content", [BOX, "1 2", "12, 40, 180, 220"])
def test_numbers_in_a_tar(tmp_path, content):
    tar(tmp_path / "a.tar", {"1.jpg": "x", "1.txt": content, "2.jpg": "x", "2.txt": content, "2.json": '{"text": "a"}',
                             "3.jpg": "x", "3.txt": "7"})  # fmt: skip
    documents, (bad,) = read(tmp_path / "a.tar")
    assert [texts(document) for document in documents] == ["a", "7"] and "and no text" in bad.reason


JSON = {
    "LabelMe": {"version": "5", "flags": {}, "shapes": [], "imagePath": "1.jpg", "imageData": None},
    "boxes": {"boxes": [[1, 2, 3, 4]], "size": {"w": 1}},
    "points": {"keypoints": [1, 2], "person": 3},
}


@pytest.mark.parametrize("fields", JSON.values(), ids=JSON)
def test_the_json_beside_an_image_without_words_is_named(tmp_path, fields):
    """ "has no caption beside it: write 1.txt" did not say what was looked at."""
    documents, (bad,) = read(put(tmp_path, {"1.jpg": "", "1.json": fields}))
    assert not documents and "for '1.json' has the fields" in bad.reason and "write 1.txt" in bad.reason
    assert all(repr(key) in bad.reason for key in fields)
