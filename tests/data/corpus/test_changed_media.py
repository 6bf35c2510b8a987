"""A medium that changes under an unchanged manifest is encoded again; one that was only touched is not."""

import io
import json
import logging
import os
import shutil
import tarfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from brine.data.config import EncodeConfig
from brine.data.corpus import file_records as media_record
from brine.data.corpus import shards
from brine.data.corpus.file_records import find_changed_files
from brine.data.corpus.store import build_corpus
from brine.data.formats.open import open_source
from brine.data.tokenizer import MIN_VOCAB_SIZE, train_tokenizer
from brine.pipeline.corpus import check_media
from brine.pipeline.recipe import PackingConfig, Recipe
from brine.training.parallel.distributed import World
from tests.data.encode_here import Here
from tests.data.media_files import line, manifest, picture, sound

pytestmark = pytest.mark.slow


def lines_of(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pictures(root, count=3, size=(32, 16)) -> None:
    for number in range(count):
        picture(root / f"m/{number}.png", *size, seed=number)


def native(root):
    pictures(root)
    manifest(root, [line(f"d{number}", {"image": f"m/{number}.png"}, f"picture {number}") for number in range(3)])
    return root / "m/1.png"


def captioned(root):
    pictures(root)
    lines_of(root / "metadata.jsonl", [{"file_name": f"m/{number}.png", "text": "words"} for number in range(3)])
    return root / "m/1.png"


def house_text(root):
    (root / "t").mkdir(parents=True)
    for number in range(3):
        (root / f"t/{number}.txt").write_text(f"text {number}", encoding="utf-8")
    rows = [{"id": f"d{number}", "kind": "text", "path": f"t/{number}.txt"} for number in range(3)]
    lines_of(root / "manifest.jsonl", rows)
    return root / "t/1.txt"


def llava(root):
    pictures(root)
    talk = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": "a picture"}]
    rows = [{"id": f"d{number}", "image": f"m/{number}.png", "conversations": talk} for number in range(3)]
    (root / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return root / "m/1.png"


def markdown(root):
    pictures(root)
    for number in range(3):
        (root / f"{number}.md").write_text(f"page {number} ![](m/{number}.png)", encoding="utf-8")
    return root / "m/1.png"


def media(root):
    pictures(root)
    for number in range(3):
        (root / f"m/{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    return root / "m/1.png"


def content(seed) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(found := io.BytesIO(), "BMP")
    return found.getvalue()


def tar(root, seed=0):
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "s.tar", "w") as out:
        for number in range(3):
            for ending, data in (("bmp", content(seed + number)), ("txt", b"words")):
                entry = tarfile.TarInfo(f"{number}.{ending}")
                entry.size = len(data)
                out.addfile(entry, io.BytesIO(data))
    return root / "s.tar"


def table(root, word="words"):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow writes the table")
    import pyarrow

    root.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"text": [f"{word} {number}" for number in range(3)]}), root / "t.parquet")
    return root / "t.parquet"


RECORD_FORMATS = [native, captioned, house_text, llava, markdown, media, tar, table]
names = pytest.mark.parametrize("form", RECORD_FORMATS, ids=lambda form: form.__name__)


def mirrored(path) -> bytes:
    """Other content of the same size."""
    if path.suffix == ".tar":
        return tar(path.parent.parent / "other", seed=9).read_bytes()
    if path.suffix == ".parquet":
        return table(path.parent.parent / "other", word="other").read_bytes()
    if path.suffix == ".txt":
        return path.read_bytes()[::-1]
    whole = bytearray(path.read_bytes())
    # pixels that cannot be decoded any more are another content too
    whole[len(whole) // 2] ^= 0xFF
    return bytes(whole)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)


@pytest.fixture()
def build(tmp_path, tokenizer):
    def build(root, **options):
        return build_corpus(root, tmp_path / "built", tokenizer=tokenizer, num_workers=1, **options)

    return build


@pytest.fixture()
def untouched(monkeypatch):
    """Calls make any decoding an error."""

    def fail(*_, **__):
        raise AssertionError("encoded again though nothing changed")

    return lambda: monkeypatch.setattr(Here, "encode", fail)


