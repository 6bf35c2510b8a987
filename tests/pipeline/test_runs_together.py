"""Runs of other names that are started at the same moment make each stage once."""

import json
from pathlib import Path

import pytest

from tests.forked import Command

pytestmark = pytest.mark.slow

CODE = """
import logging, sys
from dataclasses import replace
from pathlib import Path
from brine.pipeline.run import run_pipeline
from tests.pipeline.test_protected_stages import at, recipe
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
folder, name, copy = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
value = recipe(name=name)
if sys.argv[4:] == ["longer"]:
    value = replace(value, large=replace(value.large, num_steps=6))
run_pipeline(at(value, folder / copy / "manifest.jsonl"), runs=folder / "runs")
"""


def test_three_runs_at_once(tmp_path):
    """Two equal ones and a longer one, on copies of the documents at three paths."""
    lines = [
        {"id": f"d{number}", "kind": "page", "split": ("validation", "test", *["train"] * 6)[number % 8],
         "content": [{"type": "text", "text": f"page {number} of a small book about numbers"}]}
        for number in range(24)
    ]  # fmt: skip
    for copy in "xyz":
        (tmp_path / copy).mkdir()
        (tmp_path / copy / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = {"a": ["x"], "b": ["y"], "c": ["z", "longer"]}
    running = [Command(["-c", CODE, str(tmp_path), name, *words]) for name, words in asked.items()]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(said)[-4000:]
    together = "".join(said)
    for stage, times in (("encoded", 1), ("large_baseline", 2), ("evaluate", 2)):
        assert together.count(f"{stage}: done in") == times, stage
        assert len([path for path in Path(tmp_path / "runs" / ".store" / stage).iterdir() if path.is_dir()]) == times
    runs = {name: tmp_path / "runs" / name for name in asked}
    assert (runs["a"] / "large_baseline").resolve() == (runs["b"] / "large_baseline").resolve()
    assert (runs["a"] / "large_baseline").resolve() != (runs["c"] / "large_baseline").resolve()
    assert all((folder / "report.html").exists() for folder in runs.values())
