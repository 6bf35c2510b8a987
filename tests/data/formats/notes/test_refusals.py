"""What holds no documents as it stands is named: unknown fields, one object around them, a file given alone."""

import json

import pytest

from brine.data.formats.lines.fields import folded
from brine.data.formats.open import open_source
from tests.data.format_files import follow_command, media, read, texts
from tests.data.media_files import manifest

PAIR = {"instruction": "Say hi", "output": "Hi"}
TALK = {"messages": [{"role": "assistant", "content": "x"}]}
ZIP = b"PK\x03\x04" + bytes(60)


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def refusal(path) -> str:
    with pytest.raises(ValueError) as caught:
        open_source(path)
    return str(caught.value)


FOLDERS = {
    "pairs": ({"a.json": [PAIR]}, "a.json, which has the fields 'instruction', 'output' in its first entry"),
    "pairs in lines": ({"a.jsonl": json.dumps(PAIR)}, "write 'instruction' and 'output' as 'messages'"),
    "a card beside": (
        {"README.md": "# card", "data.jsonl": json.dumps({"smell": 1})},
        "data.jsonl, which has the fields",
    ),
    "a card above": ({"README.md": "# card", "data/a.jsonl": json.dumps({"x": 1})}, "data/a.jsonl, which has"),
    "a card and an array": ({"README.md": "# card", "data.json": [PAIR]}, "data.json, which has the fields"),
    "commas": ({"a.jsonl": '{"text": "a"},\n{"text": "b"},\n'}, "has a first line that is quarantined: not JSON"),
    "prompt and completion": ({"a.jsonl": json.dumps({"prompt": [TALK], "completion": [TALK]})}, "write 'prompt' and"),
    "splits in one": ({"a.json": {"train": [{"text": "a"}], "test": [{"text": "b"}]}}, "list of objects under 'train'"),
    "a wrapper": ({"a.json": {"version": 2, "data": [{"text": "a"}]}}, "list of objects under 'data'"),
}


BROKEN = {
    "a blank line": ({"a.jsonl": "\n"}, "a.jsonl, which is empty (it holds no object)"),
    "no bytes": ({"a.ndjson": ""}, "a.ndjson, which is empty (0 bytes)"),
    "no bytes, .json": ({"a.json": ""}, "a.json, which is empty (0 bytes)"),
    "an array of nothing": ({"a.json": "[]"}, "a.json, which is empty (it holds no object)"),
    "prose": ({"a.jsonl": "not json at all"}, "a.jsonl, which has a first line that is quarantined (at 1): not JSON"),
    "prose, .json": ({"a.json": "\nnot json"}, "a.json, which has a first line that is quarantined (at 2): not JSON"),
    "a text": ({"a.jsonlines": '"text"'}, "must be a JSON object, not str"),
    "a page": ({"data.json": "<html>404</html>"}, "data.json, which has a first line that is quarantined (at 1)"),
    "bytes": ({"x/a.jsonl": b"\0\1\2"}, "x/a.jsonl, which has a first line that is quarantined"),
    "beside a card": (
        {"README.md": "# card", "a.jsonl": "oops"},
        "a.jsonl, which has a first line that is quarantined",
    ),
    "empty beside a card": ({"README.md": "# card", "a.jsonl": ""}, "a.jsonl, which is empty"),
    "beside a file of no kind": ({"a.weird": b"\0", "b.jsonl": "\n\n"}, "b.jsonl, which is empty"),
}


@pytest.mark.parametrize("files, words", BROKEN.values(), ids=BROKEN)
def test_json_that_is_empty_or_broken_is_of_a_known_kind(tmp_path, files, words):
    """Of an empty .jsonl it was said that the folder holds "files of no known kind"."""
    said = refusal(write(tmp_path, files))
    assert words in said and "no known kind" not in said


@pytest.mark.parametrize("files, words", FOLDERS.values(), ids=FOLDERS)
def test_folders(tmp_path, files, words):
    assert words in refusal(write(tmp_path, files))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["data", "train", "a name's"])
def test_the_command_writes_what_is_read(tmp_path, name, indent):
    wrapped = {"version": "1", name: [{"text": "a"}, {"text": "b"}], "other": [{"x": 1}]}
    path = write(tmp_path, {"a.json": json.dumps(wrapped, indent=indent)}) / "a.json"
    said = refusal(path)
    assert "JSON object of a known record format" in said
    follow_command(said)
    assert [texts(document) for document in read(tmp_path / f"{name}.jsonl")[0]] == ["a", "b"]


