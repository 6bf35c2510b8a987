"""Rows as programs that make data sets write them: what only looks like a lost medium or a stretch keeps its words."""

import io
import json
import tarfile
import time

import pytest

from brine.data.document import Audio, Video
from brine.data.formats.open import open_source
from tests.data.format_files import media, read, texts
from tests.data.media_files import manifest

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
    assert not documents and "a time span is meant" in bad.reason


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
        assert len(notes) == 1 and "holds no media: the text was read alone" in notes[0]
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
    "files of a commit": {"content": "x", "old_file": "img/logo.svg", "new_file": "img/logo.png", "repos": "a/b"},
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


FILMS = {
    "LLaVA-Video": {"video": "v.mp4", "conversations": [HUMAN | {"value": "<image>\nWhat?"}, GPT, HUMAN, GPT]},
    "LLaVA-OneVision": {"video": "a/v.mp4", "conversations": [HUMAN | {"value": "What?\n<image>"}, GPT]},
    "two": {"videos": ["v.mp4", "w.mp4"], "messages": [ASK | {"content": "<image> or <image>?"}, SAY]},
    "a part": {"video": "v.mp4", "messages": [ASK | {"content": [{"type": "image"}]}, SAY]},
    "of a message": {"messages": [ASK | {"content": "<image>\nWhat?", "video": "v.mp4"}, SAY]},
    "a caption": {"video": "v.mp4", "text": "<image>\nA heron."},
}  # fmt: skip


