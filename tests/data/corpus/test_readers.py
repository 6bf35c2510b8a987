"""Manifests and Markdown pages: what becomes a document, what is set aside, and what is said about it."""

import json
import os
from collections import Counter

import pytest

from brine.data.corpus.readers import iter_texts, read_manifest
from brine.data.document import (
    Audio,
    Document,
    DocumentError,
    Image,
    Quarantined,
    Text,
    Video,
    parse_document,
    write_manifest,
)
from brine.data.files.resolve import resolve_media
from brine.data.formats.folders.markdown import markdown_parts
from brine.data.formats.open import open_source
from tests.data.media_files import line, manifest
from tests.paths import REAL


def test_native_form_round_trips(tmp_path):
    document = Document(
        "a/b.py#1",
        (
            Text("x\n\x00é", loss_mask=False, role="user"),
            Image("a.png"),
            Audio("b/c.wav", role="tool"),
            Video("v.mp4", use_audio=False),
            Video("w.mp4"),
        ),
        kind="page",
        level=3,
        split="test",
        source="cpython",
    )
    assert parse_document(json.loads(json.dumps(document.to_json()))) == document
    assert write_manifest(tmp_path / "m.jsonl", [document]) == 1
    assert list(read_manifest(tmp_path / "m.jsonl")) == [document]


@pytest.mark.parametrize(
    "fields,words",
    [
        ([], "must be a JSON object, not list"),
        ({"content": [{"type": "text", "text": "x"}]}, "field 'id' must be of type str"),
        (line(""), "field 'id' is empty"),
        (line("a\nb", "x"), "control characters"),
        (line("a"), "field 'content' is empty"),
        ({"id": "a", "content": "x"}, "'content' must be of type list, not str"),
        ({"id": "a", "content": ["x"]}, "content part 0 must be an object, not str"),
        ({"id": "a", "content": [{"type": "text", "text": 3}]}, "part 0: field 'text' must be of type str, not int"),
        (
            {"id": "a", "content": [{"type": "text", "text": "x", "loss_mask": 1}]},
            "'loss_mask' must be of type bool, not int",
        ),
        ({"id": "a", "content": [{"type": "text", "text": "\ud800"}]}, "lone surrogate"),
        (
            {"id": "a", "content": [{"type": "smell", "smell": "x"}]},
            "type 'smell' is none of text, image, audio, video",
        ),
        (
            {"id": "a", "content": [{"type": "image"}]},
            "content part 0: field 'image' must be of type str, not NoneType",
        ),
        ({"id": "a", "content": [{"type": "video", "video": "v", "sound": "no"}]}, "'use_audio' must be of type bool"),
        (line("a", "x", level="1"), "'level' must be of type int, not str"),
        (line("a", "x", level=True), "'level' must be of type int, not bool"),
        (line("a", "x", level=-1), "'level' must lie in 0..999"),
        (
            line("a", "x", split="fold"),
            "'split' must be one of train, validation, test (or val, dev, eval ...), not 'fold'",
        ),
        (line("a", "x", kind=None), "'kind' must be of type str, not NoneType"),
        (line("a", {"image": "/etc/passwd"}), "not relative to the manifest's folder"),
        (line("a", {"image": "../x.png"}), "leaves the manifest's folder"),
        (line("a", {"image": "b/../../x.png"}), "leaves the manifest's folder"),
        (line("a", {"image": "https://host/x.png"}), "not relative"),
        (line("a", {"audio": "x\0y"}), "control characters"),
        (line("a", {"audio": ""}), "empty"),
    ],
    ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else "",
)
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(DocumentError) as caught:
        parse_document(fields)
    assert words in str(caught.value)


def test_bad_lines_are_set_aside_with_their_number(tmp_path):
    path = manifest(
        tmp_path,
        [
            line("good", "x"),
            b"{not json",
            b'"only a string"',
            b'{"id": "u", "content": "\xff"}',
            b"[" * 100_000,
            b"",
            line("good", "again"),
            {"id": "n", "kind": "image"},
            {"id": "k", "kind": "smell", "path": "x.bin"},
            {"id": "e", "kind": "image", "path": "x.png", "text": ""},
            {"id": "t", "kind": "image", "path": "x.png", "text": ["a"]},
            {"id": "s", "kind": "image", "path": "x.png", "text": "a", "split": "fold"},
            {"id": "m", "kind": "doc", "path": "missing.md", "text": "a"},
            {"id": "skipped", "kind": "video", "path": "x.mp4", "text": "", "split": "decode"},
            line("long", "x" * 5000),
            line("last", "y"),
        ],
    )
    items = list(read_manifest(path, max_line_mib=4000 / 2**20))
    assert [item.id for item in items if isinstance(item, Document)] == ["good", "last"]
    records = {item.line: item for item in items if isinstance(item, Quarantined)}
    expected = {
        2: "not JSON",
        3: "must be a JSON object",
        4: "not UTF-8",
        5: "longer than max_line_mib",
        7: "earlier line",
        8: "field 'path' is missing",
        9: "'smell'",
        10: "'text' is empty",
        11: "'text' must be of type str",
        12: "'split' must be one of",
        13: "does not exist",
        15: "longer than max_line_mib",
    }
    assert set(records) == set(expected)
    for number, words in expected.items():
        assert f"line {number}: " in records[number].reason and words in records[number].reason
    assert (records[13].id, records[13].file) == ("m", "missing.md")
    nested = manifest(tmp_path / "b", [b"[" * 100_000])
    assert "nested too deeply" in next(read_manifest(nested)).reason or "not JSON" in next(read_manifest(nested)).reason


