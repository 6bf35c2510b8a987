"""Media that a manifest holds out by its name, in others of the same source that say nothing."""

import json

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import media, read


def put(root, files: dict[str, list[dict]]):
    for name, lines in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("".join(json.dumps(fields) + "\n" for fields in lines))
    return root


def of(*names, **fields):
    """A line for each name of a sound."""
    return [{"file_name": f"clips/{name}.wav", "text": f"{name} in words"} | fields for name in names]


TEXT = {"type": "text", "text": "x"}
SOURCES = {
    # files, {sound: its splits}, how many notes
    "Common VoiceSpec": (
        {"dev.jsonl": of("d"), "test.jsonl": of("t"), "train.jsonl": of("a"), "validated.jsonl": of(*"adtx")},
        {"a": {"train"}, "d": {"validation"}, "t": {"test"}, "x": {"train"}}, 2,
    ),
    "all before test": (
        {"all.jsonl": of("a", "t"), "test.jsonl": of("t"), "train.jsonl": of("a")}, {"a": {"train"}, "t": {"test"}}, 1,
    ),
    "in test and in dev": (
        {"all.jsonl": of("t"), "dev.jsonl": of("t"), "test.jsonl": of("t"), "train.jsonl": of("a")},
        {"a": {"train"}, "t": {"test", "validation"}}, 1,
    ),
    "spelt otherwise": (
        {"all.jsonl": [{"audio": "./clips//t.wav", "text": "x y"}], "test.jsonl": of("t"), "train.jsonl": of("a")},
        {"a": {"train"}, "t": {"test"}}, 1,
    ),
    "one of several media": (
        {"all.jsonl": [{"file_names": ["clips/x.wav", "clips/t.wav"], "text": "x y"}], "test.jsonl": of("t"),
         "train.jsonl": of("a")},
        {"a": {"train"}, "t": {"test"}, "x": {"test"}}, 1,
    ),
    "forms that mean train": (
        {"all.jsonl": [{"id": "1", "content": [{"type": "audio", "audio": "clips/t.wav"}, TEXT]}],
         "test.jsonl": of("t"), "train.jsonl": of("a")},
        {"a": {"train"}, "t": {"test"}}, 1,
    ),
    "a line of the test that is set aside": (
        {"all.jsonl": of("a", "t"), "test.jsonl": [*of("u"), {"file_name": "clips/t.wav"}], "train.jsonl": of("a")},
        {"a": {"train"}, "t": {"test"}, "u": {"test"}}, 1,
    ),
    "its own field": (
        {"all.jsonl": of("a") + of("t", split="train"), "test.jsonl": of("t"), "train.jsonl": of("a")},
        {"a": {"train"}, "t": {"train", "test"}}, 0,
    ),
    "declared twice": (
        {"train.jsonl": of("a", "t"), "test.jsonl": of("t"), "dev.jsonl": of("d")},
        {"a": {"train"}, "d": {"validation"}, "t": {"train", "test"}}, 0,
    ),
    "nothing in common": (
        {"all.jsonl": of("a"), "test.jsonl": of("t"), "dev.jsonl": of("d")},
        {"a": {"train"}, "d": {"validation"}, "t": {"test"}}, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("files, wanted, count", SOURCES.values(), ids=SOURCES)
def test_what_one_manifest_holds_out_is_not_trained_on_by_another(tmp_path, files, wanted, count):
    """validated.jsonl beside test.jsonl of Common VoiceSpec: all clips of the test were trained on in silence."""
    root, found = put(tmp_path, files), {}
    for document in read(root)[0]:
        for _, path in media(document):
            found.setdefault(path.rpartition("/")[2].removesuffix(".wav"), set()).add(str(document.split))
    assert found == wanted
    source = open_source(root)
    list(source.documents())
    told = [line for line in source.summary_lines() if "media of what is held out in others" in line]
    assert len(told) == count


def test_manifests_in_folders(tmp_path):
    """Paths are those of the source, whatever folder a manifest lies in."""
    lines = {name: [{"file_name": f"{name}.wav", "text": "a b"}] for name in "at"}
    files = {"x/all.jsonl": [*lines["a"], *lines["t"]], "x/test.jsonl": lines["t"], "y/all.jsonl": lines["t"]}
    found = [(media(document)[0][1], str(document.split)) for document in read(put(tmp_path, files))[0]]
    assert [split for path, split in found if path == "x/t.wav"] == ["test"] * 2
    assert ("y/t.wav", "test") not in found and len(found) == 4