@pytest.mark.parametrize("first", ["info", "images", "annotations"])
def test_coco(tmp_path, first):
    images = [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}]
    notes = [{"image_id": 8, "caption": "a wren"}, {"image_id": 7, "caption": "a heron"}, {"image_id": 7, "bbox": []}]
    whole = {"info": {"year": 2017}, "images": images, "annotations": notes}
    whole = {first: whole[first]} | whole
    path = write(tmp_path, {"captions.json": whole}) / "captions.json"
    said = refusal(path)
    assert "(COCO)" in said
    follow_command(said)
    documents, bad = read(tmp_path / "metadata.jsonl")
    assert not bad and [(media(d)[0][1], texts(d)) for d in documents] == [("8.jpg", "a wren"), ("7.jpg", "a heron")]


@pytest.mark.parametrize("count", [1, 2])
def test_lines_whose_images_are_objects_are_no_coco(tmp_path, count):
    rows = [{"images": [{"file_name": "a.png", "height": 3}], "caption": f"a heron, {n}"} for n in range(count)]
    path = write(tmp_path, {"m.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}) / "m.jsonl"
    documents, bad = read(path)
    assert not bad and [(media(d)[0][1], texts(d)) for d in documents] == [("a.png", row["caption"]) for row in rows]


def test_one_document_in_a_file_is_read(tmp_path):
    for number, fields in enumerate([TALK, {"images": ["a.png"], "caption": "x"}, {"text": "x", "meta": [{"a": 1}]}]):
        assert len(read(write(tmp_path, {f"{number}.json": fields}) / f"{number}.json")[0]) == 1


ALONE = {
    "a.txt": ("words", "is one text: give the folder"),
    "a.md": ("# page", "is one text: give the folder"),
    "a.xlsx": (ZIP, "is a spreadsheet: save it as CSV"),
    "a.docx": (ZIP, "is an office document: take its text"),
    "a.npz": (ZIP, "holds arrays of numbers"),
    "a.zip": (ZIP, "unzip a.zip -d a"),
    "a.png": (b"\x89PNG" + bytes(60), "is a PNG image, one media file without a caption"),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_file_given_alone(tmp_path, name):
    content, words = ALONE[name]
    assert words in refusal(write(tmp_path, {name: content}) / name)


CAPITALS = [{"TEXT": "a"}, {"Caption": "a", "Image": "x.png"}, {"Messages": TALK["messages"]}, {"Text": "a", "ID": "i"}]


@pytest.mark.parametrize("fields", CAPITALS, ids=str)
def test_capitals_in_names_of_fields(tmp_path, fields):
    (document,), bad = read(manifest(tmp_path, [fields]))
    assert not bad and texts(document, loss_mask=True) in ("a", "x")
    assert len(media(document)) == ("Image" in fields) and (document.id == "i") == ("ID" in fields)


def test_capitals_do_not_hide_what_is_there():
    fields = {"text": "a", "TEXT": "b", "Width": 3}
    assert folded(fields) is fields and folded({"TEXT": "b", "Text": "c"}) == {"text": "b", "Text": "c"}


def test_capitals_in_tables(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"TEXT": ["a"], "URL": ["https://x.org/page"]}), tmp_path / "t.parquet")
    assert texts(read(tmp_path / "t.parquet")[0][0]) == "a"
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), tmp_path / "t.parquet")
    assert "write 'question' and 'answer' as 'messages'" in refusal(tmp_path / "t.parquet")
    # what an image's file was called is no second image
    cell = [{"bytes": b"\x89PNG" + bytes(20), "path": None}]
    pq.write_table(pa.table({"image": cell, "filename": ["1.jpg"], "caption": ["x"]}), tmp_path / "t.parquet")
    assert [path for _, path in media(read(tmp_path / "t.parquet")[0][0])] == ["t.parquet::0/image"]


@pytest.mark.parametrize("key", ["messages", "conversations", "dialog"])
def test_turns_as_json_text(tmp_path, key):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    lines = [{key: json.dumps(turns)}, {key: "[broken"}, {key: "no list"}]
    documents, bad = read(manifest(tmp_path, lines))
    assert [texts(document, loss_mask=True) for document in documents] == ["a"] and len(bad) == 2
    assert f"{key!r} is a text that looks like JSON, but is not JSON" in bad[0].reason


STRETCHES = {
    "nemo": (
        {"audio_filepath": "a.wav", "offset": 1.5, "duration": 2.0, "text": "x"}, "'offset' says that a time span"
    ),
    "video": ({"video": "a.mp4", "offset": 3, "caption": "x"}, "all of the audio or video would be read: cut it out"),
    "chat": (TALK | {"messages": [{"role": "user", "content": [{"type": "audio", "path": "a.wav"}]},
                                  *TALK["messages"]], "offset": 0.5}, "'offset' says"),
}  # fmt: skip


@pytest.mark.parametrize("fields, words", STRETCHES.values(), ids=STRETCHES)
def test_words_of_a_stretch_are_not_those_of_all(tmp_path, fields, words):
    documents, (bad,) = read(manifest(tmp_path, [fields]))
    assert not documents and words in bad.reason
    documents, bad = read(manifest(tmp_path, [fields | {"offset": 0.0}]))
    assert len(documents) == 1 and not bad


