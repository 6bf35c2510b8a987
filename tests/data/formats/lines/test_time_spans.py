"""Rows about a stretch of a sound or video: set aside with their field, unless it was cut before; dates are none."""

import io
import json
import tarfile
import time

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import media, read
from tests.data.media_files import manifest

FILM = {"video": "v.mp4", "caption": "x"}
STRETCH = {
    "Panda-70M": {"timestamp": "['0:00:01.0', '0:00:02.0']"},
    "pairs as text": {"timestamp": "[[0.5,1.5]]"},
    "a tuple as text": {"time": "(0.5, 1.5)"},
    "clocks without quotes": {"segment": "[0:01, 0:02]"},
    "an object as text": {"segment": '{"start": 1, "end": 2}'},
    "an object": {"segment": {"start": 1, "end": 2}},
    "list of text": {"moment": ["00:01", "00:03"]},
    "clocks": {"time": "0:01-0:02"},
    "a dash in spaces": {"timestamp": "0:01 \u2013 0:02"},
    "SRT": {"timestamp": "00:00:01,000 --> 00:00:02,000"},
    "words between": {"time": "1.5s to 3s"},
    "frames of a clock": {"timecode": "00:00:01:00-00:00:03:00"},
    "numbers as text": {"segment": "0.5-1.5"},
    "whole numbers": {"segment": "1-2"},
    "a range in fractions": {"range": "0.5-2"},
    "a clip in seconds": {"clip": "1s-12s"},
    "a clip in clocks": {"clip": "0:03-0:17"},
    "a list of a clip": {"clip": [3, 17]},
    "a late clip": {"timestamp": "12:30-12:45"},
    "minutes": {"time": "1:05-1:20"},
    "long minutes": {"time_range": "00:10:00-00:11:00"},
    "frames like years": {"frame_range": [1990, 2000]},
    "seconds like years": {"segment": [1990, 2000]},
    "an answer in seconds": {"answer_start": 2.5},
    "an answer by the clock": {"answer_start": "00:23"},
    "an answer by its name": {"answer_start_sec": 23},
    "an answer in s": {"answer_start_s": 23},
    "an answer with an end": {"answer_start": 23, "answer_end": 30},
    "a target and an end of all": {"target_start": 3, "end": 9, "duration": 9},
    "a sentence of a unit": {"sentence_start": "3 s"},
    "comma": {"time": "0.5,1.5"},
    "time_range": {"time_range": [1, 2]},
    "clip_interval": {"clip_interval": [1, 2]},
    "windows": {"relevant_windows": [[2, 4]]},
    "frame_range": {"frame_range": [1, 50]},
    "scene": {"scene_start": "00:00:01", "scene_end": "00:00:02"},
    "start_second": {"start_second": 1},
    "start_idx": {"start_idx": 1, "end_idx": 2},
    "frames": {"start_frame": 0, "end_frame": 9, "num_frames": 100},
    "camel case": {"eventStartTime": "1m2s"},
    "unit": {"clip_start": "1.5 s"},
    "lists of one": {"start": [1.0], "end": [2.0]},
    "a list of one as text": {"start": "[1.0]"},
    "end alone": {"end_sec": 2},
}


def notes_of(path):
    source = open_source(path)
    documents = list(source.documents())
    assert len(documents) == 1
    return sorted(source.skipped)


