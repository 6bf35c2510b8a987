"""Tables and lists of words whose media lie in other folders: the command that is told is followed, where it says."""

import json

import pytest

from brine.data.cli.main import main
from brine.data.formats.convert import conversions
from brine.data.formats.open import open_source
from tests.data.format_files import follow_command, media, read, texts
from tests.data.media_files import picture, sound


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".png", ".jpg")):
            picture(root / name, 8, 8)
        elif name.endswith((".wav", ".flac")):
            sound(root / name, 0.05)
        else:
            (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def follow(path) -> str:
    """Runs the command that opening a path tells; gives what was said."""
    with pytest.raises(ValueError) as caught:
        open_source(path)
    follow_command(said := str(caught.value))
    return said


def pairs(root):
    documents, bad = read(root)
    assert not bad
    for document in documents:
        assert all((root / path).is_file() for _, path in media(document))
    return sorted((*(path for _, path in media(document)), texts(document)) for document in documents)


def coco(**captions):
    images = [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate(captions)]
    notes = [{"image_id": number, "caption": words} for number, words in enumerate(captions.values())]
    return {"info": {"year": 2017}, "images": images, "annotations": notes}


COCO = "annotations/captions_train2017.json"
LAYOUTS = {
    "COCO": ({"train2017/a.jpg": "", COCO: coco(a="A")}, [("train2017/a.jpg", "A")]),
    "COCO in images": ({"images/train2017/a.jpg": "", COCO: coco(a="A")}, [("images/train2017/a.jpg", "A")]),
    "COCO of one name in two splits": (
        {"train2017/a.jpg": "", "val2017/a.jpg": "", "dev/a.jpg": "", COCO: coco(a="A")}, [("train2017/a.jpg", "A")],
    ),
    "COCO over many folders": (
        {"x/a.jpg": "", "y/b.jpg": "", "labels/all.json": coco(a="A", b="B")}, [("x/a.jpg", "A"), ("y/b.jpg", "B")],
    ),
    "ESC-50": (
        {"audio/1-1.wav": "", "audio/1-2.wav": "",
         "meta/esc50.csv": "filename,fold,target,category\n1-1.wav,1,0,dog\n1-2.wav,1,1,cat\n"},
        [("audio/1-1.wav", "dog"), ("audio/1-2.wav", "cat")],
    ),
    "UrbanSound": (
        {"audio/fold1/1-1.wav": "", "audio/fold2/1-2.wav": "", "metadata/urban.csv":
         "slice_file_name,fsID,class\n1-1.wav,1,dog\n1-2.wav,1,cat\n"},
        [("audio/fold1/1-1.wav", "dog"), ("audio/fold2/1-2.wav", "cat")],
    ),
    "names without endings": (
        {"wavs/L1.wav": "", "wavs/L2.wav": "", "text/words.tsv": "L1\tone\nL2\ttwo and\n"},
        [("wavs/L1.wav", "one"), ("wavs/L2.wav", "two and")],
    ),
    "paths from the top": (
        {"img/a.png": "", "meta/deep/t.csv": "file_name,text\nimg/a.png,A\n"}, [("img/a.png", "A")],
    ),
    "a name with a quote": (
        {"my pics/a.png": "", "the table/t \"x\".csv": "file_name,text\na.png,A\n"}, [("my pics/a.png", "A")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("files, wanted", LAYOUTS.values(), ids=LAYOUTS)
def test_the_command_makes_paths_that_hold(tmp_path, files, wanted):
    """The command named a file that was not there, or wrote paths to media beside the table, where there are none."""
    root = put(tmp_path / "set", files)
    follow(root)
    assert pairs(root) == wanted


@pytest.mark.parametrize("name", ["COCO", "ESC-50", "UrbanSound", "names without endings"])
def test_a_table_that_is_given_alone(tmp_path, name):
    files, wanted = LAYOUTS[name]
    root = put(tmp_path / "set", files | {"README.md": "# card"})
    follow(root / next(reversed(files)))
    assert pairs(root) == wanted


def test_splits_one_after_the_other(tmp_path):
    val = "annotations/captions_val2017.json"
    root = put(tmp_path / "c", {"train2017/a.jpg": "", "val2017/a.jpg": "", COCO: coco(a="A"), val: coco(a="B")})
    follow(root)
    follow(root / val)
    found = {media(d)[0][1]: (texts(d), d.split) for d in read(root)[0]}
    assert found == {"train2017/a.jpg": ("A", "train"), "val2017/a.jpg": ("B", "validation")}


FOLLOWED = {
    "lines beside a table": {"test.tsv": "text\nx\n", "test.jsonl": "", "train.jsonl": ""},
    "in a folder": {"test/labels.csv": "text\nx\n", "test/metadata.jsonl": "", "train/metadata.jsonl": ""},
    "above": {"annotations/val.csv": "text\nx\n", "val.jsonl": "", "train.jsonl": ""},
    "COCO": {"annotations/captions_val2017.json": coco(a="A"), "captions_val2017.jsonl": "", "train.jsonl": ""},
    "of one name": {"test/meta.csv": "text\nx\n", "test-meta.jsonl": "", "train-meta.jsonl": ""},
}
NOT_FOLLOWED = {
    "another split": {"test.tsv": "text\nx\n", "train.jsonl": ""},
    "another table": {"test/labels.csv": "text\nx\n", "dev/metadata.jsonl": "", "train/metadata.jsonl": ""},
    "one beside a metadata": {"test.csv": "text\nx\n", "metadata.jsonl": "", "train/a.txt": ""},
}


@pytest.mark.parametrize("is_followed", [True, False])
def test_a_table_that_a_manifest_was_written_from_is_not_lost(tmp_path, is_followed):
    """When the remedy had been followed, the table was still "NOT READ although named after a split"."""
    for number, (name, files) in enumerate((FOLLOWED if is_followed else NOT_FOLLOWED).items()):
        lines = '{"text": "a"}\n{"text": "b"}\n'
        root = put(tmp_path / str(number), {path: content or lines for path, content in files.items()})
        source = open_source(root)
        assert list(source.documents()), name
        said = " ".join(source.summary_lines())
        if is_followed:
            assert "NOT READ" not in said and "of whose name a manifest is read: " + next(iter(files)) in said, said
        else:
            assert "of whose name" not in said and next(iter(files)) in said, said
            assert "NOT READ" in said, said


def test_tables_of_one_name_do_not_overwrite_each_other(tmp_path):
    files = {"img/train/a.png": "", "img/test/a.png": "", "img/test/b.png": ""}
    for split, word in (("train", "A"), ("test", "B")):
        files[f"annotations/{split}/meta.csv"] = f"file_name,text\na.png,{word}\n"
    root = put(tmp_path / "c", files)
    said = follow(root)
    assert "the same with 'annotations/train/meta.csv'" in said and "test-meta.jsonl" in said
    (document,), bad = read(root)
    assert not bad and document.split == "test" and media(document)[0][1] == "img/test/a.png"


def test_boxes_have_no_captions(tmp_path):
    boxes = {"info": {}, "images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": [1]}]}
    with pytest.raises(ValueError, match=r"it has no captions: write a metadata\.jsonl beside the images"):
        open_source(put(tmp_path, {"a.jpg": "", "instances.json": boxes}))


def test_the_command_line_converts_and_overwrites_nothing(tmp_path, capsys):
    table = put(tmp_path, {"a.png": "", "t.csv": "image,caption\na.png,a wren\n"}) / "t.csv"
    assert main(["convert", str(table), "--out", "x.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {str(tmp_path / "x.jsonl"): 1}
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"image": "a.png", "caption": "a wren"}
    assert main(["convert", str(table), "--out", "x.jsonl"]) == 2
    assert "x.jsonl is there already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "a.png")]) == main(["convert", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("nothing to convert") == 2
    assert not (tmp_path / "documents.jsonl").exists()


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", ".hidden"])
def test_a_name_in_a_file_leads_to_no_other_folder(tmp_path, name):
    (tmp_path / "set").mkdir()
    wrapped = put(tmp_path / "set", {"w.json": {name: [{"text": "a"}, {"text": "b"}]}}) / "w.json"
    (found,) = conversions(wrapped)
    (made,) = found.write()
    assert made.parent == tmp_path / "set" and made.name.startswith("_") and made.suffix == ".jsonl"
