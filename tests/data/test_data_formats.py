"""Each format of JSON and of folders: written from known documents, read back, and one of each medium encoded."""

import json
import os
import shutil
import subprocess

import pytest
from media_files import film, line, manifest, picture, sound

from data.document import Audio, Document, Image, Quarantined, Text, Video, write_manifest
from data.encode import encode
from data.formats import FORMATS, open_source
from data.formats.splits import assign_splits, split_of


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A folder with one picture, one sound and one film."""
    root = tmp_path_factory.mktemp("material")
    picture(root / "m/a.png", 40, 24)
    picture(root / "m/b.png", 20, 20, seed=1)
    sound(root / "m/s.wav", 0.4)
    film(root / "m/v.mp4", 1.0)
    return root


@pytest.fixture()
def room(material, tmp_path):
    """The same in a folder that a test may write to."""
    return shutil.copytree(material, tmp_path / "room")


def read(path, **options):
    """(documents, quarantined) of a source, read twice: order and content must not change."""
    source = open_source(path, **options)
    items = list(source.documents())
    assert items == list(source.documents())
    for item in items:
        assert isinstance(item, Quarantined) or item.split in ("train", "validation", "test")
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Quarantined)]


def encoded(document, root, tokenizer, config):
    """Media tokens of a document, each of which must be there when the document has such a medium."""
    sequence = encode(document, root=root, tokenizer=tokenizer, config=config)
    for kind, name in ((Image, "image"), (Audio, "audio"), (Video, "video")):
        assert bool(len(getattr(sequence, name))) == any(isinstance(part, kind) for part in document.parts)
    return sequence


def texts(document, *, learn=None) -> str:
    return "".join(p.text for p in document.parts if isinstance(p, Text) and (learn is None or p.learn == learn))


def media(document) -> list[tuple[type, str]]:
    return [(type(part), part.path) for part in document.parts if not isinstance(part, Text)]


EVERY = [(Image, "m/a.png"), (Audio, "m/s.wav"), (Video, "m/v.mp4")]


def test_content_parts(room, tokenizer, config):
    document = Document(
        "d", (Text("x"), Image("m/a.png"), Audio("m/s.wav"), Video("m/v.mp4", sound=False), Text("y")), split="test"
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
        {"messages": [{"role": "user", "content": "say <image>"}, {"role": "assistant", "content": "<image>"}]},
    ]
    documents, bad = read(manifest(room, lines))
    assert not bad and open_source(room).format == "chat"
    first, second, third = documents
    assert media(first) == EVERY
    assert texts(first) == "<system>\nBe brief.\n<user>\nWhat?\n<assistant>\nA heron."
    assert texts(first, learn=True) == "A heron." and first.id == "manifest#1"
    assert [part.role for part in first.parts[:2]] == ["system", "system"] and first.parts[-1].role == "assistant"
    assert (second.id, second.split) == ("7", "test")
    assert media(second) == [(Image, "m/a.png"), (Image, "m/b.png")]
    assert texts(second, learn=False) == "<user>\n or ?\n<assistant>\n"
    # without a list of pictures the word is only a word
    assert texts(third, learn=True) == "<image>" and not media(third)
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
    # a picture's id stands on each of its conversations: none is lost, and they stay in one split
    assert [document.id for document in documents] == ["same", "same~2", "all", "text"]
    assert texts(documents[0]) == "<user>\n\nWhat?\n<assistant>\nA heron."
    assert texts(documents[0], learn=True) == "A heron."
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
        (llava("x", split="dev"), "'split' must be one of"),
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
    assert "'text' must be of type str, not int" in bad[0].reason and "ending" in bad[1].reason
    assert "none of the forms that are read" in bad[2].reason
    for document in documents[:3]:
        encoded(document, room, tokenizer, config)
    mixed = manifest(room / "mixed", [line("a", "x"), *lines[3:4], llava("q", id="a")])
    assert open_source(mixed).format == "manifest"
    assert [document.id for document in read(mixed)[0]] == ["a", "manifest#2", "a~2"]


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


def test_markdown_folder(room, tmp_path, tokenizer, config):
    (room / "sub").mkdir()
    pages = {
        "z.md": "# Z\n![a](m/a.png)![s](m/s.wav)![v](m/v.mp4)end",
        "sub/a.markdown": "![b](../m/b.png) x ![n](no.png)",
    }
    pages |= {"sub/root.md": "![site](/m/a.png)", "bad.md": "![up](../../x.png)", ".hidden/x.md": "no"}
    for name, page in pages.items():
        (room / name).parent.mkdir(exist_ok=True)
        (room / name).write_text(page, encoding="utf-8")
    (room / "latin.md").write_bytes("é".encode("latin-1"))
    (room / "empty.md").write_bytes(b"")
    documents, bad = read(room)
    assert open_source(room).format == "markdown"
    assert [document.id for document in documents] == ["sub/a.markdown", "sub/root.md", "z.md"]
    assert documents[0].parts == (Image("m/b.png"), Text(" x ![n](no.png)"))
    assert texts(documents[1]) == "![site](/m/a.png)"
    assert media(documents[2]) == EVERY and texts(documents[2]) == "# Z\nend" and documents[2].source == "room"
    assert {item.id: item.reason for item in bad}.keys() == {"bad.md", "latin.md", "empty.md"}
    assert "not UTF-8" in bad[-1].reason
    encoded(documents[2], room, tokenizer, config)


def git_tree(root):
    """A repository with every trick of .gitignore that matters; returns the files it should give."""
    files = {
        ".gitignore": "*.log\n!keep.log\n/build/\nvendored\n\\#odd\n# comment\n**/deep/*.tmp\n\n",
        "main.py": "import os\n",
        "a.log": "x\n",
        "keep.log": "kept\n",
        "build/out.py": "x\n",
        "build/keep.log": "a folder that is ignored is not entered\n",
        "sub/build/in.py": "only the top one is ignored\n",
        "sub/vendored/lib.py": "x\n",
        "#odd": "x\n",
        "sub/.gitignore": "*.py\n!in.py\n*.txt\n",
        "sub/gone.py": "x\n",
        "sub/more/.gitignore": "!*.txt\n",
        "sub/more/back.txt": "named again\n",
        "sub/no.txt": "x\n",
        "x/deep/y/a.tmp": "not directly in deep\n",
        "x/deep/a.tmp": "x\n",
        "keep.d/.gitignore": "*\n!.gitignore\n",
        "keep.d/z.c": "x\n",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    left_out = {"a.log", "build/out.py", "build/keep.log", "sub/vendored/lib.py", "#odd", "sub/gone.py", "sub/no.txt"}
    return set(files) - left_out - {"x/deep/a.tmp", "keep.d/z.c"}


def test_repository_gives_what_git_would_keep(tmp_path):
    kept = git_tree(tmp_path)
    documents, bad = read(tmp_path, format="repository")
    assert not bad and {document.id for document in documents} == kept
    if shutil.which("git"):
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, env=environment, check=True)
        listed = subprocess.run(
            ["git", "ls-files", "--others", "--exclude-standard", "-z"],
            cwd=tmp_path, env=environment, check=True, capture_output=True,
        )  # fmt: skip
        assert set(listed.stdout.decode().strip("\0").split("\0")) == kept
        assert open_source(tmp_path).format == "repository"


def test_repository(room, tokenizer, config):
    (room / ".git/info").mkdir(parents=True)
    (room / ".git/info/exclude").write_text("private.py\n", encoding="utf-8")
    (room / ".git/config.py").write_text("no", encoding="utf-8")
    (room / "private.py").write_text("no", encoding="utf-8")
    (room / "README.md").write_text("![a](m/a.png) words", encoding="utf-8")
    (room / "main.py").write_text("import os\r\n", encoding="utf-8", newline="")
    (room / "notes.txt").write_text("notes", encoding="utf-8")
    (room / "bin.dat").write_bytes(b"a\0b")
    (room / "latin.c").write_bytes(b"\xe9")
    (room / "huge.js").write_bytes(b"x" * (2 * 2**20 + 1))
    (room / "no/empty").mkdir(parents=True)
    (room / "no/empty/a.py").write_bytes(b"")
    source = open_source(room)
    documents, bad = read(room)
    assert [(document.id, document.kind) for document in documents] == [
        ("README.md", "doc"),
        ("main.py", "code"),
        ("notes.txt", "text"),
    ]
    assert documents[0].parts == (Text("README.md\n"), Image("m/a.png"), Text(" words"))
    assert texts(documents[1]) == "main.py\nimport os\n"
    assert {item.id for item in bad} == {"latin.c", "huge.js"}
    list(source.documents())
    assert source.skipped == {"binary file": 1, "empty file": 1, "medium": 4, "folder of tools or too deep": 1}
    encoded(documents[0], room, tokenizer, config)


def test_media_folder(room, tokenizer, config):
    for name, words in (("a.txt", "heron"), ("b.json", '{"caption": "wren"}'), ("s.txt", "tone"), ("v.txt", "grey")):
        (room / "m" / name).write_text(words, encoding="utf-8")
    picture(room / "m/lonely.png", 16, 16)
    picture(room / "m/s.png", 16, 16)
    picture(room / "m/odd.png", 16, 16)
    (room / "m/odd.json").write_text('{"caption": 3}', encoding="utf-8")
    documents, bad = read(room)
    assert open_source(room).format == "media"
    assert [(document.id, texts(document)) for document in documents] == [
        ("m/a", "heron"), ("m/b", "wren"), ("m/s", "tone"), ("m/v", "grey"),
    ]  # fmt: skip
    assert media(documents[2]) == [(Image, "m/s.png"), (Audio, "m/s.wav")] and documents[2].kind == "mixed"
    assert {item.id: item.reason.split(":")[0] for item in bad}.keys() == {"m/lonely", "m/odd"}
    for document in documents:
        encoded(document, room, tokenizer, config)
    before = open_source(room).fingerprint()
    (room / "m/a.txt").write_text("crane", encoding="utf-8")
    after = open_source(room).fingerprint()
    picture(room / "m/a.png", 41, 24)
    assert len({before, after, open_source(room).fingerprint()}) == 3


def test_hostile_folder(room, tmp_path):
    """Links in a circle and out of the folder, a pipe, a device: nothing is followed, nothing blocks."""
    (tmp_path / "secret.md").write_text("secret", encoding="utf-8")
    (room / "page.md").write_text("page", encoding="utf-8")
    (room / "loop").symlink_to(room)
    (room / "loop.md").symlink_to("loop.md")
    (room / "out.md").symlink_to(tmp_path / "secret.md")
    (room / "inside.md").symlink_to("page.md")
    (room / "dead.md").symlink_to("nowhere.md")
    (room / "zero.md").symlink_to("/dev/zero")
    (room / "outside").symlink_to(tmp_path)
    os.mkfifo(room / "pipe.md")
    documents, bad = read(room, format="markdown")
    assert [document.id for document in documents] == ["page.md"]
    reasons = {item.id: item.reason for item in bad}
    assert reasons.keys() == {"loop.md", "out.md", "dead.md", "zero.md", "pipe.md"}
    assert "out of the folder" in reasons["out.md"] and "not a regular file" in reasons["pipe.md"]
    for form in ("repository", "media"):
        documents, _ = read(room, format=form)
        assert not any("secret" in texts(document) for document in documents)
    assert len(open_source(room, format="markdown").fingerprint()) == 64


def test_a_run_inside_its_material_is_no_part_of_it(room):
    (room / "page.md").write_text("page", encoding="utf-8")
    before = open_source(room).fingerprint()
    run = room / "runs/notes"
    run.mkdir(parents=True)
    for made in ("lock", "encoded/store/meta.json", "encoded/store/shards/x.md", "report.md"):
        (run / made).parent.mkdir(parents=True, exist_ok=True)
        (run / made).write_text("made", encoding="utf-8")
        assert open_source(room).fingerprint() == before
    (room / "env").mkdir()
    (room / "env/pyvenv.cfg").write_text("", encoding="utf-8")
    (room / "env/x.md").write_text("x", encoding="utf-8")
    assert [document.id for document in read(room)[0]] == ["page.md"]


def test_what_cannot_be_opened_names_the_formats(room, tmp_path):
    (room / "notes.json").write_text("{}", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "poem.json").write_text("roses are red\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}', encoding="utf-8")
    (tmp_path / "linked/manifest.jsonl").symlink_to("../secret.jsonl")
    (tmp_path / "linked/more.jsonl").symlink_to("../secret.jsonl")
    cases = {
        tmp_path / "no": "does not exist",
        tmp_path / "linked": "holds nothing that is read",
        tmp_path / "pipe": "no regular file or folder",
        tmp_path / "poem.json": "no JSON object of a known form",
        tmp_path / "empty": "holds nothing that is read",
        room: "4 media files but no words beside them",
    }
    for path, words in cases.items():
        with pytest.raises(ValueError) as caught:
            open_source(path)
        assert words in str(caught.value)
        if "known form" in words or "hold" in words:
            assert all(name in str(caught.value) for name in FORMATS)
    with pytest.raises(ValueError, match="none of content-parts"):
        open_source(room, format="parquets")
    with pytest.raises(ValueError, match="max_line_mib must be"):
        open_source(room, max_line_mib=0)


def test_records_can_be_written_whatever_the_line_says(tmp_path):
    r"""An id of `\ud800` is legal JSON, and no UTF-8: the record of it once could not be saved."""
    lines = [b'{"id": "\\ud800", "content": 3}', b'{"id": "p", "kind": "image", "path": "\\udfff.png", "text": 3}']
    _, bad = read(manifest(tmp_path, lines))
    assert len(bad) == 2
    for item in bad:
        assert json.loads(json.dumps(item.to_json(), ensure_ascii=False).encode()) == item.to_json()


def test_splits_are_a_function_of_the_id():
    names = [f"document {number}" for number in range(4000)]
    splits = assign_splits(names)
    counts = {split: list(splits.values()).count(split) for split in ("train", "validation", "test")}
    assert all(160 < counts[split] < 240 for split in ("validation", "test"))
    assert splits == assign_splits(reversed(names)) and splits == {name: split_of(name) for name in names}
    for count in range(10, 60):
        assert set(assign_splits(names[:count]).values()) == {"train", "validation", "test"}
    few = assign_splits(names[:9])
    assert few == {name: split_of(name) for name in names[:9]}


def test_small_sources_hold_something_out_and_large_ones_keep_the_rule(tmp_path):
    lines = [{"id": f"x{number}", "text": "t"} for number in range(300)]
    small = {document.id: document.split for document in read(manifest(tmp_path / "s", lines[:10]))[0]}
    assert set(small.values()) == {"train", "validation", "test"}
    large = {document.id: document.split for document in read(manifest(tmp_path / "l", lines))[0]}
    assert large == {name: split_of(name) for name in large} and len(large) == 300
    # the native form says train by saying nothing
    native = read(manifest(tmp_path / "n", [line(f"{number}", "x") for number in range(40)]))[0]
    assert {document.split for document in native} == {"train"}
