"""A folder that holds nothing but links out of it: they are not followed, and the refusal says which, and what to do.

It said that the folder holds nothing that is read, though the links stand there under the eyes of whoever made them.
"""

import os
import shutil

import pytest

from brine.data.formats.open import open_source
from tests.data.format_files import read, texts
from tests.data.formats.splits.test_rules import fill, rows

OUT = "is a link out of the folder: copy it here, or give that folder"
HELD = {
    "a folder": ({"train": "big"}, {}, "'train'"),
    "lines": ({"m.jsonl": "big/m.jsonl"}, {}, "'m.jsonl'"),
    "deep": ({"data/en/m.jsonl": "big/m.jsonl"}, {}, "'data/en/m.jsonl'"),
    "several": ({"b": "big", "a.jsonl": "big/m.jsonl", "c.ndjson": "big/m.jsonl"}, {}, "'a.jsonl'"),
    "beside a card": ({"data": "big"}, {"README.md": "# birds", "LICENSE": "x"}, "'data'"),
    "beside hidden files": ({"data": "big"}, {".gitattributes": "x", ".cache/x.json": "{}"}, "'data'"),
    "behind a hidden link": ({".venv2": "big", "data": "big"}, {}, "'data'"),
}


@pytest.mark.parametrize("links, files, name", HELD.values(), ids=HELD)
def test_a_folder_of_links_out_names_the_first(tmp_path, links, files, name):
    fill(tmp_path / "big", {"m.jsonl": rows([{"text": "words"}])})
    root = fill(tmp_path / "set", files)
    root.mkdir(exist_ok=True)
    for link, target in links.items():
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(tmp_path / target)
    with pytest.raises(ValueError) as error:
        open_source(root)
    assert f"set holds nothing that is read, but {name} {OUT}" in str(error.value) and str(tmp_path / "big") not in str(
        error.value
    )
    # both remedies, followed
    link = root / name.strip("'")
    target = link.resolve()
    assert texts(read(target)[0][0]) == "words"
    link.unlink()
    shutil.copytree(target, link) if target.is_dir() else shutil.copy(target, link)
    assert "words" in [texts(document) for document in read(root)[0]]


LEADS = {
    "nowhere": ("gone", "leads nowhere"),
    "itself": ("x", "leads nowhere"),
    "a device": ("/dev/zero", OUT),
    "the root": ("/", OUT),
    "above": ("..", OUT),
}


@pytest.mark.parametrize("target, why", LEADS.values(), ids=LEADS)
def test_what_leads_nowhere_is_named(tmp_path, target, why):
    root = tmp_path / "set"
    root.mkdir()
    (root / "x").symlink_to(target)
    with pytest.raises(ValueError, match="holds nothing that is read, but 'x' is a link") as error:
        open_source(root)
    assert why in str(error.value)


def test_a_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / "rows")
    with pytest.raises(ValueError, match="but 'rows' is not a regular file"):
        open_source(tmp_path)


@pytest.mark.parametrize("files", [{"a.md": "words"}, {"a.txt": "words"}, {"a.py": "x", "README.md": "y"}], ids=str)
def test_links_beside_what_is_read_stay_links(tmp_path, files):
    fill(tmp_path / "big", {"m.jsonl": "x"})
    root = fill(tmp_path / "set", files)
    (root / "data").symlink_to(tmp_path / "big")
    documents, bad = read(root)
    source = open_source(root)
    list(source.documents())
    assert len(documents) == len(files) and (OUT in bad[0].reason if bad else OUT in " ".join(source.summary_lines()))


@pytest.mark.parametrize("format", ["manifest", "chat", "webdataset", "parquet"])
def test_a_format_that_is_given(tmp_path, format):
    root = fill(tmp_path / "set", {"notes.txt": "x"})
    (root / "data").symlink_to(fill(tmp_path / "big", {"m.jsonl": "x"}))
    with pytest.raises(ValueError) as error:
        open_source(root, format=format)
    assert f"'data' {OUT}" in str(error.value)


def test_images_whose_words_are_a_link(tmp_path):
    root = fill(tmp_path / "set", {"a.png": b"x"})
    (root / "m.jsonl").symlink_to(fill(tmp_path / "big", {"m.jsonl": "x"}) / "m.jsonl")
    with pytest.raises(ValueError) as error:
        open_source(root)
    assert "holds 1 media files but no caption" in str(error.value) and f"; 'm.jsonl' {OUT}" in str(error.value)
