"""What lies packed or in pieces is named with the command that helps; saved data sets keep their splits."""

import json
import os
import shlex
import subprocess

import pytest

from brine.data.document import DocumentError
from brine.data.files.compressed import compressed_hint, is_split_part, split_part_hint
from brine.data.files.resolve import archive_hint, resolve_media
from brine.data.formats.open import open_source
from tests.data.format_files import read, texts
from tests.data.media_files import manifest

LINES = b"".join(b'{"text": "line %d"}\n' % number for number in range(40))
ARCHIVES = {
    "images.zip": "unzip images.zip", "images.tar": "tar -xf images.tar", "images.tar.gz": "tar -xf images.tar.gz",
    "images.TGZ": "tar -xf images.TGZ", "images.tar.zst": "tar -xf images.tar.zst", "images.7z": "7z x images.7z",
    "images.rar": "unrar x images.rar", "my images.zip": "unzip 'my images.zip'",
}  # fmt: skip


@pytest.mark.parametrize("name, command", ARCHIVES.items())
def test_a_missing_file_has_its_archive_named(tmp_path, name, command):
    (tmp_path / name).write_bytes(b"PK")
    manifest(tmp_path, [{"file_name": "images/a.jpg", "text": "x"}])
    with pytest.raises(DocumentError) as caught:
        resolve_media(tmp_path, "images/a.jpg", max_file_mib=1)
    expected = f"does not exist; the archive {name!r} may hold it: unpack it in its folder by `{command}`"
    assert str(caught.value) == f"file 'images/a.jpg' {expected}"


PLACES = {
    "below": (["data/images.zip"], "data/images/7/a.jpg", "'data/images.zip'"),
    "the nearest": (["images.zip", "images/part.zip"], "images/a.jpg", "'images/part.zip'"),
    "by its name": (
        ["annotations.zip", "train2017.zip", "val2017.zip"],
        "train2017/1.jpg",
        "'train2017.zip' (one of 3)",
    ),
    "at the top": (["all.tar.gz"], "a/b/c/d.wav", "'all.tar.gz'"),
    "pieces": (["images.zip.001", "images.zip.002"], "images/a.jpg", "`cat images.zip.[0-9][0-9][0-9] > images.zip`"),
    "pieces of a tar": (["train.tar.gz.aa"], "train/a.jpg", "`cat train.tar.gz.[a-z][a-z] > train.tar.gz`"),
    "a split zip": (["images.z01"], "images/a.jpg", "`zip -s 0 images.zip --out whole.zip`"),
}


@pytest.mark.parametrize("names, path, words", PLACES.values(), ids=PLACES)
def test_where_it_is_looked_for(tmp_path, names, path, words):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert words in archive_hint(tmp_path, path)


def test_where_none_lies_nothing_is_said(tmp_path):
    (tmp_path / "metadata.jsonl.gz").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    (tmp_path / "zip").mkdir()
    os.mkfifo(tmp_path / "pipe.zip")
    assert archive_hint(tmp_path, "images/a.jpg") == "" == archive_hint(tmp_path / "gone", "a.jpg")
    # nothing above the root is looked at
    (tmp_path / "above.zip").write_bytes(b"")
    (tmp_path / "in").mkdir()
    assert archive_hint(tmp_path / "in", "a.jpg") == ""


def test_a_folder_is_read_once_while_it_does_not_change(tmp_path, monkeypatch):
    scanned, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scanned.append(path), scandir(path))[1])
    for number in range(50):
        archive_hint(tmp_path, f"{number}.jpg")
    assert len(scanned) == 1
    (tmp_path / "a.zip").write_bytes(b"")
    os.utime(tmp_path, (1, 1))
    assert "a.zip" in archive_hint(tmp_path, "x.jpg")


PIECES = ["x.jsonl.aa", "x.jsonl.00", "x.tar.gz.part-00", "x.zip.001", "x.csv.part1", "x.tar.part_1of3", "x.gz.ab",
          "x.parquet.aa", "x.7z.001", "X.TAR.GZ.AA", "x.tar.zst.00", "with space.jsonl.aa"]  # fmt: skip


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_is_named_with_the_command_that_joins(tmp_path, name):
    (tmp_path / name).write_bytes(LINES[:300])
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match="is a part of a split file: join it by `") as caught:
            open_source(path)
    command = str(caught.value).split("`")[1]
    assert is_split_part(name) and compressed_hint(f"d/{name}") == "part of a split file: join by `cat NAME.* > NAME`"
    whole = shlex.split(command.rpartition("> ")[2])[0]
    assert name.startswith(whole) and whole != name


