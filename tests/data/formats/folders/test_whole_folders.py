"""Every file below a given folder is accounted for: read, named by a document, or told; and no half vanishes."""

import json

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import read, texts
from tests.data.formats.splits.test_rules import fill, rows
from tests.data.formats.test_containers import table, tar


def lines(*words: str) -> str:
    return rows({"text": word} for word in words)


def array(*words: str) -> str:
    return json.dumps([{"text": word} for word in words])


def told(path) -> list[str]:
    source = open_source(path)
    list(source.documents())
    return source.summary_lines()


def put(root, name: str, word: str):
    """A file of one document of these words, in the form of its ending."""
    if name.endswith("/"):
        fill(root, {f"{name}1.png": b"x", f"{name}1.txt": word})
    elif name.endswith(".tar") or name == "shard":
        tar(root / name, {"1.txt": word})
    elif name.endswith((".parquet", ".pq")):
        table(root / name, {"text": [word]})
    else:
        fill(root, {name: array(word, f"{word} 2") if name.endswith(".json") else lines(word, f"{word} 2")})


TOGETHER = {
    "lines and array": ["train.jsonl", "test.json"],
    "lines and table": ["train.jsonl", "test.parquet"],
    "array and tar": ["train.json", "val.tar"],
    "tar and table": ["train.tar", "test.parquet"],
    "tars with and without ending": ["train.tar", "shard"],
    "tables with other endings": ["train.parquet", "test.pq"],
    "lines under other names": ["train.jsonl", "test.data", "dev"],
    "lines in a text": ["train.jsonl", "test.txt"],
    "folders of lines and captions": ["train/metadata.jsonl", "test/"],
    "folders of lines and tar": ["train/metadata.jsonl", "test/0.tar"],
    "folders of tar and captions": ["train/0.tar", "test/"],
    "folders of languages": ["en/train.jsonl", "fr/test.json", "de/dev.tar"],
    "manifest and others in folders": ["train/metadata.jsonl", "test/data.jsonl"],
    "unnamed in a folder": ["train/a.jsonl", "test/rows.data"],
    "all": ["a/train.jsonl", "b/test.json", "c/x.tar", "d/y.parquet", "e/"],
}


@pytest.mark.parametrize("names", TOGETHER.values(), ids=TOGETHER)
def test_files_of_several_forms_are_read_together(tmp_path, names):
    """Those of one form were read, and the others, the test half among them, left out without a word."""
    for name in names:
        put(tmp_path, name, f"words of {name}")
    documents, bad = read(tmp_path)
    source = open_source(tmp_path)
    found = "".join(texts(document) for document in documents)
    assert not bad and all(f"words of {name}" in found for name in names)
    for document in documents:
        if "of test" in texts(document) or "/test" in texts(document):
            assert document.split == "test"
    assert len(source.fingerprint()) == 64 and not any("files skipped" in line for line in told(tmp_path))
    before = source.fingerprint()
    put(tmp_path, names[-1], "other words")
    assert open_source(tmp_path).fingerprint() != before


STANDS_BACK = {
    "of one name": ({"train.jsonl": lines("a"), "train.json": array("a", "b")}, "train.json"),
    "a table of a tar": ({"0.parquet": {"text": ["caption"]}, "0.tar": {"1.txt": "a"}}, "0.parquet"),
    "lines beside a manifest": ({"metadata.jsonl": lines("a"), "more.jsonl": lines("b")}, "more.jsonl"),
    "lines below a manifest": ({"manifest.jsonl": lines("a"), "x/y.jsonl": lines("b")}, "x/y.jsonl"),
    "another form": ({"a.jsonl": lines("a"), "b.jsonl": rows([{"zzz": 1}])}, "b.jsonl"),
    "what a tar's samples are": ({"0.tar": {"1.txt": "a"}, "metadata.parquet": {"text": ["b"]}}, "metadata.parquet"),
    "a pointer": (
        {"a.jsonl": lines("a"), "b.jsonl": "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"},
        "`git lfs pull` fetches it: b.jsonl",
    ),
    "a table of text": ({"a.jsonl": lines("a"), "b.csv": "text\nx\n"}, "b.csv"),
    "a workbook": ({"a.tar": {"1.txt": "a"}, "b.xlsx": "x"}, "1 file .xlsx of other data (write it as"),
    "pictures": (
        {"a.jsonl": lines("a"), "x/1.png": "x", "x/2.PNG": "x"},
        "2 media file that no document takes: x/1.png",
    ),
    "unread pictures": ({"a.jsonl": lines("a"), "1.heic": "x"}, "media file .heic (convert"),
    "a pipe's place": ({"a.jsonl": lines("a"), "notes": "x"}, "1 file without an extension: notes"),
}


