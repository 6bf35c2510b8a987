"""The form of plain folders: texts with splits or a README, data with scripts, captions and pages beside code."""

import gzip

import pytest

from brine.data.document import Document
from brine.data.formats.open import open_source
from brine.data.formats.splits.hash_split import hash_split
from tests.data.format_files import read, texts
from tests.data.formats.splits.test_rules import fill, rows


def splits(root) -> dict[str, set[str]]:
    """Split -> ids of its documents."""
    found: dict[str, set[str]] = {}
    for item in open_source(root).documents():
        if isinstance(item, Document):
            found.setdefault(str(item.split), set()).add(item.id)
    return found


HELD_OUT = {
    "files": (["train.txt", "valid.txt", "test.txt"], {"test.txt"}, {"valid.txt"}),
    "files of tokens": (["x.train.raw", "x.valid.raw", "x.test.raw"], {"x.test.raw"}, {"x.valid.raw"}),
    "files of languages": (["train.en", "train.de", "dev.en", "dev.de"], set(), {"dev.en", "dev.de"}),
    "endings": (["en.train", "en.test", "de.train"], {"en.test"}, set()),
    "one more word": (["sub/train.rst", "sub/test_unseen.rst"], {"sub/test_unseen.rst"}, set()),
    "folders": (["train/a.txt", "train/b.txt", "test/c.txt"], {"test/c.txt"}, set()),
    "folders of labels": (["train/pos/1.txt", "train/neg/2.txt", "test/pos/3.txt"], {"test/pos/3.txt"}, set()),
    "pages of hypertext": (["Train/a.html", "Test/b.html", "x.css"], {"Test/b.html"}, set()),
    "texts with programs": (["train/a.txt", "test/b.txt", "load.py", "test/test_load.py"], {"test/b.txt"}, set()),
    "pages": (["train.md", "test.md", "dev.md"], {"test.md"}, {"dev.md"}),
    "pages in folders": (["train/a.md", "val/b.md"], set(), {"val/b.md"}),
    "folders without train": (["a/1.txt", "test/2.txt"], {"test/2.txt"}, set()),
}  # fmt: skip


@pytest.mark.parametrize("names, test, validation", HELD_OUT.values(), ids=HELD_OUT)
def test_texts_that_names_hold_out_are_not_trained_on(tmp_path, names, test, validation):
    """Their split came from the hash, and the test was trained on."""
    fill(tmp_path, dict.fromkeys(names, "words"))
    found = splits(tmp_path)
    assert found.get("test", set()) >= test and found.get("validation", set()) >= validation
    assert not found["train"] & (test | validation)
    source = open_source(tmp_path)
    list(source.documents())
    assert any("by names of f" in line for line in source.summary_lines())


NO_SPLITS = {
    "tests of a program": ["src/a.py", "train/a.py", "test/b.py", "eval/c.py", "tests/d.txt", "test/cases.txt"],
    "notes": ["training_day.txt", "test_results.txt", "dev notes.txt", "a.txt"],
    "settings": ["conf/train.yaml", "conf/test.yaml", "a.py"],
    "pages": ["training_day.md", "test_drive.md"],
}


@pytest.mark.parametrize("names", NO_SPLITS.values(), ids=NO_SPLITS)
def test_other_names_of_texts_declare_nothing(tmp_path, names):
    fill(tmp_path, dict.fromkeys(names, "words"))
    documents, _ = read(tmp_path)
    assert len(documents) == len(names) and all(document.split == hash_split(document.id) for document in documents)


READ_AS_TEXTS = {
    "books": [f"books/{n}.txt" for n in range(5)],
    "sources": [f"{n}.rst" for n in range(4)],
    "papers": ["a/main.tex", "b/main.tex"],
    "components": ["a.mdx", "b.mdx"],
    "markup": ["train/a.xml", "test/b.xml"],
    "unknown endings": ["one.novel", "two.novel"],
    "without endings": ["one", "two"],
    "as many pages": ["a.md", "b.md", "c.txt", "d.txt"],
}


@pytest.mark.parametrize("names", READ_AS_TEXTS.values(), ids=READ_AS_TEXTS)
def test_texts_with_a_readme_are_read(tmp_path, names):
    """The README was all that was learned."""
    fill(tmp_path, dict.fromkeys([*names, "README.md", "LICENSE"], "words"))
    assert open_source(tmp_path).format == "repository"
    assert {document.id for document in read(tmp_path)[0]} >= set(names)


@pytest.mark.parametrize("others", [[], ["a.bin"], ["a.txt"], ["LICENSE.txt", "b.csv"]], ids=str)
def test_pages_that_are_most_of_the_texts_are_pages(tmp_path, others):
    fill(
        tmp_path, {name: b"\0" if name.endswith(".bin") else "words" for name in ["1.md", "2.md", "README.md", *others]}
    )
    assert open_source(tmp_path).format == "markdown"


