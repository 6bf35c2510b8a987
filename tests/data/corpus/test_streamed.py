"""Corpora at URLs: streamed through a cache smaller than they are, in several processes; sources that are mirrored."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brine.common.processes import IMPORT_FOLDER
from brine.common.remote.cache import ObjectCache, cache_root
from brine.common.remote.mirror import mirror
from brine.common.remote.object_store import ObjectStore, RemoteError
from brine.data.cli.main import main
from brine.data.corpus.store import EncodedCorpus, build_corpus, is_corpus, open_corpus
from brine.data.corpus.streamed import upload_corpus
from brine.data.filters.filter_log import FilterLog
from brine.data.formats.open import open_source
from brine.data.packing.plan import PackingPlan
from brine.data.sequence import FIELDS
from tests.common.remote.fixtures import memory, s3, s3_process
from tests.data.media_files import line, manifest, picture

__all__ = ["memory", "s3", "s3_process"]


@pytest.fixture(scope="module")
def built(tmp_path_factory, tokenizer) -> EncodedCorpus:
    """30 pictures in 6 shards."""
    root, lines = tmp_path_factory.mktemp("material"), []
    for number in range(30):
        picture(root / f"{number}.png", 64, 64, seed=number)
        lines.append(line(f"{number}", {"image": f"{number}.png"}, f"picture {number} " * (1 + number)))
    options = {"tokenizer": tokenizer, "num_workers": 1, "shard_documents": 5}
    return build_corpus(manifest(root, lines), root / "corpus", **options)


def assert_equal(found: EncodedCorpus, built: EncodedCorpus, order) -> None:
    assert found.fingerprint == built.fingerprint and found.ids == built.ids and found.meta == built.meta
    for number in order:
        left, right = found.encoded_document(number), built.encoded_document(number)
        assert all(np.array_equal(getattr(left, name), getattr(right, name)) for name in FIELDS)
        assert found.document(number) == built.document(number)


@pytest.mark.slow
def test_a_corpus_is_streamed_through_a_smaller_cache(built, memory, tmp_path, monkeypatch):
    with pytest.raises(RemoteError, match=f"{memory} holds no complete corpus: upload one with"):
        EncodedCorpus.open(memory)
    assert not is_corpus(memory)
    sent = upload_corpus(built.folder, memory)
    assert is_corpus(memory) and upload_corpus(built.folder, memory).uploaded == 0
    monkeypatch.setenv("BRINE_CACHE_GIB", str(300_000 / 2**30))
    # a Path, as a recipe has it, loses a slash
    found = open_corpus(Path(memory))
    assert not list(found.folder.glob("shards/*/image.npy")) and sent.folder.num_bytes > 500_000
    order = np.random.default_rng(0).permutation(np.tile(np.arange(30), 2)).tolist()
    assert_equal(found, built, order)
    assert 0 < ObjectCache().size() <= 300_000
    assert (
        PackingPlan.build(found, seq_len=128, epochs=1).fingerprint
        == PackingPlan.build(built, seq_len=128, epochs=1).fingerprint
    )
    assert len(FilterLog.open(found).kept_mask()) == 30
    found.close()
    assert_equal(EncodedCorpus.open(found.folder), built, [3, 4])


@pytest.mark.slow
def test_another_corpus_under_the_same_url_never_mixes_in(built, memory, tmp_path, tokenizer):
    upload_corpus(built.folder, memory)
    opened = EncodedCorpus.open(memory)
    other = build_corpus(
        manifest(tmp_path / "m", [line(str(number), "words " * 30) for number in range(30)]), tmp_path / "c",
        tokenizer=tokenizer, num_workers=1, shard_documents=5,
    )  # fmt: skip
    upload_corpus(other.folder, memory)
    assert_equal(opened, built, range(30))
    assert_equal(EncodedCorpus.open(memory), other, range(30))


@pytest.mark.slow
def test_a_damaged_shard_stops_training_instead_of_losing_documents(built, memory):
    listed = upload_corpus(built.folder, memory).folder
    _, sha256 = listed.files["shards/00002/image.npy"]
    store, name = ObjectStore(memory), f"objects/{sha256[:2]}/{sha256}"
    content = bytearray(store.read(name))
    content[500] ^= 4
    store.write(name, bytes(content))
    found = EncodedCorpus.open(memory)
    found.encoded_document(0)
    with pytest.raises(RemoteError, match=rf"{name} \(shards/00002/image.npy of corpus\) is damaged"):
        found.encoded_documents(range(10, 15))


READER = """
import sys
import numpy as np
from brine.data.corpus.store import EncodedCorpus
corpus = EncodedCorpus.open(sys.argv[1])
crc = 0
for number in np.random.default_rng(int(sys.argv[2])).permutation(np.arange(30)):
    crc += corpus.encoded_document(int(number)).crc32()