@pytest.mark.parametrize(
    "tails", [["aa", "ab", "ac"], ["00", "01", "02"], [f"part{n}" for n in range(1, 12)], ["part-1of3", "part-2of3"]],
    ids=lambda tails: tails[0],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x.jsonl", "a b's.jsonl"])
def test_the_command_joins_them(tmp_path, tails, name):
    size = -(-len(LINES) // len(tails))
    for number, tail in enumerate(tails):
        (tmp_path / f"{name}.{tail}").write_bytes(LINES[number * size : (number + 1) * size])
    (tmp_path / f"{name}.md5").write_text("0 *x")
    command = split_part_hint(f"{name}.{tails[0]}").split("`")[1]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=20)
    assert (tmp_path / name).read_bytes() == LINES


@pytest.mark.parametrize(
    "name", ["x.jsonl.gz", "x.json.2023", "x.json.ar", "x.tar.gz", "x.jsonl.bz2", "x.txt.aa", "train-00-of-05.tar",
             "x.part1.jsonl", "aa", "x.jsonl", "x.parquet", "v1.2"],
)  # fmt: skip
def test_what_is_no_piece(name):
    assert not is_split_part(name)


def test_pieces_beside_what_is_read_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl.aa").write_bytes(LINES)
    source = open_source(tmp_path)
    assert len(list(source.documents())) == 40
    assert source.skipped == {"part of a split file: join by `cat NAME.* > NAME`: b.jsonl.aa": 1}


def saved(root, splits, *, ending=".arrow", own=None, rows=12):
    """A data set as `save_to_disk` writes it: one, or a folder for each of several splits."""
    pa = pytest.importorskip("pyarrow")
    for split in splits or [""]:
        folder = root / split
        folder.mkdir(parents=True)
        name = f"data-00000-of-00001{ending}"
        table = pa.table({"text": [f"{split} {number}" for number in range(rows)]})
        with pa.OSFile(str(folder / name), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
        state = {"_data_files": [{"filename": name}], "_fingerprint": "0", "_format_type": None, "_split": own or split}
        (folder / "state.json").write_text(json.dumps(state, indent=2))
        info = {"features": {"text": {"dtype": "string", "_type": "Value"}}, "splits": {}}
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    if splits:
        (root / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    return root


@pytest.mark.parametrize("ending", [".arrow", "", ".bin"])
@pytest.mark.parametrize(
    "splits", [["train", "test"], ["train", "val", "test"], ["train_sft", "test_sft"]], ids="-".join
)
def test_saved_data_sets_are_read_with_their_splits(tmp_path, splits, ending):
    source = open_source(saved(tmp_path / "s", splits, ending=ending))
    documents, bad = read(tmp_path / "s")
    assert source.format == "datasets" and not bad and len(documents) == 12 * len(splits)
    for split, expected in (("test", "test"), ("test_sft", "test"), ("val", "validation")):
        found = {document.split for document in documents if texts(document).startswith(f"{split} ")}
        assert found == ({expected} if split in splits else set())
    assert "train" in {document.split for document in documents}


@pytest.mark.parametrize("ending", [".arrow", ""])
@pytest.mark.parametrize("own, expected", [("test", "test"), ("validation[:10%]", "validation"), ("train", None)])
def test_a_data_set_saved_alone_says_its_split(tmp_path, ending, own, expected):
    documents, bad = read(saved(tmp_path / "s", [], ending=ending, own=own))
    assert not bad and {document.split for document in documents} == (
        {expected} if expected else {"train", "validation", "test"}
    )


def test_the_name_in_a_dict_goes_before_where_its_rows_were_from(tmp_path):
    """Both halves of `train_test_split` note that they came from train."""
    documents, _ = read(saved(tmp_path / "s", ["train", "test"], own="train"))
    assert {document.split for document in documents if texts(document).startswith("test ")} == {"test"}
    documents, _ = read(saved(tmp_path / "t", ["train", "test"], own="test"))
    assert {document.split for document in documents if texts(document).startswith("train ")} == {"train", "validation"}