def pairs(*names: str, ending: str = ".txt", words: str = "words") -> dict:
    return {f"{name}.jpg": b"x" for name in names} | {f"{name}{ending}": words for name in names}


CAPTIONED = {
    "a script": pairs("1") | {"dl.py": "x"},
    "scripts": pairs("img/1", "img/2") | {f"{n}.py": "x" for n in range(7)} | {"README.md": "x", "run.sh": "x"},
    "JSON": pairs("1", "2", ending=".json", words='{"caption": "words"}') | {f"{n}.py": "x" for n in range(3)},
    "pages": pairs("1", "2", "3") | {f"{n}.md": "x" for n in "abc"},
    "a clone": pairs("1", "2") | {".git/HEAD": "x", "a.py": "x", "b.py": "x", "c.md": "x"},
    "splits": pairs("train/1", "test/2") | {f"{n}.py": "x" for n in range(5)},
    "named after the medium": {"1.jpg": b"x", "1.jpg.txt": "words", "a.py": "x", "style.css": "x"},
}


@pytest.mark.parametrize("files", CAPTIONED.values(), ids=CAPTIONED)
def test_captions_beside_scripts_and_pages_are_captions(tmp_path, files):
    """They became texts, and their images were passed over."""
    fill(tmp_path, files)
    documents, bad = read(tmp_path)
    assert open_source(tmp_path).format == "media" and not bad
    assert len(documents) == sum(name.endswith(".jpg") for name in files)
    assert all(texts(document) == "words" for document in documents)


SITE = {f"docs/{n}.md": f"page ![](img/{n}.png) ![](img/{n + 3}.png)" for n in range(3)}
SITE |= {f"docs/img/{n}.png": b"x" for n in range(6)}
BESIDE = {
    "styles": {"extra.css": "x"},
    "settings": {"conf.py": "x", "mkdocs.yml": "x"},
    "hooks": {"hooks.py": "x", "main.html": "x"},
    "builds": {"build.sh": "x", "Makefile": "x"},
    "a site's": {"package.json": "{}", "docusaurus.config.js": "x"},
    "a table": {"docs/prices.csv": "name,price\ni,1\n", "b.tsv": "1\t2\n"},
    "a README": {"README.md": "x", "t.csv": "id,name\nimg,docs\n"},
}


@pytest.mark.parametrize("files", BESIDE.values(), ids=BESIDE)
def test_pages_that_show_the_media_are_pages(tmp_path, files):
    """One program or any table refused the folder."""
    fill(tmp_path, SITE | files)
    documents, bad = read(tmp_path)
    assert open_source(tmp_path).format == "markdown" and not bad and {d.id for d in documents} >= {"docs/0.md"}
    assert sum(len(document.parts) for document in documents) >= 12


def test_a_page_with_a_picture_and_a_table_of_something_else(tmp_path):
    fill(tmp_path, {"a.md": "see ![](i.png)", "i.png": b"x", "t.csv": "name,price\nwine,3\n"})
    assert open_source(tmp_path).format == "markdown"
    fill(tmp_path, {"t.csv": "file,text\ni.png,a heron\n"})
    with pytest.raises(ValueError, match=r"has its text in 't\.csv'"):
        open_source(tmp_path)


PICTURES = {f"assets/{n}.png": b"x" for n in range(12)}
PROGRAMS = {
    "a game": ["main.py", "player.py", "README.md", "requirements.txt"],
    "an app": ["app/build.gradle", "app/src/A.kt", "app/res/values/strings.xml"],
    "a blog": ["config.toml", "layouts/index.html", "content/b.md", "static/a.js"],
    "LaTeX": ["main.tex", "sec/intro.tex", "refs.bib"],
    "reStructuredText": ["docs/conf.py", "docs/index.rst", "docs/api.rst"],
    "notebooks": ["01.ipynb", "02.ipynb", "README.md"],
}


@pytest.mark.parametrize("names", PROGRAMS.values(), ids=PROGRAMS)
def test_programs_with_pictures_are_repositories(tmp_path, names):
    """With more images than programs they were refused."""
    fill(tmp_path, PICTURES | dict.fromkeys(names, "words") | {"assets/1.json": '{"frames": []}'})
    assert open_source(tmp_path).format == "repository"
    source = open_source(tmp_path)
    assert {item.id for item in source.documents()} >= set(names)
    assert any("12 media file" in line for line in source.summary_lines())


@pytest.mark.parametrize("names", [["dl.py"], ["a.py", "b.py", "captions.txt"], ["a.py", "b.py", "1.srt"]], ids=str)
def test_media_with_scripts_and_a_list_stay_refused(tmp_path, names):
    fill(tmp_path, PICTURES | dict.fromkeys(names, "words"))
    with pytest.raises(ValueError, match="no caption beside them"):
        open_source(tmp_path)


