"""Pointers that version control leaves for large files: named with the command that fetches their content."""

import tarfile

import pytest

from brine.data.document import DocumentError
from brine.data.files.archive import open_media
from brine.data.files.resolve import resolve_media
from brine.data.formats.open import open_source
from tests.data.format_files import media, read, tar, texts
from tests.data.media_files import picture

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca2\nsize 12345\n"  # noqa: E501
POINTERS = {
    "lfs": (LFS, "`git lfs pull`"),
    "lfs-crlf": (b"\xef\xbb\xbf" + LFS.replace(b"\n", b"\r\n"), "`git lfs pull`"),
    "lfs-old": (LFS.replace(b"git-lfs.github", b"hawser.github"), "`git lfs pull`"),
    "annex": (
        b"/annex/objects/SHA256E-s31390--f50d7ac4c6b9031379986bc362fcefb65f1e52621ce1708d.png\n",
        "`git annex get`",
    ),
    "xet": (b"# xet version 0\nfilesize = 9\n", "`git xet pull`"),
}


@pytest.mark.parametrize("kind", POINTERS)
@pytest.mark.parametrize("name", ["s.tar", "t.parquet", "a.jsonl", "a.json", "data", "s.tar.gz", "images.zip"])
def test_a_pointer_that_is_given_is_named(tmp_path, kind, name):
    content, command = POINTERS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is a pointer of git-.*{command}"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("kind", POINTERS)
def test_media_that_are_pointers_are_set_aside(tmp_path, kind):
    content, command = POINTERS[kind]
    picture(tmp_path / "here.png", 8, 8)
    (tmp_path / "gone.png").write_bytes(content)
    resolve_media(tmp_path.resolve(), "here.png", max_file_mib=1)
    with pytest.raises(DocumentError, match=f"gone.png' is a pointer of git-.*{command}"):
        resolve_media(tmp_path.resolve(), "gone.png", max_file_mib=1)
    with tarfile.open(tmp_path / "s.tar", "w") as out:
        out.add(tmp_path / "gone.png", "gone.png")
    with (
        pytest.raises(DocumentError, match=f"pointer.*{command}"),
        open_media(tmp_path, "s.tar::gone.png", max_file_mib=1),
    ):
        pass


@pytest.mark.parametrize("kind", ["lfs", "annex"])
@pytest.mark.parametrize("layout", ["metadata", "lines", "captions", "tars"])
def test_pointers_in_a_folder(tmp_path, kind, layout):
    content, command = POINTERS[kind]
    files = {
        "metadata": {"metadata.jsonl": content, "a.png": content},
        "lines": {"train.jsonl": content},
        "captions": {"a.txt": content},
        "tars": {"0.tar": content, "1.tar": content},
    }[layout]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    if layout == "captions":
        picture(tmp_path / "a.png", 8, 8)
    try:
        reasons = [item.reason for item in read(tmp_path)[1]]
    except ValueError as error:
        reasons = [str(error)]
    assert reasons and all(command in reason for reason in reasons)


def test_pointers_in_a_repository_are_no_text(tmp_path):
    (tmp_path / "table.py").write_bytes(LFS)
    (tmp_path / "main.py").write_text("import os\n")
    source = open_source(tmp_path)
    assert [document.id for document in source.documents()] == ["main.py"]
    assert any("git lfs pull" in reason for reason in source.skipped)


def test_what_dvc_holds_is_named(tmp_path):
    (tmp_path / "a.png.dvc").write_text("outs:\n- md5: a304afb96060aad90176268345e10355\n  path: a.png\n")
    with pytest.raises(DocumentError, match="dvc pull"):
        resolve_media(tmp_path.resolve(), "a.png", max_file_mib=1)


def test_a_text_about_pointers_is_a_text(tmp_path):
    picture(tmp_path / "a.png", 8, 8)
    (tmp_path / "a.txt").write_bytes(b"How git-lfs works: " + LFS)
    (tmp_path / "b.md").write_bytes(LFS * 20)
    documents, bad = read(tmp_path, format="media")
    assert not bad and media(documents[0]) and texts(documents[0]).startswith("How git-lfs")


@pytest.mark.parametrize("kind", POINTERS)
@pytest.mark.parametrize("ending", ["txt", "caption", "json", "cls"])
def test_words_in_a_tar_that_are_pointers_are_no_words(tmp_path, kind, ending):
    """The line `version https://git-lfs...` was learned as the caption."""
    content, command = POINTERS[kind]
    picture(tmp_path / "a.png", 8, 8)
    png = (tmp_path / "a.png").read_bytes()
    members = {"1.png": png, f"1.{ending}": content, "2.png": png, "2.txt": b"wren"}
    (tmp_path / "s.tar").write_bytes(tar(members))
    documents, bad = read(tmp_path / "s.tar")
    assert [texts(document) for document in documents] == ["wren"]
    assert [item.id for item in bad] == ["1"] and command in bad[0].reason and "before it is packed" in bad[0].reason