def test_other_words_for_stretches(tmp_path):
    lines = [{"video": "a.mp4", "caption": "x", "start": 1.0, "end": 2.0}, {"text": "x", "offset": 9, "start": 4}]
    source = open_source(manifest(tmp_path, lines))
    bad, document = source.documents()
    assert "fields 'start' and 'end' say that a time span is meant" in bad.reason and texts(document) == "x"
    # what stands beside a text is only named
    assert sorted(source.skipped) == [f"note: field {key!r} was not read" for key in ("offset", "start")]


def test_an_offset_in_a_table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"audio": ["a.wav"] * 2, "text": ["x"] * 2, "offset": [0.0, 2.5]}), tmp_path / "t.parquet")
    documents, (bad,) = read(tmp_path / "t.parquet")
    assert len(documents) == 1 and "'offset'" in bad.reason


NAMED_AFTER = {
    "text": ({"a.jpg": "", "a.jpg.txt": "A"}, {"a": ("a.jpg", "A")}),
    "json": ({"d/a.jpg": "", "d/a.jpg.json": {"caption": "A"}}, {"d/a": ("d/a.jpg", "A")}),
    "two of one name": (
        {"a.jpg": "", "a.png": "", "a.jpg.txt": "J", "a.png.txt": "P"},
        {"a.jpg": ("a.jpg", "J"), "a.png": ("a.png", "P")},
    ),
    "beside plain ones": (
        {"a.jpg": "", "a.txt": "A", "b.JPG": "", "b.JPG.txt": "B"},
        {"a": ("a.jpg", "A"), "b": ("b.JPG", "B")},
    ),
}


@pytest.mark.parametrize("files, found", NAMED_AFTER.values(), ids=NAMED_AFTER)
def test_words_named_after_all_of_a_medium(tmp_path, files, found):
    documents, bad = read(write(tmp_path, files))
    assert not bad and {d.id: (media(d)[0][1], texts(d)) for d in documents} == found


@pytest.mark.parametrize("ending", [".lab", ".srt", ".vtt", ".tags", ".normalized.txt"])
def test_words_of_other_endings_are_named(tmp_path, ending):
    write(tmp_path, {"a.wav": "", f"a{ending}": "words"})
    if ending != ".normalized.txt":
        assert f"rename 'a{ending}' to end in .txt" in refusal(tmp_path)
    write(tmp_path, {"b.wav": "", "b.txt": "B"})
    documents, (bad,) = read(tmp_path)
    assert len(documents) == 1 and f"rename 'a{ending}' to a.txt if it holds plain text" in bad.reason


@pytest.mark.parametrize("role", ["prompter", "Assistant", "human", "gpt", "system"])
def test_one_turn_of_a_conversation_is_no_text(tmp_path, role):
    lines = [{"message_id": "1", "parent_id": None, "text": "q", "role": role}, {"text": "a play", "role": "Hamlet"}]
    (document,), (bad,) = read(manifest(tmp_path, lines))
    assert texts(document) == "a play" and "'role' says that this is one turn" in bad.reason


SOURCES = {
    "bytes": ({"type": "base64", "media_type": "image/png", "data": "AA"}, "holds its bytes in the text"),
    "address": ({"type": "url", "url": "https://x.org/a.png"}, "is remote"),
    "up": ({"type": "url", "url": "../a.png"}, "leaves the manifest's folder"),
    "path": ({"type": "file", "path": "a.png"}, ""),
}


@pytest.mark.parametrize("source, words", SOURCES.values(), ids=SOURCES)
def test_the_source_of_a_content_part(tmp_path, source, words):
    content = [{"type": "image", "source": source}, {"type": "text", "text": "q"}]
    talk = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]}
    documents, bad = read(manifest(tmp_path, [talk]))
    assert len(documents) == (not words) and (not words or words in bad[0].reason)
    assert not documents or media(documents[0])[0][1] == "a.png"


FOREIGN = [
    "a.h5",
    "a.tfrecord-00000-of-00002",
    "data.mdb",
    "a.pkl",
    "shard.00000.mds",
    "a.npz",
    "a.safetensors",
    "x.db",
]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("card", [{}, {"README.md": "# card"}, {"index.json": {"shards": [{"a": 1}]}}], ids=str)
def test_data_of_other_programs_are_named(tmp_path, name, card):
    said = refusal(write(tmp_path, {name: bytes(64)} | card))
    assert name in said and "write its rows as JSON lines or Parquet" in said
    if name != "a.npz":
        assert "write its rows as JSON lines or Parquet" in refusal(tmp_path / name)


