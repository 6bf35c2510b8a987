"""The form of plain folders: texts with splits or a README, data with scripts, captions and pages beside code."""

import pytest
from format_files import read
from test_data_formats_splits import fill

from data.document import Document
from data.formats import open_source
from data.formats.splits import split_of


def splits(root) -> dict[str, set[str]]:
    """Split -> ids of its documents."""
    found: dict[str, set[str]] = {}
    for item in open_source(root).documents():
        if isinstance(item, Document):
            found.setdefault(str(item.split), set()).add(item.id)
    return found


HELD_OUT = {
    "files": (["train.txt", "valid.txt", "test.txt"], {"test.txt"}, {"valid.txt"}),
    "files of tokens": (["x.train.raw", "x.valid.raw", "x.test.raw", "a.txt"], {"x.test.raw"}, {"x.valid.raw"}),
    "files of languages": (["train.en", "train.de", "dev.en", "dev.de", "a.txt"], set(), {"dev.en", "dev.de"}),
    "one more word": (["sub/train.rst", "sub/test_unseen.rst"], {"sub/test_unseen.rst"}, set()),
    "folders": (["train/a.txt", "train/b.txt", "test/c.txt"], {"test/c.txt"}, set()),
    "folders of labels": (["train/pos/1.txt", "train/neg/2.txt", "test/pos/3.txt"], {"test/pos/3.txt"}, set()),
    "pages of hypertext": (["Train/a.html", "Test/b.html", "x.css"], {"Test/b.html"}, set()),
    "texts with programs": (["train/a.txt", "test/b.txt", "load.py", "test/test_load.py"], {"test/b.txt"}, set()),
    "pages": (["train.md", "test.md", "dev.md"], {"test.md"}, {"dev.md"}),
    "pages in folders": (["train/a.md", "val/b.md"], set(), {"val/b.md"}),
    "folders without train": (["a/1.txt", "test/2.txt"], {"test/2.txt"}, set()),
}  # fmt: skip


@pytest.mark.parametrize("names, test, validation", HELD_OUT.values(), ids=HELD_OUT)
def test_texts_that_names_hold_out_are_not_trained_on(tmp_path, names, test, validation):
    """Their split came from the hash, and the test was trained on."""
    fill(tmp_path, dict.fromkeys(names, "words"))
    found = splits(tmp_path)
    assert found.get("test", set()) >= test and found.get("validation", set()) >= validation
    assert not found["train"] & (test | validation)
    source = open_source(tmp_path)
    list(source.documents())
    assert any("by names of f" in line for line in source.told())


NO_SPLITS = {
    "tests of a program": ["src/a.py", "train/a.py", "test/b.py", "eval/c.py", "tests/d.txt", "test/cases.txt"],
    "notes": ["training_day.txt", "test_results.txt", "dev notes.txt", "a.txt"],
    "settings": ["conf/train.yaml", "conf/test.yaml", "a.py"],
    "pages": ["training_day.md", "test_drive.md"],
}


@pytest.mark.parametrize("names", NO_SPLITS.values(), ids=NO_SPLITS)
def test_other_names_of_texts_declare_nothing(tmp_path, names):
    fill(tmp_path, dict.fromkeys(names, "words"))
    documents, _ = read(tmp_path)
    assert len(documents) == len(names) and all(document.split == split_of(document.id) for document in documents)