HALVES = {"data/train.jsonl": rows({"text": f"{n}"} for n in range(3)), "data/test.jsonl": rows([{"text": "unseen"}])}
CARD = {"README.md": "---\nconfigs:\n- data_files:\n  - split: test\n    path: x/b.jsonl\n---\n", ".git/HEAD": "x"}
DATA_SETS = {
    "scripts": HALVES | {f"src/{n}.py": "x" for n in "abc"} | {"README.md": "x"},
    "a clone": HALVES | {"a.py": "x", "b.py": "x", ".git/HEAD": "x"},
    "a clone with a card": CARD | {"x/a.jsonl": rows([{"text": "a"}]), "x/b.jsonl": rows([{"text": "unseen"}])}
    | {"scripts/a.py": "x", "scripts/b.py": "x"},
    "large files": {".git/HEAD": "x", ".gitattributes": "*.x filter=lfs\n", "a.py": "x", "b.py": "x"}
    | {"x/train.jsonl": rows([{"text": "a"}]), "x/test.jsonl": rows([{"text": "unseen"}])},
    "arrays": {name[:-1]: f"[{lines.strip().replace(chr(10), ',')}]" for name, lines in HALVES.items()}
    | {f"{n}.py": "x" for n in "abcd"},
    "languages": {"en/train.jsonl": HALVES["data/train.jsonl"], "en/dev/test.jsonl": HALVES["data/test.jsonl"]}
    | {f"{n}.js": "x" for n in "abcd"} | {"Makefile": "x"},
    "folders of splits": {"train/a.jsonl": HALVES["data/train.jsonl"], "test/a.jsonl": HALVES["data/test.jsonl"]}
    | {f"{n}.py": "x" for n in "abcdef"},
    "more bytes than code": {name: lines + "\n" * 300 for name, lines in HALVES.items()}
    | {f"{n}.py": "x" for n in range(25)},
    "media": {".git/HEAD": "x", "a.py": "x", "b.py": "x", "data/test/1.jpg": b"x", "README.md": "x"}
    | {"data/test/metadata.jsonl": rows([{"file_name": "1.jpg", "text": "unseen"}])},
}  # fmt: skip


@pytest.mark.parametrize("files", DATA_SETS.values(), ids=DATA_SETS)
def test_data_beside_scripts_are_a_data_set(tmp_path, files):
    """They were code: JSON was learned as it stood, the test too."""
    fill(tmp_path, files)
    documents, bad = read(tmp_path)
    assert not bad and not any("{" in texts(document) for document in documents)
    unseen = [document.split for document in documents if texts(document) == "unseen"]
    assert unseen and set(unseen) <= {"test", "validation"}
    assert all(document.split != "test" for document in documents if texts(document) != "unseen")


def test_compressed_data_beside_scripts(tmp_path):
    packed = {f"{name}.gz": gzip.compress(lines.encode()) for name, lines in HALVES.items()}
    fill(tmp_path, packed | {f"{n}.py": "x" for n in "abc"} | {".git/HEAD": "x"})
    assert {texts(document): document.split for document in read(tmp_path)[0]}["unseen"] == "test"


CODE = {f"src/{n}.py": "import os\n" * 50 for n in range(25)}


@pytest.mark.parametrize(
    "name", ["tests/data/test.jsonl", "fixtures/train.jsonl", "test/a.jsonl", "data/x.jsonl", "eval/a.jsonl"]
)
@pytest.mark.parametrize("clone", [{}, {".git/HEAD": "x"}], ids=["tree", "clone"])
def test_data_of_a_program_are_texts_and_noted(tmp_path, name, clone):
    fill(tmp_path, CODE | clone | {name: HALVES["data/train.jsonl"]})
    source = open_source(tmp_path)
    list(source.documents())
    assert source.format == "repository"
    assert any(
        "noted: JSON of documents was read as plain text" in line and "(1)" in line for line in source.summary_lines()
    )


@pytest.mark.parametrize("name", ["eval/questions.jsonl", "src/data/prices.jsonl", "tests/data/train.jsonl"])
def test_a_few_programs_with_data_of_their_own(tmp_path, name):
    fill(tmp_path, dict.fromkeys(["model.py", "train.py", "utils.py"], "x") | {name: HALVES["data/train.jsonl"]})
    assert open_source(tmp_path).format == "repository"


@pytest.mark.parametrize("script", ["train.py", "scripts/eval.sh", "src/test.js"])
def test_a_script_is_no_half_of_the_data(tmp_path, script):
    """`train.py` was told as a half that was not read."""
    fill(tmp_path, HALVES | {script: "x"})
    source = open_source(tmp_path)
    list(source.documents())
    assert not [line for line in source.summary_lines() if "NOT READ" in line] and any(
        script in line for line in source.summary_lines()
    )
