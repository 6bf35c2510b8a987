"""Compressed files: JSON is read through gzip, bzip2 and xz; all else is named with the command that unpacks it."""

import bz2
import gzip
import json
import lzma
import shutil
import subprocess
import zipfile

import pytest

from brine.data.files import compressed
from brine.data.files.compressed import compressed_hint, decompression_error, open_decompressed, plain_stem, unpack_hint
from brine.data.formats.open import open_source
from tests.data.format_files import read, tar, texts
from tests.data.media_files import picture

LINES = b'{"text": "wren"}\n{"text": "heron"}\n'
ARRAY = b'[{"text": "wren"}, {"text": "heron"}]'
ZSTD, LZ4, SEVEN, RAR = b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07\x01"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.gz", "a.jsonl", "data", "a.jsonl.bz2", "a.json.xz"])
@pytest.mark.parametrize("press", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("content", [LINES, ARRAY, b"\xef\xbb\xbf" + LINES], ids=["lines", "array", "mark"])
def test_json_is_read_through_its_compression(tmp_path, name, press, content):
    (tmp_path / name).write_bytes(press(content))
    for path in (tmp_path / name, tmp_path):
        # an ending that says something else than the content is believed for a file that is given, not in a folder
        if path == tmp_path and name == "a.gz":
            continue
        documents, bad = read(path)
        assert not bad and [texts(document) for document in documents] == ["wren", "heron"]
        assert open_source(path).num_documents_hint is None
        assert [document.id.split("#")[1] for document in documents] == ["1", "2"]


def test_gzip_of_several_members_is_read_to_its_end(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES) + gzip.compress(LINES))
    assert len(read(tmp_path / "a.jsonl.gz")[0]) == 4


def test_ids_and_splits_are_those_of_the_plain_file(tmp_path):
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(40))
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "b" / "a.jsonl.gz") == read(tmp_path / "b")


def test_compressed_lines_in_folders_below_are_read(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "part-0.jsonl.gz").write_bytes(gzip.compress(LINES))
    documents, bad = read(tmp_path)
    assert not bad and [document.split for document in documents] == ["test"] * 2 + ["train"] * 2


def test_of_a_file_and_its_compressed_twin_one_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    source = open_source(tmp_path)
    assert [document.id for document in source.documents()] == ["a#1", "a#2", "b#1", "b#2"]
    assert source.skipped == {"compressed .jsonl.gz: unpack by `gzip -dc FILE > NEW`: a.jsonl.gz": 1}


