"""Formats of one document a line, or one array of them: content parts, chat, LLaVA, OBELICS, captions."""

import json

import pytest

from brine.data.document import Audio, Document, Image, Text, Video, write_manifest
from brine.data.formats.open import open_source
from tests.data.format_files import EVERY, encoded, media, read, texts
from tests.data.media_files import line, manifest


def test_content_parts(room, tokenizer, config):
    document = Document(
        "d", (Text("x"), Image("m/a.png"), Audio("m/s.wav"), Video("m/v.mp4", use_audio=False), Text("y")), split="test"
    )
    write_manifest(room / "any name.jsonl", [document])
    source = open_source(room / "any name.jsonl")
    assert (source.format, source.root, source.num_documents_hint) == ("content-parts", room.resolve(), 1)
    assert list(source.documents()) == [document]
    encoded(document, source.root, tokenizer, config)


def test_chat(room, tokenizer, config):
    parts = [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "m/a.png"}},
        {"type": "audio", "path": "m/s.wav", "text": None},
        {"type": "video", "video": "m/v.mp4"},
    ]
    lines = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": parts},
                {"role": "assistant", "content": "A heron."},
            ]
        },
        {
            "id": 7,
            "split": "test",
            "conversations": [
                {"role": "user", "content": "<image> or <image>?"},
                {"role": "assistant", "content": [{"type": "text", "text": "The second."}]},
            ],
            "images": ["m/a.png", {"path": "m/b.png"}],
        },
        {"messages": [{"role": "user", "content": "the <image> tag?"}, {"role": "assistant", "content": "`<image>`"}]},
    ]
    documents, bad = read(manifest(room, lines))
    assert not bad and open_source(room).format == "chat"
    first, second, third = documents
    assert media(first) == EVERY
    assert texts(first) == "<system>\nBe brief.\n<user>\nWhat?\n<assistant>\nA heron."
    assert texts(first, loss_mask=True) == "A heron." and first.id == "manifest#1"
    assert [part.role for part in first.parts[:2]] == ["system", "system"] and first.parts[-1].role == "assistant"
    assert (second.id, second.split) == ("7", "test")
    assert media(second) == [(Image, "m/a.png"), (Image, "m/b.png")]
    assert texts(second, loss_mask=False) == "<user>\n or ?\n<assistant>\n"
    # in quotes of code the word is only a word
    assert texts(third, loss_mask=True) == "`<image>`" and not media(third)
    encoded(first, room, tokenizer, config)


@pytest.mark.parametrize(
    "messages,words",
    [
        ("x", "'messages' must be a list"),
        ([], "not empty"),
        (["x"], "message 0: must be an object, not str"),
        ([{"role": 3, "content": "x"}], "role must be a short word"),
        ([{"role": "user\n<assistant>", "content": "x"}], "role must be a short word"),
        ([{"role": "user", "content": 5}], "'content' must be a string or a list, not int"),
        ([{"role": "user", "content": ["x"]}], "content part 0: must be an object, not str"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "'text' must be of type str, not int"),
        ([{"role": "user", "content": [{"type": ["a"], "text": 1}]}], "is none of text, image"),
        ([{"role": "user", "content": [{"type": "image"}]}], "more <image> placeholders than media (0 listed)"),
        ([{"role": "user", "content": [{"type": "image", "image": 4}]}], "names no file"),
        ([{"role": "user", "content": [{"type": "image", "image": "../x.png"}]}], "leaves the manifest's folder"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://host/x.png"}}]}],
            "remote ('https://host/x.png'): download it",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "url": "data:image/png;base64,AA"}]}],
            "store it as a file",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]}],
            "store it as a file",
        ),
        ([{"role": "user", "content": "hello"}], "nothing to learn from"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}], "tool calls are not read"),
        ([{"role": "assistant", "content": "\ud800"}], "lone surrogate"),
    ],
    ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else "",
)
def test_chat_says_what_is_wrong(tmp_path, messages, words):
    documents, bad = read(manifest(tmp_path, [{"id": "c", "messages": messages}]))
    assert not documents and bad[0].id == "c" and bad[0].line == 1
    assert bad[0].reason.startswith("line 1: ") and words in bad[0].reason


def llava(value, answer="Yes.", **fields):
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]} | fields


