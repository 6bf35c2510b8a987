"""Folders as people have them: pages, repositories, media with captions; what is refused, and how splits are dealt."""

import json
import os
import shutil
import subprocess

import pytest

from brine.data.document import Audio, Image, Text
from brine.data.formats.open import FORMATS, open_source
from brine.data.formats.splits.hash_split import assign_splits, hash_split
from tests.data.format_files import EVERY, encoded, media, read, texts
from tests.data.media_files import line, manifest, picture


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
    excluded = {"a.log", "build/out.py", "build/keep.log", "sub/vendored/lib.py", "#odd", "sub/gone.py", "sub/no.txt"}
    return set(files) - excluded - {"x/deep/a.tmp", "keep.d/z.c"}


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
    assert source.skipped == {"binary file": 1, "empty file": 1, "media file": 4, "folder of tools or too deep": 1}
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
    (room / "page.md").write_text("page ![](m/a.png) ![](m/s.wav)", encoding="utf-8")
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
        tmp_path / "linked": "manifest.jsonl is a link out of the folder",
        tmp_path / "pipe": "is not a regular file or folder",
        tmp_path / "poem.json": "no JSON object of a known record format",
        tmp_path / "empty": "holds nothing that is read",
        room: "4 media files but no caption beside them",
    }
    for path, words in cases.items():
        with pytest.raises(ValueError) as caught:
            open_source(path)
        assert words in str(caught.value)
        if "known record format" in words or "hold" in words:
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
    assert splits == assign_splits(reversed(names)) and splits == {name: hash_split(name) for name in names}
    for count in range(10, 60):
        assert set(assign_splits(names[:count]).values()) == {"train", "validation", "test"}
    few = assign_splits(names[:9])
    assert few == {name: hash_split(name) for name in names[:9]}


def test_small_sources_hold_something_out_and_large_ones_keep_the_rule(tmp_path):
    lines = [{"id": f"x{number}", "text": "t"} for number in range(300)]
    small = {document.id: document.split for document in read(manifest(tmp_path / "s", lines[:10]))[0]}
    assert set(small.values()) == {"train", "validation", "test"}
    large = {document.id: document.split for document in read(manifest(tmp_path / "l", lines))[0]}
    assert large == {name: hash_split(name) for name in large} and len(large) == 300
    # the native form says train by saying nothing
    native = read(manifest(tmp_path / "n", [line(f"{number}", "x") for number in range(40)]))[0]
    assert {document.split for document in native} == {"train"}