def tarred(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("beside", STRETCH.values(), ids=STRETCH)
def test_a_stretch_is_not_all_of_a_file(tmp_path, beside):
    field = next(iter(beside)) if next(iter(beside.values())) != 0 else "end_frame"
    parts = [{"type": "video", "video": "v.mp4"} | beside, {"type": "text", "text": "q"}]
    answer = {"role": "assistant", "content": "x"}
    turns = [{"from": "human", "value": "<video>\nq"}, {"from": "gpt", "value": "x"}]
    for fields in (
        FILM | beside,
        {"audio": "a.wav", "text": "x"} | beside,
        {"id": "c", "content": parts},
        {"messages": [{"role": "user", "content": parts}, answer]},
        {"conversations": turns, "video": "v.mp4"} | beside,
    ):
        documents, (bad,) = read(manifest(tmp_path, [fields]))
        assert not documents and f"{field!r}" in bad.reason and "a time span is meant" in bad.reason


@pytest.mark.parametrize("name", ["Panda-70M", "clocks", "time_range", "start_idx", "scene"])
def test_in_a_table_it_is_told_too(tmp_path, name):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {key: [value] for key, value in (FILM | STRETCH[name]).items()}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    documents, (bad,) = read(tmp_path / "t.parquet")
    assert not documents and "a time span is meant" in bad.reason


@pytest.mark.parametrize("name", ["Panda-70M", "clocks", "time_range", "start_idx", "numbers as text"])
def test_in_a_tar_it_was_cut_before_and_is_noted_once(tmp_path, name):
    fields = json.dumps({"caption": "c"} | STRETCH[name]).encode()
    shard = tarred(tmp_path / "s.tar", ("a.mp4", b"\0\0\0\x18ftypisom"), ("a.json", fields))
    said = notes_of(shard)
    assert said == sorted(
        f"note: field {key!r} was read as the time span that embedded audio or video was cut from"
        for key in STRETCH[name]
    )


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": [{"type": "video", "video": "s.tar::a.mp4", "video_start": 2.0}]},
        {"role": "user", "content": "q", "video": "s.tar::a.mp4", "start": 1},
        {"from": "human", "type": "video", "value": "s.tar::a.mp4", "offset": 1.5},
    ],
    ids=["part", "message", "turn"],
)
def test_inside_a_conversation_no_two_notes_contradict(tmp_path, turn):
    tarred(tmp_path / "s.tar", ("a.mp4", b"\0\0\0\x18ftypisom"))
    answer = {"from": "gpt", "value": "x"} if "from" in turn else {"role": "assistant", "content": "x"}
    key = "conversations" if "from" in turn else "messages"
    (note,) = notes_of(manifest(tmp_path, [{key: [turn, answer]}]))
    assert "was cut from" in note


WHOLE = {
    "a date": {"timestamp": "2024-01-05"},
    "a date and time": {"timestamp": "2024-01-05 12:00"},
    "ISO": {"timestamp": "2024-01-05T12:00:00Z"},
    "since 1970": {"timestamp": 1700000000},
    "since 1970 as text": {"time": "1700000000.5"},
    "recorded": {"start_time": 1700000000},
    "a month": {"time": "2024-01"},
    "a day": {"time": "01-05"},
    "years": {"time": "1999-2005"},
    "days": {"time": "20240105-20240106"},
    "duration": {"duration": 3.5},
    "all of it": {"start": "0", "end": "3.5", "duration": "3.5"},
    "a span of all": {"segment": "[0, 3.5]", "duration": 3.5},
    "all frames": {"start_frame": 0, "end_frame": 99, "num_frames": 100},
    "times of words": {"segments": [{"start": 0.0, "end": 1.0, "text": "x"}]},
    "numbers of something else": {"token_start": 5, "start_page": 4, "segment_id": "1-2", "to": 5},
    "endless": {"duration": float("inf"), "end": float("inf"), "start": float("nan")},
}


@pytest.mark.parametrize("beside", WHOLE.values(), ids=WHOLE)
def test_what_is_no_stretch_is_read(tmp_path, beside):
    (document,), bad = read(manifest(tmp_path, [FILM | beside]))
    assert not bad and media(document)
    dates = [key for key in ("timestamp", "time") if key in beside]
    assert not dates or not notes_of(manifest(tmp_path, [FILM | beside]))


