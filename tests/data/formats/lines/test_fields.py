"""Media and words under the field names of other data sets: read, or set aside by the name of the field."""

import pytest

from brine.data.document import Audio, Image, Video
from brine.data.formats.lines.fields import FIELDS
from brine.data.formats.open import open_source
from tests.data.format_files import EVERY, media, read, texts
from tests.data.media_files import manifest

PATHS = {"image": "m/a.png", "audio": "m/s.wav", "video": "m/v.mp4", "": "m/a.png"}
KINDS = {"image": Image, "audio": Audio, "video": Video, "": Image}


@pytest.mark.parametrize("kind", sorted(PATHS))
def test_every_field_of_media_is_read(tmp_path, kind):
    names = [name for name in FIELDS if FIELDS[name] == kind]
    path, turns = PATHS[kind], [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A"}]
    turns[0]["value"] = f"<{kind or 'image'}>?"
    shapes = (path, [path], {"path": path})
    lines = [{name: shape, "text": "words"} for name in names for shape in shapes]
    lines += [{name: path, "conversations": turns} for name in names]
    documents, bad = read(manifest(tmp_path, lines))
    assert not bad and len(documents) == len(lines)
    assert all(media(document) == [(KINDS[kind], path)] for document in documents)


@pytest.mark.parametrize(
    "name",
    [
        "image_path",
        "image_paths",
        "img",
        "imgs",
        "image_file_name",
        "image_filename",
        "picture",
        "photo",
        "file_names",
        "filename",
        "filepath",
        "video_path",
        "video_file",
        "clip",
        "audio_path",
        "audio_filepath",
        "wav",
        "wav_path",
        "sound",
        "speech",
        "movies",
    ],
)
def test_names_in_use_are_in_the_table(name):
    assert name in FIELDS


def test_two_fields_and_lists(tmp_path):
    lines = [
        {"image": "m/a.png", "image_path": "m/a.png", "caption": "one picture"},
        {"file_names": ["m/a.png", "m/b.png"], "text": "two"},
        {"img": "m/a.png", "wav": "m/s.wav", "txt": "both"},
        {"file_name": ["m/a.png", "m/s.wav"], "normalized_text": "both"},
    ]
    documents, bad = read(manifest(tmp_path, lines))
    assert not bad and [len(media(document)) for document in documents] == [1, 2, 2, 2]


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"pixels": "a.png", "text": "x"}, "field 'pixels' names the media file 'a.png'"),
        ({"page_scan": ["a.jpg"], "caption": "x"}, "field 'page_scan'"),
        ({"url": "https://host/x.jpg?w=3", "text": "x"}, "field 'url'"),
        ({"recording": {"path": "a.wav"}, "sentence": "x"}, "field 'recording'"),
        ({"messages": [{"role": "gpt", "content": "x"}], "scan": "b.tiff"}, "field 'scan'"),
        ({"conversations": [{"from": "gpt", "value": "x"}], "movie_name": "v.mp4"}, "field 'movie_name'"),
        ({"id": "n", "content": [{"type": "text", "text": "x"}], "image": "a.png"}, "field 'image'"),
        ({"texts": ["x"], "images": [None], "screenshot": "a.PNG"}, "field 'screenshot'"),
        ({"image_path": "https://host/x.png", "text": "x"}, "is remote"),
        ({"image_path": "../x.png", "text": "x"}, "leaves the manifest's folder"),
        ({"video_path": 3, "text": "x"}, "names no file"),
    ],
    ids=lambda value: value[:24].replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_caption_is_no_text_of_its_own(tmp_path, fields, words):
    documents, (bad,) = read(manifest(tmp_path, [fields]))
    assert not documents and words in bad.reason


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x", "filename": "main.py"},
        {"text": "x", "file_path": "src/a.rs", "url": "https://host/page.html"},
        {"text": "x", "speech": "Ladies and gentlemen", "clip": 0.31},
        {"text": "see a.png", "title": "heron"},
    ],
    ids=["code", "path", "words", "text"],
)
def test_words_alone_stay_words(tmp_path, fields):
    (document,), bad = read(manifest(tmp_path, [fields]))
    assert not bad and document.kind == "text" and not media(document)


def test_what_was_not_read_is_noted(tmp_path):
    lines = [
        {"image": "m/a.png", "gaussian_padded_image": "m/b.png", "caption": "x"},
        {"image": "m/a.png", "captions": ["one", "two"]},
    ]
    source = open_source(manifest(tmp_path, lines))
    assert [texts(document) for document in source.documents()] == ["x", "one"]
    padded, several = sorted(source.skipped, key=lambda note: "captions" in note)
    assert "'gaussian_padded_image' names media too" in padded and "'captions' the first" in several


PAIR = {"user": "What?", "assistant": "Red."}


@pytest.mark.parametrize(
    "fields",
    [
        {"texts": [PAIR | {"source": "x"}, PAIR]},
        {"turns": [{"human": "What?", "gpt": "Red."}, PAIR]},
        {"qa": [{"question": "What?", "answer": "Red."}, {"q": "What?", "a": "Red."}]},
        {"dialog": [{"prompt": "What?", "response": "Red."}, PAIR]},
    ],
    ids=["texts", "turns", "qa", "dialog"],
)
def test_turns_of_a_question_and_its_answer(tmp_path, fields):
    (plain, pictured), bad = read(manifest(tmp_path, [fields, fields | {"images": ["m/a.png", "m/b.png"]}]))
    said = "<user>\nWhat?\n<assistant>\nRed."
    assert not bad and texts(plain) == texts(pictured) == f"{said}\n{said}"
    assert texts(plain, loss_mask=True) == "Red.Red." and not media(plain)
    assert [type(part).__name__ for part in pictured.parts[:4]] == ["Text", "Image", "Image", "Text"]


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"texts": [PAIR, {"user": "x"}]}, "turn 1: must have 'role' and 'content'"),
        ({"texts": [PAIR | {"assistant": 3}]}, "turn 0: must have"),
        ({"texts": [PAIR | {"weight": 0}]}, "masked from the loss"),
        ({"instruction": "x", "output": "y"}, "'instruction' and 'output' as 'messages'"),
        ({"question": "x", "answers": ["y"], "image": "m/a.png"}, "'question' and 'answers' as 'messages'"),
        ({"prompt": "x", "completion": "y"}, "'prompt' and 'completion' as 'messages'"),
    ],
    ids=["half", "number", "marked", "alpaca", "vqa", "prompt"],
)
def test_what_is_told_of_questions_and_answers(tmp_path, fields, words):
    documents, bad = read(manifest(tmp_path, [fields, {"text": "x"}]))
    assert len(documents) == 1 and words in bad[0].reason


def test_columns(room):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cell, table = [{"bytes": (room / "m/a.png").read_bytes(), "path": None}], room / "t.parquet"

    def only(**columns):
        pq.write_table(pa.table({name: [value] for name, value in columns.items()}), table)
        documents, bad = read(table)
        return documents[0] if documents else bad[0].reason

    assert media(only(images=cell, texts=[PAIR])) == [(Image, "t.parquet::0/images/0")]
    assert media(only(scans=cell, texts=[PAIR] * 3)) == [(Image, "t.parquet::0/scans/0")]
    # what the file of a cell was called is no second image
    assert media(only(image=cell[0], file_name="gone.png", text="x")) == [(Image, "t.parquet::0/image")]
    for _, path in EVERY:
        assert [path for _, path in media(only(any_name=path, caption="x"))] == [path]
    assert "'img'" in only(id="n", content=[{"type": "text", "text": "x"}], img="m/a.png")
