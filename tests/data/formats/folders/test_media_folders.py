"""Folders of media: every ending that is read, what is said about the others, and what such a folder never becomes."""

import gzip
import json
import os
import signal

import pytest

from brine.data.document import Audio, Image, Video
from brine.data.files.extensions import SUPPORTED, UNSUPPORTED
from brine.data.formats.open import open_source
from tests.data.format_files import follow_command, media, read, texts


@pytest.fixture
def unread(monkeypatch):
    """Two endings of media that are not read, whatever the table has of its own."""
    for ending, remedy in {"zzv": "convert to MP4", "zza": "convert to FLAC"}.items():
        monkeypatch.setitem(UNSUPPORTED, ending, remedy)


def fill(root, names: dict[str, str | bytes] | list[str]):
    """Files of these contents, or of their own names."""
    for name in names:
        content = names[name] if isinstance(names, dict) else name
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def skipped(path, **options) -> dict[str, int]:
    source = open_source(path, **options)
    list(source.documents())
    return dict(source.skipped)


@pytest.mark.parametrize("upper", [False, True], ids=["lower", "upper"])
def test_every_ending_that_is_read_is_taken(tmp_path, upper):
    names = [f"{number}.{ending}" for number, ending in enumerate(SUPPORTED)]
    words = [f"{number}.txt" for number in range(len(SUPPORTED))]
    if upper:
        names, words = [name.upper() for name in names], [name.upper() for name in words]
    documents, bad = read(fill(tmp_path, names + words))
    assert not bad and len(documents) == len(SUPPORTED) and not skipped(tmp_path)
    found = dict(path_kind[::-1] for document in documents for path_kind in media(document))
    assert found == {name: SUPPORTED[name.rpartition(".")[2].lower()] for name in names}
    assert {Image, Audio, Video} == set(found.values())


def test_media_that_are_not_read_are_named_with_the_remedy(tmp_path, unread):
    """The words of such media were once counted as a text without media."""
    files = ["a/talk.ZZA", "a/talk.txt", "film.zzv", "film.caption", "alone.zzv", "b.png", "b.zza", "b.txt", "c.png"]
    documents, bad = read(fill(tmp_path, [*files, "c.TXT", "notes.txt", "data.npy", "table.csv", "LICENSE"]))
    assert [(d.id, len(media(d))) for d in documents] == [("b", 1), ("c", 1)]
    assert {item.id: (item.file, item.reason) for item in bad} == {
        "a/talk": ("a/talk.ZZA", "file 'a/talk.ZZA' is not read: convert to FLAC"),
        "film": ("film.zzv", "file 'film.zzv' is not read: convert to MP4"),
    }
    assert skipped(tmp_path) == {
        "media file .zzv: convert to MP4": 1, "media file .zza: convert to FLAC": 1, "text without media": 1,
        "file .npy": 1, "table .csv: its text is not read, captions beside media are": 1,
        "file without an extension": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "names", [["talk.zza", "talk.txt"], ["a.zzv", "a.txt", "b.ZZV", "b.TXT"], ["x/a.zza", "x/a.json"]]
)
def test_a_folder_of_unread_media_and_their_words_gives_no_text(tmp_path, unread, names):
    documents, bad = read(fill(tmp_path, names))
    assert open_source(tmp_path).format == "media" and not documents and len(bad) == len(names) // 2
    assert all("is not read: convert to" in item.reason for item in bad)


