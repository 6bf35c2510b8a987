"""Counts that add up: what was set aside while decoding is in no count of splits and media, and is told."""

import json

import pytest

from brine.data.cli.main import main
from brine.data.corpus.shards import ShardWriter
from brine.data.corpus.statistics import quarantine_summary
from brine.data.corpus.store import build_corpus
from brine.data.formats.open import open_source
from brine.data.formats.splits.rules import SplitWithOrigin
from tests.data.encode_here import Here
from tests.data.media_files import line, manifest, picture


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)
    monkeypatch.setattr("brine.data.inspect.check.DecodePool", Here)


BAD = {"missing": None, "no picture": b"nothing", "cut": b"\x89PNG\r\n\x1a\n\0\0", "empty": b""}


def material(root, bad: bytes | None, *, folders: bool):
    """Five images to train on, of which two cannot be used, and three that are held out, one of them bad."""
    rows = []
    for number in range(8):
        split = "train" if number < 5 else "test"
        name = f"{split}/{number}.png"
        (root / split).mkdir(parents=True, exist_ok=True)
        if number not in (1, 2, 6):
            picture(root / name, 16, 16)
        elif bad is not None:
            (root / name).write_bytes(bad)
        own = {} if folders else {"split": split}
        rows.append({"file_name": name, "text": f"{number}"} | own)
    return manifest(root, rows)


@pytest.mark.parametrize("folders", [False, True], ids=["field of the record", "names of folders"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_splits_and_media_are_those_of_documents_that_are_kept(tmp_path, capsys, bad, folders):
    """`splits: by field of the record (train 18)` stood under a table of 14."""
    material(tmp_path, bad, folders=folders)
    assert main(["check", str(tmp_path), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    counted: dict[str, int] = {}
    for splits in found["split_origins"].values():
        for split, count in splits.items():
            counted[split] = counted.get(split, 0) + count
    assert {split: count for split, count in counted.items() if count} == found["splits"]
    assert found["documents"] == 5 == found["parts"]["image"] and "media by extension: 5 .png" in out


def test_the_same_of_a_build(tmp_path, tokenizer, config):
    source = open_source(material(tmp_path / "m", b"x", folders=False))
    corpus = build_corpus(source, tmp_path / "c", tokenizer=tokenizer, config=config, num_workers=1)
    assert source.split_origins == {"field of the record": {"train": 3, "test": 2}} and source.extensions == {"png": 5}
    assert quarantine_summary(corpus.quarantine()).startswith("3 documents are quarantined (3 file '…': not an image")


def test_a_build_that_was_stopped_and_one_that_is_finished_count_the_same(tmp_path, tokenizer, config, monkeypatch):
    path, add, seen = material(tmp_path / "m", b"x", folders=False), ShardWriter.add, []
    # an id that is there already, and one with a separator of lines
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    rows[0] |= {"id": "same"}
    rows[1:1] = [{"id": "same", "file_name": "../0.png", "text": "x"}, {"id": "a\u2028b", "file_name": "\u2028.png"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def stopping(self, result):
        seen.append(result)
        if len(seen) == 6:
            raise KeyboardInterrupt
        add(self, result)

    def build(folder="c"):
        source, options = open_source(path), {"num_workers": 1, "shard_documents": 2}
        # a tokenizer is trained on it first
        list(source.documents())
        return build_corpus(source, tmp_path / folder, tokenizer=tokenizer, config=config, **options).summary_lines

    whole = build("whole")
    assert whole[0] == "media by extension: 5 .png" and "(train 3, test 2)" in whole[1]
    monkeypatch.setattr(ShardWriter, "add", stopping)
    with pytest.raises(KeyboardInterrupt):
        build()
    for _ in range(2):
        assert build() == whole


def test_reasons_are_counted_by_kind():
    records = [{"reason": f"line {n}: file 'a{n}.png' does not exist"} for n in range(4)] + [{"reason": "odd"}]
    assert quarantine_summary(records) == "5 documents are quarantined (4 file '…' does not exist; 1 odd)"
    many = [{"reason": f"reason {'x' * n}"} for n in range(9)]
    assert quarantine_summary(many).endswith("; ...)") and quarantine_summary(many).count(";") == 5


def test_where_a_split_came_from_does_not_show(tmp_path):
    (document,) = open_source(manifest(tmp_path, [line("a", "words")])).documents()
    assert isinstance(document.split, SplitWithOrigin) and document.split == "train"
    assert json.dumps(document.to_json()["split"]) == '"train"'