@names
def test_touch_encodes_nothing(form, tmp_path, build, untouched):
    path = form(tmp_path / "s")
    first = build(tmp_path / "s")
    untouched()
    assert build(tmp_path / "s").fingerprint == first.fingerprint
    os.utime(path, (2_000_000_000, 2_000_000_000))
    # a copy in its place: another inode, other times, the same content
    shutil.copyfile(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    assert build(tmp_path / "s").fingerprint == first.fingerprint


@names
def test_replaced_file_is_noticed(form, tmp_path, build, caplog):
    """Of equal size and with the time it had: ctime and inode tell."""
    path = form(tmp_path / "s")
    build(tmp_path / "s")
    before, size = path.stat(), path.stat().st_size
    changed = mirrored(path)
    assert len(changed) == size or form is table
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with caplog.at_level(logging.WARNING):
        again = build(tmp_path / "s")
    assert "1 of " in caplog.text and path.name in caplog.text and "changed" in caplog.text
    whole = build_corpus(tmp_path / "s", tmp_path / "new", tokenizer=again.tokenizer, num_workers=1)
    assert again.fingerprint == whole.fingerprint and again.quarantine() == whole.quarantine()


@pytest.mark.parametrize("what", ["missing", "empty", "too large", "out of the folder", "no picture"])
def test_mended_file_is_noticed(what, tmp_path, build):
    """What was set aside comes in once its file can be read, and goes out when it is gone."""
    path = native(tmp_path / "s")
    good = path.read_bytes()
    config = EncodeConfig(max_file_mib=0.01)
    path.unlink()
    if what == "empty":
        path.write_bytes(b"")
    elif what == "too large":
        path.write_bytes(bytes(20_000))
    elif what == "out of the folder":
        (tmp_path / "out.png").write_bytes(good)
        path.symlink_to(tmp_path / "out.png")
    elif what == "no picture":
        path.write_bytes(b"text")
    assert build(tmp_path / "s", config=config).ids == ["d0", "d2"]
    path.unlink(missing_ok=True)
    path.write_bytes(good)
    assert build(tmp_path / "s", config=config).ids == ["d0", "d1", "d2"]
    path.unlink()
    assert build(tmp_path / "s", config=config).ids == ["d0", "d2"]


@pytest.mark.parametrize("place", [0, 4, 9], ids=["first-shard", "a-later-shard", "after-the-cut"])
def test_half_finished_build_keeps_no_old_pixels(place, tmp_path, build, monkeypatch):
    pictures(tmp_path / "s", 12)
    lines = [line(f"d{number}", {"image": f"m/{number}.png"}, f"picture {number}") for number in range(12)]
    manifest(tmp_path / "s", lines)
    add, seen = shards.ShardWriter.add, []

    def stopping(self, result):
        add(self, result)
        seen.append(1)
        if len(seen) == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "s", shard_documents=3)
    picture(tmp_path / f"s/m/{place}.png", 48, 48, seed=77)
    resumed = build(tmp_path / "s", shard_documents=3)
    whole = build_corpus(
        tmp_path / "s", tmp_path / "new", tokenizer=resumed.tokenizer, num_workers=1, shard_documents=3
    )
    assert resumed.fingerprint == whole.fingerprint and resumed.num_tokens[place] > resumed.num_tokens[1]


def test_file_written_while_it_is_read_is_noticed(tmp_path, build, monkeypatch):
    """Decoded before the change and hashed after it, or the other way round: the next build does it again."""
    path = native(tmp_path / "s")
    note = shards.ShardWriter.note

    def late(self, files):
        if len(self.lines) == 1:
            picture(path, 40, 40, seed=5)
        note(self, files)

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "note", late)
        first = build(tmp_path / "s")
    again = build(tmp_path / "s")
    assert again.num_tokens[1] > first.num_tokens[1]


def test_file_that_was_decoded_before_it_changed_and_hashed_after(tmp_path, build, monkeypatch):
    """Its hash is that of the new content, which nobody has decoded: it must not count as what was encoded."""
    path, encode, sha256, decoded = native(tmp_path / "s"), Here.encode, media_record.file_digest, threading.Event()

    def late(file):
        assert file.name != "1.png" or decoded.wait(20)
        return sha256(file)

    def changing(self, documents):
        for result in encode(self, documents):
            if result.document.id == "d1":
                picture(path, 40, 40, seed=5)
                decoded.set()
            yield result

    with monkeypatch.context() as patch:
        patch.setattr("brine.data.corpus.file_records.file_digest", late)
        patch.setattr(Here, "encode", changing)
        first = build(tmp_path / "s")
    again = build(tmp_path / "s")
    assert again.num_tokens[1] > first.num_tokens[1]