ELSE = {
    "a place in the text": {"answer_start": 23},
    "places in the text": {"answer_start": [23]},
    "a place as text": {"target_start": "23"},
    "a number of a sentence": {"sentence_start_idx": 3},
    "a place in floats": {"span_start": 4.0},
    "a place beside a length": {"answer_offset": 7, "duration": 9.5},
    "a month of a year": {"timestamp": "12-2020"},
    "a month in one digit": {"period": "3-1999"},
    "hours": {"time": "10:00-11:00"},
    "hours with minutes": {"time_range": "14:05 - 15:50"},
    "early hours": {"time": "1:00-2:30"},
    "hours in a list": {"time_range": ["09:15", "10:45"]},
    "night": {"period": ["22:00", "06:00"]},
    "years in numbers": {"period": [1990, 2000]},
    "years in an object": {"period": {"start": 1990, "end": 2000}},
    "years in a list of text": {"time": "['1990', '2000']"},
    "years in floats": {"time_range": [2020.0, 2021.0]},
    "decades": {"period": "1980s-1990s"},
    "numbers with zeros": {"clip": "003-017"},
    "numbers of scenes": {"scene": "2-5"},
    "numbers of shots": {"shot": "1-12"},
    "numbers of chunks": {"video_chunk": "0-12"},
    "a scale": {"range": [0, 5]},
    "a scale as text": {"range": "0-5"},
    "a size": {"shot": [640, 480]},
    "a size of a clip": {"clip": [640, 480]},
    "scales": {"range": [[0, 5], [1, 7]]},
}


@pytest.mark.parametrize("beside", ELSE.values(), ids=ELSE)
def test_what_may_as_well_be_something_else_is_read_and_noted(tmp_path, beside):
    field = next(iter(beside))
    assert f"note: field {field!r} was not read" in notes_of(manifest(tmp_path, [FILM | beside]))
    turns = [{"from": "human", "value": "<video>\nq"}, {"from": "gpt", "value": "x"}]
    for fields in (
        {"audio": "a.wav", "text": "x"} | beside,
        {"audio": {"path": "a.wav"} | beside, "text": "x"},
        {"id": "c", "content": [{"type": "video", "video": "v.mp4"} | beside, {"type": "text", "text": "q"}]},
        {"conversations": turns, "video": "v.mp4"} | beside,
    ):
        (document,), bad = read(manifest(tmp_path, [fields]))
        assert not bad and media(document)


CHANGED_WHILE_READ = {
    "a time": {"timestamp": 3.2},
    "a clock": {"time": "0:05"},
    "times of frames": {"timestamps": [0, 0.5, 1, 1.5]},
    "frames": {"frames": [10, 50]},
    "a number": {"segment": 3},
}


@pytest.mark.parametrize("beside", CHANGED_WHILE_READ.values(), ids=CHANGED_WHILE_READ)
def test_what_is_not_sure_is_noted(tmp_path, beside):
    (field,) = beside
    assert notes_of(manifest(tmp_path, [FILM | beside])) == [f"note: field {field!r} was not read"]


def test_files_of_the_house_form_are_cut(tmp_path):
    row = {"id": "c", "kind": "video", "path": "v.mp4", "text": "x", "start_s": 2, "dur": 5.0}
    assert notes_of(manifest(tmp_path, [row])) == ["note: field 'start_s' was not read"]


def test_beside_a_picture_it_says_nothing(tmp_path):
    row = {"image": "a.png", "caption": "x", "timestamp": "0:01-0:02", "start": 1}
    assert notes_of(manifest(tmp_path, [row])) == ["note: field 'start' was not read"]


def test_hostile_values_cost_little(tmp_path):
    values = ["1" * 9999, "[" * 9999, "1:" * 5000, "[1," * 3000 + "]", " " * 9999, "1 " * 5000, "(" * 9000 + ")" * 900]
    values += [10**400, [10**400, 1], {"start": {"start": {}}}, "[" + "9" * 5000 + ", 1]", "s" * 9999]
    values += [[10**400, 10**400], [[10**400, 0]], ["9" * 5000, "9" * 5000], [True, {}], [1e300, 1e299], {"start": []}]
    names = ("time", "start", "end", "segment", "duration", "answer_start", "clip", "range", "period")
    rows = [FILM | {name: value} for value in values for name in names]
    began = time.process_time()
    read(manifest(tmp_path, [*rows, FILM | {"t" * 39: 1, "clipstart" * 4: 1, "s" * 39: 1, "ts" * 19: 1}]))
    assert time.process_time() - began < 5
