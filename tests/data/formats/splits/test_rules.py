"""Splits that names declare: of folders in every folder form, of files that hold many documents, and of media."""

import gzip
import json
import os
import time

import pytest

from brine.data.formats.open import open_source
from brine.data.formats.splits.hash_split import hash_split
from brine.data.formats.splits.rules import PathSplits
from tests.data.format_files import media, read
from tests.data.formats.test_containers import table, tar

HELD = ("test", "Testing", "validation", "val", "VALID", "dev", "eval", "test_images", "val2017", "testA")


def splits(path) -> dict[str, set[str]]:
    """First folder or file of a document's media or id -> the splits of such documents."""
    found: dict[str, set[str]] = {}
    for document in read(path)[0]:
        where = media(document)[0][1] if media(document) else document.id
        found.setdefault(where.split("/")[0].split("::")[0].split("#")[0], set()).add(document.split)
    return found


def fill(root, files: dict[str, str | bytes]):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def rows(items) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def made(root, form: str, folders: dict[str, int]):
    """A source of one form with so many documents in each folder."""
    for folder, count in folders.items():
        names = [f"{number}" for number in range(count)]
        if form == "captions":
            fill(root, {f"{folder}/a/{n}.png": b"x" for n in names} | {f"{folder}/a/{n}.txt": n for n in names})
        elif form == "pages":
            fill(root, {f"{folder}/{n}.md": f"page {n}" for n in names})
        elif form == "metadata in each":
            lines = rows({"file_name": f"{n}.png", "text": n} for n in names)
            fill(root, {f"{folder}/metadata.jsonl": lines} | {f"{folder}/{n}.png": b"x" for n in names})
        elif form == "lines in each":
            fill(root, {f"{folder}/part-1.jsonl": rows({"text": n} for n in names)})
        elif form == "shards in each":
            tar(root / folder / "0.tar", {f"{n}.txt": n for n in names})
    if form == "metadata on top":
        lines = ({"file_name": f"{f}/{n}.png", "text": f"{n}"} for f, count in folders.items() for n in range(count))
        fill(root, {"metadata.jsonl": rows(lines)} | {f"{folder}/0.png": b"x" for folder in folders})
    elif form == "native on top":
        content = [[{"type": "image", "image": f"{f}/{n}.png"}, {"type": "text", "text": "x"}]
                   for f, count in folders.items() for n in range(count)]  # fmt: skip
        fill(root, {"manifest.jsonl": rows({"id": c[0]["image"], "content": c} for c in content)})
        fill(root, {f"{folder}/0.png": b"x" for folder in folders})
    elif form == "one shard":
        tar(root / "0.tar", {f"{f}/{n}.txt": f"{n}" for f, count in folders.items() for n in range(count)})
    return root


RECORD_FORMATS = (
    "captions",
    "pages",
    "metadata in each",
    "lines in each",
    "shards in each",
    "metadata on top",
    "one shard",
)


@pytest.mark.parametrize("form", (*RECORD_FORMATS, "native on top"))
def test_what_lies_in_a_folder_of_a_held_out_split_is_not_trained_on(tmp_path, form):
    found = splits(made(tmp_path, form, {"train": 12, "validation": 4, "test": 4}))
    assert found == {"train": {"train"}, "validation": {"validation"}, "test": {"test"}}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("form", ["captions", "metadata in each"])
def test_names_of_held_out_folders(tmp_path, form, name):
    documents, bad = read(made(tmp_path, form, {"train": 20, name: 5}))
    split = "test" if name.lower().startswith("test") else "validation"
    by_folder = {
        folder: [d.split for d in documents if media(d)[0][1].startswith(folder)] for folder in ("train", name)
    }
    assert by_folder[name] == [split] * 5 and not bad
    # where test alone is declared something is still measured while training; nothing is lost
    assert set(by_folder["train"]) == ({"train", "validation"} if split == "test" else {"train"})
    assert len(documents) == 25


@pytest.mark.parametrize("form", RECORD_FORMATS)
def test_names_of_training_alone_leave_it_to_the_hash(tmp_path, form):
    documents, _ = read(made(tmp_path, form, {"train": 30}))
    assert {document.split for document in documents} == {"train", "validation", "test"}


