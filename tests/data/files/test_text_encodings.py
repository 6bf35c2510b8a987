"""Text as other programs write it: byte-order marks, line ends of three kinds, and encodings that are told by name."""

import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile

import pytest

from brine.data.document import DocumentError
from brine.data.files.text import decode_text, foreign_encoding
from brine.data.formats.lines.lines import json_items
from brine.data.formats.open import open_source
from brine.data.tokenizer import Tokenizer
from tests.data.format_files import read, texts
from tests.data.media_files import picture

MARK = b"\xef\xbb\xbf"
ONE, TWO = (json.dumps({"id": name, "content": [{"type": "text", "text": "grün"}]}) for name in ("é1", "é2"))
WORDS = ('{"text": "wren"}', '{"text": "heron"}')


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mark.jsonl", MARK + f"{ONE}\n{TWO}\n".encode()),
        ("mark-crlf-blank.jsonl", MARK + f"{ONE}\r\n\r\n{TWO}".encode()),
        ("mark-twice.jsonl", MARK + f"{ONE}\n".encode() + MARK + f"{TWO}\n".encode()),
        ("mark.json", MARK + f"[{ONE},{TWO}]".encode()),
        ("mark-inside.json", f"[{ONE},\ufeff{TWO}]".encode()),
        ("crlf.jsonl", f"{ONE}\r\n{TWO}\r\n".encode()),
        ("mark-two.jsonl", MARK * 2 + f"{ONE}\n{TWO}\n".encode()),
        ("mark-three.json", MARK * 3 + f"[{ONE},{TWO}]".encode()),
        ("mark-two-inside.jsonl", f"{ONE}\n".encode() + MARK * 2 + f"{TWO}\n".encode()),
        ("mark-in-name.jsonl", f"{ONE}\n{TWO}\n".replace('"id"', '"\ufeffid"').encode()),
        ("mark-in-name.json", f"[{ONE},{TWO}]".replace('"id"', '"\ufeff\ufeffid"').encode()),
        ("mark-escaped-in-name.jsonl", f"{ONE}\n{TWO}\n".replace('"id"', '"\\ufeffid"').encode()),
        ("cr.jsonl", f"{ONE}\r{TWO}\r".encode()),
        ("cr-open-end.jsonl", f"{ONE}\r{TWO}".encode()),
        ("cr-cr-lf.jsonl", f"{ONE}\r\r\n{TWO}\r\r\n".encode()),
        ("mixed.jsonl", f"\r{ONE}\n\r\n{TWO}\r".encode()),
        ("mark.json-lines", MARK + f"{ONE}\n{TWO}\n".encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_marks_and_line_ends_change_nothing(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    documents, bad = read(tmp_path / name)
    assert not bad and [document.id for document in documents] == ["é1", "é2"]
    assert [texts(document) for document in documents] == ["grün", "grün"]


def test_separators_of_lines_in_strings_are_characters(tmp_path):
    spelt = "a\u2028b\u2029c\x85d\x0be"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": spelt}, ensure_ascii=False) + "\r", encoding="utf-8")
    assert texts(read(tmp_path / "a.jsonl")[0][0]) == spelt


def test_a_line_end_at_the_border_of_two_blocks(tmp_path):
    """CR LF torn apart by the reader's block of 1 MiB is still one line end, and lines keep their numbers."""
    first = json.dumps({"text": "x" * (2**20 - 16)})
    for more in range(6):
        line = first[:-2] + "x" * more + '"}'
        (tmp_path / "a.jsonl").write_bytes(f"{line}\r\n{WORDS[0]}\r\nbad\r\n".encode())
        found = list(json_items(tmp_path / "a.jsonl", max_line_mib=2))
        assert [number for number, _ in found] == [1, 2, 3] and found[1][1] == {"text": "wren"}
        assert isinstance(found[2][1], DocumentError)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["lf", "cr", "crlf"])
def test_lines_over_the_limit_cost_themselves_alone(tmp_path, end):
    limit = 2**20
    fits = b'{"text": "' + b"x" * (limit - 12) + b'"}'
    assert len(fits) == limit
    lines = [fits, fits + b" ", b"y" * 3 * limit, WORDS[0].encode()]
    (tmp_path / "a.jsonl").write_bytes(end.join(lines))
    found = list(json_items(tmp_path / "a.jsonl", max_line_mib=1))
    assert [isinstance(item, DocumentError) for _, item in found] == [False, True, True, False]
    assert "max_line_mib=1" in str(found[1][1]) and [number for number, _ in found] == [1, 2, 3, 4]


def test_a_line_over_the_limit_is_not_held(tmp_path):
    import tracemalloc

    (tmp_path / "a.jsonl").write_bytes(b"y" * 24 * 2**20 + b"\n" + WORDS[0].encode())
    tracemalloc.start()
    found = list(json_items(tmp_path / "a.jsonl", max_line_mib=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found[0][1], DocumentError) and found[1] == (2, {"text": "wren"}) and peak < 8 * 2**20


FOREIGN = {
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16LE",
    "utf-16-be": "UTF-16BE",
    "utf-32": "UTF-32",
    "utf-32-le": "UTF-32LE",
    "utf-32-be": "UTF-32BE",
}


@pytest.mark.parametrize(("codec", "name"), FOREIGN.items(), ids=FOREIGN)
@pytest.mark.parametrize("layout", ["{}\n{}\n", "[{},\n{}]"], ids=["lines", "array"])
def test_other_encodings_are_named_once_with_the_command(tmp_path, codec, name, layout):
    (tmp_path / "words.jsonl").write_bytes(layout.replace("{}", "%s").__mod__((ONE, TWO)).encode(codec))
    with pytest.raises(ValueError, match=f"words.jsonl.*{name}, .*iconv -f {name} -t UTF-8"):
        open_source(tmp_path / "words.jsonl")


def test_among_other_files_it_is_set_aside_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(WORDS), encoding="utf-8")
    (tmp_path / "b.jsonl").write_bytes("\n".join(WORDS).encode("utf-16"))
    documents, bad = read(tmp_path, format="captioned")
    assert len(documents) == 2 and len(bad) == 1 and "b.jsonl" in bad[0].reason and "iconv -f UTF-16" in bad[0].reason


def test_latin_1_costs_its_lines_and_tells_the_remedy(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "wren"}\n{"text": "Zaunkönig"}\n'.encode("latin-1"))
    documents, bad = read(tmp_path / "a.jsonl")
    assert len(documents) == 1 and "not UTF-8 (byte 15)" in bad[0].reason and "iconv -f LATIN1" in bad[0].reason


def test_a_mark_before_captions_pages_and_code(tmp_path):
    for name, content in {"m/1.txt": b"wren", "m/2.json": b'{"text": "wren"}', "m/3.caption": b"wren\r"}.items():
        picture((tmp_path / name).with_suffix(".png"), 8, 8)
        (tmp_path / name).write_bytes(MARK + content)
    documents, bad = read(tmp_path / "m")
    assert not bad and [texts(document).strip() for document in documents] == ["wren"] * 3
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "page.md").write_bytes(MARK + b"# Page\r\n")
    assert texts(read(tmp_path / "p")[0][0]) == "# Page\n"
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".gitignore").write_bytes(MARK + b"hidden.py\r\n*.log\r\n")
    for name in ("hidden.py", "a.log", "seen.py"):
        (tmp_path / "r" / name).write_bytes(MARK + b"import os\r\n")
    documents, bad = read(tmp_path / "r")
    assert not bad and [document.id for document in documents] == [".gitignore", "seen.py"]
    assert texts(documents[1]) == "seen.py\nimport os\n"


