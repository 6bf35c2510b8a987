"""Rows as programs that make data sets write them: what only looks like a lost medium or a stretch keeps its words."""

import io
import json
import tarfile

import pytest
from format_files import media, read
from media_files import manifest

from data.document import Audio, Video
from data.formats import open_source

WAV = b"RIFF\x24\0\0\0WAVEfmt "
MP4 = b"\0\0\0\x18ftypisom"
ASK, SAY = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}
HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}


def look(tmp_path, fields):
    """(document or None, reason, notes) of a manifest of one line."""
    source = open_source(manifest(tmp_path, [fields, {"text": "x"}]))
    items = list(source.documents())
    item = next(item for item in items if getattr(item, "line", 0) == 1 or item.id != "manifest#2")
    reason = getattr(item, "reason", "")
    return (None if reason else item), reason, [note.removeprefix("note: ") for note in source.skipped]


CUTS = {
    "LibriSpeech of many languages": {"audio": {"bytes": WAV, "path": "1.opus"}, "begin_time": 401.76,
                                      "end_time": 417.5, "transcript": "x"},
    "GigaSpeech": {"audio": {"bytes": WAV, "path": "a.wav"}, "begin_time": 3.5, "end_time": 7.25, "text": "x"},
    "AudioCaps": {"audio": {"bytes": WAV, "path": None}, "start_time": 30, "caption": "x"},
    "a film": {"video": MP4, "start time": 10.1, "end time": 15.0, "caption": "x"},
    "turns": {"audio": {"bytes": WAV, "path": None}, "offset": 2.5,
              "messages": [ASK | {"content": "<audio>\nWhat?"}, SAY]},
}  # fmt: skip