LLAVA = [
    llava("<image>\nWhat?", "A heron.", id="same", image="m/a.png"),
    llava("<image> or <image>", id="same", image=["m/b.png", "m/a.png"]),
    llava("Watch <video> hear <audio> see <image>", id="all", video="m/v.mp4", audio="m/s.wav", image=["m/a.png"]),
    llava("Plain words", id="text", model=""),
]


@pytest.mark.parametrize("as_array", [True, False], ids=["array", "jsonl"])
def test_llava(room, tokenizer, config, as_array):
    path = room / "llava.json"
    whole = json.dumps(LLAVA, indent=1) if as_array else "\n".join(map(json.dumps, LLAVA))
    path.write_text(whole, encoding="utf-8")
    documents, bad = read(path)
    assert not bad and open_source(path).format == "llava"
    if as_array:
        assert open_source(room).path == room and open_source(room).format == "llava"
    # an image's id stands on each of its conversations: none is lost, and they stay in one split
    assert [document.id for document in documents] == ["same", "same~2", "all", "text"]
    assert texts(documents[0]) == "<user>\n\nWhat?\n<assistant>\nA heron."
    assert texts(documents[0], loss_mask=True) == "A heron."
    assert media(documents[1]) == [(Image, "m/b.png"), (Image, "m/a.png")]
    assert media(documents[2]) == [EVERY[2], EVERY[1], EVERY[0]] and not media(documents[3])
    assert documents[0].split == documents[1].split
    encoded(documents[2], room, tokenizer, config)


@pytest.mark.parametrize(
    "entry,words",
    [
        (llava("<image> <image>", image="m/a.png"), "more <image> placeholders than media (1 listed)"),
        (llava("nothing", image="m/a.png"), "1 media listed as image, but 0 <image> placeholders"),
        (llava("<video>"), "more <video> placeholders than media (0 listed)"),
        (llava("<image>", image=3), "image 1 names no file"),
        (llava("<image>", image="/etc/passwd"), "not relative"),
        ({"conversations": {}}, "must be a list of turns"),
        ({"conversations": [{"from": "human"}]}, "turn 0: must be an object with the strings 'from' and 'value'"),
        (llava("x", id=["a"]), "'id' must be of type str, not list"),
        (llava("x", split="fold 3"), "'split' must be one of"),
    ],
    ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else "",
)
def test_llava_says_what_is_wrong(tmp_path, entry, words):
    path = tmp_path / "l.json"
    path.write_text(json.dumps([entry, llava("good")]), encoding="utf-8")
    documents, bad = read(path)
    assert len(documents) == 1 and len(bad) == 1
    assert bad[0].reason.startswith("entry 1: ") and words in bad[0].reason


def test_obelics(room, tokenizer, config):
    lines = [
        {"texts": ["One. ", None, "Two.", "Three."], "images": [None, "m/a.png", None, None], "metadata": "[null]"},
        {"texts": ["a"], "images": []},
        {"texts": [None], "images": ["m/a.png"]},
        {"texts": ["a", 3], "images": [None, None]},
        {"texts": "a", "images": [None]},
        {"texts": ["a", None], "images": [None, "http://host/x.jpg"]},
    ]
    documents, bad = read(manifest(room, lines))
    (page,) = documents
    assert page.parts == (Text("One. "), Image("m/a.png"), Text("Two."), Text("\n\n"), Text("Three."))
    expected = ["must be parallel", "has no text", "text 1 must be a string", "must be of type list", "is remote"]
    assert [item.line for item in bad] == [2, 3, 4, 5, 6]
    assert all(words in item.reason for words, item in zip(expected, bad, strict=True))
    encoded(page, room, tokenizer, config)


