"""No field of a row vanishes without a word: it is read, metadata, noted by name, or sets the row aside."""

import time

import pytest

from brine.data.document import Audio, Image, Video
from brine.data.formats.lines.provenance import is_metadata, names_media
from brine.data.formats.open import open_source
from tests.data.format_files import media, read, texts
from tests.data.media_files import manifest

ASK = {"role": "user", "content": "What?"}
SAY = {"role": "assistant", "content": "Red."}
TALK = {"messages": [ASK, SAY]}
HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}


def look(tmp_path, fields):
    """(document or None, reason, notes) of a manifest of one line."""
    source = open_source(manifest(tmp_path, [fields, {"text": "x"}]))
    items = [item for item in source.documents() if getattr(item, "line", 0) == 1 or item.id == "manifest#1"]
    (item,) = items
    reason = getattr(item, "reason", "")
    return (None if reason else item), reason, [note.removeprefix("note: ") for note in source.skipped]


NOTED = {
    "text beside a caption": ({"image": "a.png", "caption": "x", "text": "y"}, "fields 'text' and 'caption' both"),
    "a question beside a caption": ({"image": "a.png", "caption": "x", "question": "y", "answer": "z"}, "'question'"),
    "a summary beside a text": ({"text": "x", "summary": "y"}, "'summary'"),
    "a translation": ({"text": "x", "text_de": "y"}, "'text_de'"),
    "a region": ({"image": "a.png", "caption": "x", "bbox": [0, 0, 5, 5]}, "'bbox'"),
    "a class as a number": ({"image": "a.png", "caption": "x", "label": 3}, "'label'"),
    "text beside messages": (TALK | {"text": "rendered"}, "'text'"),
    "conversations beside messages": (TALK | {"conversations": [HUMAN, GPT]}, "'conversations'"),
    "functions": (TALK | {"functions": [{"name": "w"}]}, "'functions'"),
    "documents": (TALK | {"documents": [{"text": "d"}]}, "'documents'"),
    "a preamble": (TALK | {"preamble": "Be brief."}, "'preamble'"),
    "context beside turns": ({"conversations": [HUMAN, GPT], "context": "c"}, "'context'"),
    "a persona beside turns": ({"conversations": [HUMAN, GPT], "persona": "a pirate"}, "'persona'"),
    "a title of a page": ({"texts": ["a"], "images": [None], "heading": "h"}, "'heading'"),
    "beside native parts": ({"id": "manifest#1", "content": [{"type": "text", "text": "x"}], "reply": "y"}, "'reply'"),
    "an image beside native parts": (
        {"id": "manifest#1", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "x"}],
         "image": "b.png"}, "'image' names media too"),
    "beside the house form": ({"id": "manifest#1", "kind": "image", "path": "a.png", "text": "x", "question": "q"},
                              "'question'"),
    "an image beside it": ({"id": "manifest#1", "kind": "image", "path": "a.png", "text": "x", "image": "b.png"},
                           "'image' names media too"),
}  # fmt: skip


@pytest.mark.parametrize("fields, words", NOTED.values(), ids=NOTED)
def test_a_second_field_is_noted_by_name(tmp_path, fields, words):
    document, _, notes = look(tmp_path, fields)
    assert document and any(words in note for note in notes)


@pytest.mark.parametrize(
    "beside",
    [
        {"id": "manifest#1", "license": "mit", "language": "en", "source": "x", "url": "https://x.org/page"},
        {"width": 3, "height": 4, "aesthetic_score": 5.1, "sha256": "ab", "num_tokens": 3},
        {"image_id": 7, "photographer": "n", "created_at": None, "up_votes": 2, "tags": ["a"]},
    ],
    ids=["provenance", "measures", "who and when"],
)
def test_metadata_says_nothing(tmp_path, beside):
    for fields in ({"image": "a.png", "caption": "x"} | beside, beside | {"image": "a.png", "text": "x"}):
        document, _, notes = look(tmp_path, fields)
        assert media(document) and not notes