@pytest.mark.parametrize("row", CUTS.values(), ids=CUTS)
def test_a_sound_or_film_in_a_cell_is_the_cut(tmp_path, row):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({name: [value] for name, value in row.items()}), table)
    (document,), bad = read(table)
    assert not bad and [kind for kind, _ in media(document)] == [Video if "video" in row else Audio]
    source = open_source(table)
    list(source.documents())
    assert sum("was cut from" in note for note in source.skipped) >= 1
    # the same row with a name of a file is a stretch of that
    name = "v.mp4" if "video" in row else "a.wav"
    key = "video" if "video" in row else "audio"
    row = row | {key: name}
    pq.write_table(pa.table({name: [value] for name, value in row.items()}), table)
    documents, (bad,) = read(table)
    assert not documents and "ffmpeg" in bad.reason


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x", "begin_time": 3.5, "end_time": 7.0},
        {"caption": "x", "segment": [1.0, 2.0]},
        {"messages": [ASK, SAY], "offset": 2.0},
    ],
    ids=["times", "span", "turns"],
)
def test_a_sound_in_a_tar_is_the_cut(tmp_path, fields):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in (("a.wav", WAV), ("a.json", json.dumps(fields).encode())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (document,), bad = read(tmp_path / "s.tar")
    assert not bad and media(document) == [(Audio, "s.tar::a.wav")]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.wav").write_bytes(WAV)
    (folder / "a.json").write_text(json.dumps(fields))
    documents, (bad,) = read(folder)
    assert not documents and "a stretch is meant" in bad.reason


NOTHING = {
    "empty": {"image": ""},
    "blank": {"image": " "},
    "a list of it": {"images": [""]},
    "a list of null": {"images": [None]},
    "no film": {"video": False},
    "an object": {"audio": {}},
    "an object of null": {"image": {"bytes": None, "path": None}},
    "two": {"image": "", "video": ""},
    "as a table writes it": {"image_path": "nan"},
}


@pytest.mark.parametrize("empty", NOTHING.values(), ids=NOTHING)
def test_a_field_of_media_that_holds_none(tmp_path, empty):
    for fields in (
        {"messages": [ASK, SAY]},
        {"conversations": [HUMAN, GPT]},
        {"qa": [{"question": "q", "answer": "a"}]},
        {"text": "A heron stands. " * 40},
        {"text": "x"},
    ):
        document, reason, notes = look(tmp_path, fields | empty)
        assert document and not media(document), reason
        assert len(notes) == 1 and "holds no medium: the words were read alone" in notes[0]
    for fields in (
        {"caption": "x"},
        {"transcription": "x"},
        {"messages": [ASK | {"content": "<image>\nWhat?"}, SAY]},
    ):
        document, reason, _ = look(tmp_path, fields | empty)
        assert document is None and reason


PAGES = {
    "LangChain": {"page_content": "x", "metadata": {"source": "docs/manual.pdf", "page": 3}},
    "LlamaIndex": {"text": "x", "metadata": {"file_path": "/data/manual.pdf", "file_name": "manual.pdf",
                                             "file_type": "application/pdf"}},
    "a source": {"id": "7", "text": "x", "source": "manual.pdf"},
    "a file": {"text": "x", "file": "a.pdf", "pages": 10},
    "TeX": {"text": "x", "file_name": "1234.tex"},
    "Word": {"text": "x", "file_name": "a.docx"},
    "no ending": {"text": "x", "file_name": "pg12"},
    "a path": {"content": "x", "path": "reports/2020.pdf"},
    "a page": {"text": "x", "filename": "index.html"},
    "an address": {"text": "x", "pdf_url": "https://x.org/a.pdf?download=1"},
    "unstructured": {"type": "NarrativeText", "element_id": "e", "text": "x",
                     "metadata": {"filename": "m.pdf", "filetype": "application/pdf", "page_number": 1}},
    "docling": {"text": "x", "meta": {"origin": {"mimetype": "application/pdf", "filename": "m.pdf"}}},
    "chat": {"messages": [ASK, SAY], "source": "manual.pdf"},
    "chat with a struct": {"messages": [ASK, SAY], "metadata": {"source": "x.pdf"}},
    "a source of turns": {"conversations": [HUMAN, GPT], "source_document": "x.djvu"},
    "a file of turns": {"conversations": [HUMAN, GPT], "file": "x.pdf", "file_name": "x.docx"},
    "beside a message": {"messages": [ASK | {"source": "x.pdf"}, SAY]},
    "a change": {"text": "x", "patch": "diff --git a/logo.png b/logo.png"},
    "a long change": {"messages": [ASK, SAY], "patch": "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/logo.png"},
    "a command": {"text": "x", "cmd": "convert a.jpg b.png"},
    "options": {"text": "x", "cmd": "ffmpeg -i IN -vn out.wav"},
    "code": {"text": "x", "solution": "import cv2\nopen a.png"},
}  # fmt: skip


@pytest.mark.parametrize("fields", PAGES.values(), ids=PAGES)
def test_a_text_from_pages_or_about_code_is_a_text(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document and not media(document), reason


def test_a_text_from_pages_is_a_text_in_a_table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for name, fields in PAGES.items():
        pq.write_table(pa.table({key: [value] for key, value in fields.items()}), tmp_path / "t.parquet")
        (document,), bad = read(tmp_path / "t.parquet")
        assert not bad and not media(document), name


@pytest.mark.parametrize(
    "fields",
    [
        {"caption": "x", "source": "a.pdf"},
        {"caption": "x", "file_name": "heron.tex"},
        {"transcript": "x", "file_name": "LJ001-0001"},
        {"text": "x", "source": "images/a.jpg"},
        {"text": "x", "file_name": "a.heic"},
        {"text": "x", "metadata": {"pages": "a.pdf", "figures": ["f1.png"]}},
        {"text": "x", "scans": ["a.pdf"]},
        {"image": "a.pdf", "messages": [ASK, SAY]},
        {"messages": [ASK | {"attachments": [{"file": "a.pdf"}]}, SAY]},
        {"text": "x", "cover": "my picture of a heron.png"},
    ],
    ids=["caption", "file of a caption", "of a transcript", "picture", "unread", "figure", "scan", "image", "upload",
         "spaces"],
)  # fmt: skip
def test_what_speaks_of_a_medium_still_does(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document is None and reason