@pytest.mark.parametrize("files, name", STANDS_BACK.values(), ids=STANDS_BACK)
def test_what_is_not_read_is_told(tmp_path, files, name):
    for path, content in files.items():
        if isinstance(content, str):
            fill(tmp_path, {path: content})
        else:
            (tar if path.endswith(".tar") else table)(tmp_path / path, content)
    documents, _ = read(tmp_path)
    assert {texts(document) for document in documents} <= {"a"}
    assert [line for line in told(tmp_path) if "files skipped" in line and name in line]


LOST = {
    "table": ({"train.jsonl": lines("a"), "test.csv": "text\nx\n"}, "(test): 1 table .csv"),
    "table in a folder": ({"train/a.jsonl": lines("a"), "dev/metadata.tsv": "x"}, "(validation): 1 table .tsv"),
    "train half": ({"test.jsonl": lines("a"), "train.csv": "text\nx\n"}, "(train): 1 table .csv"),
    "compressed": ({"train.jsonl": lines("a"), "val.jsonl.zst": "x"}, "(validation): 1 compressed .jsonl.zst"),
    "beside a manifest": ({"metadata.jsonl": lines("a"), "test/a.jsonl": lines("b")}, "(test): 1 file .jsonl"),
    "a list": ({"metadata.jsonl": lines("a"), "val.txt": "x"}, "(validation): 1 file .txt"),
    "sibling": ({"data.jsonl": lines("a"), "data_test.csv": "text\nx\n"}, "(test): 1 table .csv"),
}


@pytest.mark.parametrize("files, words", LOST.values(), ids=LOST)
def test_a_half_that_is_not_read_is_told_apart(tmp_path, files, words):
    fill(tmp_path, files)
    assert [
        line for line in told(tmp_path) if line.startswith("NOT READ although named after a split") and words in line
    ]


def test_a_photo_that_is_called_after_a_split_is_none(tmp_path):
    fill(tmp_path, {"train.jsonl": lines("a"), "test.jsonl": lines("b"), "test.png": b"x", "test/1.png": b"x"})
    found = told(tmp_path)
    assert any("(test): 1 media file that no document takes: test/1.png" in line for line in found)
    assert any("files skipped" in line and "1 media file that no document takes: test.png" in line for line in found)


def test_nothing_is_said_about_what_goes_with_any_data_set(tmp_path):
    about = [
        "README.md",
        "LICENSE",
        "LICENSE-CODE.txt",
        "CITATION.cff",
        "dataset_infos.json",
        "checksums.sha256",
        "SHA256SUMS",
    ]
    about += [
        ".gitattributes",
        ".cache/x.json",
        "CHANGELOG.md",
        "md5sums.txt",
        "NOTICE",
        "readme_en.md",
        "a.jsonl.sha256",
    ]
    fill(tmp_path, {"a.jsonl": rows([{"image": "p/1.png", "text": "a"}]), "p/1.png": b"x"} | dict.fromkeys(about, "x"))
    assert not [line for line in told(tmp_path) if "passed" in line or "NOT READ" in line]


def test_media_and_words_that_documents_name_are_accounted_for(tmp_path):
    fill(tmp_path, {"p/1.png": b"x", "p/2.png": b"x", "p/gone.png": b"x", "page.md": "![](p/2.png)x", "t.txt": "words"})
    tar(tmp_path / "s.tar", {"1.png": "x"})
    found = [
        {"image": "./p/1.png", "text": "a"}, {"image": "s.tar::1.png", "text": "a"},
        {"id": "b", "kind": "doc", "path": "page.md"}, {"id": "c", "kind": "text", "path": "t.txt"},
        {"id": "d", "kind": "image", "path": "p/gone.png", "text": 3},
    ]  # fmt: skip
    fill(tmp_path, {"rows.jsonl": rows(found)})
    assert len(read(tmp_path)[0]) == 4 and not [line for line in told(tmp_path) if "passed" in line or "NOT" in line]


