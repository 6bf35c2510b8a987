"""Addresses into tars: what opens, what is refused, and how a cut or hostile tar is met."""

import io
import os
import tarfile
import threading
from pathlib import Path

import pytest

from brine.data.document import DocumentError
from brine.data.files import archive
from brine.data.files.addresses import check_relative, split_address
from brine.data.files.archive import open_media, read_member, tar_index


def tar(path: Path, members, *, format=tarfile.PAX_FORMAT, mode="w") -> Path:
    """A tar of (name or TarInfo, bytes)."""
    with tarfile.open(path, mode, format=format) as out:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, link="") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def opened(root, path, **options) -> bytes:
    with open_media(root, path, **{"max_file_mib": 1.0} | options) as file:
        return file.read_bytes()


@pytest.fixture()
def root(tmp_path):
    return tmp_path.resolve()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_open_like_files(root, format):
    long = "/".join(["folder"] * 20) + "/" + ("x" * 90) + ".png"
    names = ["a.png", "./b/c d.png", "ünï.png"] + ([long] if format != tarfile.USTAR_FORMAT else [])
    members = [(name, os.urandom(700 + 300 * place)) for place, name in enumerate(names)]
    folder = tarfile.TarInfo("b")
    folder.type = tarfile.DIRTYPE
    tar(root / "s.tar", [(folder, b""), *members], format=format)
    for name, content in members:
        assert opened(root, f"s.tar::{name}") == content
        with (
            open_media(root, f"s.tar::{name}", max_file_mib=1) as path,
            open(path, "rb") as one,
            open(path, "rb") as two,
        ):
            # two readers each have their own place, as with any file
            one.seek(100)
            assert two.read() == content and one.read() == content[100:] and path.stat().st_size == len(content)
    assert list(tar_index(root / "s.tar").members) == [os.path.normpath(name) for name in names]
    assert not tar_index(root / "s.tar").cut
    (root / "plain.png").write_bytes(b"plain")
    assert opened(root, "plain.png") == b"plain"


