"""What is written is read back, and any JSON gives documents or refusals: generated cases, the same on every run."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

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
from brine.data.formats.open import open_source

FEW = settings(derandomize=True, max_examples=40, deadline=None, database=None)
PRINTABLE = st.characters(exclude_categories=("C", "Z"))
NAMES = st.text(PRINTABLE, min_size=1, max_size=12)
# a placeholder such as <image> in a document without media is refused; its first sign is left out here
WORDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<"), max_size=40)
ROLES = st.none() | st.sampled_from(("user", "assistant", "system"))
FILES = st.from_regex(r"[a-z]{1,6}(/[a-z0-9_]{1,6}){0,2}", fullmatch=True)
PARTS = st.one_of(
    st.builds(Text, WORDS, loss_mask=st.booleans(), role=ROLES),
    st.builds(Image, FILES.map("{}.png".format), role=ROLES),
    st.builds(Audio, FILES.map("{}.wav".format), role=ROLES),
    st.builds(Video, FILES.map("{}.mp4".format), use_audio=st.booleans(), role=ROLES),
)
DOCUMENTS = st.builds(
    Document,
    NAMES,
    st.lists(PARTS, min_size=1, max_size=4).map(tuple),
    kind=NAMES,
    level=st.integers(0, 999),
    split=st.sampled_from(("train", "validation", "test")),
    source=NAMES | st.just(""),
)


@FEW
@given(DOCUMENTS)
def test_json_of_a_document_is_the_document(document):
    assert parse_document(json.loads(json.dumps(document.to_json()))) == document


@FEW
@given(st.lists(DOCUMENTS, min_size=1, max_size=4, unique_by=lambda document: document.id))
def test_a_manifest_is_read_as_it_was_written(tmp_path_factory, documents):
    path = tmp_path_factory.mktemp("written") / "manifest.jsonl"
    assert write_manifest(path, documents) == len(documents)
    assert list(open_source(path).documents()) == documents


WORD_KEYS = ["id", "content", "messages", "conversations", "role", "from", "value", "type", "text", "texts", "caption"]
MEDIA_KEYS = ["image", "images", "audio", "video", "path", "url", "timestamps"]
KEYS = st.sampled_from([*WORD_KEYS, *MEDIA_KEYS, "kind", "split", "label", "loss_mask", "train", "level"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers() | st.integers(0, 9),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(("user", "gpt", "human", "image", "text", "train", "a.png", "s.wav", "../x", "<image>", "\ud800")),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4)
)
RECORDS = st.dictionaries(KEYS, VALUES, max_size=5)
LINES = st.one_of(
    RECORDS.map(lambda fields: json.dumps(fields).encode()),
    VALUES.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.binary(max_size=24),
)


def read_or_refused(path: Path) -> None:
    """Reads all of a source twice; the one error is a ValueError in one line, and nothing but documents comes out."""
    try:
        items = list(open_source(path).documents())
    except ValueError as error:
        assert not isinstance(error, UnicodeError | json.JSONDecodeError) and str(error), repr(error)
        return
    assert items == list(open_source(path).documents())
    for item in items:
        assert isinstance(item, Document | Quarantined)
        # either can be written down and is read again
        line = json.dumps(item.to_json(), ensure_ascii=False).encode()
        if isinstance(item, Document):
            assert parse_document(json.loads(line) | {"split": "train"}) == item.with_split("train")
        else:
            assert item.reason


@settings(FEW, max_examples=100)
@given(st.lists(LINES, min_size=1, max_size=6))
@example([b"[" * 2000])
@example([b'{"text": NaN}', b'{"text": 1e999}', b'{"id": ' + b"9" * 5000 + b"}"])
def test_any_json_lines_are_read_or_refused(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    read_or_refused(path)


@FEW
@given(st.lists(RECORDS, max_size=4))
def test_any_array_is_read_or_refused(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("array") / "x.json"
    path.write_text(json.dumps(records))
    read_or_refused(path)


@FEW
@given(st.lists(st.tuples(FILES, st.sampled_from((".json", ".txt", ".png", "")), RECORDS), min_size=1, max_size=4))
def test_any_tar_of_records_is_read_or_refused(tmp_path_factory, members):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, ending, fields in members:
            info, content = tarfile.TarInfo(name + ending), json.dumps(fields).encode()
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    read_or_refused(path)


@FEW
@given(VALUES)
def test_parsing_any_value_refuses_with_a_document_error(value):
    try:
        parse_document(value)
    except DocumentError as error:
        assert str(error)