@pytest.mark.parametrize(
    "path, split",
    {
        "test/train/7.png": "test", "train/test/7.png": "test", "cats/test/7.png": "test",
        "val/test/1.png": "validation",
        "data/Val 2017/7.png": "validation", "tests/7.png": "", "testament/7.png": "", "testé/7.png": "",
        "valérie/1": "",
        "devices/1.png": "", "a/test.png": "", "training_day.md": "", "contest/1.png": "", "pytest/1.png": "",
    }.items(),
)  # fmt: skip
def test_one_name(path, split):
    found = PathSplits([path, "train/a.png", "dev/a.png", "test/a.png"], files=False).split_of(path)
    # with validation declared, what is not held out is trained on
    assert found == (split or "train")


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.jsonl", "test-00000-of-00001.jsonl"),
        ("coco_train.jsonl", "coco_test.jsonl"),
        ("captions_train2017.jsonl", "captions_test2017.jsonl"),
        ("Training.jsonl", "TEST.jsonl"),
    ],
)
def test_names_of_manifests(tmp_path, names):
    fill(tmp_path, {name: rows({"text": f"{name} {number}"} for number in range(20)) for name in names})
    found = splits(tmp_path)
    assert found[names[1].removesuffix(".jsonl")] == {"test"}
    assert found[names[0].removesuffix(".jsonl")] == {"train", "validation"}


ODD_FILES = {
    "capitals": ("TRAIN.JSONL", "TEST.JSONL"),
    "shards with a hash": (
        "imdb-train-00000-of-00001-a09b74b3ef9c.jsonl",
        "imdb-test-00000-of-00001-b1cb74b3.jsonl",
    ),
    "points": ("wiki.train.jsonl", "wiki.test.jsonl"),
    "a copy": ("train.jsonl", "test (1).jsonl"),
    "no endings": ("train", "test"),
    "words": ("my train.jsonl", "my test.jsonl"),
    "numbers": ("train1.jsonl", "01_test.jsonl"),
}


@pytest.mark.parametrize("train, test", ODD_FILES.values(), ids=ODD_FILES)
def test_odd_names_of_manifests(tmp_path, train, test):
    """Behind the number of a shard a hash hid its word, and an ending in capitals the file."""
    for name in (train, test):
        fill(tmp_path, {name: rows({"text": f"{name} {number}"} for number in range(20))})
    found = {split: {document.id.split("#")[0] for document in read(tmp_path)[0] if document.split == split}
             for split in ("train", "test")}  # fmt: skip
    assert found == {name: {file.rsplit(".", 1)[0]} for name, file in (("train", train), ("test", test))}


NO_SPLIT = ("latest", "contest", "attestation", "devices", "evaluated", "tést", "te\u0301st", "t-est", "TESTAMENT")


@pytest.mark.parametrize("name", NO_SPLIT)
def test_names_that_only_look_like_one(tmp_path, name):
    fill(tmp_path, {f"{file}.jsonl": rows({"text": f"{file} {n}"} for n in range(40)) for file in ("train", name)})
    found = splits(tmp_path)
    assert "train" in found[name] and len(set.union(*found.values())) == 3


def test_names_that_contradict_hold_out(tmp_path):
    """Of two names on one path the held-out one counts, of two held-out ones the upper; an own field beats both."""
    files = {"test/train.jsonl": "test", "train/test.jsonl": "test", "val/test.jsonl": "validation",
             "train/train.jsonl": "train", "test_train.jsonl": "test"}  # fmt: skip
    found = PathSplits(files, files=True)
    assert {name: found.split_of(name) for name in files} == files
    for name in files:
        fill(tmp_path, {name: rows([{"text": name}, {"text": "own", "split": "train"}])} if "/" in name else {})
    for document in read(tmp_path)[0]:
        name = document.id.split("#")[0] + ".jsonl"
        assert document.split == ("train" if document.id.endswith("#2") else files[name])


def test_a_manifest_of_a_held_out_name_that_leads_out_declares_nothing(tmp_path):
    """Nor does a folder, a pipe or a link to nothing that is called like one."""
    fill(tmp_path, {"f/train.jsonl": rows({"text": f"{n}"} for n in range(40)), "secret.jsonl": rows([{"text": "s"}])})
    (tmp_path / "f" / "test.jsonl").symlink_to("../secret.jsonl")
    (tmp_path / "f" / "val.jsonl").mkdir()
    (tmp_path / "f" / "dev.jsonl").symlink_to("nowhere")
    os.mkfifo(tmp_path / "f" / "eval.jsonl")
    documents, _ = read(tmp_path / "f")
    assert len(documents) == 40 and {document.split for document in documents} == {"train", "validation", "test"}


@pytest.mark.parametrize("folder", [".cache/test", ".test", "train/.val"])
def test_hidden_folders_declare_nothing(tmp_path, folder):
    made(tmp_path, "metadata on top", {"train": 40})
    fill(tmp_path, {f"{folder}/0.png": b"x"})
    assert splits(tmp_path) == {"train": {"train", "validation", "test"}}


