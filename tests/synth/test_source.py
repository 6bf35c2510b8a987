"""Sources: what is read, what is left out, other languages, near-duplicates, and every kind of bad source."""

import os
import sys
from pathlib import Path

import pytest

from brine.data.files.source_files import SourceFile, read_source, standard_library
from brine.synth import SynthConfig, SynthCounts, SynthError, build_synth_corpus
from brine.synth.kinds.levels import RegionSpec
from brine.synth.kinds.samples import is_pronounceable
from brine.synth.sources.code_regions import TrainTextIndex, region_at
from brine.synth.sources.features import extract_features, identifiers_in, name_parts, split_clusters

FEW = SynthConfig(train=SynthCounts(screenshot=(4, 0, 0, 0)), validation=SynthCounts(), test=SynthCounts())


def build(config: SynthConfig, folder: Path) -> dict:
    return build_synth_corpus(config, folder, progress=False)


def code(number: int, lines: int = 30) -> str:
    """A small module that shares no line with another number's."""
    return "".join(f"value_{number}_{line} = compute_{number}({line} + {number})\n" for line in range(lines))


def test_read_source_leaves_out_what_is_no_source(tmp_path):
    kept = ["a.py", "pkg/b.py", "pkg/deep/c.rs", "notes.md"]
    left = ["test_a.py", "b_test.go", "tests/c.py", "pkg/site-packages/d.py", ".git/e.py", ".hidden.py"]
    left += ["encodings/f.py", "pydoc_data/g.py", "image.png", "node_modules/h.js", "runs/corpus/old.py"]
    for name in kept + left:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code(1))
    files, skipped = read_source(tmp_path, exclude=tmp_path / "runs" / "corpus")
    assert [item.path for item in files] == sorted(kept)
    assert skipped == {}
    assert {item.path: item.package for item in files}["pkg/deep/c.rs"] == "pkg"


def test_read_source_counts_what_it_cannot_read(tmp_path):
    inside = tmp_path / "source"
    inside.mkdir()
    (inside / "good.py").write_text(code(1))
    (inside / "small.py").write_text("x = 1\n")
    (inside / "large.py").write_text(code(2, lines=2000))
    (inside / "binary.py").write_bytes(b"a = 1\0" * 100)
    (inside / "coding.py").write_bytes(b"# coding: no-such-coding\n" + code(3).encode())
    (inside / "bytes.c").write_bytes(b"\xff\xfe" * 100)
    (inside / "latin.py").write_bytes("# coding: latin-1\n# é\n".encode("latin-1") + code(4).encode())
    os.mkfifo(inside / "pipe.py")
    (tmp_path / "outside.py").write_text(code(5))
    (inside / "leaves.py").symlink_to(tmp_path / "outside.py")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "far.py").write_text(code(6))
    (inside / "folder").symlink_to(tmp_path / "other")
    (inside / os.fsdecode(b"odd\xff.py")).write_text(code(7))
    files, skipped = read_source(inside, max_file_kib=16)
    assert [item.path for item in files] == ["good.py", "latin.py"]
    assert "é" in files[1].text
    assert skipped == {
        "binary": 1, "link": 1, "no plain file": 1, "not text in its encoding": 2, "odd name": 1, "too large": 1,
        "too small": 1,
    }  # fmt: skip