BESIDE = {
    "a table and a tar": {"b.parquet": b"PAR1", "c.tar": b""},
    "a table of words": {"b.csv": "text\nx\n", "c.tsv": "text\nx\n"},
    "other data": {"b.h5": b"x", "c.pkl": b"x"},
}


@pytest.mark.parametrize("others", BESIDE.values(), ids=BESIDE)
def test_what_lies_beside_a_manifest_is_counted(tmp_path, others):
    source = open_source(write(tmp_path, {"a.jsonl": '{"text": "a"}\n{"text": "b"}\n'} | others))
    assert len(list(source.documents())) == 2 and sum(source.skipped.values()) == 2
    assert all("beside what is read" in reason or "other data" in reason for reason in source.skipped)


def test_a_manifest_that_another_stands_for_is_counted(tmp_path):
    lines = '{"text": "a"}\n{"text": "b"}\n'
    source = open_source(write(tmp_path, {"metadata.jsonl": lines, "more.jsonl": lines, "notes.txt": "x"}))
    assert len(list(source.documents())) == 2
    assert sum(source.skipped.values()) == 2 and "file .jsonl beside what is read" in next(iter(source.skipped))


def test_what_lies_beside_tars_is_counted(tmp_path):
    from tests.data.formats.test_webdataset_names import tar

    write(tmp_path, {"d/b.parquet": b"PAR1", "c.csv": "x\n", "._s.tar": b"x", "README.md": "# card"})
    tar(tmp_path / "s.tar", [("1.txt", "x")])
    source = open_source(tmp_path)
    assert [texts(document) for document in source.documents()] == ["x"]
    assert sum(source.skipped.values()) == 2


def test_what_a_mac_notes_beside_files_is_passed_over(tmp_path):
    files = {"a.jpg": "", "a.txt": "A", "._a.jpg": "x", "._a.txt": "x", ".DS_Store": "x", "b/.hidden.png": ""}
    (document,), bad = read(write(tmp_path, files))
    assert not bad and texts(document) == "A" and open_source(tmp_path).format == "media"


@pytest.mark.parametrize(
    "value", ["iVBORw0KGgoAAAANSUhEUg==", "/9j/4AAQSkZJRg==", "R0lGODlhAQ==", "data:image/png;base64,A"]
)
def test_bytes_written_into_a_field(tmp_path, value):
    documents, (bad,) = read(manifest(tmp_path, [{"image": value.replace("==", "A" * 60), "text": "x"}]))
    assert not documents and "holds its bytes in the text" in bad.reason


def test_backslashes_in_a_path(tmp_path):
    from brine.data.document import DocumentError
    from brine.data.files.resolve import resolve_media

    write(tmp_path, {"images/a.png": "x"})
    with pytest.raises(DocumentError, match="does not exist, with its backslashes: write '/'"):
        resolve_media(tmp_path, "images\\a.png", max_file_mib=1)


def test_files_of_one_document_each(tmp_path):
    said = refusal(write(tmp_path, {"x/a.json": {"text": "A"}, "x/b.json": json.dumps({"text": "B"}, indent=2)}))
    assert "is one document, and no media file is beside it" in said
    follow_command(said)
    assert [texts(document) for document in read(tmp_path / "documents.jsonl")[0]] == ["A", "B"]


CLONE = {".git/config": "x", "data/train.jsonl": '{"text": "a"}', "data/test.jsonl": '{"text": "b"}'}
CARDS = {
    "large files": {".gitattributes": "*.zip filter=lfs diff=lfs\n", "README.md": "# card"},
    "a card with fields": {"README.md": "---\nlicense: mit\n---\n# card"},
    "a script": {"README.md": "---\nlicense: mit\n---\n", "birds.py": "import os\n"},
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_clone_of_a_data_set_is_no_repository_of_code(tmp_path, card):
    documents, bad = read(write(tmp_path, CLONE | card))
    assert not bad and [(texts(d), d.split) for d in documents] == [("b", "test"), ("a", "train")]


@pytest.mark.parametrize(
    "others", [{}, {"a.py": "import a\n", "README.md": "---\nx: y\n---\n", "b.py": "import b\n"}], ids=len
)
def test_a_repository_with_data_stays_one(tmp_path, others):
    files = {name.replace("data/", "tests/data/"): content for name, content in CLONE.items()}
    assert open_source(write(tmp_path, files | {"main.py": "import os\n"} | others)).format == "repository"


def test_files_of_no_known_kind_are_named(tmp_path):
    """nanoGPT's train.bin: nothing said what the folder was seen to hold."""
    said = refusal(
        write(tmp_path, {"train.bin": bytes(8), "val.bin": bytes(8), "x/meta.weird": bytes(8), "x/y": bytes(8)})
    )
    assert (
        "holds nothing that is read, but files of no known kind ('train.bin', 'val.bin', 'x/meta.weird' and 1 more)"
        in said
    )
