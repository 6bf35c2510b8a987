"""Tars and tables read in place: WebDataset shards, Parquet files, datasets saved to disk."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from brine.data.corpus.store import DecodingCorpus, EncodedCorpus, build_corpus
from brine.data.document import Audio, Document, DocumentError, Image, Quarantined, Text, Video
from brine.data.encode import encode
from brine.data.files.archive import open_media
from brine.data.formats.open import open_source
from brine.data.formats.splits.hash_split import hash_split
from brine.data.formats.tables import cells
from tests.data.media_files import film, line, manifest, picture, sound


@pytest.fixture(scope="session")
def content(tmp_path_factory) -> dict[str, bytes]:
    """The bytes of one small file of each medium."""
    root = tmp_path_factory.mktemp("material")
    picture(root / "a.png", 40, 24)
    picture(root / "b.png", 20, 20, seed=1)
    sound(root / "s.flac", 0.4)
    film(root / "v.mp4", 1.0, tone_s=0.5)
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def read(path, **options):
    source = open_source(path, **options)
    items = list(source.documents())
    assert items == list(source.documents())
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Quarantined)]


def texts(document) -> str:
    return "".join(part.text for part in document.parts if isinstance(part, Text) and part.loss_mask)


def media(document) -> list[tuple[type, str]]:
    return [(type(part), part.path) for part in document.parts if not isinstance(part, Text)]


def check_bytes(document, root, wanted: list[bytes], tokenizer, config):
    """Each medium opens as the bytes that were written, and the whole document encodes."""
    for (_, path), data in zip(media(document), wanted, strict=True):
        with open_media(root, path, max_file_mib=4) as file:
            assert file.read_bytes() == data
    sequence = encode(document, root=root, tokenizer=tokenizer, config=config)
    for kind, name in ((Image, "image"), (Video, "video")):
        assert bool(len(getattr(sequence, name))) == (kind in [found for found, _ in media(document)])


@pytest.mark.slow
def test_bytes_in_a_tar_beside_the_manifest(tmp_path, content, tokenizer, config):
    """The same document from files and from a tar gives the same tokens, through killable servers too."""
    tar(tmp_path / "t/shard.tar", {f"x/{name}": data for name, data in content.items()})
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    parts = ({"image": "{}a.png"}, "words", {"audio": "{}s.flac"}, {"video": "{}v.mp4"})
    lines = []
    for name, folder in (("files", ""), ("tar", "t/shard.tar::x/")):
        filled = [{kind: path.format(folder) for kind, path in p.items()} if isinstance(p, dict) else p for p in parts]
        lines.append(line(name, *filled))
    lines.append(line("gone", {"image": "t/shard.tar::x/none.png"}, "x"))
    path = manifest(tmp_path, lines)
    # a busy machine may take long over the first video; nothing here is meant to time out
    config = dataclasses.replace(config, decode_timeout_s=300.0)
    corpus = build_corpus(path, tmp_path / "c", tokenizer=tokenizer, config=config, num_workers=1, keep_media=False)
    assert corpus.num_documents == 2 and corpus._index["crc32"][0] == corpus._index["crc32"][1]
    (record,) = corpus.quarantine()
    assert record["id"] == "gone" and "member 'x/none.png' is not in the tar" in record["reason"]
    decoding = DecodingCorpus(tmp_path / "c")
    try:
        assert len(decoding.encoded_document(1).image)
    finally:
        decoding.close()


def shard(content) -> dict:
    return {
        "one.png": content["a.png"],
        "sub/two.flac": content["s.flac"],
        "one.txt": "heron",
        "sub/two.json": '{"caption": "tone", "text": null}',
        "sub/two.meta.npy": b"\x93NUMPY",
        "three.mp4": content["v.mp4"],
        "three.cls": "grey",
        "four.txt": "words alone",
        "five.png": content["b.png"],
        "six.png": content["a.png"],
        "six.json": '{"caption": 3}',
        "chat.json": json.dumps(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "image": "chat.b.png"}]},
                    {"role": "assistant", "content": "wren"},
                ]
            }
        ),
        "chat.b.png": content["b.png"],
        "bad.txt": b"\xff",
        "bad.png": content["b.png"],
    }


def test_webdataset(tmp_path, content, tokenizer, config):
    path = tar(tmp_path / "train-0.tar", shard(content))
    documents, bad = read(path)
    source = open_source(path)
    assert source.format == "webdataset" and source.root == tmp_path.resolve()
    assert {document.id: (texts(document), document.kind) for document in documents} == {
        "one": ("heron", "image"),
        "sub/two": ("tone", "audio"),
        "three": ("grey", "video"),
        "four": ("words alone", "text"),
        "chat": ("wren", "chat"),
    }
    by_name = {document.id: document for document in documents}
    # a source of training files alone holds something out by the rule for all
    assert all(document.split == hash_split(document.id) for document in documents)
    assert media(by_name["one"]) == [(Image, "train-0.tar::one.png")]
    wanted = {"one": "a.png", "sub/two": "s.flac", "three": "v.mp4", "chat": "b.png"}
    for name, file in wanted.items():
        check_bytes(by_name[name], source.root, [content[file]], tokenizer, config)
    assert {item.id: item.file for item in bad} == {
        "five": "train-0.tar::five.png", "six": "train-0.tar::six.png", "bad": "train-0.tar::bad.txt",
    }  # fmt: skip
    assert source.skipped == {} and list(source.documents()) and source.skipped == {"member .npy": 1}


def test_folder_of_shards(tmp_path, content):
    tar(tmp_path / "d/a.tar", {"1.png": content["a.png"], "1.txt": "x", "2.txt": "y"})
    tar(tmp_path / "d/test/b.tar", {"1.png": content["b.png"], "1.txt": "z"})
    whole = tar(tmp_path / "d/cut.tar", {f"{n}.{e}": "x" * 900 for n in range(3) for e in ("txt",)}).read_bytes()
    (tmp_path / "d/cut.tar").write_bytes(whole[: 512 + 1024 + 512 + 300])
    (tmp_path / "d/zip.tar").write_bytes(b"\x1f\x8b" + b"x" * 600)
    tar(tmp_path / "out.tar", {"1.txt": "secret"})
    (tmp_path / "d/link.tar").symlink_to("../out.tar")
    documents, bad = read(tmp_path / "d")
    assert [document.id for document in documents] == ["a/1", "a/2", "cut/0", "test/b/1"]
    assert documents[-1].split == "test"
    reasons = {item.id: item.reason for item in bad}
    assert "was cut; 1 members before that" in reasons["cut.tar"] and "was cut" in reasons["cut.tar::1.txt"]
    assert "compressed" in reasons["zip.tar"] and "out of the" in reasons["link.tar"] and len(reasons) == 4
    before = open_source(tmp_path / "d").fingerprint()
    tar(tmp_path / "d/a.tar", {"1.txt": "x"})
    assert open_source(tmp_path / "d").fingerprint() != before


def test_sample_that_misses_a_member_is_no_text(tmp_path, content):
    """A caption whose image is a link or climbs out must not be learned as a text of its own."""
    path = tar(tmp_path / "s.tar", {"a.txt": "caption", "../../x.png": content["a.png"], "x.txt": "other"})
    with tarfile.open(path, "a") as out:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    documents, bad = read(path)
    assert [document.id for document in documents] == ["x"]
    assert {item.id for item in bad} == {"a", "s.tar::a.png", "s.tar::../../x.png"}


def table(path: Path, rows: dict, *, features: dict | None = None, group: int = 2) -> Path:
    import pyarrow
    import pyarrow.parquet

    made = pyarrow.table(rows)
    if features:
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(made, path, row_group_size=group)
    else:
        with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_stream(out, made.schema) as writer:
            writer.write_table(made, max_chunksize=group)
    return path


def test_parquet_with_media_columns(tmp_path, content, tokenizer, config):
    pytest.importorskip("pyarrow")
    (tmp_path / "beside.png").write_bytes(content["b.png"])
    rows = {
        "id": ["1", "2", None, "4", "5"],
        "image": [
            {"bytes": content["a.png"], "path": None},
            {"bytes": None, "path": "beside.png"},
            None,
            {"bytes": None, "path": "../escape.png"},
            None,
        ],
        "voice/clip": [None, {"bytes": content["s.flac"], "path": "x.flac"}, None, None, None],
        "clip": [None, None, content["v.mp4"], None, None],
        "caption": ["heron", "wren", "grey", "x", None],
        "number": [1, 2, 3, 4, 5],
    }
    path = table(tmp_path / "train-00000.parquet", rows, features={"voice/clip": {"_type": "Audio"}})
    source = open_source(path)
    assert (source.format, source.num_documents_hint) == ("parquet", 5)
    documents, bad = read(path)
    assert [document.id for document in documents] == ["1", "2", "train-00000#2"]
    assert media(documents[0]) == [(Image, "train-00000.parquet::0/image")]
    assert media(documents[1]) == [(Image, "beside.png"), (Audio, "train-00000.parquet::1/voice%2Fclip")]
    assert media(documents[2]) == [(Video, "train-00000.parquet::2/clip")]
    assert [texts(document) for document in documents] == ["heron", "wren", "grey"]
    assert [document.split for document in documents] == [hash_split(document.id) for document in documents]
    assert [item.line for item in bad] == [4, 5]
    assert "leaves" in bad[0].reason and "no text to train on" in bad[1].reason
    wanted = ([content["a.png"]], [content["b.png"], content["s.flac"]], [content["v.mp4"]])
    for document, data in zip(documents, wanted, strict=True):
        check_bytes(document, source.root, data, tokenizer, config)


def test_parquet_with_whole_documents(tmp_path, content, tokenizer, config):
    pytest.importorskip("pyarrow")
    png = {"bytes": content["a.png"], "path": "a.png"}
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A heron."}]},
    ]
    table(tmp_path / "d/chat.parquet", {"messages": [messages], "images": [[png]]})
    table(tmp_path / "d/json.parquet", {"messages": [json.dumps(messages[1:]), "[broken"]})
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A wren."}]
    table(tmp_path / "d/llava.parquet", {"conversations": [turns], "image": [png], "id": ["l"]})
    table(tmp_path / "d/obelics.parquet", {"texts": [["a", None, "b"]], "images": [[None, png, None]]})
    content_parts = [
        {"type": "text", "text": "one", "image": None},
        {"type": "image", "text": None, "image": content["b.png"]},
    ]
    table(tmp_path / "d/parts.parquet", {"content": [content_parts], "split": ["test"]})
    table(tmp_path / "d/words.parquet", {"text": ["x", "y"]})
    documents, bad = read(tmp_path / "d")
    by_name = {document.id: document for document in documents}
    assert [document.id for document in documents] == [
        "chat#0", "json#0", "l", "obelics#0", "parts#0", "words#0", "words#1",
    ]  # fmt: skip
    assert [item.id for item in bad] == ["json#1"] and "not JSON" in bad[0].reason
    assert texts(by_name["chat#0"]) == "A heron." == texts(by_name["json#0"])
    assert by_name["obelics#0"].parts == (Text("a"), Image("obelics.parquet::0/images/1"), Text("b"))
    assert by_name["parts#0"].parts == (Text("one"), Image("parts.parquet::0/content/1/image"))
    assert by_name["parts#0"].split == "test"
    root = (tmp_path / "d").resolve()
    for name, file in (("chat#0", "a.png"), ("l", "a.png"), ("obelics#0", "a.png"), ("parts#0", "b.png")):
        check_bytes(by_name[name], root, [content[file]], tokenizer, config)


def test_saved_dataset(tmp_path, content, tokenizer, config):
    pytest.importorskip("pyarrow")
    root = tmp_path / "saved"
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["heron", "wren"]}}
    for split, count in (("train", 5), ("test", 2)):
        rows = {
            "img": [{"bytes": content["a.png" if n % 2 else "b.png"], "path": None} for n in range(count)],
            "label": [n % 2 for n in range(count)],
        }
        table(root / split / "data-00000-of-00001.arrow", rows, features=features)
        shutil.copy(root / split / "data-00000-of-00001.arrow", root / split / "cache-1.arrow")
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (root / split / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    source = open_source(root)
    documents, bad = read(root)
    assert (source.format, source.num_documents_hint, bad) == ("datasets", 7, [])
    assert [document.split for document in documents] == ["test"] * 2 + ["train"] * 5
    assert [texts(document) for document in documents[2:]] == ["heron", "wren", "heron", "wren", "heron"]
    for document in documents:
        wanted = content["a.png" if texts(document) == "wren" else "b.png"]
        check_bytes(document, source.root, [wanted], tokenizer, config)
    assert open_source(root / "test").format == "datasets" and len(read(root / "test")[0]) == 2


def test_bad_tables(tmp_path, content):
    pytest.importorskip("pyarrow")
    good = table(tmp_path / "d/good.parquet", {"image": [content["a.png"]] * 6, "text": [f"{n}" for n in range(6)]})
    arrow = table(tmp_path / "e/good.arrow", {"image": [content["a.png"]] * 6, "text": [f"{n}" for n in range(6)]})
    for path in (good, arrow):
        whole = path.read_bytes()
        path.with_stem("cut").write_bytes(whole[: len(whole) * 2 // 3])
        path.with_stem("noise").write_bytes(whole[:4] + bytes(range(256)) * 20 + whole[-8:])
        documents, bad = read(path.parent)
        assert [document.id for document in documents if document.id.startswith("good")] == [
            f"good#{number}" for number in range(6)
        ]
        assert {"cut", "noise"} <= {Path(item.file).stem for item in bad}
    root = (tmp_path / "d").resolve()
    expected = {
        "good.parquet::9/image": "fewer rows",
        "good.parquet::0/none": "no column 'none'",
        "good.parquet::0/text": "holds no bytes",
        "good.parquet::x/image": "row/column",
        "good.parquet::0": "row/column",
        "good.parquet::0/image/3": "cannot be read",
        "cut.parquet::0/image": "not a complete table",
    }
    for path, words in expected.items():
        with pytest.raises(DocumentError) as caught, open_media(root, path, max_file_mib=1):
            pass
        assert words in str(caught.value), path
    with (
        pytest.raises(DocumentError, match="over max_file_mib"),
        open_media(root, "good.parquet::0/image", max_file_mib=0.0001),
    ):
        pass
    with pytest.raises(ValueError, match="columns number, none of which holds text"):
        open_source(table(tmp_path / "numbers.parquet", {"number": [1, 2]}))


def test_rows_before_a_cut_and_beside_bad_text_are_kept(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = table(tmp_path / "t.arrow", {"text": [f"row {number} " * 50 for number in range(6)]})
    path.write_bytes(path.read_bytes()[:-700])
    documents, bad = read(path)
    assert [document.id for document in documents] == ["t#0", "t#1", "t#2", "t#3"]
    assert len(bad) == 1 and "row 4 and those after it" in bad[0].reason
    words = pyarrow.array([b"one", b"\xff", b"three"]).view(pyarrow.string())
    documents, bad = read(table(tmp_path / "u.parquet", {"text": words}))
    assert [document.id for document in documents] == ["u#0", "u#2"]
    assert bad[0].id == "u#1" and "cannot be read" in bad[0].reason


def test_group_that_is_too_large_is_not_read(tmp_path, content, monkeypatch):
    pytest.importorskip("pyarrow")
    path = table(tmp_path / "t.parquet", {"image": [content["a.png"]] * 4, "text": ["x"] * 4}, group=4)
    monkeypatch.setattr(cells, "MAX_GROUP_MIB", 0.001)
    documents, bad = read(path)
    assert not documents and "smaller row_group_size" in bad[0].reason
    with (
        pytest.raises(DocumentError, match="row_group_size"),
        open_media(tmp_path.resolve(), "t.parquet::0/image", max_file_mib=1),
    ):
        pass


def test_without_pyarrow_the_extra_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from brine.data.formats.open import open_source\n"
        f"try: open_source({str(tmp_path / 't.parquet')!r})\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "uv run --extra hf" in done.stdout, done.stderr


@pytest.mark.slow
def test_any_source_builds_a_corpus(tmp_path, content, tokenizer, config):
    """A folder of captions and a tar of the same samples: root and identity are right, a second build does nothing."""
    members = {f"{number}.png": content["a.png"] for number in range(12)}
    members |= {f"{number}.txt": f"heron {number}" for number in range(12)}
    (tmp_path / "folder").mkdir()
    for name, data in members.items():
        (tmp_path / "folder" / name).write_bytes(data.encode() if isinstance(data, str) else data)
    tar(tmp_path / "tars/s.tar", members)
    found = []
    for name in ("folder", "tars"):
        corpus = build_corpus(
            tmp_path / name, tmp_path / f"c-{name}", tokenizer=tokenizer, config=config, num_workers=1
        )
        source = open_source(tmp_path / name)
        assert corpus.root == source.root == (tmp_path / name).resolve()
        assert corpus.meta["identity"]["manifest_sha256"] == source.fingerprint(media=False)
        assert EncodedCorpus.open(tmp_path / f"c-{name}").fingerprint == corpus.fingerprint
        found.append(
            {corpus.ids[n]: (int(corpus._index["crc32"][n]), int(corpus.split[n])) for n in range(len(corpus))}
        )
    assert found[0] == found[1] and len(found[0]) == 12
    assert {split for _, split in found[0].values()} == {0, 1, 2}