def test_a_mark_before_members_of_a_tar(tmp_path):
    picture(tmp_path / "a.png", 8, 8)
    png = (tmp_path / "a.png").read_bytes()
    members = {"1.png": png, "1.txt": MARK + b"wren", "2.png": png, "2.json": MARK + b'{"caption": "wren"}'}
    members |= {"3.json": MARK + b'{"messages": [{"role": "assistant", "content": "wren"}]}'}
    with tarfile.open(tmp_path / "s.tar", "w") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    documents, bad = read(tmp_path / "s.tar")
    assert not bad and [texts(document, loss_mask=True) for document in documents] == ["wren"] * 3


def test_texts_of_other_encodings_are_set_aside_by_name(tmp_path):
    for name, codec in {"m/1.txt": "utf-16", "r/a.py": "utf-16-le", "r/b.py": "utf-32", "r/c.py": "ascii"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes("import os\n".encode(codec))
    picture(tmp_path / "m" / "1.png", 8, 8)
    reasons = {item.id: item.reason for folder in ("m", "r") for item in read(tmp_path / folder)[1]}
    assert "UTF-16, " in reasons["1"] and "UTF-16LE" in reasons["a.py"] and "UTF-32" in reasons["b.py"]
    assert all("iconv" in reason for reason in reasons.values()) and len(reasons) == 3


def test_a_mark_before_a_tokenizer(tmp_path, tokenizer):
    (tmp_path / "tokenizer.json").write_bytes(MARK + tokenizer.to_str().encode())
    assert Tokenizer.load(tmp_path).to_str() == tokenizer.to_str()


@pytest.mark.parametrize("head", [b"", b"{", b"\0" * 8, b"PK\x03\x04\0\0\0\0", b"RIFF\0\0\0\0", b"a\0b\xff\0"])
def test_what_is_no_text_of_zeros_is_not_taken_for_one(head):
    assert foreign_encoding(head) is None


def test_decode_text():
    assert decode_text(MARK + b"a\r\nb\rc\n", "x") == "a\nb\nc\n"
    assert decode_text(b"", "x") == ""
    assert decode_text(MARK * 2 + b"a" + MARK, "x") == "a\ufeff"


@pytest.mark.skipif(shutil.which("iconv") is None, reason="iconv is not installed")
@pytest.mark.parametrize(
    "name, codec, press",
    [
        ("a.jsonl", "utf-16", bytes),
        ("a b.json", "utf-16-be", bytes),
        ("a.jsonl.gz", "utf-16", gzip.compress),
        ("a.gz", "utf-32", gzip.compress),
        ("x.jsonl.xz", "utf-16-le", lzma.compress),
        ("it's.jsonl", "utf-16", gzip.compress),
    ],
)
def test_the_command_makes_a_file_that_is_read(tmp_path, name, codec, press):
    """Of UTF-16 in a gzip, iconv was told to convert the compressed bytes."""
    (tmp_path / name).write_bytes(press("".join(f"{line}\n" for line in WORDS).encode(codec)))
    with pytest.raises(ValueError, match="iconv") as caught:
        open_source(tmp_path / name)
    command = str(caught.value).rpartition(" by `")[2].rstrip("`")
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=20, env={"PATH": os.environ["PATH"]})
    (made,) = tmp_path.glob("utf8-*")
    assert [texts(document) for document in read(made)[0]] == ["wren", "heron"]


@pytest.mark.parametrize(
    "content, told",
    [
        ("“größe”".encode("cp1252"), "if it is Windows-1252, convert it by `iconv -f CP1252 -t UTF-8 "),
        ("größe".encode("latin-1"), "if it is Latin-1, convert it by `iconv -f LATIN1 -t UTF-8 "),
        (b"gr\xf6\x81", "iconv -f LATIN1"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "it is a PNG image, not text"),
        (b"\xff\xd8\xff\xe0", "it is a JPEG image, not text"),
        (b"%PDF-1.7\n%\xe2\xe3", "it is a PDF document, not text"),
        (b"wren\0\xff", "it is not text"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else "",
)
def test_what_is_no_text_is_not_to_be_converted(content, told):
    with pytest.raises(DocumentError) as caught:
        decode_text(content, "x")
    assert told in str(caught.value) and ("iconv" in told) == ("iconv" in str(caught.value))