print(crc)
"""


@pytest.mark.slow
def test_processes_stream_from_s3_through_one_small_cache_and_faults(built, s3):
    url = f"{s3.url}/corpus"
    upload_corpus(built.folder, url)
    s3.faults.throttle, s3.faults.cut_downloads, s3.faults.delay_s = 3, 5, 0.0
    env = os.environ | {"PYTHONPATH": IMPORT_FOLDER, "BRINE_CACHE_GIB": str(300_000 / 2**30)}
    command = [sys.executable, "-P", "-c", READER, url]
    readers = [subprocess.Popen([*command, str(n)], env=env, text=True, stdout=subprocess.PIPE) for n in range(2)]
    expected = sum(int(crc) for crc in built.checksums)
    assert [int(reader.communicate(timeout=200)[0]) for reader in readers] == [expected] * 2
    assert s3.faults.cut_downloads == 0 and ObjectCache(cache_root(), max_bytes=300_000).size() <= 300_000


@pytest.mark.slow
def test_build_uploads_and_a_url_is_a_source(s3, tmp_path, capsys):
    lines = [line(str(number), f"words {number} " * 20, {"image": "media/a.png"}) for number in range(20)]
    path = manifest(tmp_path / "m", lines)
    picture(tmp_path / "m" / "media" / "a.png", 20, 20)
    for file in (path, tmp_path / "m" / "media" / "a.png"):
        ObjectStore(f"{s3.url}/raw").upload(file, file.relative_to(tmp_path / "m").as_posix())
    s3.faults.throttle, s3.faults.cut_downloads = 2, 1
    options = ["--workers", "1", "--decode-timeout-s", "300", "--out", f"{s3.url}/corpus"]
    assert main(["build", f"{s3.url}/raw", str(tmp_path / "c"), *options]) == 0
    printed = capsys.readouterr().out
    assert f"uploaded to {s3.url}/corpus: " in printed
    assert EncodedCorpus.open(f"{s3.url}/corpus").fingerprint == json.loads(printed.splitlines()[-1])["fingerprint"]
    assert main(["build", str(path), str(tmp_path / "d"), "--out", "somewhere"]) == 2
    assert "is the URL to upload to" in capsys.readouterr().err


def test_a_manifest_alone_at_a_url_says_where_its_media_come_from(memory, tmp_path, capsys):
    """Only the object of a URL is copied, not what lies beside it."""
    picture(tmp_path / "p.png", 20, 20)
    path, store = manifest(tmp_path, [line("a", {"image": "p.png"}, "words")]), ObjectStore(memory)
    for name in ("p.png", "manifest.jsonl"):
        store.upload(tmp_path / name, name)
    options = [str(tmp_path / "corpus"), "--vocab-size", "267", "--workers", "1"]
    assert main(["build", f"{memory}/{path.name}", *options]) == 2
    assert "with the URL of their folder: give that instead" in capsys.readouterr().err
    assert main(["build", memory, str(tmp_path / "whole"), *options[1:]]) == 0


def test_a_source_is_mirrored_and_brought_up_to_date(memory, tmp_path):
    store = ObjectStore(memory)
    for number in range(3):
        store.write(f"texts/{number}.jsonl", json.dumps({"text": f"words {number}"}).encode() + b"\n")
    folder = mirror(f"{memory}/texts")
    assert [path.name for path in sorted(folder.iterdir())] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert sorted(item.parts[0].text for item in open_source(f"{memory}/texts").documents()) == [
        f"words {n}" for n in range(3)
    ]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    store.write("texts/1.jsonl", b'{"text": "other"}\n')
    store.delete("texts/2.jsonl")
    # damaged here, at equal size
    content = (folder / "0.jsonl").read_bytes()
    (folder / "0.jsonl").write_bytes(content.replace(b"words", b"WORDS"))
    assert mirror(f"{memory}/texts") == folder
    assert (folder / "0.jsonl").read_bytes() == content and not (folder / "2.jsonl").exists()
    assert b"other" in (folder / "1.jsonl").read_bytes()
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    mirror(f"{memory}/texts")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == after != before
    # one object
    single = mirror(f"{memory}/texts/1.jsonl")
    assert single.name == "1.jsonl" and [item.parts[0].text for item in open_source(single).documents()] == ["other"]


def test_what_a_killed_mirror_copied_goes_when_it_is_gone_at_the_url(memory, tmp_path, monkeypatch):
    """Such a copy is noted nowhere, and was read as a document."""
    store = ObjectStore(memory)
    for name in ("texts/0.jsonl", "texts/below/1.jsonl", "texts/2"):
        store.write(name, b'{"text": "words"}\n')

    def kill(path, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("brine.common.remote.mirror.write_json", kill)
        mirror(f"{memory}/texts")
    (folder,) = (tmp_path / "cache" / "sources").glob("*/data")
    assert (folder / "below" / "1.jsonl").exists() and not (folder.parent / "mirror.json").exists()
    (folder / ".0.jsonl.77.partial").write_text("half")
    store.delete("texts/below/1.jsonl")
    store.delete("texts/2")
    # a folder now
    store.write("texts/2/3.jsonl", b'{"text": "others"}\n')
    assert mirror(f"{memory}/texts") == folder
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["0.jsonl", "2/3.jsonl"] and not (folder / "below").exists()


def test_sources_that_are_too_large_absent_or_named_to_escape_are_refused(memory, tmp_path, monkeypatch):
    store = ObjectStore(memory)
    with pytest.raises(RemoteError, match="holds no object"):
        mirror(f"{memory}/texts")
    store.write("texts/a", b"x" * 1000)
    with pytest.raises(RemoteError, match=r"has 1 object of 1,000 bytes, more than .* or 999"):
        mirror(f"{memory}/texts", max_bytes=999)
    info = store.info("texts/a")
    monkeypatch.setattr(ObjectStore, "list", lambda self: {"../../outside": info})
    with pytest.raises(RemoteError, match="is not a plain relative path"):
        mirror(f"{memory}/texts")
    assert not (tmp_path / "outside").exists()
