"""What a JSON object beside media says is read as in a line of a manifest, in tars and in folders."""

import json

import pytest

from brine.data.document import Audio, Image
from brine.data.formats.open import open_source
from tests.data.format_files import encoded, media, read, texts
from tests.data.formats.test_webdataset_names import tar
from tests.data.media_files import picture, sound

WORDS = {"caption": "a heron"}
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A heron."}]
BARE = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A heron."}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}, BARE[1]]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("material")
    picture(root / "a.png", 20, 16)
    sound(root / "a.wav", 0.2)
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.fixture(params=["tar", "folder"])
def made(request, tmp_path, files):
    """(path, root) of a source that holds some files: (name, object, text or None for the small image)."""

    def made(*members):
        found = [(name, _content(name, content, files)) for name, content in members]
        if request.param == "tar":
            tar(tmp_path / "s.tar", found)
            return tmp_path / "s.tar"
        for name, content in found:
            (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "s" / name).write_bytes(content)
        return tmp_path / "s"

    return made


def _content(name, content, files) -> bytes:
    if content is None:
        return files["a.wav" if name.endswith(".wav") else "a.png"]
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


def only(path):
    (document,), bad = read(path)
    assert not bad
    return document


def paths(document) -> list[str]:
    return [path.rpartition("::")[2] for _, path in media(document)]


@pytest.mark.parametrize("said, split", [("val", "validation"), ("Test", "test"), ("train", "train")])
def test_split(made, said, split):
    assert only(made(("a.png", None), ("a.json", WORDS | {"split": said}))).split == split
    assert only(made(("a.png", None), ("a.json", {"split": said}), ("a.txt", "words"))).split == split


@pytest.mark.parametrize(
    "beside", [{"split": "fold 3"}, {"loss_mask": False}, {"weight": 0}, {"masked": True}], ids=str
)
def test_what_sets_a_line_aside_sets_a_sample_aside(made, beside):
    documents, (bad,) = read(made(("a.png", None), ("a.json", WORDS | beside)))
    assert not documents and next(iter(beside)) in bad.reason


def test_kind_source_and_words(made):
    document = only(made(("a.png", None), ("a.json", {"text": "x", "kind": "bird", "source": "lake", "width": 3})))
    assert (document.kind, document.source, texts(document), paths(document)) == ("bird", "lake", "x", ["a.png"])


@pytest.mark.parametrize(
    "object, said",
    {
        "llava": ({"conversations": TALK}, "<user>\n\nWhat?\n<assistant>\nA heron."),
        "llava named": ({"conversations": TALK, "image": "a.png"}, "<user>\n\nWhat?\n<assistant>\nA heron."),
        "named as before packing": ({"conversations": TALK, "image": "coco/0001.jpg"}, "A heron."),
        "chat without placeholder": ({"messages": BARE}, "\nWhat?\n<assistant>\nA heron."),
        "chat of parts": ({"messages": PARTS}, "What?\n<assistant>\nA heron."),
        "pairs": ({"texts": [{"user": "What?", "assistant": "A heron."}]}, "What?\n<assistant>\nA heron."),
        "native": (
            {"content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "A heron."}]},
            "A heron.",
        ),
        "obelics": ({"texts": [None, "A heron."], "images": ["a.png", None]}, "A heron."),
    }.values(),
    ids=lambda value: "",
)
def test_whole_documents_take_the_media_beside_them(made, object, said, tokenizer, config):
    path = made(("d/a.png", None), ("d/a.json", object))
    document = only(path)
    assert paths(document) == ["d/a.png"] and texts(document).endswith(said)
    encoded(document, open_source(path).root, tokenizer, config)


def test_marks_and_splits_of_whole_documents(made):
    turns = [*TALK, {"from": "gpt", "value": "BAD", "weight": 0}]
    document = only(made(("a.png", None), ("a.json", {"conversations": turns, "split": "dev"})))
    assert texts(document, loss_mask=True) == "A heron." and document.split == "validation"
    document = only(made(("a.png", None), ("a.json", {"conversations": turns, "mask": "human"})))
    assert texts(document, loss_mask=True) == "A heron."


def test_names_of_media_elsewhere(made):
    """A name is looked for beside the object and then from the top."""
    object = {"image": "images/b.png", "text": "x"}
    (document,), bad = read(made(("d/a.wav", None), ("d/a.json", object), ("images/b.png", None)))
    assert {kind for kind, _ in media(document)} == {Audio, Image}
    assert sorted(paths(document)) == ["d/a.wav", "images/b.png"] and [item.id for item in bad] == ["images/b"]


def test_a_former_name_does_no_harm(made):
    source = open_source(
        made(("a.png", None), ("a.json", WORDS | {"file_name": "0001.jpg", "url": "https://x.org/a.jpg"}))
    )
    assert [paths(document) for document in source.documents()] == [["a.png"]] and not source.skipped


def test_a_name_that_is_nowhere(made):
    documents, (bad,) = read(made(("a.png", None), ("a.json", WORDS | {"audio": "gone.wav"})))
    assert not documents and "'audio' names 'gone.wav', which is not there" in bad.reason


def test_a_caption_in_a_tar_is_no_text(tmp_path, files):
    """Its image is another member, or missing; either way nothing is learned without it."""
    tar(tmp_path / "s.tar", [("a.json", b'{"image": "i/b.png", "text": "x"}'), ("i/b.png", files["a.png"])])
    documents, bad = read(tmp_path / "s.tar")
    assert [paths(document) for document in documents] == [["i/b.png"]] and [item.id for item in bad] == ["i/b"]
    tar(
        tmp_path / "s.tar",
        [("a.json", b'{"image": "gone.png", "text": "x"}'), ("b.json", b'{"caption": "x", "pic": "b.png"}')],
    )
    documents, bad = read(tmp_path / "s.tar")
    assert not documents and "not there" in bad[0].reason and "'pic'" in bad[1].reason
    for name in ("../a.png", "/etc/passwd", "a/../../b.png"):
        tar(tmp_path / "s.tar", [("a.json", json.dumps({"image": name, "text": "x"}))])
        documents, (bad,) = read(tmp_path / "s.tar")
        assert not documents and any(words in bad.reason for words in ("leaves", "not relative"))


def test_a_json_that_is_no_object(made):
    source = open_source(made(("a.png", None), ("a.txt", "words"), ("a.json", '["x"]')))
    assert [texts(document) for document in source.documents()] == ["words"]
    assert source.skipped == {"note: a .json beside a text is not an object and was not read": 1}


def test_placeholders_that_do_not_match(made):
    documents, (bad,) = read(made(("a.png", None), ("a.json", {"conversations": [TALK[0], *TALK]})))
    assert not documents and "more <image> placeholders than media (1 listed)" in bad.reason