def test_notes_are_bounded(tmp_path):
    source = open_source(manifest(tmp_path, [{"text": "x"} | {f"f{n}x{m}": 1 for m in range(50)} for n in range(20)]))
    assert len(list(source.documents())) == 20 and len(source.skipped) < 150
    assert source.skipped["note: fields of other names were not read"] > 500


NO_TEXT = {
    "number of a picture": {"imageId": 7, "caption": "x"},
    "id of a clip": {"clip_video_id": "v7", "caption": "x"},
    "a page of videos": {"yt_id": "dQw4", "transcript": "x"},
    "address without an ending": {"picture_url": "https://x.org/p?id=3", "text": "x"},
    "address of a caption": {"link": "https://x.org/photos/7", "captions": ["x"]},
    "base64": {"jpg_b64": "/9j/4AAQSkZJRgABAQAAAQABAAD", "caption": "x"},
    "base64 as the image": {"image": "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAA", "caption": "x"},
    "data address": {"screenshot": "data:image/png;base64,iVBORw0KGgo", "text": "x"},
    "pixels": {"pixel_values": [[0.1, 0.2]], "text": "x"},
    "cameras": {"token": "t", "cameras": {"rear": {"file": "r.jpg", "yaw": 1}}, "caption": "x"},
    "list of objects": {"attachments": [{"kind": "photo", "name": "a.jpeg"}], "text": "x"},
    "deep": {"record": {"data": [{"wave": {"file": "a.flac"}}]}, "sentence": "x"},
    "folder of frames": {"frame_images_dir": "frames/7", "text": "x"},
    "an array": {"mel_spec": "mel/7.npy", "transcription": "x"},
    "a tensor": {"features": "v7.pt", "caption": "x"},
    "how many": {"num_images": 2, "text": "x"},
    "null": {"img": None, "caption": "x"},
    "nothing listed": {"videos": [], "caption": "x"},
    "beside turns": TALK | {"video_id": "v7"},
    "beside from and value": {"conversations": [HUMAN, GPT], "img_id": "COCO_7"},
}


