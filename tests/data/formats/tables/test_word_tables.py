"""Tables of words: the command that is told makes a metadata.jsonl that is read, without a change by hand."""

import gzip
import json

import pytest

from brine.data.formats.open import open_source
from brine.data.formats.tables.conversion import table_hint
from tests.data.format_files import follow_command, media, read, texts
from tests.data.media_files import picture, sound

PICTURES, SOUNDS = ("a.png", "b.png"), ("wavs/LJ1.wav", "wavs/LJ2.wav")
TABLES = {
    # name, content, files, [(medium, words)]
    "LJSpeech": (
        "metadata.csv", 'LJ1|In "1440"|In fourteen forty\nLJ2|the|the "one\n', SOUNDS,
        [("wavs/LJ1.wav", "In fourteen forty"), ("wavs/LJ2.wav", 'the "one')],
    ),
    "LJSpeech with short rows": (
        "metadata.csv", "LJ1|In 1440|In fourteen forty\nLJ2|the\n", SOUNDS,
        [("wavs/LJ1.wav", "In fourteen forty"), ("wavs/LJ2.wav", "the")],
    ),
    "LJSpeech with commas": (
        "metadata.csv", "LJ1|Printing, in the only sense, we|Printing, in the only sense, we\n"
        'LJ2|"produced the, which|"produced the, which was\n', SOUNDS,
        [("wavs/LJ1.wav", "Printing, in the only sense, we"), ("wavs/LJ2.wav", '"produced the, which was')],
    ),
    "LJSpeech of one sentence": (
        "metadata.csv", "LJ1|Printing, in, the, only|Printing, in, the, sense\n", SOUNDS,
        [("wavs/LJ1.wav", "Printing, in, the, sense")],
    ),
    "a sentence that names a file": (
        "metadata.csv", "LJ1|one\nLJ2|open a.png, b.png, and\n" + 9 * "LJ1|one\n", SOUNDS,
        [("wavs/LJ1.wav", "one"), ("wavs/LJ2.wav", "open a.png, b.png, and"), *9 * [("wavs/LJ1.wav", "one")]],
    ),
    "as many commas as bars": (
        "train.csv", "LJ1|Hello, world\nLJ2|Good bye, world\n", SOUNDS,
        [("wavs/LJ1.wav", "Hello, world"), ("wavs/LJ2.wav", "Good bye, world")],
    ),
    "tabs around commas": (
        "list.tsv", "Hello, you, and, all\tLJ1\nGood bye\tLJ2\n", SOUNDS,
        [("wavs/LJ1.wav", "Hello, you, and, all"), ("wavs/LJ2.wav", "Good bye")],
    ),
    "semicolons around commas": (
        "labels.csv", "id;description\na;red, white, blue\nb;red\n", PICTURES,
        [("a.png", "red, white, blue"), ("b.png", "red")],
    ),
    "commas around bars": (
        "labels.csv", 'id,description\na,"red|white, blue"\nb,red|blue\n', PICTURES,
        [("a.png", "red|white, blue"), ("b.png", "red|blue")],
    ),
    "bars that name their folder": (
        "train.csv", "wavs/LJ1.wav|one\nwavs/LJ2.wav|two\n", SOUNDS, [("wavs/LJ1.wav", "one"), ("wavs/LJ2.wav", "two")],
    ),
    "bars around commas": (
        "train.csv", "wavs/LJ1.wav|one, two, and\nwavs/LJ2.wav|two, and, three\n", SOUNDS,
        [("wavs/LJ1.wav", "one, two, and"), ("wavs/LJ2.wav", "two, and, three")],
    ),
    "tabs with a speaker": (
        "filelist.tsv", "LJ1\t17\tone and two\nLJ2\t18\tthree\n", SOUNDS,
        [("wavs/LJ1.wav", "one and two"), ("wavs/LJ2.wav", "three")],
    ),
    "Common VoiceSpec": (
        "validated.tsv", 'client_id\tpath\tsentence\nx\t1.wav\thello "quoted\ny\t2.wav\tworld"\n',
        ("clips/1.wav", "clips/2.wav"), [("clips/1.wav", 'hello "quoted'), ("clips/2.wav", 'world"')],
    ),
    "names without endings": (
        "labels.csv", "id,description\na,a wren\nb,a heron\n", PICTURES, [("a.png", "a wren"), ("b.png", "a heron")],
    ),
    "Flickr": (
        "results.csv", "image_name|comment_number|comment\na.png|0|a wren\n", ("images/a.png",),
        [("images/a.png", "a wren")],
    ),
    "known names": ("metadata.csv", "image,caption\na.png,a wren\n", PICTURES, [("a.png", "a wren")]),
    "no header": (
        "captions.csv", 'a.png,"a wren, and\nmore"\nb.png,x\n', PICTURES,
        [("a.png", "a wren, and\nmore"), ("b.png", "x")],
    ),
    "words alone": ("data.csv", "text\nhello\nworld\n", (), [(None, "hello"), (None, "world")]),
    "words under another name": (
        "reviews.csv", "stars,review\n5,good it was\n1,it was not\n", (), [(None, "good it was"), (None, "it was not")],
    ),
    "a question": ("qa.csv", "question,answer\nwhat,that\n", (), [(None, "<user>\nwhat\n<assistant>\nthat")]),
    "a question about an image": (
        "vqa.csv", "image,question,answer\na.png,what,that\n", PICTURES,
        [("a.png", "<user>\n\nwhat\n<assistant>\nthat")],
    ),
    "a row with too many cells": (
        "metadata.csv", "file_name,text\na.png,red,blue,\nb.png,x\n", PICTURES, [("a.png", "red"), ("b.png", "x")],
    ),
    "a row with too few": ("metadata.csv", "file_name,text,note\na.png,red\n", PICTURES, [("a.png", "red")]),
    "an index of a data frame": (
        "metadata.csv", ",file_name,text\n0,a.png,red\n1,b.png,x\n", PICTURES, [("a.png", "red"), ("b.png", "x")],
    ),
    "a long cell": (
        "metadata.csv", "file_name,text\na.png," + "wren " * 40_000 + "\n", PICTURES, [("a.png", "wren " * 40_000)],
    ),
    "Windows-1252": (
        "metadata.csv", "file_name,text\na.png,“größe” €\n".encode("cp1252"), PICTURES, [("a.png", "“größe” €")],
    ),
    "UTF-16": (
        "metadata.csv", "file_name,text\r\na.png,größe\r\n".encode("utf-16"), PICTURES, [("a.png", "größe")],
    ),
    "two marks": ("metadata.csv", "\ufeff\ufefffile_name,text\na.png,größe\n", PICTURES, [("a.png", "größe")]),
}  # fmt: skip