REFUSED = {
    "unread media and other texts": (["talk.zza", "script.txt"], ("1 .zza (convert to FLAC)", "'script.txt'")),
    "unread media alone": (["a.zzv", "b.zzv"], ("2 .zzv (convert to MP4)", "no caption beside them")),
    "media and other texts": (
        ["a.png", "b.png", "captions.txt"],
        ("2 media files", "'captions.txt'", "metadata.jsonl"),
    ),
    "both": (["a.png", "b.zza"], ("1 media files and media that are not read: 1 .zza",)),
    "words of longer names": (
        ["1/a.wav", "1/a.norm.txt", "1/a.raw.txt", "1/b.wav", "1/b.norm.txt"],
        ("2 media files",),
    ),
    "words in another folder": (["wav/1.wav", "wav/2.wav", "txt/1.txt", "txt/2.txt", "info.txt"], ("'info.txt'",)),
    "labels and settings": (["images/1.jpg", "labels/1.txt", "labels/2.txt", "birds.toml"], ("1 media files",)),
    "a script beside": (["1.jpg", "2.jpg", "prepare.py", "words.txt"], ("'words.txt'", "format 'repository'")),
    "scripts and a table": (
        {"1.jpg": b"x", "2.jpg": b"x", "labels.csv": "file,text\n1.jpg,x\n", "a.py": "x", "b.sh": "x"},
        ("'labels.csv'",),
    ),
    "a table without endings": (
        {"clips/x_1.mp3": b"x", "t.tsv": "id\twords\nx_1\ta\n", **{f"{n}.txt": "x" for n in range(12)}},
        ("'t.tsv'",),
    ),
    "lists and boxes": (["J/1.jpg", "J/2.jpg", "A/1.xml", "Sets/train.txt", "Sets/val.txt"], ("'Sets/train.txt'",)),
    "a clone": ([".git/HEAD", ".gitattributes", "1.png", "2.png", "README.md", "words.txt"], ("'words.txt'",)),
    "a clone with a table": (
        {".git/HEAD": "x", "1.png": b"x", "metadata.csv": "file_name,text\n1.png,x\n", "x.py": "x"},
        ("'metadata.csv'",),
    ),
    "pictures and a README": (["1.png", "2.png", "3.png", "README.md"], ("3 media files",)),
    "unread pictures and a README": (["1.zza", "README.md", "LICENSE.md"], ("1 .zza (convert to FLAC)",)),
    "a link to a folder": (["1.png", "pics"], ("1 media files",)),
    "boxes": ({"a.png": b"x", "boxes.json": '{"images": []}'}, ("1 media files", "'boxes.json'")),
}


@pytest.mark.parametrize("names, words", REFUSED.values(), ids=REFUSED)
def test_a_folder_whose_media_have_no_words_is_refused(tmp_path, unread, names, words):
    fill(tmp_path, names)
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path)
    told = str(caught.value).partition("Formats that are read")[0]
    assert all(word in told for word in words), told


TREES = {
    "code": ["main.py", "a.zzv", "notes.txt"],
    "docs": ["src/a.py", "src/b.py", "docs/a.md", "docs/1.png", "docs/2.png", "README.md"],
    "media of tests": ["a.c", "b.c", "c.h", "tests/1.png", "tests/1.txt", "tests/2.png", "tests/2.txt"],
    "texts with two pictures": [*(f"{n}.txt" for n in range(20)), "a.png", "b.png"],
    "texts with one picture": ["1.txt", "2.txt", "3.rst", "logo.png"],
    "git": [".git/x", "a.py", "b.c", "a.png", "a.zza"],
}


@pytest.mark.parametrize("names", TREES.values(), ids=TREES)
def test_what_is_still_a_repository(tmp_path, unread, names):
    assert open_source(fill(tmp_path, names)).format == "repository"


def test_unread_media_of_repositories_and_pages_are_named(tmp_path, unread):
    fill(
        tmp_path / "code",
        {
            "main.py": "import os",
            "x.c": "x",
            "y.c": "x",
            "a.zzv": b"\0x",
            "b.zza": "text of the same ending",
            "c.png": b"x",
        },
    )
    assert skipped(tmp_path / "code") == {"media file .zzv: convert to MP4": 1, "media file": 1}
    fill(
        tmp_path / "pages",
        {"a.md": "![](1.png) ![](1.zzv)", "1.png": b"x", "2.PNG": b"x", "1.zzv": b"x", "x.npz": b"x"},
    )
    assert skipped(tmp_path / "pages") == {
        "media file .zzv: convert to MP4": 1, "media file that no page shows": 1, "file .npz": 1,
    }  # fmt: skip