def test_manifest_that_is_none(tmp_path):
    for path, words in ((tmp_path / "no.jsonl", "does not exist"), (tmp_path, "is not a regular file")):
        with pytest.raises(ValueError, match=words):
            list(read_manifest(path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        list(read_manifest(tmp_path / "pipe"))


def test_captioned_lines(tmp_path):
    (tmp_path / "docs/book").mkdir(parents=True)
    (tmp_path / "docs/book/p.md").write_bytes("\ufeff# T\r\n![a](m/x.png)\r\nend".encode())
    path = manifest(
        tmp_path,
        [
            {
                "id": "1",
                "kind": "speech",
                "path": "speech/fsdd/0.flac",
                "text": "zero",
                "label": 0,
                "source": "a/b@123",
            },
            {"id": "2", "kind": "image", "path": "image/nlvr/x.png", "text": "There is a box.", "label": "false"},
            {"id": "3", "kind": "doc", "path": "docs/book/p.md", "text": "T", "split": "test"},
            {"id": "4", "kind": "image", "path": "docs/book/m/x.png", "text": "words"},
            {"id": "5", "kind": "video", "path": "x.mp4", "text": "words"},
        ],
    )
    speech, statement, page, figure, clip = read_manifest(path)
    assert (speech.parts, speech.kind, speech.source) == ((Audio("speech/fsdd/0.flac"), Text("zero")), "fsdd", "a/b")
    assert statement.parts[1].text == "There is a box. false"
    assert page.parts == (Text("# T\n"), Image("docs/book/m/x.png"), Text("\nend"))
    assert (page.kind, page.split, figure.kind, clip.kind) == ("book-doc", "test", "book-image", "video")
    assert list(iter_texts([speech, page], split="test")) == ["# T\n", "\nend"]


def test_markdown_links():
    page = """See ![a b](x.png) and ![two](<../m/my file.PNG> "title") `![code](c.png)`
```python
![fenced](f.png)
```
![svg](d.svg) ![far](https://host/e.png) ![sound](s.flac) ![film](v%20w.mp4)
"""
    parts = markdown_parts(page, path="docs/sub/page.md")
    media = [part for part in parts if not isinstance(part, Text)]
    assert media == [
        Image("docs/sub/x.png"),
        Image("docs/m/my file.PNG"),
        Audio("docs/sub/s.flac"),
        Video("docs/sub/v w.mp4"),
    ]
    text = "".join(part.text for part in parts if isinstance(part, Text))
    for kept in ("![code](c.png)", "![fenced](f.png)", "![svg](d.svg) ![far](https://host/e.png)"):
        assert kept in text
    with pytest.raises(DocumentError, match="leaves the manifest's folder"):
        markdown_parts("![x](../../x.png)", path="docs/page.md")
    with pytest.raises(DocumentError, match="not relative to the page"):
        markdown_parts("![x](/etc/x.png)", path="docs/page.md")


def test_markdown_stays_linear_on_hostile_pages():
    """Unclosed brackets by the ten thousand: a search with unbounded repeats would take minutes."""
    for page in ("![" * 50_000, "![a](" * 30_000, "`" * 100_000, '![a](b "' * 30_000):
        assert markdown_parts(page, path="p.md") == (Text(page),)


def test_files_that_must_not_be_opened(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "loop.png").symlink_to("loop.png")
    (inside / "zero.png").write_bytes(b"")
    (inside / "folder.png").mkdir()
    os.mkfifo(inside / "pipe.png")
    (inside / "device.png").symlink_to("/dev/zero")
    (inside / "big.png").write_bytes(b"x" * 3000)
    (inside / "ok.png").write_bytes(b"x")
    (inside / "ok_link.png").symlink_to("ok.png")
    expected = {
        "link.png": "link out of",
        "loop.png": "cannot be reached",
        "zero.png": "empty",
        "folder.png": "regular",
        "pipe.png": "regular",
        "device.png": "link out of",
        "big.png": "max_file_mib",
        "none.png": "not exist",
    }
    for name, words in expected.items():
        with pytest.raises(DocumentError) as caught:
            resolve_media(inside.resolve(), name, max_file_mib=0.001)
        assert words in str(caught.value) and name in str(caught.value)
    assert resolve_media(inside.resolve(), "ok_link.png", max_file_mib=1) == inside.resolve() / "ok.png"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="../shared/real is not beside this checkout")
@pytest.mark.slow
def test_real_manifest():
    raw = {fields["id"]: fields for fields in map(json.loads, REAL.read_text().splitlines())}
    items = list(read_manifest(REAL))
    assert not [item for item in items if isinstance(item, Quarantined)]
    assert len(items) == sum(fields["split"] != "decode" for fields in raw.values())
    assert all(item.split == raw[item.id]["split"] for item in items)
    source = open_source(REAL.parent)
    assert source.num_documents_hint == len(raw) and list(source.documents()) == items
    with_decode = list(source.documents(include_decode=True))
    assert [item.id for item in with_decode] == list(raw)
    assert {item.split for item in with_decode if raw[item.id]["split"] == "decode"} == {"test"}
    kinds = Counter(item.kind for item in items)
    assert {"fsdd", "esc10", "mnist", "coco", "nlvr"} <= set(kinds)
    for item in items:
        fields = raw[item.id]
        media = [part for part in item.parts if not isinstance(part, Text)]
        if fields["kind"] == "doc":
            page = (REAL.parent / fields["path"]).read_text()
            # SVG images stay links in the text
            assert len(media) == fields["n_images"] - page.count(".svg)")
        for part in media:
            resolve_media(REAL.parent.resolve(), part.path, max_file_mib=64)