def follow(told: str) -> str:
    """What the command writes, whatever it is called."""
    assert ".jsonl from it" in told
    (made,) = follow_command(told, "made.jsonl")
    return made.read_text(encoding="utf-8")


@pytest.mark.parametrize("name, content, files, wanted", TABLES.values(), ids=TABLES)
def test_the_command_makes_a_manifest_that_is_read(tmp_path, name, content, files, wanted):
    """LJSpeech's bars became {"file_name": "LJ1", "null": [...]}, which is no medium."""
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (picture(tmp_path / file, 8, 8) if file.endswith(".png") else sound(tmp_path / file, 0.05))
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path / name)
    printed = follow(str(caught.value))
    assert not any("null" in json.loads(line) for line in printed.splitlines())
    documents, bad = read(tmp_path / "made.jsonl")
    assert not bad
    assert [(next((path for _, path in media(item)), None), texts(item)) for item in documents] == wanted


@pytest.mark.slow
def test_an_encoding_that_shows_late_is_seen(tmp_path):
    """Behind the first MiB a letter of Latin-1 ended the command in a stack trace, and an empty file was left."""
    late = b"file_name,text\n" + b"b.png,x\n" * 140_000 + "a.png,größe\n".encode("latin-1")
    (tmp_path / "metadata.csv").write_bytes(late)
    printed = follow(table_hint(tmp_path / "metadata.csv", "metadata.csv"))
    assert json.loads(printed.splitlines()[-1])["text"] == "größe"