@pytest.mark.parametrize(
    "pairs,parts",
    [
        ([("a", None), ("b", "m/a.png")], (Text("a"), Image("m/a.png"), Text("b"))),
        ([(None, None), ("a", None), ("", None)], (Text("a"),)),
        ([(None, {"path": "m/a.png"}), (None, "m/a.png"), ("a", None)], (*[Image("m/a.png")] * 2, Text("a"))),
        ([("The tag <image> of SVG", None)], (Text("The tag <image> of SVG"),)),
    ],
    ids=["text beside its picture", "empty places", "pictures first", "a word like a placeholder"],
)
def test_obelics_of_odd_pages(tmp_path, pairs, parts):
    texts, images = zip(*pairs, strict=True)
    (page,), bad = read(manifest(tmp_path, [{"texts": texts, "images": images}]), format="obelics")
    assert not bad and page.parts == parts


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"texts": ["a", None, None], "images": [None, "../x.png", None]}, "leaves the manifest's folder"),
        ({"texts": ["<image>\r\n"], "images": [None]}, "more <image> placeholders than media (0 listed)"),
        ({"texts": ["a", None], "images": [None, "/etc/passwd"]}, "not relative"),
        ({"texts": ["a", None], "images": [None, {"bytes": "iVBORw0K"}]}, "names no file"),
        ({"texts": ["a", "\ud800"], "images": [None, None]}, "lone surrogate"),
        ({"texts": [None] * 3, "images": [None] * 3}, "has no text"),
        ({"texts": {"a": 1}, "images": []}, "must be of type list"),
        ({"texts": [["a"]], "images": [None]}, "must be a string"),
    ],
    ids=["climbs", "placeholder", "absolute", "bytes", "surrogate", "nothing", "object", "list"],
)
def test_obelics_says_what_is_wrong(tmp_path, fields, words):
    documents, bad = read(manifest(tmp_path, [fields, {"texts": ["good"], "images": [None]}]), format="obelics")
    assert len(documents) == 1 and len(bad) == 1 and words in bad[0].reason


TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}]
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "A"}]
LISTS = {
    "a list a line": f"{json.dumps(TALK)}\n{json.dumps(TURNS)}\n",
    "ends of old Macs": f"\ufeff{json.dumps(TALK)}\r{json.dumps(TURNS)}",
    "ends of Windows and blank lines": f"\r\n{json.dumps(TALK)} \r\n\r\n{json.dumps(TURNS)}\r\n",
    "an array of them": json.dumps([TALK, TURNS]),
    "an array with indents": json.dumps([TALK, TURNS], indent=2),
    "a list and an object": f"{json.dumps(TALK)}\n{json.dumps({'messages': TALK})}\n",
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_conversations_as_lists(tmp_path, name, content):
    """The first line was taken for the whole file, each of its messages for a text, and no other line was read."""
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    for path in (tmp_path / name, tmp_path):
        documents, bad = read(path)
        assert not bad and [texts(d) for d in documents] == ["<user>\nq\n<assistant>\nA"] * 2
        assert [texts(d, loss_mask=True) for d in documents] == ["A"] * 2


@pytest.mark.parametrize(
    "content, num_good, words",
    [
        ('[{"text": "a"}]\n{"text": "b"}\n', 1, "must be a JSON object, not list"),
        ('[{"text": "a"}][{"text": "b"}]', 1, "more follows behind the array's end"),
        ('[{"text": "a"}]]', 1, "more follows behind the array's end"),
        ("[]\n" + json.dumps(TALK), 1, "must be a JSON object, not list"),
        (json.dumps(TALK[0]) + "\n" + json.dumps(TALK[1]), 0, "one turn of a conversation"),
        (json.dumps({"role": "user", "content": [{"type": "text", "text": "q"}]}), 0, "one turn of a conversation"),
        (json.dumps([TALK[0]]), 0, "one turn of a conversation"),
        ('[{"role": "user", "content": "q"}, "x"]\n[1]\n', 0, "must be a JSON object, not list"),
        (json.dumps(TALK) + "\n" + json.dumps(TALK)[:-9] + "\n", 1, "not JSON"),
    ],
    ids=["lines", "arrays", "bracket", "empty", "messages", "message of parts", "one message", "no turns", "cut"],
)
def test_lists_that_are_no_conversations_and_what_follows_an_array(tmp_path, content, num_good, words):
    (tmp_path / "a.jsonl").write_text(content)
    documents, bad = read(tmp_path / "a.jsonl")
    assert len(documents) == num_good and bad and all(words in item.reason for item in bad)


def test_captioned_and_mixed_lines(room, tokenizer, config):
    lines = [
        {"file_name": "m/a.png", "text": "heron"},
        {"audio_filepath": "m/s.wav", "duration": 0.4, "text": "tone"},
        {"video": "m/v.mp4", "caption": "grey"},
        {"text": "words alone"},
        {"image": "m/a.png", "captions": ["one", "two"]},
        {"image": "m/a.png", "text": 4},
        {"file_name": "m/a.xyz", "text": "x"},
        {"smell": "x"},
    ]
    documents, bad = read(manifest(room, lines))
    assert [media(document) for document in documents] == [*([entry] for entry in EVERY), [], EVERY[:1]]
    assert [texts(document) for document in documents] == ["heron", "tone", "grey", "words alone", "one"]
    assert [document.kind for document in documents] == ["image", "audio", "video", "text", "image"]
    assert [item.line for item in bad] == [6, 7, 8]
    assert "'text' must be of type str, not int" in bad[0].reason and "has an extension of no image" in bad[1].reason
    assert "none of the record formats that are read" in bad[2].reason
    for document in documents[:3]:
        encoded(document, room, tokenizer, config)
    mixed = manifest(room / "mixed", [line("a", "x"), *lines[3:4], llava("q", id="a")])
    assert open_source(mixed).format == "manifest"
    assert [document.id for document in read(mixed)[0]] == ["a", "manifest#2", "a~2"]


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"caption": {"en": "x"}}, "'caption' must be of type str, not dict"),
        ({"captions": [3]}, "'captions' must be of type str, not int"),
        ({"captions": [["x"]]}, "'captions' must be of type str, not list"),
        ({"text": True}, "'text' must be of type str, not bool"),
        ({"text": "\ud83d"}, "lone surrogate"),
        ({"text": ""}, "no text to train on"),
        ({"text": None, "label": 3}, "no text to train on"),
        ({"text": [], "caption": None}, "no text to train on"),
    ],
    ids=["object", "number", "list", "bool", "surrogate", "empty", "class", "nothing"],
)
def test_words_of_a_wrong_type(tmp_path, fields, words):
    documents, (bad,) = read(manifest(tmp_path, [{"image": "m/a.png"} | fields]))
    assert not documents and words in bad.reason


