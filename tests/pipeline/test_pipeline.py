"""The whole line on a handful of documents: it runs, survives being killed, shares work between ranks, and answers
mistakes with a message.

One reference run serves all tests that need a finished one. It is the recipe `demo` with tiny counts, uncompiled, on a
source tree of a few standard modules, so it takes seconds and goes through every stage.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from brine import train as command
from brine.data.cli.main import main as data_command
from brine.pipeline import run as train
from tests.forked import Command
from tests.paths import ROOT

pytestmark = pytest.mark.slow

COUNTS = {
    "train": {"text": "6", "package": "0", "screenshot": "48 4 0 0", "narration": "24 2 0 0", "recording": "12 1 0 0",
              "page": "2 0 0 0"},
    "validation": {"text": "1", "package": "0", "screenshot": "2 0 0 0", "narration": "2 0 0 0",
                   "recording": "2 0 0 0", "page": "0 0 0 0"},
    "test": {"text": "1", "package": "0", "screenshot": "3 1 0 0", "narration": "3 0 0 0", "recording": "2 0 0 0",
             "page": "0 0 0 0"},
}  # fmt: skip
MODULES = [
    "argparse",
    "ast",
    "calendar",
    "configparser",
    "csv",
    "dataclasses",
    "difflib",
    "shlex",
    "string",
    "textwrap",
    "tokenize",
    "zipfile",
]


def arguments(runs: Path, source: Path, *more: str) -> list[str]:
    """The command line of a tiny run."""
    words = ["demo", "--runs", str(runs), "--corpus.source", str(source), "--runtime.compile", "False"]
    # as many threads as cores, which the tests beside this one use too, would mostly wait for one another
    words += ["--runtime.num-threads", "1"]
    for split, counts in COUNTS.items():
        for kind, count in counts.items():
            words += [f"--corpus.synth.{split}.{kind}", *count.split()]
    for model, steps in (("small", "4"), ("large", "6")):
        words += [
            f"--{model}.num-steps",
            steps,
            f"--{model}.global-batch-size",
            "2",
            f"--{model}.micro-batch-size",
            "1",
            f"--{model}.warmup-steps",
            "1",
            f"--{model}.checkpoint-every",
            "2",
            f"--{model}.log-every",
            "2",
            f"--{model}.validate-every",
            "3",
            f"--{model}.model.num-layers",
            "2",
            f"--{model}.model.mlp-dim",
            "64",
        ]
    words += ["--large.model.dim", "64", "--small.model.dim", "32", "--evals.documents-per-cell", "3",
              "--evals.transcripts-per-cell", "2", "--evals.max-new-tokens", "8", "--evals.bootstrap-resamples", "100",
              "--evals.validation-per-cell", "2"]  # fmt: skip
    return [*words, *more]


def start(words: list[str], **environment: str) -> Command:
    """The line as its own process group, so that a test can kill all of it."""
    return Command([str(ROOT / "train.py"), *words], env=os.environ | environment)


def finish(process: Command, timeout_s: float = 240) -> str:
    """Output of a process that ends well."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"the line did not end in {timeout_s} s:\n{output[-3000:]}")
    assert process.returncode == 0, output[-3000:]
    return output


def kill_when(process: Command, found, timeout_s: float = 120) -> None:
    """SIGKILL to the whole group as soon as `found()`."""
    end = time.monotonic() + timeout_s
    while not found():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, "the point to kill at was never reached"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in MODULES:
        found = __import__(name).__file__
        found = str(Path(found).parent / "__init__.py") if found.endswith("__init__.py") else found
        (folder / f"{name}.py").write_bytes(Path(found).read_bytes())
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory, source) -> Path:
    """The run folder of one uninterrupted run."""
    runs = tmp_path_factory.mktemp("reference")
    finish(start(arguments(runs, source)))
    return runs / "demo"


def test_summary_has_the_numbers_and_the_report_stands_alone(reference):
    summary = json.loads((reference / "summary.json").read_text())
    assert summary["wall_s"] > 0 and summary["peak_rss_gib"] > 0 and summary["bits_per_byte"] > 0
    for name in ("image", "audio", "video"):
        gain = summary["media_gain"][name]
        assert gain["low"] <= gain["gain"] <= gain["high"]
    assert set(summary["cer"]) == {"image", "audio"} and summary["salt"]
    flops_by_arm = summary["compute_cost"]["flops_by_arm"]
    scoring = {name: arm["teacher_forward_and_scoring"] for name, arm in flops_by_arm.items()}
    assert scoring["large_salt"] > 0 and scoring["large_baseline"] == 0
    assert flops_by_arm["large_salt"]["student"] == flops_by_arm["large_baseline"]["student"] > 0
    page = (reference / "report.html").read_text()
    assert "data:image/png;base64," in page and "data:video/mp4;base64," in page and "<audio" in page