@pytest.mark.parametrize("fields", NO_TEXT.values(), ids=NO_TEXT)
def test_a_caption_is_no_text(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document is None and any(f"{key!r}" in reason for key in fields)


@pytest.mark.parametrize("fields", NO_TEXT.values(), ids=NO_TEXT)
def test_a_caption_is_no_text_in_a_table(tmp_path, fields):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = {name: pa.array([value, value] if value != [] else [[], []]) for name, value in fields.items()}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    documents, bad = read(tmp_path / "t.parquet")
    assert len(bad) == 2 and not documents


TEXTS = {
    "no picture": {"text": "x", "has_image": False, "num_images": 0, "image_urls": []},
    "nothing beside turns": TALK | {"images": [], "image_id": None, "audio": None},
    "words of that name": {"text": "x", "photo": "a fine day", "video_title": "Herons"},
    "a corpus of pages": {"text": "x", "image_urls": [["https://x.org/a.jpg", "b"]], "timestamp": "t", "dump": "d",
                          "language": "en"},
    "a corpus of transcripts": {"text": "A heron stands. " * 40, "video_id": "v", "language": "en", "date": "2020"},
    "notes on a text": {"text": "x", "meta": {"og": {"image": "https://x.org/a.jpg"}}},
    "numbers": {"text": "x", "movie_id": 7, "speech": 0.5, "clip": 0.3},
}  # fmt: skip


@pytest.mark.parametrize("fields", TEXTS.values(), ids=TEXTS)
def test_words_alone_stay_words(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document and not media(document), reason


WAITING = {
    "chat": {"messages": [{"role": "user", "content": "<image>\nWhat?"}, SAY]},
    "in a sentence": {"messages": [{"role": "user", "content": "Is <image> like <image> ?"}, SAY]},
    "a part": {"messages": [{"role": "user", "content": [{"type": "text", "text": "<audio>\nWhat?"}]}, SAY]},
    "llava": {"conversations": [HUMAN | {"value": "What?\n<video>"}, GPT]},
    "a pair": {"qa": [{"question": "<image>What?", "answer": "Red."}]},
    "Phi": {"messages": [{"role": "user", "content": "<|image_1|>\nWhat?"}, SAY]},
    "MiniCPM": {"messages": [{"role": "user", "content": "<image_00> What?"}, SAY]},
    "an answer": {"messages": [ASK, SAY | {"content": "<image>"}, ASK, SAY]},
    "a caption": {"text": "<image>A heron."},
    "a page": {"texts": ["<image>", "A heron."], "images": [None, None]},
    "native": {"id": "manifest#1", "content": [{"type": "text", "text": "<image>\nA heron."}]},
}


@pytest.mark.parametrize("fields", WAITING.values(), ids=WAITING)
def test_words_that_wait_for_a_medium_are_set_aside(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document is None and "placeholders than media (0 listed)" in reason


MARKUP = {
    "a question on HTML": {"messages": [ASK | {"content": "What does the <video> tag do?"}, SAY]},
    "elements": {"messages": [ASK | {"content": "Explain <audio> and <video> elements in HTML"}, SAY]},
    "a program": {"messages": [ASK, SAY | {"content": "Write:\n```\n<image>\n```"}]},
    "quoted": {"messages": [ASK | {"content": "Put `<image>` there"}, SAY]},
    "closed": {"messages": [ASK, SAY | {"content": "<video>\n<source src='a.mp4'>\n</video>"}]},
    "SVG": {"text": '<svg><image href="a.png"/></svg>'},
    "a page": {"text": "An essay on SVG. " * 40 + "\n<image> is a tag", "url": "https://x.org", "language": "en"},
    "code": {"code": "<image>\n"},
    "HTML of a picture": {"text": '<img src="a.png">', "url": "https://x.org", "language": "en"},
    "llava": {"conversations": [HUMAN | {"value": "What is <audio> in HTML?"}, GPT]},
}


@pytest.mark.parametrize("fields", MARKUP.values(), ids=MARKUP)
def test_words_about_markup_are_kept(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document and not media(document), reason


OWN = {
    "images of a message": ({"messages": [ASK | {"images": ["a.png", "b.png"]}, SAY]}, [Image, Image]),
    "its place": ({"messages": [ASK | {"content": "Is <image> red?", "image": "a.png"}, SAY]}, [Image]),
    "a sound": ({"messages": [ASK | {"audio": {"path": "a.wav"}}, SAY]}, [Audio]),
    "of a turn": ({"conversations": [HUMAN | {"video": "v.mp4"}, GPT]}, [Video]),
    "a turn that is one": ({"conversations": [HUMAN, {"from": "human", "type": "audio", "value": "a.wav"}, GPT]},
                           [Audio]),
    "Qwen-VL": ({"conversations": [HUMAN | {"value": "Picture 1: <img>a.png</img>\nWhat?"}, GPT]}, [Image]),
    "two of them": ({"messages": [ASK | {"content": "<img>a.png</img> or <img>b.jpg</img>?"}, SAY]}, [Image, Image]),
    "Qwen-Audio": ({"messages": [ASK | {"content": "Audio 1: <audio>a.wav</audio>What?"}, SAY]}, [Audio]),
    "at its place in a caption": ({"image": "a.png", "text": "<image>\nA heron."}, [Image]),
}  # fmt: skip


@pytest.mark.parametrize("fields, kinds", OWN.values(), ids=OWN)
def test_media_in_turns_and_words_are_read(tmp_path, fields, kinds):
    document, reason, notes = look(tmp_path, fields)
    assert document and [kind for kind, _ in media(document)] == kinds and not notes, reason
    assert not any(word in texts(document) for word in ("<image>", "<img>", "a.wav", "a.png"))


@pytest.mark.parametrize(
    "turn",
    [
        {"attachments": [{"file": "a.png"}]},
        {"images": ["iVBORw0KGgoAAAANSUhEUgAA"]},
        {"image": "https://x.org/a.png"},
        {"file_ids": ["f-1"], "attachment": {"id": "f-1"}},
        {"image_id": 7},
        {"audio": {"id": "audio_7"}},
    ],
    ids=["attachments", "base64", "remote", "an upload", "id", "id of a sound"],
)
def test_a_talk_about_a_picture_is_no_text(tmp_path, turn):
    for fields in ({"messages": [ASK | turn, SAY]}, {"conversations": [HUMAN | turn, GPT]}):
        document, reason, _ = look(tmp_path, fields)
        assert document is None and reason


STRETCH = {
    "frames": {"video": "v.mp4", "start_frame": 10, "end_frame": 20, "caption": "x"},
    "clock": {"audio": "a.wav", "start_time": "00:01:02.5", "end_time": "00:01:04", "text": "x"},
    "from the start": {"video": "v.mp4", "start": 0, "end": 2.5, "caption": "x"},
    "span": {"audio_filepath": "a.wav", "segment": [1.0, 2.0], "text": "x"},
    "spans": {"video": "v.mp4", "timestamps": [[0, 1], [1, 2]], "sentences": ["x", "y"]},
    "in the field": {"audio": {"path": "a.wav", "offset": 2.0}, "text": "x"},
    "of a part": {"messages": [{"role": "user", "content": [{"type": "video", "video": "v.mp4", "video_start": 2.0}]},
                               SAY]},
    "of a turn": {"conversations": [{"from": "human", "type": "audio", "value": "a.wav", "offset": 1.5}, GPT]},
}  # fmt: skip


@pytest.mark.parametrize("fields", STRETCH.values(), ids=STRETCH)
def test_a_part_of_a_file_is_not_all_of_it(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document is None and "a time span is meant" in reason and "ffmpeg" in reason


@pytest.mark.parametrize(
    "fields",
    [
        {"audio_filepath": "a.wav", "offset": 0.0, "duration": 3.5, "text": "x"},
        {"video": "v.mp4", "start": 0, "end": 3.5, "duration": 3.5, "text": "x"},
        {"image": "a.png", "start": 3, "end": 7, "caption": "x"},
        {"audio": "a.wav", "segments": [{"start": 0.0, "end": 1.0, "text": "x"}], "text": "x"},
    ],
    ids=["whole", "as long as it is", "a picture", "words with times"],
)
def test_all_of_a_file_is_read(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document and media(document), reason


@pytest.mark.parametrize(
    "beside, learned",
    [
        ({"label": "False"}, "x false"),
        ({"label": True}, "x true"),
        ({"gold_label": "contradiction"}, "x contradiction"),
        ({"is_true": False}, "x false"),
        ({"verdict": "Refuted"}, "x refuted"),
        ({"gold_label": "neutral"}, "x neutral"),
        ({"label": "dog"}, "x"),
        ({"label": "right"}, "x"),
    ],
    ids=["word", "switch", "gold", "is", "verdict", "neutral", "class", "command"],
)
def test_a_verdict_is_learned_with_its_words(tmp_path, beside, learned):
    document, _, notes = look(tmp_path, {"image": "a.png", "caption": "x"} | beside)
    assert texts(document) == learned and bool(notes) == (learned == "x")


@pytest.mark.parametrize(
    "beside", [{"label": "False"}, {"kto_tag": "false"}, {"desirable": False}], ids=["label", "kto", "desirable"]
)
def test_what_is_said_to_be_bad_is_not_learned(tmp_path, beside):
    assert "is a bad one" in look(tmp_path, TALK | beside)[1]


PAIRS = {
    "two answers": ({"question": "q", "answer": "a", "response": "b"}, "'response' is a third speaker"),
    "a call and what it gave": (
        {"user": "q", "function_call": "w()", "observation": "s", "gpt": "a"},
        "a third speaker",
    ),
    "a tool": ({"user": "q", "tool": "s", "assistant": "a"}, "'tool' is a third speaker"),
    "choices": ({"question": "q", "choices": ["a", "b"], "answer": "a"}, "'choices' belongs to the question"),
    "a passage": ({"question": "q", "context": "c", "answer": "a"}, "'context' belongs to the question"),
    "a picture": ({"question": "q", "img": "a.png", "answer": "a"}, "'img' of turns has media"),
}


@pytest.mark.parametrize("key", ["qa", "conversations"])
@pytest.mark.parametrize("pair, words", PAIRS.values(), ids=PAIRS)
def test_a_pair_of_more_than_two_voices(tmp_path, pair, words, key):
    document, reason, _ = look(tmp_path, {key: [pair]})
    assert document is None and words in reason


@pytest.mark.parametrize("key", ["conversations", "texts", "messages"])
@pytest.mark.parametrize("names", [("user", "assistant"), ("human", "gpt"), ("question", "answer")], ids="/".join)
def test_turns_of_a_question_and_its_answer(tmp_path, key, names):
    pair = dict(zip(names, ("Q", "A"), strict=True))
    assert texts(look(tmp_path, {key: [pair, pair]})[0], loss_mask=True) == "AA"


def test_what_an_instruction_is_about_is_kept(tmp_path):
    document, _, notes = look(tmp_path, {"turns": [{"instruction": "Sum up.", "input": "A heron.", "output": "H."}]})
    assert texts(document) == "<user>\nSum up.\n\nA heron.\n<assistant>\nH." and not notes


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "a.png", "question": "Is it red?", "label": "yes"},
        {"image": "a.png", "query": "How many?", "label": "3"},
        {"question": "q", "answer": "a"},
    ],
    ids=["label", "query", "alone"],
)
def test_a_question_is_not_lost_beside_its_answer(tmp_path, fields):
    document, reason, _ = look(tmp_path, fields)
    assert document is None and "as 'messages' of user and assistant" in reason


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"id": "manifest#1", "content": [{"type": "text", "text": "x"}], "image": "a.png"}, "as a part of 'content'"),
        ({"text": "x", "scan": "a.pdf"}, "is not read: draw its pages"),
        ({"text": "x", "image_file": "../a.png"}, "leaves the manifest's folder"),
        ({"media": [{"value": "a.png"}], "text": "x"}, "give it as a path, or a list of paths"),
    ],
    ids=["native", "pdf", "climbs", "list"],
)
def test_remedies_are_true(tmp_path, fields, words):
    reason = look(tmp_path, fields)[1]
    assert words in reason and "rename it to 'image'" not in reason