def test_other_tables_of_the_folder_are_named(tmp_path):
    """The command for one of them was told, and after it the rest was passed over."""
    for split in ("test", "train", "val"):
        (tmp_path / split).mkdir()
        picture(tmp_path / split / "a.png", 8, 8)
        (tmp_path / split / "metadata.csv").write_text("file_name,text\na.png,red\n")
    with pytest.raises(ValueError, match=r"text in 'test/metadata\.csv'.*the same with 'train/metadata\.csv', 'val/"):
        open_source(tmp_path)


OTHERS = {
    # files, table, what is written from it
    "Common VoiceSpec": (("dev.tsv", "test.tsv", "train.tsv", "validated.tsv"), "validated.tsv", "validated.jsonl"),
    "all beside a test": (("test.csv", "all.csv"), "all.csv", "all.jsonl"),
    "in a folder of tables": (("meta/test.csv", "meta/all.csv"), "meta/all.csv", "meta-all.jsonl"),
    "above beside a manifest": (("test.jsonl", "meta/all.csv"), "meta/all.csv", "meta-all.jsonl"),
    "beside a manifest": (("val.jsonl", "all.csv"), "all.csv", "all.jsonl"),
    "two languages": (("de.csv", "en.csv"), "en.csv", "en.jsonl"),
    "alone": (("all.csv", "notes.txt"), "all.csv", "metadata.jsonl"),
    "above and alone": (("meta/all.csv",), "meta/all.csv", "metadata.jsonl"),
}


@pytest.mark.parametrize("files, table, out", OTHERS.values(), ids=OTHERS)
def test_a_table_given_by_itself_hides_no_other(tmp_path, files, table, out):
    """Common VoiceSpec's validated.tsv became a metadata.jsonl, which stands for its folder: test.jsonl was not
    read."""
    tmp_path = tmp_path / "set"
    for file in (*files, table):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("file_name,text\na.png,red\n")
    picture(tmp_path / "a.png", 8, 8)
    with pytest.raises(ValueError, match=f"write a {out} from it"):
        open_source(tmp_path / table)


@pytest.mark.parametrize("name", ["metadata.jsonl", "manifest.json", "train.jsonl"])
def test_a_manifest_that_a_failed_command_left_is_told(tmp_path, name):
    """A command that fails leaves an empty file, of which it was said that there are no documents."""
    picture(tmp_path / "a.png", 8, 8)
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "table.csv").write_text("file_name,text\na.png,red\n")
    with pytest.raises(ValueError, match=rf"{name} is empty \(0 bytes\)"):
        open_source(tmp_path / name)
    if name != "train.jsonl":
        with pytest.raises(ValueError, match=rf"{name} is empty \(0 bytes\)"):
            open_source(tmp_path)


HOSTILE = [
    *(b"", b"\n\n\n", b"|||\n", b"\0" * 99, b"a\n", b'"""""\n', b"../x.png,y\n", b"/etc/passwd|y\n", b"a.png\n"),
    *(b",\n,\n", b"\xff\xfe\x81,\x8d\n", b"file_name,file_name\na.png,b\n", b"a,b\n" * 9 + b"c\n"),
]


@pytest.mark.slow
@pytest.mark.parametrize("content", HOSTILE, ids=repr)
def test_hostile_tables_can_be_converted(tmp_path, content):
    picture(tmp_path / "a.png", 8, 8)
    (tmp_path / "t.csv").write_bytes(content)
    told = table_hint(tmp_path / "t.csv", "t.csv")
    for line in follow(told).splitlines():
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.tsv.gz", "t.csv"])
def test_a_compressed_table_is_unpacked_first(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"file_name,text\na.png,red\n"))
    out = {"t.csv.gz": "t.csv", "t.tsv.gz": "t.tsv", "t.csv": "unpacked-t.csv"}[name]
    assert f"`gzip -dc {name} > {out}`" in table_hint(tmp_path / name, name)
