"""Building, reading and restarting an encoded corpus; the decoding corpus beside it."""

import json
import shutil

import numpy as np
import pytest

from brine.data.corpus import shards
from brine.data.corpus.readers import read_manifest
from brine.data.corpus.store import CorpusError, CorruptDocumentError, DecodingCorpus, EncodedCorpus, build_corpus
from brine.data.document import SPLITS, Image
from brine.data.encode import encode
from brine.data.media.pool import DecodePool
from brine.data.sequence import FIELDS
from tests.data.media_files import line, manifest, picture

pytestmark = pytest.mark.slow


def equal(left, right) -> bool:
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in FIELDS)


def test_corpus_is_the_manifest_encoded(corpus, manifest_path, tokenizer, config):
    documents = list(read_manifest(manifest_path))
    assert corpus.num_documents == len(corpus) == len(documents) == len(corpus.ids)
    assert corpus.kinds == ["narration", "page", "recording", "screenshot", "text"]
    assert len(set(corpus._index["shard"].tolist())) > 2
    for number, document in enumerate(documents):
        assert corpus.document(number) == document and corpus.ids[number] == document.id
        assert corpus.kinds[corpus.kind[number]] == document.kind
        assert SPLITS[corpus.split[number]] == document.split and corpus.level[number] == document.level
        sequence = corpus.encoded_document(number)
        # what a server gave is what this process gives, bit for bit
        assert equal(sequence, encode(document, root=manifest_path.parent, tokenizer=tokenizer, config=config))
        assert len(sequence) == corpus.num_tokens[number]
        assert all(len(getattr(sequence, name)) == corpus.num_media[name][number] for name in corpus.num_media)
        assert len(corpus.tokens(number)) == len(sequence) and not len(corpus.tokens(number).image)
    assert corpus.path_of(Image("media/3.png")).is_file()
    assert corpus.meta["tokens"] == corpus.num_tokens.sum() and corpus.quarantine() == []
    assert corpus.tokenizer.to_str() == tokenizer.to_str() and corpus.config == config


def files_of(folder) -> dict[str, bytes]:
    """Content of everything a build must repeat to the bit."""
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("meta.json", "media.npy")
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture()
def small(tmp_path):
    """24 documents without sound (torch stays out, so servers start at once), some of them bad."""
    lines = []
    for number in range(24):
        picture(tmp_path / f"material/{number}.png", 16 + number, 40, seed=number)
        lines.append(line(f"{number}", {"image": f"{number}.png"}, f"picture {number}"))
        if number % 5 == 0:
            lines += [b"{broken", line(f"gone-{number}", {"image": "gone.png"}, "x")]
    return manifest(tmp_path / "material", lines)


def test_build_is_the_same_with_any_number_of_servers(small, tmp_path, tokenizer):
    folders = [tmp_path / name for name in ("one", "three")]
    for folder, workers in zip(folders, (1, 3), strict=True):
        build_corpus(small, folder, tokenizer=tokenizer, num_workers=workers, shard_documents=7)
    assert files_of(folders[0]) == files_of(folders[1])
    opened = EncodedCorpus.open(folders[0])
    assert opened.num_documents == 24 and len(opened.quarantine()) == 10 == opened.meta["quarantined"]
    record = opened.quarantine()[1]
    assert (record["id"], record["file"]) == ("gone-0", "gone.png") and "does not exist" in record["reason"]
    assert opened.quarantine()[0]["line"] == 2 and "line 2: not JSON" in opened.quarantine()[0]["reason"]


