"""Files are told by their content: archives, tables and JSON under any name, alone and in folders."""

import io
import json
import os
import tarfile

import pytest

from brine.data.document import DocumentError
from brine.data.files import walk
from brine.data.files.addresses import split_address, tagged, untagged
from brine.data.files.resolve import resolve_media
from brine.data.files.signatures import is_tar
from brine.data.formats.open import open_source
from tests.data.format_files import encoded, media, read, tar, texts
from tests.data.media_files import picture

LINES = '{"text": "wren"}\n{"text": "heron"}\n'
ARRAY = json.dumps([{"text": "wren"}, {"text": "heron"}])


@pytest.fixture(scope="module")
def png(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("material") / "a.png"
    picture(path, 16, 16)
    return path.read_bytes()


def v7(members: dict[str, bytes]) -> bytes:
    """A tar as old programs wrote it, without the mark `ustar`."""
    content = bytearray(tar(members))
    for place in range(0, len(content), 512):
        if content[place + 257 : place + 262] == b"ustar":
            content[place + 257 : place + 512] = bytes(255)
            content[place + 148 : place + 156] = b" " * 8
            content[place + 148 : place + 156] = b"%06o\0 " % sum(content[place : place + 512])
    return bytes(content)


def table(png: bytes, kind: str) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows, stream = pa.table({"image": [png], "text": ["wren"]}), io.BytesIO()
    if kind == "parquet":
        pq.write_table(rows, stream)
    else:
        with (pa.ipc.new_file if kind == "arrow-file" else pa.ipc.new_stream)(stream, rows.schema) as out:
            out.write_table(rows)
    return stream.getvalue()


CONTAINERS = ["pax", "gnu", "ustar", "v7", "parquet", "arrow-file", "arrow-stream"]


def container(kind: str, png: bytes) -> bytes:
    members = {"a/1.png": png, "a/1.txt": b"wren"}
    if kind == "v7":
        return v7(members)
    if kind in ("pax", "gnu", "ustar"):
        return tar(members, format=getattr(tarfile, f"{kind.upper()}_FORMAT"))
    return table(png, kind)


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("name", ["data", "shard-0.bin", "train.v1.2", "a.TAR", "std::odd.dat"])
def test_containers_under_any_name(tmp_path, png, kind, name, tokenizer, config):
    (tmp_path / name).write_bytes(container(kind, png))
    for path in (tmp_path / name, tmp_path):
        if path == tmp_path and name == "a.TAR" and kind not in ("pax", "gnu", "ustar", "v7"):
            continue
        documents, bad = read(path)
        source = open_source(path)
        assert not bad and len(documents) == 1 and texts(documents[0]) == "wren" and len(media(documents[0])) == 1
        assert "#.tar" not in documents[0].id and len(source.fingerprint()) == 64
        encoded(documents[0], source.root, tokenizer, config)


def test_several_shards_without_endings(tmp_path, png, tokenizer, config):
    for number in range(3):
        (tmp_path / f"{number:05d}").write_bytes(tar({"x.png": png, "x.txt": b"wren"}))
    (tmp_path / "README.md").write_text("# What it is\n")
    documents, bad = read(tmp_path)
    assert not bad and [document.id for document in documents] == ["00000/x", "00001/x", "00002/x"]
    assert media(documents[1])[0][1] == "00001#.tar::x.png"
    encoded(documents[1], tmp_path.resolve(), tokenizer, config)


def test_what_is_set_aside_bears_the_name_of_the_file(tmp_path, png):
    whole = tar({"x.png": png, "x.txt": b"wren", "y.png": png * 9})
    (tmp_path / "shard").write_bytes(whole[: len(whole) - 12_000])
    bad = read(tmp_path / "shard")[1]
    assert bad[-1].file == bad[-1].id == "shard" and "tar 'shard' ends without" in bad[-1].reason


def test_a_manifest_may_address_them(tmp_path, png, tokenizer, config):
    (tmp_path / "shard").write_bytes(tar({"x.png": png}))
    (tmp_path / "m.jsonl").write_text(json.dumps({"image": "shard#.tar::x.png", "text": "wren"}))
    documents, bad = read(tmp_path / "m.jsonl")
    assert not bad
    encoded(documents[0], tmp_path.resolve(), tokenizer, config)


@pytest.mark.parametrize("name", ["data", "words.txt.bin", "part-00000", "a.ndjson", "a.json", "b.jsonlines"])
@pytest.mark.parametrize("content", [LINES, ARRAY, "\ufeff" + LINES, "\n \n" + ARRAY], ids=["l", "a", "mark", "space"])
def test_json_under_any_name(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    for path in (tmp_path / name, tmp_path):
        documents, bad = read(path)
        assert not bad and [texts(document) for document in documents] == ["wren", "heron"]


def test_what_is_no_table_of_documents_stays_what_it_is(tmp_path, png):
    """A settings file, a caption of one object and a folder with .git are read as before."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.png").write_bytes(png)
    (tmp_path / "m" / "a.json").write_text('{"text": "wren"}')
    assert open_source(tmp_path / "m").format == "media"
    (tmp_path / "r" / ".git").mkdir(parents=True)
    (tmp_path / "r" / "fixture").write_bytes(tar({"x.txt": b"wren"}))
    (tmp_path / "r" / "settings.rc").write_text('{\n"text": "x"\n}\n')
    (tmp_path / "r" / "main.py").write_text("import os\n")
    source = open_source(tmp_path / "r")
    assert source.format == "repository" and "main.py" in [item.id for item in source.documents()]


ONE = '{"text": "crane"}\n'
BESIDE = {
    "a manifest's neighbour": ({"metadata.jsonl": ONE, "more.jsonl": LINES}, ".jsonl"),
    "in a folder below": ({"train.jsonl": ONE, "test/part.jsonl": LINES}, ".jsonl"),
    "of no known form": ({"train.jsonl": ONE, "test.jsonl": '{"smell": 1}\n'}, ".jsonl"),
    "a table of words": ({"metadata.jsonl": ONE, "metadata.csv": "file_name,text\n"}, ".csv"),
    "a medium beside a tar": ({"0.tar": {"1.txt": b"crane"}, "1.PNG": "x", "1.txt": "wren"}, ".png"),
    "a table beside a tar": ({"0.tar": {"1.txt": b"crane"}, "0.parquet": "PAR1"}, ".parquet"),
}


@pytest.mark.parametrize("files, ending", BESIDE.values(), ids=BESIDE)
def test_documents_beside_what_is_read_are_counted(tmp_path, files, ending):
    """Of what stands back not a word was said."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(tar(content) if isinstance(content, dict) else content.encode())
    source = open_source(tmp_path)
    assert [texts(document) for document in source.documents()] == ["crane"]
    assert len([reason for reason in source.skipped if ending in reason.lower()]) == 1


QUIET = {
    "a tar that is addressed": {
        "m.jsonl": '{"image": "shard.tar::x.png", "text": "crane"}',
        "shard.tar": {"x.png": b"x"},
    },
    "one without its ending": {"m.jsonl": '{"image": "s#.tar::x.png", "text": "crane"}', "s": {"x.png": b"x"}},
    "one of another ending": {"m.jsonl": '{"image": "s.csv#.tar::x.png", "text": "crane"}', "s.csv": {"x.png": b"x"}},
    "hidden files": {"m.jsonl": ONE, "._m.jsonl": "\0\5", ".cache/a.jsonl": LINES},
    "media, pages and a card": {
        "m.jsonl": '{"file_name": "a.png", "text": "crane"}',
        "a.png": "x",
        "README.md": "# Card",
    },
}


@pytest.mark.parametrize("files", QUIET.values(), ids=QUIET)
def test_what_belongs_to_a_manifest_is_not_passed_over(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(tar(content) if isinstance(content, dict) else content.encode())
    source = open_source(tmp_path)
    assert [texts(document) for document in source.documents()] == ["crane"] and not source.skipped


def test_pipes_and_links_out_are_not_opened(tmp_path):
    (tmp_path / "f").mkdir()
    os.mkfifo(tmp_path / "f" / "pipe")
    (tmp_path / "out").write_text(LINES)
    (tmp_path / "f" / "led").symlink_to("../out")
    with pytest.raises(ValueError, match="holds nothing that is read"):
        open_source(tmp_path / "f")


@pytest.mark.parametrize("head", [b"", bytes(1024), b"x" * 1024, LINES.encode() * 40, b"ustar" * 200, b"a" * 511])
def test_what_is_no_tar(head):
    assert not is_tar(head)


def test_names_in_addresses():
    cases = {
        "a.tar": "a.tar",
        "b/A.TAR": "b/A.TAR",
        "data": "data#.tar",
        "x.bin": "x.bin#.tar",
        "x#.tar": "x#.tar#.tar",
    }
    for name, address in cases.items():
        assert tagged(name, ".tar") == address and untagged(address) == name
        assert split_address(f"{address}::in/side.png") == (address, "in/side.png")
    assert tagged("a.tar", ".parquet") == "a.tar#.parquet" and untagged("a.tar#.parquet") == "a.tar"
    # a tag opens no way out of the folder
    with pytest.raises(DocumentError, match="leaves"):
        resolve_media("/", "../x#.tar::a.png", max_file_mib=1)


FOLDERS = {
    "tars": {"a/1.tar": None, "b/2.tar": None},
    "media": {"a/1.png": b"x", "a/1.txt": b"words"},
    "pages": {"a/1.md": b"# page"},
    "code": {"src/main.py": b"import os\n", "src/more.py": b"import sys\n"},
    "manifests below": {"a/metadata.jsonl": LINES.encode(), "b/metadata.jsonl": LINES.encode()},
    "tars without endings": {"a/1": None, "b/2": None},
}


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS)
def test_opening_walks_a_folder_once(tmp_path, monkeypatch, files):
    for name, content in (files | {".cache/x/metadata.jsonl": LINES.encode()}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(tar({"x.txt": b"wren"}) if content is None else content)
    walked, below = [], walk._below

    def counted(root, folder, *rest):
        walked.append(folder)
        return below(root, folder, *rest)

    monkeypatch.setattr(walk, "_below", counted)
    source = open_source(tmp_path)
    assert len(walked) == len(set(walked)) and "" in walked
    # what hidden folders hold is no manifest of the folder
    assert all(".cache" not in document.id for document in source.documents() if source.format != "repository")