def test_samples_of_arrays_are_no_texts(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("a.npy", "a.txt", "b.latent", "b.caption", "c.txt", "c.meta", "d.bin", "d.json"):
            content = b'{"caption": "x"}' if name == "d.json" else b"words"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    documents, bad = read(tmp_path / "s.tar")
    assert [document.id for document in documents] == ["c"] and len(bad) == 3


HOSTILE = {
    "deep": {"text": "x", "a": [[[[[[[[["a.png"]]]]]]]]]},
    "wide": {"text": "x", "a": [[0] * 1000] * 1000},
    "a long name": {"text": "x", "f" * 100_000: 1},
    "long words": {"text": "x", "photo": "<image> `" * 20_000},
    "many tags": {"text": "<image> `</" * 20_000, "url": "https://x.org", "language": "en"},
    "open tags": {"messages": [ASK | {"content": "<img>" * 50_000}, SAY]},
}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
def test_hostile_rows_cost_little(tmp_path, fields):
    start = time.process_time()
    look(tmp_path, fields)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", ["image_id", "videoid", "youtubeId", "IMG_PATH", "num_images", "frames_dir", "latent"])
def test_names_of_media(name):
    assert names_media(name)


@pytest.mark.parametrize("name", ["movie_id", "imagine", "video_title", "image_caption", "mask", "wave", "text", "1"])
def test_names_of_no_media(name):
    assert not names_media(name)


@pytest.mark.parametrize("name", ["question", "answer", "summary", "label", "context", "user", "comment", "documents"])
def test_words_are_no_metadata(name):
    assert not is_metadata(name)
