"""Videos of transport streams (.ts, .mts), whose endings are those of TypeScript too: told by their first bytes."""

import json

import pytest

from brine.data.document import Video
from brine.data.files.extensions import VIDEO_OR_CODE, media_type_in
from brine.data.files.signatures import ts_packet_bytes
from brine.data.formats.open import open_source
from tests.data.format_files import encoded, media, read, texts
from tests.data.formats.test_webdataset_names import tar
from tests.data.media_files import manifest

CODE = "export const heron: string = 'grey'\n"
GIVEN = ("1.ts", "1.TS", "1.mts", "1.m2ts")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    av = pytest.importorskip("av", reason="PyAV makes the film")
    import numpy as np

    path = tmp_path_factory.mktemp("film") / "a.ts"
    with av.open(str(path), "w", format="mpegts") as out:
        stream = out.add_stream("libx264", rate=10, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 * number, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path.read_bytes()


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.mark.parametrize("name", GIVEN)
def test_beside_a_caption(tmp_path, film, name, tokenizer, config):
    write(tmp_path, {f"d/{name}": film, "d/1.txt": "a grey film"})
    (document,), bad = read(tmp_path)
    assert not bad and media(document) == [(Video, f"d/{name}")] and texts(document) == "a grey film"
    assert open_source(tmp_path).format == "media"
    encoded(document, tmp_path.resolve(), tokenizer, config)


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("field", ["file_name", "video", "path", "file"])
def test_in_a_line(tmp_path, film, name, field):
    write(tmp_path, {name: film})
    (document,), bad = read(manifest(tmp_path, [{field: name, "text": "a grey film"}]))
    assert not bad and media(document) == [(Video, name)]


@pytest.mark.parametrize("name", GIVEN)
def test_in_a_tar(tmp_path, film, name):
    tar(tmp_path / "s.tar", [(name, film), ("1.txt", "a grey film")])
    (document,), bad = read(tmp_path / "s.tar")
    assert not bad and media(document) == [(Video, f"s.tar::{name}")]
    tar(tmp_path / "s.tar", [("22.05.ts", film), ("22.05.txt", "a"), ("22.06.ts", film), ("22.06.txt", "b")])
    assert [len(media(document)) for document in read(tmp_path / "s.tar")[0]] == [1, 1]


def test_in_a_table(tmp_path, film):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    write(tmp_path, {"1.ts": film, "2.ts": CODE})
    for name in ("file_name", "video"):
        pq.write_table(pa.table({name: ["1.ts"], "caption": ["grey"]}), tmp_path / "t.parquet")
        assert media(read(tmp_path / "t.parquet")[0][0]) == [(Video, "1.ts")]
    pq.write_table(pa.table({"file_name": ["2.ts"], "text": [CODE]}), tmp_path / "t.parquet")
    assert texts(read(tmp_path / "t.parquet")[0][0]) == CODE


@pytest.mark.parametrize("name", GIVEN[:3])
def test_given_alone_it_is_named_with_the_remedy(tmp_path, film, name):
    write(tmp_path, {name: film})
    with pytest.raises(
        ValueError, match=r"is an MPEG transport stream, one media file without a caption: put 1\.txt beside it"
    ):
        open_source(tmp_path / name)


def test_without_captions_it_is_no_program(tmp_path, film):
    write(tmp_path, {"a.ts": film, "b.ts": film})
    with pytest.raises(ValueError, match="2 media files but no caption beside them"):
        open_source(tmp_path)


def test_programs_stay_texts(tmp_path, film):
    files = {f"src/{name}.ts": CODE for name in ("app", "index", "Gather")} | {
        "README.md": "# x",
        "src/types.mts": CODE,
    }
    source = open_source(write(tmp_path / "r", files))
    assert source.format == "repository"
    assert [document.id for document in source.documents()] == ["README.md", *sorted(files)[1:]]
    # even with a text of the same name, or a video among them
    write(tmp_path / "r", {"src/app.txt": "what it does", "docs/demo.ts": film})
    source = open_source(tmp_path / "r")
    documents = list(source.documents())
    assert source.format == "repository" and "src/app.ts" in [document.id for document in documents]
    assert "docs/demo.ts" not in [document.id for document in documents]
    assert read(manifest(tmp_path / "r", [{"file_name": "src/app.ts", "text": CODE}]))[0][0].kind == "text"


@pytest.mark.parametrize("name", ["../out.ts", "/etc/hostname.ts", "gone.ts", "led.ts", "pipe.ts"])
def test_what_may_not_be_opened_is_not_looked_at(tmp_path, film, name):
    import os

    write(tmp_path, {"out.ts": film, "d/x.ts": CODE})
    (tmp_path / "d/led.ts").symlink_to("../out.ts")
    os.mkfifo(tmp_path / "d/pipe.ts")
    documents, _ = read(manifest(tmp_path / "d", [{"file": name, "text": "x"}]))
    assert all(not media(document) for document in documents)


@pytest.mark.parametrize("head", [b"", b"G", b"G" + bytes(187) + b"G", b"Gather " * 30, json.dumps([0] * 400).encode()])
def test_what_is_no_stream(head):
    assert not ts_packet_bytes(head)


def test_the_two_sizes_of_packets(film, tmp_path):
    assert ts_packet_bytes(film[:1024]) and VIDEO_OR_CODE[0] == "ts"
    assert ts_packet_bytes((b"time" + b"G" + bytes(187)) * 4)
    assert media_type_in(tmp_path, "gone.ts") is None


OTHERS = {"a.jpg": b"\xff\xd8\xff\xe0" + bytes(60), "a.pdf": b"%PDF-1.7" + bytes(60), "a.bin": b"fLaC" + bytes(60)}
TOLD = {
    "a.jpg": "is a JPEG image, one media file without a caption: put a.txt",
    "a.pdf": "is a PDF document: draw its pages",
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_medium_that_is_given_alone_is_named(tmp_path, name):
    write(tmp_path, {name: OTHERS[name]})
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path / name)
    assert TOLD.get(name, "is a FLAC audio file, one media file") in str(caught.value)