@pytest.mark.parametrize("make", ["missing", "file", "empty", "only-tests"])
def test_build_workbench_names_a_bad_source(tmp_path, make):
    source = tmp_path / "source"
    if make == "file":
        source.write_text(code(1))
    elif make != "missing":
        source.mkdir()
    if make == "only-tests":
        (source / "test_x.py").write_text(code(1))
    with pytest.raises(ValueError, match=r"source.*point --corpus.source at") as error:
        build(SynthConfig(source=source), tmp_path / "out")
    assert str(source) in str(error.value)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_build_workbench_names_an_unreadable_source(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    # permissions do not stop root, under whom tests may run
    monkeypatch.setattr("brine.data.files.source_files.os.scandir", refuse)
    with pytest.raises(ValueError, match=r"cannot read the source folder .* \(Permission denied\)"):
        build(SynthConfig(source=source), tmp_path / "out")


def test_build_workbench_names_missing_libraries(tmp_path, monkeypatch):
    monkeypatch.setattr("brine.synth.build.find_spec", lambda name: None if name == "av" else object())
    with pytest.raises(SynthError, match=r"needs av: run `uv sync --group corpus`"):
        build(FEW, tmp_path)


def test_build_workbench_names_an_out_dir_that_cannot_be_made(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.py").write_text(code(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(SynthError, match="choose another folder"):
        build(SynthConfig(source=source), tmp_path / "file" / "out")


@pytest.mark.slow
def test_build_workbench_names_an_unknown_style(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.py").write_text(code(1))
    config = SynthConfig(
        source=source, train=FEW.train, validation=SynthCounts(), test=SynthCounts(), level1_style="no-such"
    )
    with pytest.raises(SynthError, match="Pygments has no style 'no-such'"):
        build(config, tmp_path / "out")


@pytest.mark.slow
def test_build_workbench_lowers_counts_that_the_source_cannot_fill(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"m{number}.py").write_text(code(number, lines=12 + number).replace("_", "x"))
    counts = SynthCounts(screenshot=(100, 0, 0, 50), narration=(0, 5, 5, 5), page=(5, 0, 0, 0))
    summary = build(SynthConfig(source=source, train=counts, validation=counts, test=counts), tmp_path / "out")
    assert 0 < summary["documents"]["test"]["screenshot"]["1"] < 100
    assert any(line.startswith("test screenshot level 1: ") and "of 100" in line for line in summary["shortfalls"])
    assert any(line.startswith("test narration level 4: 0 of 5") for line in summary["shortfalls"])
    assert [split["files"] for split in summary["splits"].values()] == [1, 1, 1]


def test_config_refuses_what_cannot_be():
    for wrong in (-1, True, "many"):
        with pytest.raises(SynthError, match=r"SynthCounts\.text"):
            SynthCounts(text=wrong)
    with pytest.raises(SynthError, match="four numbers"):
        SynthCounts(page=(1, 2, 3))
    with pytest.raises(SynthError, match="at least one process"):
        SynthConfig(workers=0)
    with pytest.raises(SynthError, match=r"leave at least 0\.1"):
        SynthConfig(test_fraction=0.95)
    assert SynthCounts(page=[1, 0, 3, 0]).by_level("page") == {1: 1, 3: 3}


OTHER = {
    "server.go": (
        "// The server listens on every address that it is given.\n"
        'func openListener(address string, max_clients int) (*Listener, error) {\n\treturn listen("tcp", address)\n}\n'
    ),
    "lib.rs": (
        "/// Reads the whole header from a stream.\nfn read_header(input: &str, limit: usize) -> u32 {\n    0\n}\n"
    ),
    "app.ts": "function drawButton(label: string, size: number) {\n  return renderLabel(label, size);\n}\n",
    "core.c": (
        "/* Copies every row of the table. */\nint copy_rows(struct table *source, int row_count)\n{\n  return 0;\n}\n"
    ),
}


@pytest.mark.slow
def test_build_workbench_takes_other_languages(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name, text in OTHER.items():
        filler = "".join(f"int row_{name[0]}_{line} = make({line});\n" for line in range(20))
        (source / name).write_text(text + filler)
    counts = SynthCounts(text=4, screenshot=(10, 4, 2, 2), narration=(5, 2, 1, 1), recording=(2, 1, 1, 0))
    config = SynthConfig(
        source=source,
        train=counts,
        validation=SynthCounts(),
        test=SynthCounts(),
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    summary = build(config, tmp_path / "out")
    assert summary["shortfalls"] == [] and summary["failed"] == {}
    assert summary["documents"]["train"]["narration"] == {"1": 5, "2": 2, "3": 1, "4": 1}


def test_extract_by_language():
    go = extract_features(OTHER["server.go"], language="go")
    assert go.signatures == ("openListener(address, max_clients)",)
    assert go.sentences == ("The server listens on every address that it is given.",)
    assert extract_features(OTHER["lib.rs"], language="rust").signatures == ("read_header(input, limit)",)
    assert extract_features(OTHER["app.ts"], language="typescript").signatures == ("drawButton(label, size)",)
    c = extract_features(OTHER["core.c"], language="c")
    assert c.signatures == ("copy_rows(source, row_count)",)
    assert c.sentences == ("Copies every row of the table.",)
    assert "row_count" in c.names and "return" not in c.names and "int" not in c.names


def test_extract_python():
    text = (
        '"""Opens things that were closed. See also: nothing."""\n'
        "def open_it(path, *, mode='r', **rest):\n"
        '    """Give the file back to the caller, opened.\n\n    >>> open_it(1)\n    """\n'
        "    return os.path.join(path, 'not_a_name')\n"
    )
    found = extract_features(text, language="python")
    assert found.signatures == ("open_it(path, mode)",)
    assert found.sentences == ("Opens things that were closed.", "Give the file back to the caller, opened.")
    assert found.names == {"open_it": 1, "path": 3, "mode": 1, "rest": 1, "join": 1, "os": 1}
    # what does not parse is read by regular expressions
    assert "old_name" in extract_features("print 'x'\nold_name = 3\n" * 3, language="python").names


def test_name_parts_and_names_in():
    assert name_parts("HTTPServer_v2") == ["http", "server", "v", "2"]
    assert name_parts("_private__fileName") == ["private", "file", "name"]
    assert identifiers_in("for key, value in items(self.path):  # not this") == ["key", "value", "items", "path"]
    assert is_pronounceable("file_name", parts=(2, 3), letters=20)
    assert not is_pronounceable("_file", parts=(1, 3), letters=20)
    assert not is_pronounceable("sha512_256", parts=(1, 3), letters=20)


def test_region_at_dedents_and_refuses():
    lines = ["def f():", "\tif deep:", "\t    return value ", "", "naïve = 1", "-------------"]
    one = RegionSpec(lines=(1, 3), chars=(4, 40))
    assert region_at(lines, 1, count=2, region=one) == ["if deep:", "    return value"]
    assert region_at(lines, 4, count=1, region=one) is None
    assert region_at(lines, 5, count=1, region=one) is None
    assert region_at(lines, 2, count=2, region=one) is None
    assert region_at(lines, 5, count=2, region=one) is None


def test_known_compares_stripped_lines_and_spoken_words():
    train_content = TrainTextIndex()
    train_content.add_text("  import os\n\nx = 1")
    train_content.add_spoken("File name")
    assert train_content.has_line_of("def f():\n        import os")
    assert not train_content.has_line_of("import os.path")
    assert train_content.has_spoken("file, name") and not train_content.has_spoken("name file")
    train_content.add_spoken("file")
    assert not train_content.has_spoken("file")


def test_cluster_joins_near_duplicates(corpus, split_files):
    """A module copied under another name, with a name replaced and comments respaced, is the same module."""
    files, clusters = split_files.files, split_files.clusters
    assert corpus.summary["near_duplicates"] == len(files) - len(clusters)
    together = [{files[index].path for index in group} for group in clusters if len(group) > 1]
    assert {"textwrap.py", "http/wrapped.py"} in together
    assert sorted(index for group in clusters for index in group) == list(range(len(files)))
    for seed in range(5):
        splits = split_clusters(clusters, files=files, validation_fraction=0.2, test_fraction=0.2, seed=seed)
        of = {files[index].path: split for split, chosen in splits.items() for index in chosen}
        assert of["textwrap.py"] == of["http/wrapped.py"]
        assert len(of) == len(files)


def test_deal_keeps_shares_and_train():
    files = [SourceFile(f"{index}.py", "python", "x" * size) for index, size in enumerate([5000] + [100] * 50)]
    groups = [[index] for index in range(len(files))]
    splits = split_clusters(groups, files=files, validation_fraction=0.05, test_fraction=0.05, seed=3)
    for split in ("validation", "test"):
        assert 400 <= sum(files[index].num_bytes for index in splits[split]) <= 550
    # one file larger than a held-out split stays in train
    assert 0 in splits["train"]
    assert split_clusters([[0]], files=files[:1], validation_fraction=0.05, test_fraction=0.05, seed=0)["train"] == [0]
    three = split_clusters(groups[1:4], files=files, validation_fraction=0.05, test_fraction=0.05, seed=0)
    assert sorted(len(chosen) for chosen in three.values()) == [1, 1, 1]


def test_standard_library_is_the_default():
    files, _ = read_source(None, max_file_kib=64)
    assert {"abc.py", "json/decoder.py"} <= {item.path for item in files}
    assert not any(item.path.startswith(("encodings/", "test/", "site-packages/")) for item in files)
    assert str(standard_library()).startswith(sys.base_prefix)