LINE = b'{"text": "wren"}\n'
BESIDE = {
    "lines beside lines": ({"test.jsonl": LINE, "train.jsonl": LFS}, ["train.jsonl"]),
    "two of three": ({"a.jsonl": LFS, "b.jsonl": LINE, "c.jsonl": LFS}, ["a.jsonl", "c.jsonl"]),
    "compressed lines": ({"a.jsonl": LINE, "b.jsonl.gz": LFS}, ["b.jsonl.gz"]),
    "lines beside tars": ({"a.tar": tar({"1.txt": b"wren"}), "train.jsonl": LFS}, [".jsonl"]),
    "a table beside tars": ({"a.tar": tar({"1.txt": b"wren"}), "x.parquet": LFS}, [".parquet"]),
    "an archive beside lines": ({"a.jsonl": LINE, "images.zip": LFS}, [".zip"]),
    "a table of words beside lines": ({"a.jsonl": LINE, "b.csv": LFS}, [".csv"]),
}


@pytest.mark.parametrize("files, named", BESIDE.values(), ids=BESIDE)
def test_pointers_beside_what_is_read_are_named(tmp_path, files, named):
    """A folder whose train.jsonl had not been fetched was one of test documents alone, without a word."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    source = open_source(tmp_path)
    items = list(source.documents())
    told = [item.reason for item in items if hasattr(item, "reason")] + [*source.skipped]
    assert sum(not hasattr(item, "reason") for item in items) == 1
    assert all(any(name in reason and "`git lfs pull`" in reason for reason in told) for name in named), told


@pytest.mark.parametrize(
    "names", [["t.jsonl.gz"], ["x.zip", "y.zip"], ["s.tar.zst"], ["metadata.csv", "a.png"]], ids=" ".join
)
def test_a_folder_of_pointers_is_not_called_compressed(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(LFS if name != "a.png" else b"\x89PNG")
    with pytest.raises(ValueError, match=r"pointer of git-lfs.*`git lfs pull`") as caught:
        list(open_source(tmp_path).documents())
    assert "gzip -dc" not in str(caught.value) and "python -c" not in str(caught.value)


DVC = "outs:\n- md5: a304afb96060aad90176268345e10355\n  size: 9\n  path: {}\n"


@pytest.mark.parametrize("name", ["train.jsonl", "data", "shards/0.tar", "data/train/x.parquet"])
@pytest.mark.parametrize("of", ["itself", "folder"])
def test_what_is_given_and_lies_with_dvc_is_named(tmp_path, name, of):
    held = tmp_path / (name if of == "itself" else name.split("/")[0])
    held.parent.mkdir(parents=True, exist_ok=True)
    held.with_name(held.name + ".dvc").write_text(DVC.format(held.name))
    with pytest.raises(ValueError, match="has not been fetched: `dvc pull` fetches it"):
        open_source(tmp_path / name)


def test_a_file_of_dvc_that_is_given_is_named(tmp_path):
    for name in ("data.dvc", "a.jsonl.dvc", "X.TAR.DVC"):
        (tmp_path / name).write_text(DVC.format(name[:-4]))
        with pytest.raises(ValueError, match=f"stands for '{name[:-4]}', which has not been fetched: `dvc pull`"):
            open_source(tmp_path / name)


def test_media_of_a_folder_that_dvc_holds_are_set_aside(tmp_path):
    (tmp_path / "data.dvc").write_text(DVC.format("data"))
    (tmp_path / "m.jsonl").write_text('{"image": "data/deep/x.png", "text": "red"}\n{"text": "wren"}\n')
    documents = list(open_source(tmp_path / "m.jsonl").documents())
    with pytest.raises(DocumentError, match="dvc pull"):
        resolve_media(tmp_path.resolve(), media(documents[0])[0][1], max_file_mib=1)


@pytest.mark.parametrize("names", [["d.png"], ["d.png", "e.wav", "f.mp4"], ["d.heic"]], ids=" ".join)
@pytest.mark.parametrize("beside", [True, False], ids=["beside one that is there", "alone"])
def test_captions_whose_media_dvc_holds_are_set_aside(tmp_path, names, beside):
    """A caption beside heron.png.dvc was a text without a medium."""
    for name in names:
        (tmp_path / f"{name}.dvc").write_text(DVC.format(name))
        (tmp_path / name).with_suffix(".txt").write_text("a wren")
    picture(tmp_path / "here.png", 8, 8)
    (tmp_path / "here.txt").write_text("a heron")
    if not beside:
        (tmp_path / "here.png").unlink()
        (tmp_path / "here.txt").unlink()
    source = open_source(tmp_path)
    items = list(source.documents())
    bad = [item for item in items if hasattr(item, "reason")]
    assert source.format == "media" and len(items) - len(bad) == beside and not source.skipped
    assert [item.id for item in bad] == [name[0] for name in names]
    assert all("`dvc pull`" in item.reason for item in bad)


def test_a_medium_that_was_fetched_is_read_beside_its_file_of_dvc(tmp_path):
    picture(tmp_path / "a.png", 8, 8)
    (tmp_path / "a.png.dvc").write_text(DVC.format("a.png"))
    (tmp_path / "a.txt").write_text("a heron")
    source = open_source(tmp_path)
    assert [texts(document) for document in source.documents()] == ["a heron"] and not source.skipped


@pytest.mark.parametrize("files", [{"a.jsonl": LINE}, {"README.md": b"# Birds"}, {"a.tar": tar({"1.txt": b"x"})}])
def test_folders_and_lists_that_dvc_holds_are_passed_over_by_name(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data.dvc").write_text(DVC.format("data"))
    (tmp_path / "b.jsonl.dvc").write_text(DVC.format("b.jsonl"))
    source = open_source(tmp_path)
    assert len(list(source.documents())) == 1
    assert source.skipped.total() == 2 and all("`dvc pull` fetches it" in reason for reason in source.skipped)