def test_what_changed_within_a_tick_of_the_clock_is_read_again(tmp_path, build, monkeypatch):
    """A file of this very moment may change once more and keep its times, so these prove nothing."""
    native(tmp_path / "s")
    corpus, read = build(tmp_path / "s"), []
    monkeypatch.setattr("brine.data.corpus.file_records.file_digest", lambda path: read.append(path.name) or "00" * 32)
    changes = find_changed_files(corpus.folder, open_source(tmp_path / "s").root, max_file_mib=256)
    assert sorted(read) == ["0.png", "1.png", "2.png"] and changes.changed == 3


def test_only_what_changed_costs_a_reading(tmp_path, build, monkeypatch):
    """An untouched corpus is looked at by stat alone, once the first seconds of its files are over."""
    native(tmp_path / "s")
    sound(tmp_path / "s/x.wav", 0.1)
    corpus = build(tmp_path / "s")
    monkeypatch.setattr("brine.data.corpus.file_records.RACY_NS", 0)
    root, read = open_source(tmp_path / "s").root, []
    find_changed_files(corpus.folder, root, max_file_mib=256)
    monkeypatch.setattr("brine.data.corpus.file_records.file_digest", lambda path: read.append(path.name) or "00" * 32)
    assert not find_changed_files(corpus.folder, root, max_file_mib=256) and read == []
    os.utime(tmp_path / "s/m/2.png")
    changes = find_changed_files(corpus.folder, root, max_file_mib=256)
    assert read == ["2.png"] and (changes.changed, changes.files, changes.first) == (1, 3, "m/2.png")


def test_damaged_or_absent_record_is_no_change_and_told(tmp_path, build, untouched, caplog):
    native(tmp_path / "s")
    corpus = build(tmp_path / "s")
    untouched()
    for spoil in (b"", b"no array"):
        (corpus.folder / "shards/00000/media.npy").write_bytes(spoil)
        assert build(tmp_path / "s").ids == corpus.ids
    (corpus.folder / "shards/00000/media.txt").unlink()
    assert build(tmp_path / "s").ids == corpus.ids
    told = [record.getMessage() for record in caplog.records if "go unnoticed" in record.getMessage()]
    assert len(told) == 3 and str(corpus.folder) in told[0]


@pytest.mark.parametrize("change", ["other", "gone"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "decoded-again"])
def test_training_on_a_built_corpus_tells_what_changed(tmp_path, caplog, change, keep):
    """It trained on the old images without a word, or where none were kept on padding, with a loss of 0."""
    native(tmp_path / "root")
    tokenizer = train_tokenizer(["picture 1"], MIN_VOCAB_SIZE)
    corpus = build_corpus(tmp_path / "root", tmp_path / "built", tokenizer=tokenizer, config=EncodeConfig(),
                          num_workers=1, keep_media=keep)  # fmt: skip

    def check(most: float) -> None:
        run = SimpleNamespace(world=World(), recipe=Recipe(packing=PackingConfig(max_excluded_fraction=most)))
        with caplog.at_level(logging.WARNING, logger="brine"):
            check_media(run, corpus)

    check(0.0)
    assert not caplog.text
    for number in range(2):
        path = tmp_path / f"root/m/{number}.png"
        path.unlink()
        if change == "other":
            picture(path, 8, 8)
    check(0.9)
    told = "Training continues with what was encoded then" if keep else "Training leaves their documents out"
    assert f"2 of 3 media files changed since they were encoded: 'm/0.png' first. {told}" in caplog.text
    if keep:
        check(0.5)
    else:
        with pytest.raises(
            ValueError, match=r"2 of 3 media files .* over packing.max_excluded_fraction 0.5; `brine data build`"
        ):
            check(0.5)
    # a corpus that keeps its media goes to another machine without them
    shutil.rmtree(tmp_path / "root")
    caplog.clear()
    check(0.9)
    assert not caplog.text