@pytest.mark.parametrize("fields", FILMS.values(), ids=FILMS)
def test_a_placeholder_of_a_picture_stands_for_a_film(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document and {kind for kind, _ in media(document)} == {Video}, reason
    assert "<image>" not in texts(document)


@pytest.mark.parametrize(
    "fields",
    [
        {"video": "v.mp4", "messages": [ASK | {"content": "<image> or <image>?"}, SAY]},
        {"video": "v.mp4", "messages": [ASK | {"content": "<image> or <video>?"}, SAY]},
        {"video": "v.mp4", "image": "a.png", "messages": [ASK | {"content": "<image> or <image>?"}, SAY]},
        {"audio": "v.wav", "conversations": [HUMAN | {"value": "<image>\nWhat?"}, GPT]},
    ],
    ids=["too many", "one of each", "a picture too", "a sound"],
)
def test_placeholders_of_other_media_do_not_match(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document is None and "placeholders" in reason


SPLITS = {
    "fold": ("test", "test"), "set_name": ("val", "validation"), "phase": ("validation", "validation"),
    "mode": ("TEST", "test"), "Fold": ("test", "test"), "subset_name": ("dev", "validation"),
}  # fmt: skip


@pytest.mark.parametrize("key", SPLITS)
def test_words_of_splits_in_other_fields(tmp_path, key):
    word, split = SPLITS[key]
    for fields in ({"text": "y"}, {"messages": [ASK, SAY]}, {"image": "a.png", "caption": "y"}):
        assert look(tmp_path, fields | {key: word})[0].split == split
        for value in (3, "RGB", "the test of time", None):
            assert look(tmp_path, fields | {key: value})[0] is not None


@pytest.mark.parametrize(
    "beside",
    [
        {"video_game": "Doom"},
        {"videoGame": "FIFA23"},
        {"picture_quality": "good"},
        {"audio_book_title": "Dracula"},
        {"image_style": ["oil", "ink"]},
        {"photo_studio": "Nadar"},
    ],
    ids=str,
)
def test_a_word_of_media_in_a_name_is_no_medium(tmp_path, beside):
    for fields in ({"text": "x"}, {"messages": [ASK, SAY]}):
        document, reason, notes = look(tmp_path, fields | beside)
        assert document and not media(document), reason
        assert len(notes) == 1 or "title" in next(iter(beside))


@pytest.mark.parametrize(
    "beside",
    [{"video_game": "clips/doom"}, {"picture_quality": "a.png"}, {"image_key": "heron"}, {"screenshot": "Doom"},
     {"video_hash": "ab"}, {"video_code": "v7"}, {"image_style": "7"},
     {"photo_studio": "https://x.org/7"}, {"image_style": 7}, {"imageRef": "heron"}],
    ids=str,
)  # fmt: skip
def test_a_name_of_a_medium_and_what_may_be_one(tmp_path, beside):
    assert look(tmp_path, {"text": "x"} | beside)[0] is None


MENTIONED = {
    "embed": "How do I embed a <video> in a page?",
    "LLaVA": "In LLaVA, what does <image> do?",
    "both": "Should I use <audio> here, since <video> is too large?",
    "lines": "My page is slow.\nWhy does a <video> block it?\nThanks!",
}


@pytest.mark.parametrize("words", MENTIONED.values(), ids=MENTIONED)
def test_a_placeholder_inside_a_sentence_is_a_word(tmp_path, words):
    for fields in (
        {"messages": [ASK | {"content": words}, SAY]},
        {"messages": [ASK | {"content": [{"type": "text", "text": words}]}, SAY]},
        {"conversations": [HUMAN | {"value": words}, GPT]},
        {"qa": [{"question": words, "answer": "a"}]},
    ):
        document, reason, _ = look(tmp_path, fields)
        assert document and words in texts(document), reason
        # not so where a field is about a medium
        assert look(tmp_path, fields | {"image": ""})[0] is None
        assert look(tmp_path, fields | {"image_id": None})[0] is None


@pytest.mark.parametrize(
    "words",
    ["<image> What?", "What?\n<video>", "RenderStyle: <image>.", "What is in <image> here?", "Is <image> red?",
     "Describe <image> in detail.", "What does <image> show us?",
     "Compare <image> to <image>, please.", "Say <image> and <|image_1|> now."],
    ids=str,
)  # fmt: skip
def test_a_placeholder_that_shows_something_waits(tmp_path, words):
    for fields in ({"messages": [ASK | {"content": words}, SAY]}, {"conversations": [HUMAN | {"value": words}, GPT]}):
        document, reason, _ = look(tmp_path, fields)
        assert document is None and "placeholders than media" in reason


JPG, LONG = "https://x.org/a.jpg", "A heron stands in the water. " * 20
ARTICLES = {
    "trafilatura": {"title": "Herons", "author": "n", "hostname": "x.org", "date": "2020", "raw_text": LONG,
                    "text": LONG, "image": JPG, "source": "https://x.org/7", "excerpt": "A", "pagetype": "article"},
    "newspaper3k": {"url": "https://x.org/7", "title": "Herons", "text": LONG, "authors": ["n"], "publish_date": "2020",
                    "top_image": JPG, "images": [JPG, "https://x.org/b.png"], "movies": [], "meta_lang": "en"},
    "structured Wikipedia": {"name": "Heron", "identifier": 7, "abstract": "A", "url": "https://x.org/wiki/Heron",
                             "image": {"content_url": JPG, "width": 3, "height": 4}, "sections": [], "text": LONG,
                             "title": "Heron"},
    "news-please": {"maintext": "m", "text": LONG, "image_url": JPG, "source_domain": "x.org", "title": "H",
                    "date_publish": "2020", "language": "en"},
    "Hacker News": {"id": 7, "by": "n", "score": 3, "time": 1, "title": "Herons", "url": JPG, "text": "x"},
    "Reddit": {"subreddit": "birds", "num_comments": 3, "url": JPG, "text": "x"},
    "a film": {"text": LONG, "video": "https://x.org/a.mp4", "hostname": "x.org", "date": "2020"},
}  # fmt: skip


@pytest.mark.parametrize("fields", ARTICLES.values(), ids=ARTICLES)
def test_an_article_with_the_address_of_its_picture(tmp_path, fields):
    document, reason, notes = look(tmp_path, fields)
    assert document and not media(document) and texts(document) == fields["text"], reason
    assert any("names media too and was not read" in note for note in notes) == (fields["text"] == LONG)


def test_articles_in_tables(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for name, fields in ARTICLES.items():
        pq.write_table(pa.table({key: [value] for key, value in fields.items()}), tmp_path / "t.parquet")
        (document,), bad = read(tmp_path / "t.parquet")
        assert not bad and not media(document), name


@pytest.mark.parametrize(
    "fields",
    [
        {"caption": LONG, "image": JPG, "title": "Heron", "date": "2020"},
        {"text": "A heron.", "image": JPG, "title": "Heron", "hostname": "x.org"},
        {"text": LONG, "image": JPG},
        {"text": "A heron.", "image": {"content_url": JPG}},
        {"text": LONG, "image_url": JPG, "width": 3, "height": 4},
        {"text": "A heron.", "top_image": JPG, "authors": ["n"], "url": "https://x.org/7"},
    ],
    ids=["caption", "short", "alone", "in an object", "of a picture", "short article"],
)
def test_a_remote_picture_beside_its_caption(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document is None and "remote" in reason


HOSTILE = {
    "empty lines": {"messages": [ASK | {"content": "a <image> b" + "\n" * 200_000 + "c"}, SAY]},
    "spaces": {"messages": [ASK | {"content": "a <image> b" + " " * 200_000 + "in the" + " " * 200_000}, SAY]},
    "empty lists": {"messages": [ASK, SAY], "images": [[[[[[[[[[""]]]]]]]]]]},
    "many": {"video": "v.mp4", "messages": [ASK | {"content": "<image>" * 100_000}, SAY]},
    "a long path": {"text": "x", "patch": "diff " * 190 + ".png"},
    "many fields": {"text": "x"} | {f"video_game{'x' * n}": "Doom" for n in range(300)},
}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
def test_hostile_rows_cost_little(tmp_path, fields):
    start = time.process_time()
    look(tmp_path, fields)
    assert time.process_time() - start < 2
