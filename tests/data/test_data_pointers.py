"""Pointers that version control leaves for large files: named with the command that fetches their content."""

import tarfile

import pytest
from format_files import media, read, texts
from media_files import picture

from data.archive import open_media
from data.document import DocumentError, resolve_media
from data.formats import open_source

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