def test_a_finished_line_is_not_run_twice(reference, source):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*.safetensors")}
    output = finish(start(arguments(reference.parent, source)))
    assert "encoded: unchanged, skipped" in output and "large_baseline: unchanged, skipped" in output
    assert before == {path: path.stat().st_mtime_ns for path in reference.rglob("*.safetensors")}


def test_another_machine_with_the_same_url_builds_nothing(reference, source, tmp_path, caplog):
    """What was made before there was a URL is sent too; the other one has no stage, and another run's name."""
    url = f"file://{tmp_path}/bucket"
    with caplog.at_level(logging.INFO, logger="brine"):
        assert command.main([*arguments(reference.parent, source), "--remote-store", url]) == 0
        assert f"stages are at {url}" in caplog.text
        caplog.clear()
        words = arguments(tmp_path / "there", source, "--name", "other", "--remote-store", url)
        assert command.main(words) == 0
    done = [path.parent for path in sorted(reference.glob("*/done"))]
    assert len(done) >= 5 and ": done in " not in caplog.text
    for stage in done:
        assert f"{stage.name}: downloaded from {url}" in caplog.text
        there = tmp_path / "there/other" / stage.name
        assert there.resolve().name == stage.resolve().name
        for path in stage.glob("model/*.safetensors"):
            assert (there / "model" / path.name).read_bytes() == path.read_bytes()


def test_what_another_command_evaluated_stays_as_long_as_it_is_true(reference, source, tmp_path, capsys, caplog):
    """One arm asked for on a run of both: evaluation, summary and report were made anew without the other models."""
    shutil.copytree(reference, tmp_path / "demo")
    results, asked = tmp_path / "demo" / "evaluate" / "results.json", arguments(tmp_path, source)
    before, everything = results.read_bytes(), {"small", "large_salt", "large_baseline"}
    assert set(json.loads(before)["models"]) == everything
    with caplog.at_level(logging.INFO, logger="brine"):
        assert command.main([*asked, "--arms", "baseline"]) == 0
        assert command.main([*asked, "--arms", "salt"]) == 0
    assert results.read_bytes() == before and "left out" not in caplog.text
    first, then = (json.loads((run / "summary.json").read_text()) for run in (reference, tmp_path / "demo"))
    assert {name for name in first if first[name] != then.get(name)} <= {"wall_s", "peak_rss_gib", "compute_info"}
    # what this recipe would not train is left out, and said to be
    assert command.main([*asked, "--arms", "baseline", "--salt.distill-weight", "0.3"]) == 0
    assert "large_salt: an earlier command trained it with other settings" in caplog.text
    assert set(json.loads(results.read_text())["models"]) == everything - {"large_salt"}
    assert (tmp_path / "demo" / "large_salt" / "done").exists()


def test_killed_at_several_points_it_ends_with_the_same_weights(reference, source, tmp_path):
    run = tmp_path / "demo"
    words = arguments(tmp_path, source)
    points = [
        lambda: (run / "encoded" / "store" / "building.json").exists(),
        lambda: (run / "small" / "checkpoints" / "step_00000002").exists(),
        lambda: (run / "large_salt" / "checkpoints" / "step_00000004").exists(),
    ]
    for point in points:
        kill_when(start(words), point)
    finish(start(words))
    for stage in ("small", "large_salt", "large_baseline"):
        mine, whole = (load_file(folder / stage / "model" / "model.safetensors") for folder in (run, reference))
        assert mine.keys() == whole.keys()
        assert all((mine[name] == whole[name]).all() for name in whole), stage
    assert (run / "corpus" / "manifest.jsonl").read_bytes() == (reference / "corpus" / "manifest.jsonl").read_bytes()