@pytest.mark.parametrize("stop_after", [1, 8, 20, 33])
def test_killed_build_goes_on(small, tmp_path, tokenizer, monkeypatch, stop_after):
    """Stopped in the middle of a shard, between rename and the next, before the index: the result is the same."""
    build_corpus(small, tmp_path / "whole", tokenizer=tokenizer, num_workers=1, shard_documents=7)
    add, seen = shards.ShardWriter.add, []

    def stopping(self, result):
        add(self, result)
        seen.append(1)
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(shards.ShardWriter, "add", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(small, tmp_path / "cut", tokenizer=tokenizer, num_workers=1, shard_documents=7)
    with pytest.raises(CorpusError, match="no finished corpus"):
        EncodedCorpus.open(tmp_path / "cut")
    (tmp_path / "cut" / "shards" / "00009.partial").mkdir()
    build_corpus(small, tmp_path / "cut", tokenizer=tokenizer, num_workers=1, shard_documents=7)
    assert len(seen) - stop_after == 34 - stop_after // 7 * 7
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_finished_build_is_not_repeated_and_a_changed_one_is(small, tmp_path, tokenizer, monkeypatch):
    first = build_corpus(small, tmp_path / "c", tokenizer=tokenizer, num_workers=1)

    def none(*_, **__):
        raise AssertionError("decoding was started for a finished corpus")

    with monkeypatch.context() as patch:
        patch.setattr(DecodePool, "encode", none)
        assert build_corpus(small, tmp_path / "c", tokenizer=tokenizer).fingerprint == first.fingerprint
    small.write_bytes(small.read_bytes() + json.dumps(line("new", "text")).encode())
    again = build_corpus(small, tmp_path / "c", tokenizer=tokenizer, num_workers=1)
    assert again.num_documents == 25 and again.fingerprint != first.fingerprint


def test_errors_name_the_thing_and_the_remedy(tmp_path, tokenizer):
    with pytest.raises(CorpusError, match=r"nothing\.jsonl does not exist"):
        build_corpus(tmp_path / "nothing.jsonl", tmp_path / "c", tokenizer=tokenizer)
    empty = manifest(tmp_path, [line("a", {"image": "gone.png"}, "x")])
    with pytest.raises(CorpusError) as caught:
        build_corpus(empty, tmp_path / "c", tokenizer=tokenizer, num_workers=1)
    assert str(empty) in str(caught.value) and "gone.png" in str(caught.value) and "quarantine" in str(caught.value)
    bare = manifest(tmp_path / "b", [])
    with pytest.raises(CorpusError, match=r"manifest\.jsonl is empty \(0 bytes\)"):
        build_corpus(bare, tmp_path / "d", tokenizer=tokenizer, num_workers=1)
    with pytest.raises(CorpusError, match="holds other files"):
        build_corpus(empty, tmp_path / "b", tokenizer=tokenizer, num_workers=1)
    with pytest.raises(CorpusError, match="no finished corpus"):
        EncodedCorpus.open(tmp_path / "elsewhere")


def test_damaged_cache_is_told(corpus, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus.folder, folder)
    damaged = EncodedCorpus.open(folder)
    number = int(np.flatnonzero(damaged.num_media["image"])[0])
    path = folder / "shards" / f"{damaged._index['shard'][number]:05d}" / "image.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    content[200] ^= 1
    path.write_bytes(content)
    found = damaged.encoded_documents(range(len(damaged)))
    broken = {number for number, sequence in found.items() if isinstance(sequence, CorruptDocumentError)}
    assert broken and all(damaged._index["shard"][n] == damaged._index["shard"][number] for n in broken)
    with pytest.raises(CorruptDocumentError, match="differs from its checksum"):
        damaged.encoded_document(min(broken))
    path.write_bytes(b"no array")
    with pytest.raises(CorruptDocumentError, match="cannot be read"):
        EncodedCorpus.open(folder).encoded_document(number)
    (folder / "index" / "kind.npy").unlink()
    with pytest.raises(CorpusError, match="delete it and build it again"):
        EncodedCorpus.open(folder)


def test_decoding_corpus_gives_the_same_and_notices_change(manifest_path, tmp_path, tokenizer, config):
    material = tmp_path / "material"
    shutil.copytree(manifest_path.parent, material)
    slim = build_corpus(
        material / "manifest.jsonl", tmp_path / "slim", tokenizer=tokenizer, config=config, keep_media=False
    )
    with pytest.raises(CorpusError, match="without media"):
        slim.encoded_document(0)
    decoding = DecodingCorpus(tmp_path / "slim")
    try:
        for number, sequence in decoding.encoded_documents(range(6)).items():
            document = decoding.document(number)
            assert equal(sequence, encode(document, root=material, tokenizer=tokenizer, config=config))
        picture(material / "media/0.png", 20, 16, seed=99)
        (material / "media/0.wav").unlink()
        assert [decoding.ids[number] for number in range(3)] == ["shot-0", "word-0", "text-0"]
        with pytest.raises(CorruptDocumentError, match="checksum"):
            decoding.encoded_document(0)
        with pytest.raises(CorruptDocumentError, match="does not exist"):
            decoding.encoded_document(1)
        assert len(decoding.encoded_document(2))
    finally:
        decoding.close()


def test_a_corpus_of_an_earlier_format_is_refused_with_the_command(small, tmp_path, tokenizer):
    """Its loss masks have another name on disk; neither opening nor building reads or replaces it."""
    folder = build_corpus(small, tmp_path / "c", tokenizer=tokenizer, num_workers=1).folder
    meta = json.loads((folder / "meta.json").read_text())
    meta["identity"]["format"] = 2
    (folder / "meta.json").write_text(json.dumps(meta))
    for call in (EncodedCorpus.open, lambda folder: build_corpus(small, folder, tokenizer=tokenizer)):
        with pytest.raises(CorpusError, match=f"corpus of format 2, not 3: convert it with `brine convert {folder}`"):
            call(folder)