TABLES = {
    "a header": ("metadata.csv", "file_name,text\n1.png,a drawing\n", {"file_name": "1.png", "text": "a drawing"}),
    "quotes": ("captions.csv", 'file_name,text\n1.png,"a, ""b"""\n', {"file_name": "1.png", "text": 'a, "b"'}),
    "tabs": ("labels.tsv", "file_name\ttext\n1.png\tred\n", {"file_name": "1.png", "text": "red"}),
    "other columns": ("train.csv", "path;words\n1.png;red\n", {"path": "1.png", "text": "red"}),
    "bars and no header": ("metadata.csv", "LJ001|printing\nLJ002|x\n", {"file_name": "LJ001", "text": "printing"}),
    "a mark and a quote": ("it's.csv", "\ufefffile_name,text\r\n1.png,x\r\n", {"file_name": "1.png", "text": "x"}),
}


@pytest.mark.parametrize("name, content, row", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("beside", [["1.png"], ["1.png", "README.md"], ["README.md"]], ids=" ".join)
def test_a_table_of_words_is_refused_with_the_command(tmp_path, name, content, row, beside):
    """Passed over, the folder was called one of media without words, or a page: its README."""
    # nobody else's files lie one folder up
    tmp_path = tmp_path / "alone" / "set"
    tmp_path.mkdir(parents=True)
    fill(tmp_path, beside)
    (tmp_path / name).write_bytes(content.encode())
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError) as caught:
            open_source(path)
        told = str(caught.value)
        out = "train.jsonl" if name == "train.csv" else "metadata.jsonl"
        assert name in told and f"is not read: write a {out} from it" in told
    if "README.md" in beside:
        return
    (made,) = follow_command(told)
    assert made == tmp_path / out and json.loads(made.read_text().splitlines()[0]) == row
    if "text" in row and row.get("file_name") == "1.png":
        documents, _ = read(tmp_path)
        assert [(media(d), texts(d)) for d in documents] == [([(Image, "1.png")], row["text"])]


ROW = "file_name,text\n1.png,größe\n"
ODD_TABLES = {
    "lines end by CR": ("metadata.csv", ROW.replace("\n", "\r").encode()),
    "UTF-16 with tabs": ("metadata.tsv", ROW.replace(",", "\t").encode("utf-16")),
    "UTF-16 without a mark": ("metadata.csv", ROW.encode("utf-16-le")),
    "Latin-1": ("metadata.csv", ROW.encode("latin-1")),
    "a sign beyond 16 bits in the name": ("\U0001f426.csv", ROW.encode()),
    "capitals": ("METADATA.CSV", ROW.encode()),
    "a shell's signs in the name": ("a'$(touch x)`touch y`;\"\\.csv", ROW.encode()),
}


@pytest.mark.parametrize("name, content", ODD_TABLES.values(), ids=ODD_TABLES)
def test_the_command_reads_odd_tables_of_words(tmp_path, name, content):
    """One with the line ends of old Macs ended in a stack trace, and the command did not fit other encodings."""
    (fill(tmp_path, ["1.png"]) / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path)
    assert repr(name) in str(caught.value)
    (made,) = follow_command(str(caught.value))
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    assert made.name == "metadata.jsonl" and rows == [{"file_name": "1.png", "text": "größe"}]