def test_nothing_is_left_open(root):
    tar(root / "s.tar", [("a.png", b"x")])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        assert opened(root, "s.tar::a.png") == b"x"
    with pytest.raises(KeyError), open_media(root, "s.tar::a.png", max_file_mib=1):
        raise KeyError
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_elsewhere_than_linux_a_temporary_file_serves(root, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    tar(root / "s.tar", [("a.png", b"content")])
    with open_media(root, "s.tar::a.png", max_file_mib=1) as path:
        assert path.suffix == ".png" and path.read_bytes() == b"content"
    assert not path.exists()


def test_addresses():
    assert split_address("a/s.tar::b/c.png") == ("a/s.tar", "b/c.png")
    assert split_address("t.parquet::3/image") == ("t.parquet", "3/image")
    # a file whose name has colons is a file
    assert split_address("std::vector.png") is None and split_address("s.tar") is None
    assert check_relative("s.tar::b/../c.png") and check_relative("std::vector.png")
    for path, words in {
        "s.tar::": "names nothing inside",
        "s.tar::../x.png": "leaves",
        "s.tar::b/../../x.png": "leaves",
        "s.tar::/etc/passwd": "not relative",
        "../s.tar::x.png": "leaves",
        "/s.tar::x.png": "not relative",
        "s.tar::x\0y": "NUL",
    }.items():
        with pytest.raises(DocumentError, match=words):
            check_relative(path)


def test_what_is_refused(root, tmp_path_factory):
    sparse = tarfile.TarInfo("sparse.bin")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "99999999999"}
    tar(
        root / "s.tar",
        [
            ("../../x", b"climbs"),
            ("/etc/passwd", b"absolute"),
            (special("soft.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
            (special("hard.png", tarfile.LNKTYPE, "a.png"), b""),
            (special("device.png", tarfile.CHRTYPE), b""),
            (special("pipe.png", tarfile.FIFOTYPE), b""),
            (sparse, b"1\n0\n1\n"),
            ("a.png", b"first"),
            ("a.png", b"second"),
            ("empty.png", b""),
            ("big.png", b"x" * 3000),
            ("line\nbreak.png", b"x"),
        ],
    )
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.tar"
    tar(elsewhere, [("a.png", b"x")])
    (root / "out.tar").symlink_to(elsewhere)
    os.mkfifo(root / "pipe.tar")
    (root / "folder.tar").mkdir()
    (root / "zero.tar").write_bytes(b"")
    (root / "text.tar").write_bytes(b"no tar at all " * 100)
    for name, mode in (("z.tar", "w:gz"), ("b.tar", "w:bz2"), ("x.tar", "w:xz")):
        tar(root / name, [("a.png", b"x")], mode=mode)
    expected = {
        "s.tar::../../x": "leaves",
        "s.tar::soft.png": "is a link or device",
        "s.tar::hard.png": "is a link or device",
        "s.tar::device.png": "is a link or device",
        "s.tar::pipe.png": "is a link or device",
        "s.tar::sparse.bin": "is a sparse file",
        "s.tar::none.png": "is not in the tar",
        "s.tar::empty.png": "is empty",
        "s.tar::big.png": "over max_file_mib",
        "out.tar::a.png": "is a link out of",
        "pipe.tar::a.png": "not a regular file",
        "folder.tar::a.png": "not a regular file",
        "zero.tar::a.png": "is empty",
        "text.tar::a.png": "is not a tar file",
        "none.tar::a.png": "does not exist",
        "z.tar::a.png": "compressed, which rules out random access: unpack it by `gzip -dc",
        "b.tar::a.png": "bzip2 -dc",
        "x.tar::a.png": "xz -dc",
    }
    for path, words in expected.items():
        with pytest.raises(DocumentError) as caught:
            opened(root, path, max_file_mib=2500 / 2**20)
        assert words in str(caught.value), path
    refused = tar_index(root / "s.tar").refused
    assert "leaves the archive" in refused["../../x"] and "leaves the archive" in refused["/etc/passwd"]
    assert "unprintable" in refused["line\nbreak.png"] and "earlier member" in refused["a.png (again)"]
    assert opened(root, "s.tar::a.png") == b"first"


def test_cut_at_every_block(root):
    """Members before the cut open whole, the one it runs through and those after it do not, and the index tells."""
    contents = {f"{place}.bin": bytes([place]) * (300 * place + 1) for place in range(6)}
    whole = tar(root / "whole.tar", list(contents.items()), format=tarfile.PAX_FORMAT).read_bytes()
    ends = {name: sum(map(sum, zip(tar_index(root / "whole.tar").members[name]))) for name in contents}
    last = max(ends.values())
    for size in range(1, last + 511, 257):
        (root / "cut.tar").write_bytes(whole[:size])
        os.utime(root / "cut.tar", ns=(size, size))
        for name, content in contents.items():
            if ends[name] <= size:
                assert opened(root, f"cut.tar::{name}") == content
            else:
                with pytest.raises(DocumentError, match=r"was cut|not a tar file"):
                    opened(root, f"cut.tar::{name}")
        if size >= 512:
            assert "cut" in tar_index(root / "cut.tar").cut
    assert not tar_index(root / "whole.tar").cut


def test_damaged_header_costs_what_lies_behind_it(root):
    content = bytearray(tar(root / "s.tar", [(f"{place}.bin", b"x" * 600) for place in range(4)]).read_bytes())
    place = content.index(b"2.bin")
    content[place] ^= 1
    (root / "s.tar").write_bytes(content)
    index = tar_index(root / "s.tar")
    assert list(index.members) == ["0.bin", "1.bin"] and f"damaged at byte {place}" in index.cut
    with pytest.raises(DocumentError, match="is not in the tar, which is damaged"):
        opened(root, "s.tar::3.bin")


def test_hostile_sizes_neither_hang_nor_fill_memory(root):
    """Headers that claim exabytes, negative sizes, or an extension as long as the file."""
    for kind, size in ((tarfile.REGTYPE, 2**61), (tarfile.REGTYPE, -512), (tarfile.XHDTYPE, 2**40), (b"L", 2**33)):
        info = tarfile.TarInfo("a.bin")
        info.type, info.size = kind, size
        head = info.tobuf(tarfile.GNU_FORMAT)
        (root / "s.tar").write_bytes(head + b"x" * 2048)
        os.utime(root / "s.tar", ns=(abs(size), abs(size)))
        with pytest.raises(DocumentError, match=r"cut|damaged|not a tar file|not in the tar"):
            opened(root, "s.tar::a.bin")


def test_index_is_kept_until_the_tar_changes(root, monkeypatch):
    walks = []
    walk = archive._walk
    monkeypatch.setattr(archive, "_walk", lambda *options: walks.append(1) or walk(*options))
    monkeypatch.setattr(archive, "_indexes", type(archive._indexes)())
    tar(root / "s.tar", [("a", b"one")])
    for _ in range(3):
        assert read_member(root, "s.tar", "a", max_file_mib=1) == b"one"
    assert len(walks) == 1
    tar(root / "s.tar", [("a", b"other"), ("b", b"x" * 20_000)])
    assert read_member(root, "s.tar", "a", max_file_mib=1) == b"other" and len(walks) == 2
    monkeypatch.setattr(archive, "CACHED_MEMBERS", 3)
    for name in ("t", "u"):
        tar(root / f"{name}.tar", [(f"{place}", b"x") for place in range(2)])
        tar_index(root / f"{name}.tar")
    assert [key[0].rsplit("/", 1)[1] for key in archive._indexes] == ["u.tar"]


def test_threads_may_share_an_index(root):
    tar(root / "s.tar", [(f"{place}.bin", bytes([place]) * 5000) for place in range(50)])
    wrong = []

    def check(first):
        for place in range(first, 50, 4):
            if opened(root, f"s.tar::{place}.bin") != bytes([place]) * 5000:
                wrong.append(place)

    threads = [threading.Thread(target=check, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