def test_long_names_cost_no_time():
    names = ["a" * 240, "1_" * 120, "a1" * 120, "-" * 240, "00000-of-" * 26, "test" * 60, ".gz" * 80]
    start = time.process_time()
    assert {str(PathSplits([name], files=True).split_of(name)) for name in names * 9} == {""}
    assert time.process_time() - start < 2


def test_a_last_word_counts_only_beside_one_of_training():
    assert PathSplits(["unit_test.jsonl", "books.jsonl"], files=True).split_of("unit_test.jsonl") == ""
    assert PathSplits(["unit_test.jsonl", "unit_train.jsonl"], files=True).split_of("unit_test.jsonl") == "test"


def test_an_own_field_wins(tmp_path):
    lines = {"test": [{"text": "a", "split": "train"}, {"text": "b"}], "train": [{"text": "c", "split": "test"}]}
    fill(tmp_path, {f"{name}/metadata.jsonl": rows(content) for name, content in lines.items()})
    assert [document.split for document in read(tmp_path)[0]] == ["train", "test", "test"]


def test_tables_in_folders(tmp_path):
    pytest.importorskip("pyarrow")
    for name in ("train", "dev"):
        table(tmp_path / name / "0.parquet", {"text": [f"{name} {number}" for number in range(12)]})
    assert splits(tmp_path) == {"train": {"train"}, "dev": {"validation"}}


def test_paths_and_ids_of_manifests_below(tmp_path):
    """Media lie beside their own manifest; an id that comes again in another folder is no mistake, nor a loss."""
    line = {"id": "1", "content": [{"type": "image", "image": "1.png"}, {"type": "text", "text": "x"}]}
    for folder in ("train", "more/test"):
        fill(tmp_path, {f"{folder}/manifest.jsonl": rows([line, line, {"id": 3}]), f"{folder}/1.png": b"x"})
    documents, bad = read(tmp_path)
    assert [(d.id, d.split, media(d)[0][1]) for d in documents] == [
        ("1", "test", "more/test/1.png"), ("1~2", "train", "train/1.png"),
    ]  # fmt: skip
    assert len(bad) == 4 and "line 2 of more/test/manifest.jsonl: id '1' was used" in bad[0].reason
    before = open_source(tmp_path).fingerprint()
    fill(tmp_path, {"train/manifest.jsonl": rows([line])})
    assert open_source(tmp_path).fingerprint() != before and open_source(tmp_path).num_documents_hint == 4


def test_compressed_manifests_below(tmp_path):
    for folder in ("train", "test"):
        fill(
            tmp_path, {f"{folder}/metadata.jsonl.gz": gzip.compress(rows({"text": folder} for _ in range(9)).encode())}
        )
    fill(tmp_path, {"train/metadata.jsonl": rows([{"text": "the same, unpacked"}])})
    assert [(d.id, d.split) for d in read(tmp_path)[0]] == [
        *((f"test/metadata#{number}", "test") for number in range(1, 10)), ("train/metadata#1", "train"),
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["../up.png", "/etc/passwd", "a/../../../x.png"])
def test_a_manifest_below_stays_in_its_folder(tmp_path, line):
    fill(tmp_path, {"up.png": b"x", "train/metadata.jsonl": rows([{"file_name": line, "text": "x"}])})
    documents, bad = read(tmp_path)
    assert not documents and any(words in bad[0].reason for words in ("leaves", "not relative"))


def test_folders_of_a_repository_are_no_splits(tmp_path):
    files = {f"{folder}/{n}.py": "import os\n" for folder in ("train", "test", "tests", "eval") for n in range(20)}
    fill(tmp_path, files | {"tests/data/metadata.jsonl": rows([{"text": "a fixture"}])})
    source = open_source(tmp_path)
    documents, _ = read(tmp_path)
    assert source.format == "repository" and len(documents) == 81
    assert all(document.split == hash_split(document.id) for document in documents)


def test_where_splits_came_from_is_counted(tmp_path):
    source = open_source(made(tmp_path, "captions", {"train": 16, "test": 8}))
    source.skipped["note: stale"] += 1
    list(source.documents())
    assert source.split_origins == {"names of folders": {"train": 15, "test": 8}, "hash": {"validation": 1}}
    told = ["media by extension: 24 .png", "splits: by hash (validation 1), by names of folders (train 15, test 8)"]
    assert source.summary_lines() == told
    source.skipped["note: field 'masked' beside messages is not known and was not read"] += 2
    source.skipped["empty file"] += 1
    assert source.summary_lines()[2:] == [
        "files skipped: 1 empty file", "noted: field 'masked' beside messages is not known and was not read (2)",
    ]  # fmt: skip
