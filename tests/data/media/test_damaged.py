"""Damage in compressed files: nothing of what the checksums do not vouch for is given as a document."""

import bz2
import gzip
import lzma
import random
import zlib

import pytest

from brine.data.files import compressed
from brine.data.files.compressed import decompression_error, open_decompressed, verified_bytes
from brine.data.formats.open import open_source
from tests.data.format_files import read, texts

pytestmark = pytest.mark.slow

PRESS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


def lines(start: int, stop: int) -> bytes:
    words = random.Random(start)
    rows = (
        " ".join(words.choice(("heron", "wren", "owl", "kite", "rook")) for _ in range(30)) for _ in range(start, stop)
    )
    return b"".join(b'{"text": "%d %s"}\n' % (start + place, row.encode()) for place, row in enumerate(rows))


def flipped(content: bytes, share: float) -> bytes:
    place = int(len(content) * share)
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def found(path) -> tuple[list, list[str]]:
    """Documents and reasons; a file whose first block is damaged is refused as a whole."""
    try:
        documents, bad = read(path, format="captioned")
    except ValueError as error:
        return [], [str(error)]
    return documents, [item.reason for item in bad]


@pytest.mark.parametrize("press", PRESS.values(), ids=PRESS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_no_word_that_was_never_written_is_given(tmp_path, press, share):
    """Of a gzip with one bit flipped 27 documents were accepted whose words nobody wrote."""
    (tmp_path / "a.jsonl.gz").write_bytes(flipped(press(lines(0, 3000)), share))
    documents, told = found(tmp_path / "a.jsonl.gz")
    assert not documents and len(told) == 1
    assert "damaged" in told[0] and "fetch" in told[0] and "again" in told[0]


@pytest.mark.parametrize("press", PRESS.values(), ids=PRESS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_members_before_the_damage_are_given(tmp_path, press, which):
    members = [press(lines(start, start + 500)) for start in (0, 500, 1000)]
    members[which] = flipped(members[which], 0.6)
    (tmp_path / "a.jsonl").write_bytes(b"".join(members))
    documents, told = found(tmp_path / "a.jsonl")
    assert [texts(document).split()[0] for document in documents] == [str(place) for place in range(500 * which)]
    assert len(told) == 1 and "damaged" in told[0] and (f"line {500 * which + 1}: " in told[0] or not which)


@pytest.mark.parametrize("where", [-8, -5, -4, -1], ids=["checksum", "its end", "length", "its end again"])
def test_a_false_checksum_is_a_damage(tmp_path, where):
    content = bytearray(gzip.compress(lines(0, 50)))
    content[where] ^= 1
    (tmp_path / "a.jsonl").write_bytes(content)
    documents, bad = read(tmp_path / "a.jsonl", format="captioned")
    assert not documents and "incorrect" in bad[0].reason


def test_an_array_that_is_damaged(tmp_path):
    array = b"[" + lines(0, 500).replace(b"}\n", b"},\n")[:-2] + b"]"
    (tmp_path / "a.json").write_bytes(flipped(gzip.compress(array), 0.8))
    documents, bad = read(tmp_path / "a.json", format="captioned")
    assert not documents and len(bad) == 1 and "damaged" in bad[0].reason


WHOLE = {
    "one member": gzip.compress(lines(0, 9)),
    "several": b"".join(map(gzip.compress, (lines(0, 3), lines(3, 9)))),
    "with padding": gzip.compress(lines(0, 9)) + bytes(1000),
    "with a signature": gzip.compress(lines(0, 9)) + b"signed by nobody",
    "an empty member": gzip.compress(b"") + gzip.compress(lines(0, 9)),
    "stored": gzip.compress(lines(0, 9), 0),
    "xz padded": lzma.compress(lines(0, 9)) + bytes(64),
    "several bzip2": bz2.compress(lines(0, 3)) + bz2.compress(lines(3, 9)),
    "plain": lines(0, 9),
}


@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE)
def test_what_is_whole_is_vouched_for(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    assert verified_bytes(tmp_path / "a.jsonl") == (float("inf"), "")
    assert len(read(tmp_path / "a.jsonl")[0]) == 9


def test_every_size_of_a_last_block(tmp_path):
    """What a decompressor still holds when its input ends belongs to the file."""
    noise = random.Random(3).randbytes(2**20 + 300)
    for count in (1, 2**18 - 40, 2**18, 2**20 - 1, 2**20, 2**20 + 1):
        (tmp_path / "a").write_bytes(gzip.compress(noise[:count], 1))
        (tmp_path / "b").write_bytes(gzip.compress(bytes(count)))
        assert verified_bytes(tmp_path / "a")[1] == "" == verified_bytes(tmp_path / "b")[1]
        for name in "ab":
            content = bytearray((tmp_path / name).read_bytes())
            content[-7] ^= 4
            (tmp_path / f"{name}-bad").write_bytes(content)
            assert verified_bytes(tmp_path / f"{name}-bad") == (
                0,
                "Error -3 while decompressing data: incorrect data check",
            )
            (tmp_path / f"{name}-bad").unlink()


def test_a_bomb_is_not_looked_through(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(gzip.compress(bytes(2**26)))
    monkeypatch.setattr(zlib, "decompressobj", counting := Counting())
    assert verified_bytes(tmp_path / "a", most=2**22) == (float("inf"), "")
    assert counting.held < 2**23


class Counting:
    """zlib.decompressobj that counts what comes out."""

    def __init__(self):
        self.held, self.make = 0, zlib.decompressobj

    def __call__(self, **options):
        self.inner = self.make(**options)
        return self

    def decompress(self, data: bytes, max_length: int) -> bytes:
        content = self.inner.decompress(data, max_length)
        self.held += len(content)
        return content

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


def test_a_file_that_is_not_looked_through_says_so_before_and_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "MAX_CHECKED_BYTES", 1000)
    (tmp_path / "a.jsonl").write_bytes(flipped(gzip.compress(lines(0, 3000)), 0.9))
    source = open_source(tmp_path / "a.jsonl")
    items = source.documents()
    *_, last = items
    assert [reason for reason in source.skipped if reason.startswith("note: a compressed file over")]
    assert "break off here or are damaged" in last.reason


def test_a_file_that_changed_is_looked_at_again(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(flipped(gzip.compress(lines(0, 300)), 0.5))
    assert verified_bytes(tmp_path / "a.jsonl")[0] == 0
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(lines(0, 300)) + b"")
    assert verified_bytes(tmp_path / "a.jsonl")[1] == ""


def test_the_stream_tells_only_when_asked(tmp_path):
    (tmp_path / "a").write_bytes(flipped(gzip.compress(lines(0, 3000)), 0.9))
    with open_decompressed(tmp_path / "a", checked=True) as stream:
        assert stream.read(100) == b"" and "wrong words" in decompression_error(stream)
    with open_decompressed(tmp_path / "a") as stream:
        assert stream.read(5) == lines(0, 1)[:5]