@pytest.mark.parametrize("content", ["tar", "lines", "array", "table"])
@pytest.mark.parametrize("name", ["x.txt", "notes.text", "x.data", "deep/x.dat"])
def test_files_with_a_lying_ending(tmp_path, content, name):
    """A text of JSON lines was one document of raw JSON, a tar a binary file of a repository."""
    if content in ("tar", "table"):
        (tar if content == "tar" else table)(tmp_path / name, {"1.txt": "a"} if content == "tar" else {"text": ["a"]})
    else:
        fill(tmp_path, {name: lines("a", "b") if content == "lines" else array("a", "b")})
    documents, bad = read(tmp_path)
    assert not bad and texts(documents[0]) == "a" and "{" not in texts(documents[0])


@pytest.mark.parametrize("name", ["x.data", "rows", "deep/x.bin"])
def test_one_line_under_a_name_of_no_kind(tmp_path, name):
    fill(tmp_path, {name: lines("a")})
    assert [texts(document) for document in read(tmp_path)[0]] == ["a"]


@pytest.mark.parametrize("content", ["[x] first\n[y] second\n", "{a}\n{b}\n", '{"a": 1}\n', "[]", "plain"])
def test_texts_stay_texts(tmp_path, content):
    fill(tmp_path, {"x.txt": content, "y.txt": "words"})
    assert open_source(tmp_path).format == "repository" and len(read(tmp_path)[0]) == 2


def test_media_behind_a_link_to_their_folder_are_taken(tmp_path):
    fill(tmp_path, {"real/deep/1.png": b"x", "real/2.png": b"x"})
    (tmp_path / "alias").symlink_to("real")
    fill(tmp_path, {"m.jsonl": rows([{"image": f"alias/{name}", "text": "a"} for name in ("deep/1.png", "2.png")])})
    assert not [line for line in told(tmp_path) if "no document takes" in line]


CODE = {f"src/{n}.py": "import os" for n in range(25)}
FIXTURES = {
    "a table": {"tests/x.parquet": {"text": ["a"]}},
    "a tar": {"tests/deep/x.tar": {"1.txt": "a"}},
    "lines": {"tests/a.jsonl": lines("a", "b"), "tests/b.json": array("a")},
    "lines in a text": {"notes.txt": lines("a", "b")},
    "settings of one line": {"settings.rc": '{"text": "a"}'},
    "pictures and captions": {"tests/1.png": b"x", "tests/1.txt": "w", "docs/2.png": b"x"},
}


@pytest.mark.parametrize("clone", [{}, {".git/HEAD": "x"}], ids=["tree", "clone"])
@pytest.mark.parametrize("files", FIXTURES.values(), ids=FIXTURES)
def test_data_for_the_tests_of_a_program_make_no_data_set_of_it(tmp_path, files, clone):
    fill(tmp_path, CODE | clone | {name: content for name, content in files.items() if not isinstance(content, dict)})
    for name, content in files.items():
        if isinstance(content, dict):
            (tar if name.endswith(".tar") else table)(tmp_path / name, content)
    assert open_source(tmp_path).format == "repository"


@pytest.mark.parametrize("scripts, shard", [("abcd", "shards/0.tar"), ("a", "00000"), ("ab", "0.tar")], ids=str)
def test_scripts_beside_shards_make_no_repository(tmp_path, scripts, shard):
    fill(tmp_path, {f"{name}.py": "import os" for name in scripts})
    tar(tmp_path / shard, {"1.txt": "words"})
    assert open_source(tmp_path).format == "webdataset"
    assert any(f"{len(scripts)} file .py" in line for line in told(tmp_path))


ON_TOP = {
    "a chat": ("chat.jsonl", rows([{"messages": [{"role": "assistant", "content": "x"}]}])),
    "texts": ("train.jsonl", lines("x")),
    "an array": ("data.json", array("x", "y")),
    "under another name": ("rows.data", lines("x", "y")),
}


@pytest.mark.parametrize("name, content", ON_TOP.values(), ids=ON_TOP)
def test_captioned_media_below_what_lies_on_top(tmp_path, name, content):
    """README said that they are read; they were counted as files like others, with no word on what to do."""
    pics = {"pics/a.jpg": b"x", "pics/a.txt": "A", "pics/b.jpg": b"x", "pics/b.jpg.txt": "B", "pics/c.jpg": b"x"}
    fill(tmp_path, pics | {name: content})
    said = " ".join(told(tmp_path))
    assert "2 captioned media file beside a manifest or table on top (" in said
    assert "1 media file that no document takes: pics/c" in said
    # the remedy, followed
    (tmp_path / "words").mkdir()
    (tmp_path / name).rename(tmp_path / "words" / name)
    assert {"A", "B"} <= {texts(document) for document in read(tmp_path)[0]}
