"""Content parts that say by an index which of the listed media they are, as TRL and LLaVA's instruction mix write them.

The index was passed over, and the media were read in the order of the list: a question got another's image.
"""

import json

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import media, read
from tests.data.format_files import tar as packed
from tests.data.media_files import manifest

IMAGES = ["a.png", "b.png", "c.png"]
SAID = {"role": "assistant", "content": [{"type": "text", "text": "A heron.", "index": None}]}


def asked(*parts, **beside) -> dict:
    content = [*(part if isinstance(part, dict) else {"type": "image", "index": part, "text": None} for part in parts)]
    return {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}, SAID]} | (
        beside or {"images": IMAGES}
    )


def one(path, fields):
    """(paths of the media, reasons, notes) of one row."""
    source = open_source(manifest(path, [fields]))
    documents, bad = read(source.path)
    list(source.documents())
    noted = [line for line in source.summary_lines() if line.startswith("noted")]
    return [name for document in documents for _, name in media(document)], [each.reason for each in bad], noted


def part(**fields) -> dict:
    return {"type": "image"} | fields


RIGHT = {
    "in order": (asked(0, 1, 2), IMAGES),
    "turned": (asked(2, 0, 1), ["c.png", "a.png", "b.png"]),
    "twice": (asked(1, 2, 1, 0), ["b.png", "c.png", "b.png", "a.png"]),
    "as a table fills it": (asked(1.0, 0.0, 2.0), ["b.png", "a.png", "c.png"]),
    "a sound": (asked({"type": "audio", "index": 1}, {"type": "audio", "index": 0}, audios=["a.wav", "b.wav"]),
                ["b.wav", "a.wav"]),
    "a film": (asked({"type": "video", "index": 1}, {"type": "video", "index": 0}, videos=["a.mp4", "b.mp4"]),
               ["b.mp4", "a.mp4"]),
    "two kinds": (asked(1, {"type": "audio", "index": 0}, 0, images=IMAGES[:2], audios=["a.wav"]),
                  ["b.png", "a.wav", "a.png"]),
    "one kind in order": (asked(1, {"type": "audio"}, 0, images=IMAGES[:2], audios=["a.wav"]),
                          ["b.png", "a.wav", "a.png"]),
    "objects": (asked(1, 0, images=[{"path": "a.png"}, {"path": "b.png"}]), ["b.png", "a.png"]),
    "one alone": (asked(0, image="a.png"), ["a.png"]),
    "idx": (asked(part(idx=1), part(idx=0), images=IMAGES[:2]), ["b.png", "a.png"]),
    "image_index": (asked(part(image_index=1), part(image_index=0), images=IMAGES[:2]), ["b.png", "a.png"]),
    "no number": (asked(part(index=None), part(index=float("nan")), part(index="")), IMAGES),
    "an address": (asked({"type": "image_url", "image_url": None, "index": 1}, 0, images=IMAGES[:2]),
                   ["b.png", "a.png"]),
}  # fmt: skip


@pytest.mark.parametrize("fields, paths", RIGHT.values(), ids=RIGHT)
def test_an_index_says_which_is_meant(tmp_path, fields, paths):
    found, bad, noted = one(tmp_path, fields)
    assert (found, bad) == (paths, []) and not any("index'" in line or "not read, for" in line for line in noted)


def test_later_turns_and_media_of_a_message(tmp_path):
    fields = asked(1, 1)
    fields["messages"] += [{"role": "user", "content": [part(index=0), {"type": "text", "text": "And?"}]}, SAID]
    fields["messages"] += [
        {"role": "user", "images": ["x.png", "y.png"], "content": [part(index=1), part(index=0)]},
        SAID,
    ]
    fields["images"] = IMAGES[:2]
    assert one(tmp_path, fields) == (["b.png", "b.png", "a.png", "y.png", "x.png"], [], [])


@pytest.mark.parametrize("parts, unused", [((1,), 2), ((2, 2), 2), ((0, 1), 1)], ids=str)
def test_media_that_no_index_means_are_noted(tmp_path, parts, unused):
    found, bad, noted = one(tmp_path, asked(*parts))
    assert found == [IMAGES[place] for place in parts] and not bad
    assert noted == [
        f"noted: media listed beside a conversation were not read, for no content part has their index ({unused})"
    ]


WRONG = {
    "behind the end": (asked(0, 3), "content part 1: index 3 is out of range: 3 listed as image, from index 0 on"),
    "negative": (asked(-1), "index -1 is out of range"),
    "huge": (asked(10**30), "is out of range"),
    "endless": (asked(float("inf")), "must be a whole number"),
    "a fraction": (asked(0.5), "field 'index' must be a whole number"),
    "a word": (asked("a.png"), "field 'index' must be a whole number"),
    "a truth": (asked(True), "must be a whole number"),
    "a list": (asked([0]), "must be a whole number"),
    "nothing listed": (asked(0, images=[]), "index 0 is out of range: 0 listed as image"),
    "another kind": (asked({"type": "audio", "index": 0}), "0 listed as audio"),
    "some without": (asked(1, part(), 0), "some have none: give one to each"),
    "two lists": (
        asked(1, 0, image="b.png", images=["a.png", "b.png"]),
        "an index into several fields ('image', 'images') is ambiguous: list all in one field 'images'",
    ),
    "it climbs": (asked(0, images=["../a.png"]), "../a.png"),
    "a hole": (asked(0, images=[None, "b.png"]), "image of index 0 names no file"),
}


@pytest.mark.parametrize("fields, why", WRONG.values(), ids=WRONG)
def test_an_index_that_means_none_sets_the_row_aside(tmp_path, fields, why):
    found, bad, _ = one(tmp_path, fields)
    assert not found and why in bad[0]


def test_an_index_in_a_table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    row = asked(1, 0)["messages"]
    row = [{"role": each["role"], "content": [{"index": None} | part for part in each["content"]]} for each in row]
    cells = [{"bytes": b"\x89PNG\r\n\x1a\n" + bytes([n]), "path": None} for n in range(2)]
    pq.write_table(pa.table({"images": [cells], "messages": [row]}), tmp_path / "t.parquet")
    (document,), bad = read(tmp_path / "t.parquet")
    assert not bad and [path for _, path in media(document)] == ["t.parquet::0/images/1", "t.parquet::0/images/0"]


@pytest.mark.parametrize("places, names", [((1, 0), "10"), ((1, 1, 0), "110"), ((1,), "1"), ((0, 1), "01")], ids=str)
@pytest.mark.parametrize("listed", [None, ["s.0.png", "s.1.png"], ["p/gone.png", "p/away.png"]], ids=str)
def test_an_index_in_a_sample_of_a_tar(tmp_path, places, names, listed):
    """Names from before the files were packed stand for those beside the sample, in the order of the list."""
    fields = asked(*places, **({"images": listed} if listed else {"x": None}))
    members = {"s.0.png": b"x", "s.1.png": b"y", "s.json": json.dumps(fields).encode()}
    (tmp_path / "a.tar").write_bytes(packed(members))
    (document,), bad = read(tmp_path / "a.tar")
    assert not bad and [path for _, path in media(document)] == [f"a.tar::s.{name}.png" for name in names]