def test_several_jsonl_files_name_their_split(tmp_path):
    for name in ("train-0", "train-1", "val"):
        lines = [{"text": f"{name} {number}"} for number in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    documents, bad = read(tmp_path)
    assert not bad and [document.split for document in documents] == ["train"] * 6 + ["validation"] * 3
    assert documents[3].id == "train-1#1"
    before = open_source(tmp_path).fingerprint()
    (tmp_path / "val.jsonl").write_text('{"text": "other"}', encoding="utf-8")
    assert open_source(tmp_path).fingerprint() != before


def test_array_survives_bad_elements(tmp_path):
    """Syntax errors, wrong types, bytes that are no UTF-8, deep nests: each costs one entry, wherever windows end."""
    path = tmp_path / "l.json"
    good = [json.dumps({"id": f"g{number}", "text": 'brace } quote \\" ' * 20}) for number in range(4)]
    deep = "[" * 100_000 + "]" * 100_000
    pieces = [good[0], '{"text": "a" "b", "x": [1, {"y": "]}"}]}', good[1], "nonsense", "17", '"s"', deep, good[2]]
    pieces += ['{"text": "\\q"}', good[3]]
    content = "[" + ",\n ".join(pieces) + "]"
    path.write_bytes(content.encode().replace(b"nonsense", b'{"text": "\xff"}'))
    documents, bad = read(path, format="captioned")
    assert [document.id for document in documents] == ["g0", "g1", "g2", "g3"]
    assert [item.line for item in bad] == [2, 4, 5, 6, 7, 9]
    words = ("not JSON", "lone surrogate", "not int", "not str", "JSON", "not JSON")
    assert all(word in item.reason for word, item in zip(words, bad, strict=True))
    path.write_text(content[: content.index("nonsense") + 4], encoding="utf-8")
    documents, bad = read(path, format="captioned")
    assert len(documents) == 2 and "it was cut" in bad[-1].reason


@pytest.mark.slow
def test_array_is_read_in_bounded_windows(tmp_path):
    """Elements that lie across windows are whole; one over the limit is stepped over without being held."""
    import tracemalloc

    path = tmp_path / "l.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write("[")
        for number in range(12):
            file.write(json.dumps({"id": f"{number}", "text": "é\\" * (200_000 + number)}) + ",")
        file.write(json.dumps({"id": "huge", "text": 'x"' * 9_000_000}) + ',{"id": "last", "text": "y"}]')
    tracemalloc.start()
    items = []
    for item in open_source(path, max_line_mib=2.0).read(False, {}):
        size = len(item.parts[0].text) if isinstance(item, Document) else 0
        items.append((item.id, size, getattr(item, "reason", "")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [name for name, *_ in items] == [*map(str, range(12)), "entry 13", "last"]
    assert [size for _, size, _ in items[:12]] == [2 * (200_000 + number) for number in range(12)]
    assert "longer than max_line_mib=2" in items[12][2]
    # the element alone has 27 MB
    assert peak < 24 * 2**20
