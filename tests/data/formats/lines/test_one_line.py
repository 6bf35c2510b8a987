"""Compressed JSON in a folder is read like the plain lines, be it one line; what is not read through is told."""

import bz2
import gzip
import json
import lzma

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import read, texts

LINE = b'{"text":"a b","url":"http://x.org","timestamp":"t"}\n'
ZSTD = b"\x28\xb5\x2f\xfd" + bytes(60)
CARD = {"README.md": b"# card"}
READ = {
    "a shard of C4": {"c4-train.00000-of-00512.json.gz": gzip.compress(LINE)},
    "in its folder": {"en/c4-train.00000-of-00512.json.gz": gzip.compress(LINE)},
    "beside a card": {"x.json.bz2": bz2.compress(LINE)} | CARD,
    "with its folder and a card": {"data/x.json.xz": lzma.compress(LINE)} | CARD,
    "lines": {"x.jsonl.gz": gzip.compress(LINE)},
    "lines under another name": {"x.ndjson.gz": gzip.compress(LINE)},
    "no name": {"data/part-00000.gz": gzip.compress(LINE)} | CARD,
    "a text": {"x.txt.xz": lzma.compress(LINE)},
    "a twin": {"x.ndjson.gz": gzip.compress(LINE), "x.ndjson": LINE},
}


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("files", READ.values(), ids=READ)
def test_one_compressed_line_is_read(tmp_path, files):
    """A shard of one line was "nothing that is read", while one of two was read."""
    documents, bad = read(put(tmp_path, files))
    assert not bad and [texts(document) for document in documents] == ["a b"]


@pytest.mark.parametrize("name", ["train.json", "en/c4-train.json", "en/c4-train.json.gz", "a/rows.ndjson.bz2"])
def test_lines_are_read_in_a_folder_as_on_top(tmp_path, name):
    content = 2 * LINE
    content = gzip.compress(content) if name.endswith(".gz") else content
    content = bz2.compress(content) if name.endswith(".bz2") else content
    assert len(read(put(tmp_path, {name: content}))[0]) == 2


TOLD = {
    "zstd": ({"x.jsonl.zst": ZSTD}, "`zstd -dc x.jsonl.zst > x.jsonl`"),
    "zstd and a card": ({"en/x.json.zst": ZSTD} | CARD, "`zstd -dc x.json.zst > x.json`"),
    "lz4 and a card": ({"x.jsonl.lz4": b"\x04\x22\x4d\x18" + bytes(60)} | CARD, "`lz4 -dc x.jsonl.lz4 > x.jsonl`"),
    "fields that nobody knows": (
        {"x.json.gz": gzip.compress(b'{"foo": 1}\n')} | CARD,
        "x.json.gz, which has the fields 'foo'",
    ),
}


@pytest.mark.parametrize("files, words", TOLD.values(), ids=TOLD)
def test_what_is_not_read_through_is_told(tmp_path, files, words):
    """Beside a card such files were passed over, and the card became all of the corpus."""
    put(tmp_path, files)
    with pytest.raises(ValueError, match="holds nothing that is read") as caught:
        open_source(tmp_path)
    assert words in str(caught.value)
    name = next(name for name in files if name not in CARD)
    with pytest.raises(ValueError, match="compressed"):
        open_source(tmp_path / name)


def test_a_compressed_line_given_is_read(tmp_path):
    for name, pack in {"a.json.gz": gzip.compress, "b.xz": lzma.compress, "c.jsonl.bz2": bz2.compress}.items():
        (tmp_path / name).write_bytes(pack(json.dumps({"text": name}).encode()))
        assert texts(read(tmp_path / name)[0][0]) == name