def test_two_ranks_share_the_line_and_selection_chooses_documents(source, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # as torchrun starts them, without its seconds; the tests of faults have torchrun
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = arguments(tmp_path, source, "--arms", "salt", "--salt.selection")
    for process in [start(words, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(2)]:
        finish(process)
    run = tmp_path / "demo"
    selected, trained = (json.loads((run / stage / "done").read_text())["result"] for stage in ("select", "large_salt"))
    assert trained["step"] == 6 and not (run / "large_baseline").exists()
    documents = json.loads((run / "encoded" / "done").read_text())["result"]["documents"]
    assert 0 < len(selected["kept"]) < documents
    assert json.loads((run / "select" / "compute_cost.json").read_text())["scoring"]["flops"] > 0
    assert (tmp_path / "demo" / "report.html").exists()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder as people have them: images with captions beside them, two of which are the same."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(14):
        shade = 20 * min(number, 12)
        Image.new("L", (32, 16 + shade % 48), shade).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a shade of {shade}")
    return folder


def test_a_folder_of_ones_own_is_trained_on_and_filters_leave_out(pictures, tmp_path):
    """A folder filtered by the recipe, and the same as a corpus that was built and filtered before: equal models."""
    words = [*arguments(tmp_path, Path()), "--arms", "baseline"]
    at = words.index("--corpus.source")
    del words[at : at + 2]
    filtered = ["--corpus.manifest", str(pictures), "--corpus.filters", "exact_duplicates"]
    output = finish(start([*words, *filtered, "--salt.selection"]))
    # there is no arm with SALT
    assert "salt.selection has no effect" in output
    run = tmp_path / "demo"
    assert "01 exact_duplicates" in (run / "filtered" / "filter_passes.txt").read_text()
    counts = {stage: json.loads((run / stage / "done").read_text())["result"] for stage in ("encoded", "filtered")}
    assert counts["encoded"]["documents"] == 14 and counts["filtered"]["kept"] == 13
    excluded = json.loads((run / "summary.json").read_text())["excluded"]
    assert excluded["documents"] == 0 and 0 < excluded["total_documents"] < 13
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        built, encode = tmp_path / "built", ["--max-image-tokens", "384", "--max-video-tokens", "384"]
        assert data_command(["build", str(pictures), str(built), "--vocab-size", "384", *encode]) == 0
        assert data_command(["filter", str(built), "exact_duplicates"]) == 0
    # and by batches that another process makes
    finish(start([*words, "--corpus.manifest", str(built), "--name", "built", "--runtime.num-loader-workers", "1"]))
    models = [
        load_file(tmp_path / name / "large_baseline" / "model" / "model.safetensors") for name in ("demo", "built")
    ]
    assert models[0].keys() == models[1].keys()
    assert all((models[0][name] == models[1][name]).all() for name in models[0])


def test_a_trained_model_answers_on_the_command_line(reference, tmp_path):
    Image.new("RGB", (64, 16), "white").save(tmp_path / "shot.png")
    words = ["--image", str(tmp_path / "shot.png"), "--prompt", "def ", "--max-tokens", "4"]
    finish(Command(["-m", "brine.inference.generate", str(reference), *words]))


def test_dry_run_tells_size_and_time_and_writes_nothing(capsys, tmp_path):
    assert command.main(["demo", "--dry-run", "--runs", str(tmp_path)]) == 0
    refused = ["--runtime.device", "cpu", "--runtime.attention-backend", "gluon"]
    assert command.main(["demo", "--dry-run", "--runs", str(tmp_path), *refused]) == 2
    said = capsys.readouterr().out
    assert "large_salt" in said and "parameters" in said and "tokens" in said and "in all" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
@pytest.mark.parametrize(
    "manifest, told",
    [
        ("nowhere/train.jsonl", "nowhere/train.jsonl does not exist"),
        ("org/name", "`hf download org/name --repo-type dataset"),
        ("https://data.example/a.tar", "`curl -L -o a.tar https://data.example/a.tar`"),
        ("hdfs://node/set", "hdfs://node/set does not exist"),
    ],
)
def test_a_manifest_that_is_not_there_is_told_before_anything_slow(tmp_path, monkeypatch, capsys, manifest, told, dry):
    """A trial compilation went first, without a word, and a dry run printed a plan."""
    for slow in ("init_distributed", "resolve_runtime", "estimate_run"):
        monkeypatch.setattr(
            command if slow == "estimate_run" else train, slow, lambda *_, **__: pytest.fail("it began")
        )
    monkeypatch.chdir(tmp_path)
    assert command.main(["real", "--corpus.manifest", manifest, "--runs", str(tmp_path), *dry]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        ([], ("synth", "real", "--large.learning-rate", "--corpus.*", "--dry-run")),
        (["demo"], ("--large.learning-rate", "--corpus.source", "--dry-run")),
    ],
    ids=["page", "recipe"],
)
def test_help_lists_recipes_and_fields(arguments, listed, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([*arguments, "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    for words in listed:
        assert words in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dmeo"], "choose one of demo"),
        (["demo", "--large.lerning-rate", "1"], "learning-rate"),
        (["demo", "--large.num-steps", "0"], "--large.num-steps = 0 must be positive"),
        (["demo", "--packing.seq-len", "3"], "seq_len"),
        (["demo", "--corpus.source", "nowhere"], "nowhere"),
        (["demo", "--corpus.manifest", "nowhere.jsonl"], "nowhere.jsonl"),
        (["demo", "--corpus.source", "EMPTY"], "--corpus.source"),
        (["demo", "--corpus.manifest", "EMPTY/bad.jsonl"], "no document"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_mistake_gets_a_message_and_no_trace(words, expected, capsys, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    words = [word.replace("EMPTY", str(empty)) for word in words]
    if any(word.endswith("bad.jsonl") for word in words):
        (empty / "bad.jsonl").write_text("this is no JSON\n{}\n")
    try:
        code = command.main([*words, "--runs", str(tmp_path / "runs"), "--runtime.compile", "False"])
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    assert code == 2
    assert expected in said.err + said.out
    assert "Traceback" not in said.err + said.out