HOSTILE_TABLES = {
    "pipe": (None, "'metadata.csv' is not a regular file"),
    "link out": ("../secret.csv", "'metadata.csv' is a link out of the folder"),
    "link to nothing": ("nowhere.csv", "'metadata.csv' is a link that leads nowhere"),
    "device": ("/dev/zero", "'metadata.csv' is a link out of the folder"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n", "`git lfs pull`"),
    "compressed": (gzip.compress(ROW.encode()), "is compressed: unpack it by `gzip -dc metadata.csv"),
    "one endless line": (b"a," * 2**20, "its columns are 'a', 'a'"),
    "no text": (bytes(range(256)) * 99, "is not read: write a metadata.jsonl"),
    "an open quote": (b'"file_name,text\n1.png,x\n', "is not read: write a metadata.jsonl"),
    "nothing": (b"", "is not read: write a metadata.jsonl"),
    "zeros": (bytes(5000), "is not read: write a metadata.jsonl"),
    "control signs": (b"\x1b[2Jfile_name,a\x07b\n", "its columns are '[2Jfile_name', 'ab'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("content, told", HOSTILE_TABLES.values(), ids=HOSTILE_TABLES)
def test_a_hostile_table_of_words_is_neither_waited_for_nor_shown(tmp_path, content, told):
    """A pipe of that name was waited on for ever, and one that leads out of the folder was opened."""
    folder = fill(tmp_path / "f", ["1.png"])
    (tmp_path / "secret.csv").write_text("password,secret\n")
    if content is None:
        os.mkfifo(folder / "metadata.csv")
    elif isinstance(content, str):
        (folder / "metadata.csv").symlink_to(content)
    else:
        (folder / "metadata.csv").write_bytes(content)
    # whoever opens the pipe would wait: end that with an error of the test
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the pipe was opened"))
    signal.alarm(20)
    try:
        with pytest.raises(ValueError) as caught:
            open_source(folder)
    finally:
        signal.alarm(0)
    assert told in str(caught.value) and "secret'" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_tables_in_folders_of_splits_are_named(tmp_path):
    fill(tmp_path, {f"{split}/metadata.csv": "file_name,text\n" for split in ("train", "test")} | {"train/1.png": b"x"})
    with pytest.raises(ValueError, match=r"train/metadata\.csv|test/metadata\.csv"):
        open_source(tmp_path)


@pytest.mark.parametrize("clone", [[], [".git/HEAD"], [".git/HEAD", "README.md", "load.py"]], ids=len)
def test_a_clone_of_captioned_media_is_one(tmp_path, clone):
    """It was a repository: its captions were learned as texts, and its images passed over."""
    documents, bad = read(fill(tmp_path, [*clone, *(f"{n}{end}" for n in range(4) for end in (".png", ".txt"))]))
    assert open_source(tmp_path).format == "media" and len(documents) == 4 and not bad


@pytest.mark.parametrize("name", ["metadata.jsonl", "data/metadata.jsonl", "train/rows.jsonl"])
def test_a_clone_with_a_manifest_is_read_by_it(tmp_path, name):
    """Below the top the manifest itself was learned, as a text."""
    folder = name.rpartition("/")[0]
    fill(tmp_path, {".git/HEAD": "x", "README.md": "# x", f"{folder}/1.png".lstrip("/"): b"x", "load.py": "x"})
    fill(tmp_path, {name: '{"file_name": "1.png", "text": "a"}\n{"file_name": "1.png", "text": "b"}\n'})
    documents, bad = read(tmp_path)
    assert not bad and [texts(document) for document in documents] == ["a", "b"] and media(documents[0])


def test_tables_of_several_splits_become_as_many_files(tmp_path):
    """One metadata.jsonl on top hid the other half, and what it was made of was trained on: the test."""
    fill(tmp_path, {"train.csv": "file_name,text\n1.png,a\n", "test.csv": "file_name,text\n2.png,b\n"})
    fill(tmp_path, ["1.png", "2.png"])
    with pytest.raises(ValueError) as caught:
        open_source(tmp_path)
    told = str(caught.value)
    assert (
        "'test.csv'" in told and "'train.csv'" in told and "--out test.jsonl`" in told and "metadata.jsonl" not in told
    )


def test_folders_that_lead_out_are_told(tmp_path):
    """Such a link was counted as one file without an ending."""
    fill(tmp_path / "out", ["1.png", "1.txt"])
    fill(tmp_path / "f", ["2.png", "2.txt"])
    (tmp_path / "f" / "pics").symlink_to("../out")
    assert any("link out of the folder" in reason for reason in skipped(tmp_path / "f"))