@pytest.mark.parametrize("press", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
@pytest.mark.parametrize("layout", ["lines", "array"])
def test_a_cut_costs_what_comes_after_it(tmp_path, press, layout):
    rows = [json.dumps({"text": f"{number} {number**150}"}) for number in range(1000)]
    whole = press(("\n".join(rows) if layout == "lines" else f"[{','.join(rows)}]").encode())
    (tmp_path / "a.jsonl").write_bytes(whole[: len(whole) * 9 // 10])
    documents, bad = read(tmp_path / "a.jsonl")
    assert len(bad) == 1 and "break off here or are damaged" in bad[0].reason and 700 < len(documents) < 1000


@pytest.mark.parametrize("press", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_a_bomb_is_stopped(tmp_path, monkeypatch, press):
    monkeypatch.setattr(compressed, "_FREE_BYTES", 2**20)
    (tmp_path / "a.jsonl").write_bytes(press(LINES + b" " * 2**24))
    documents, bad = read(tmp_path / "a.jsonl", max_line_mib=1)
    assert len(documents) == 2 and len(bad) == 1 and "expand to over 250 times" in bad[0].reason
    with open_decompressed(tmp_path / "a.jsonl") as stream:
        assert sum(map(len, iter(lambda: stream.read(2**18), b""))) < 2**23 and "expand" in decompression_error(stream)


WREN = {"1.txt": b"wren"}
PACKED = {
    "s.tar.gz": (tar(WREN, "w:gz"), "gzip -dc s.tar.gz > s.tar"),
    "s.tgz": (tar(WREN, "w:gz"), "gzip -dc s.tgz > s.tar"),
    "s.tar.bz2": (tar(WREN, "w:bz2"), "bzip2 -dc s.tar.bz2 > s.tar"),
    "s.txz": (tar(WREN, "w:xz"), "xz -dc s.txz > s.tar"),
    "other.tar": (tar(WREN, "w:gz"), "gzip -dc other.tar > unpacked-other.tar"),
    "shard": (tar(WREN, "w:xz"), "xz -dc shard > shard.tar"),
    "with space.tar.gz": (tar(WREN, "w:gz"), "gzip -dc 'with space.tar.gz' > 'with space.tar'"),
    "t.parquet.gz": (gzip.compress(b"PAR1" + bytes(600)), "gzip -dc t.parquet.gz > t.parquet"),
    "s.tar.zst": (ZSTD + bytes(99), "zstd -dc s.tar.zst > s.tar"),
    "a.jsonl.zst": (ZSTD + bytes(99), "zstd -dc a.jsonl.zst > a.jsonl"),
    "a.jsonl": (ZSTD + bytes(99), "zstd -dc a.jsonl > unpacked-a.jsonl"),
    "a.json.lz4": (LZ4 + bytes(99), "lz4 -dc a.json.lz4 > a.json"),
    "s.7z": (SEVEN + bytes(99), "7z x s.7z -os"),
    "s.rar": (RAR + bytes(99), "unrar x s.rar s/"),
    "images.zip": (b"PK\x03\x04" + bytes(99), "unzip images.zip -d images"),
    "b.tar.gz.partaa": (tar(WREN, "w:gz"), "cat b.tar.gz.part[a-z][a-z] > b.tar.gz"),
    "b.tar.00": (tar(WREN), "cat b.tar.[0-9][0-9] > b.tar"),
    "b.zip.001": (b"PK\x03\x04" + bytes(99), "cat b.zip.[0-9][0-9][0-9] > b.zip"),
    "b.z01": (b"PK\x07\x08PK\x03\x04" + bytes(99), "zip -s 0 b.zip --out whole.zip"),
}


@pytest.mark.parametrize("name", PACKED)
def test_what_is_not_read_is_told_with_the_command(tmp_path, name):
    content, command = PACKED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path / name)
    assert f"`{command}`" in str(caught.value) and ("compressed" in str(caught.value) or "part of" in str(caught.value))
    # alone in a folder: refused as well, or set aside where its ending promises a container
    try:
        reasons = [item.reason for item in read(tmp_path)[1]]
    except ValueError as error:
        reasons = [str(error)]
    assert len(reasons) == 1
    assert any(word in reasons[0] for word in ("compressed", "part of", "was cut")), reasons


@pytest.mark.parametrize("name", ["s.tar.gz", "images.zip", "a.jsonl.zst", "s.7z", "b.tar.gz.partaa", "b.z01"])
@pytest.mark.parametrize("beside", ["a.jsonl", "x.tar", "m/a.png", "page.md"])
def test_beside_other_files_it_is_counted_with_the_remedy(tmp_path, name, beside):
    contents = {"a.jsonl": LINES, "x.tar": tar(WREN), "page.md": b"# Page\n", "m/a.png": b""}
    (tmp_path / name).write_bytes(PACKED[name][0])
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_bytes(contents[beside])
    if beside == "m/a.png":
        picture(tmp_path / beside, 8, 8)
        (tmp_path / "m" / "a.txt").write_text("wren")
    source = open_source(tmp_path)
    assert len(list(source.documents())) == (2 if beside == "a.jsonl" else 1)
    (reason,) = source.skipped
    assert source.skipped[reason] == 1 and ("unpack by `" in reason or "join by `" in reason) and len(reason) <= 80


@pytest.mark.parametrize("name", ["in.tar", "in.tar.gz", "deep/in.zip", "in.tgz"])
def test_archives_in_a_tar_are_counted_with_the_remedy(tmp_path, name):
    (tmp_path / "out.tar").write_bytes(tar({name: tar(WREN), "b.txt": b"wren"}))
    source = open_source(tmp_path / "out.tar")
    assert [document.id for document in source.documents()] == ["b"]
    (reason,) = source.skipped
    assert name.rsplit(".", 1)[1] in reason and "unpack the outer one" in reason and len(reason) <= 80


def test_pictures_in_a_zip_beside_their_words_are_named(tmp_path):
    picture(tmp_path / "a.png", 8, 8)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as out:
        out.write(tmp_path / "a.png", "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "wren"}\n')
    source = open_source(tmp_path)
    list(source.documents())
    assert source.skipped == {"compressed .zip: unpack by `unzip FILE -d FOLDER`: images.zip": 1}


def test_damaged_and_foreign_content_is_no_success(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar(WREN))[:30])
    (tmp_path / "noise.gz").write_bytes(gzip.compress(bytes(range(256)) * 9))
    (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress(gzip.compress(LINES)))
    with pytest.raises(ValueError, match="damaged: fetch it again"):
        open_source(tmp_path / "a.tar.gz")
    with pytest.raises(ValueError, match=r"is compressed \(gzip\) and holds no JSON object"):
        open_source(tmp_path / "noise.gz")
    with pytest.raises(ValueError, match=r"compressed again \(gzip\).*`gzip -dc two.jsonl.gz > two.jsonl`"):
        open_source(tmp_path / "two.jsonl.gz")


INSIDE = {
    "a.txt.gz": (gzip.compress(b"a wren sings"), "gzip -dc a.txt.gz > a.txt"),
    "m.csv.xz": (lzma.compress(b"file_name,text\n1.png,x\n"), "xz -dc m.csv.xz > m.csv"),
    "x.json.bz2": (bz2.compress(gzip.compress(LINES)), "bzip2 -dc x.json.bz2 > x.json"),
    "a.jsonl.br": (b"\x1b\x1a\0\xf8\xa5", "brotli -dc a.jsonl.br > a.jsonl"),
    "a.jsonl.lzma": (lzma.compress(LINES, lzma.FORMAT_ALONE), "xz --format=lzma -dc a.jsonl.lzma > a.jsonl"),
    "a.jsonl.sz": (b"\xff\x06\0\0sNaPpY" + bytes(9), "snzip -dc a.jsonl.sz > a.jsonl"),
    "a.jsonl.lz": (b"LZIP\x01" + bytes(9), "lzip -dc a.jsonl.lz > a.jsonl"),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_is_no_json_inside_is_told_with_the_command(tmp_path, name):
    content, command = INSIDE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="is compressed") as caught:
        open_source(tmp_path / name)
    assert f"`{command}`" in str(caught.value)
    if command.startswith(("gzip", "xz", "bzip2")) and shutil.which(command.split()[0]):
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=20)
        assert (tmp_path / command.rpartition(" > ")[2]).stat().st_size


@pytest.mark.parametrize("name", ["a.tar", "a.json", "heron.png", "train.jsonl", "v1.2.3", "tar", "x.tar.md", "gz"])
def test_plain_names_are_left_alone(tmp_path, name):
    (tmp_path / name).write_bytes(LINES)
    assert compressed_hint(name) == "" == unpack_hint(tmp_path / name)


def test_stems():
    cases = {"a.jsonl": "a", "a.jsonl.gz": "a", "a.b.json.xz": "a.b", "a.gz": "a", "data": "data", "a.tar": "a"}
    assert {name: plain_stem(tmp) for name, tmp in ((name, compressed.Path(name)) for name in cases)} == cases


@pytest.mark.skipif(shutil.which("gzip") is None, reason="gzip is not installed")
def test_the_command_does_what_it_says(tmp_path):
    (tmp_path / "it's a.tar.gz").write_bytes(tar(WREN, "w:gz"))
    command = unpack_hint(tmp_path / "it's a.tar.gz").split("`")[1]
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=20)
    (tmp_path / "it's a.tar.gz").unlink()
    assert [texts(document) for document in read(tmp_path)[0]] == ["wren"]
