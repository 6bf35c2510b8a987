"""The whole line on the stand-in: corpus, small model, selection, large models with its help and without, evaluation and
report, as one command does it on a machine with a card. No stage may touch a weight or a row on the other side.
"""

import json
from pathlib import Path

import pytest
from stand_in import NAME
from test_line import arguments

import train
from recipes.launch import parse

MODULES = ("calendar", "csv", "shlex", "string", "textwrap")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in MODULES:
        (folder / f"{name}.py").write_bytes(Path(__import__(name).__file__).read_bytes())
    return folder


def line(runs: Path, source: Path, *words: str) -> Path:
    """Run the line in this process; returns its folder."""
    few = [
        "--runtime.num-threads",
        "1",
        "--runtime.loader-workers",
        "0",
        "--small.num-steps",
        "2",
        "--large.num-steps",
        "3",
    ]
    for split, count in (("train", "8"), ("validation", "2"), ("test", "2")):
        few += [f"--corpus.workbench.{split}.text", "2", f"--corpus.workbench.{split}.page", "0", "0", "0", "0"]
        for kind in ("screenshot", "narration", "recording"):
            few += [f"--corpus.workbench.{split}.{kind}", count, "0", "0", "0"]
    return train.run_line(parse(arguments(runs, source, *few, *words)).recipe, runs=runs)


def test_the_line_runs_on_one_device_from_corpus_to_report(card, source, tmp_path):
    run = line(tmp_path, source, "--salt.selection")
    kept = json.loads((run / "runtime.json").read_text())["resolved"]
    assert kept["device"] == NAME
    for d in sorted(run.glob("*/done")):
        print(d.parent.name, json.loads(d.read_text())["wall_s"])
    print(sorted(path.name for path in run.iterdir()))
