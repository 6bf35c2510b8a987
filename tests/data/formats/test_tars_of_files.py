"""Tars that hold files of documents and no samples: said, with what to do."""

import json

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import read, texts
from tests.data.formats.test_containers import tar

LINES = '{"text": "a"}\n{"text": "b"}\n'
FILES = {
    "lines": {"data/train.jsonl": LINES, "data/test.jsonl": LINES},
    "lines under another name": {"rows.ndjson": LINES},
    "lines called .json": {"data/train.json": LINES},
    "an array": {"data/train.json": json.dumps([{"text": "a"}, {"text": "b"}])},
    "a table": {"data/train.csv": "text\na\n", "x.parquet": "PAR1"},
    "pages and programs": {"a.py": "import a\n", "b.md": "# b\n"},
    "a compressed one": {"data/train.jsonl.gz": "\x1f"},
}


@pytest.mark.parametrize("folder", [False, True], ids=["given", "in a folder"])
@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_a_tar_without_samples_is_told(tmp_path, files, folder):
    """Of a tar of `data/train.jsonl` there came no documents, and no word on what to do."""
    tar(tmp_path / "a.tar", files)
    documents, bad = read(tmp_path if folder else tmp_path / "a.tar")
    assert not documents and "extract it (`tar -xf FILE`) and give the folder" in bad[0].reason
    assert bad[0].file.startswith("a.tar") and "a.tar" in bad[0].reason


def test_lines_beside_samples_are_told(tmp_path):
    tar(tmp_path / "a.tar", {"1.jpg": "x", "1.txt": "A", "more.jsonl": LINES, "x.npy": "x"})
    source = open_source(tmp_path / "a.tar")
    (document,) = source.documents()
    assert texts(document) == "A"
    assert any("member .jsonl, which holds documents: extract it" in reason for reason in source.skipped)


@pytest.mark.parametrize("content", ["{broken", '{"caption": "a"', "3"])
def test_what_is_broken_is_no_list(tmp_path, content):
    tar(tmp_path / "a.tar", {"1.json": content, "2.txt": "a"})
    documents, (bad,) = read(tmp_path / "a.tar")
    assert len(documents) == 1 and "extract" not in bad.reason
