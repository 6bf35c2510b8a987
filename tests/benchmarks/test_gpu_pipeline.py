"""What the stages that start other commands make of their ends, and whose runs they go on with."""

import json
import sys
import time

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import stage as gpu_stage
from benchmarks.gpu import suite as gpu_suite
from benchmarks.gpu import work as gpu_work
from benchmarks.gpu.record import read
from benchmarks.gpu.stages import demo as gpu_demo
from benchmarks.gpu.stages import generate as gpu_generate
from benchmarks.gpu.stages import smoke as gpu_smoke
from benchmarks.gpu.stages import train as gpu_train

pytestmark = pytest.mark.slow

STEP = {"step": 5, "loss": 3.0, "time": {"tokens_per_s": 10.0, "mfu": 0.25}}
TRAIN = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name, lines in json.loads(sys.argv[2]).items():
    (folder / name).write_text("".join(json.dumps(line) + "\\n" for line in lines) + '{"cut": {"a": 1}')
print("the last word", flush=True)
code = int(sys.argv[3])
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""


@pytest.fixture
def context(tmp_path):
    return gpu_stage.StageContext(
        "demo", True, "cpu", tmp_path / "out", tmp_path / "work", None, 0.0, 0.0, time.time() + 600,
        gpu_stage.SuiteItem("demo", 90),
    )  # fmt: skip


@pytest.fixture
def ends_with(context, monkeypatch):
    """Runs the line with another program in train.py's place -> the lines that it left."""

    def run(code: int | None, *, again: bool = False) -> list[dict]:
        lines = {
            "metrics.jsonl": [STEP, STEP | {"time": {"mfu": None}}, {"step": 5, "validation": {"loss": 2.0}}],
            "events.jsonl": [{"event": "started"}, {"event": "finished", "backends": {"attention": "triton"}}],
        }

        def instead(command, *, log, seconds, gentle):
            stage = context.work / "runs-demo" / "demo" / "large"
            program = [sys.executable, "-c", TRAIN, str(stage), json.dumps(lines), str(code or 0)]
            found = gpu_stage.run_command(program, log=log, seconds=seconds)
            return None if code is None else found

        monkeypatch.setattr(gpu_train, "run_command", instead)
        monkeypatch.setattr(gpu_train, "corpus_of", lambda context: (context.work, "none"))
        before = len(read(context.out)) if context.out.exists() else 0
        context.out.mkdir(exist_ok=True)
        try:
            gpu_train.line("demo", (), context, seconds=60, again=again)
        finally:
            run.lines = read(context.out)[before:]
        return run.lines

    return run


def test_a_run_is_told_by_its_steps(ends_with):
    """MFU was looked for where it is not, and the last line of metrics was a validation's."""
    stage, end = ends_with(130)
    assert stage["best_mfu"] == 0.25 and stage["steps"] == 2 and stage["last"]["time"] == {"mfu": None}
    assert stage["validation"]["validation"] == {"loss": 2.0} and stage["chose"] == {"attention": "triton"}
    assert end["ended"] == "asked to stop" and not end["resumed"]


def test_what_goes_on_says_so_and_what_does_not_begins_anew(ends_with):
    ends_with(0)
    assert ends_with(0, again=True)[-1]["resumed"]
    assert not ends_with(0)[-1]["resumed"]


def test_a_run_that_was_asked_to_stop_while_it_evaluated_is_no_failure(ends_with):
    assert ends_with(-15)[-1]["ended"].startswith("asked to stop")


def test_the_demo_goes_on_unless_it_is_a_toy(context, monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_demo, "line", lambda *arguments, **options: asked.append(options["again"]))
    for toy in (True, False):
        context.toy = toy
        gpu_demo.run(context.item, context)
    assert asked == [False, True]


@pytest.mark.slow
def test_a_backend_that_raises_at_one_mask_is_tried_at_the_others_and_has_failed(context, monkeypatch):
    """Triton's errors are no RuntimeErrors."""

    class OutOfResources(Exception):
        pass

    def instead(problem):
        seen.append(problem.backend)
        # the second mask
        if seen[-1] == "cpu" and seen.count("cpu") == 2:
            raise OutOfResources("shared memory")
        return brine(problem)

    brine, seen = gpu_smoke.brine, []
    monkeypatch.setattr(gpu_smoke, "brine", instead)
    context.out.mkdir()
    with pytest.raises(RuntimeError, match=r"cpu raised at window-D16"):
        gpu_smoke.check("cpu", context)
    right = {line["case"].split()[-1]: line["right"] for line in read(context.out)}
    assert not right.pop("window-D16") and len(right) >= 4 and all(right.values())


@pytest.mark.parametrize(("code", "why"), [(2, "ended with 2: the last word"), (None, "had not saved")])
def test_a_run_that_failed_is_no_success(ends_with, code, why):
    with pytest.raises(RuntimeError, match=why):
        ends_with(code)
    assert ends_with.lines[-1]["last"] == "the last word"


def test_generation_that_failed_is_no_success(context, monkeypatch):
    def instead(command, *, log, seconds):
        log.write_text('{"tokens_per_s": 1}\n{"cut\nerror: no\n')
        return 2

    monkeypatch.setattr(gpu_generate, "run_command", instead)
    context.out.mkdir()
    with pytest.raises(RuntimeError, match=r"benchmarks.context.generate ended with 2: error: no"):
        gpu_generate.run(context.item, context)
    first, last = read(context.out)
    assert first["said"] == {"tokens_per_s": 1} and last["lines_cut"] == 1


def test_runs_of_other_code_and_of_other_commands_are_left_alone(tmp_path, monkeypatch, capsys):
    """Yesterday's run, by another commit, was once told as today's."""
    monkeypatch.setattr(gpu_work.tempfile, "tempdir", str(tmp_path))
    known = gpu_work.default_work({"commit": "abc", "dirty": False})
    assert known == gpu_work.default_work({"commit": "abc", "dirty": None}) and known.name.endswith("-abc")
    corpus = tmp_path / "corpus.tar.xz"
    without = gpu_work.default_work({"commit": "abc"}, corpus=corpus)
    assert without != known
    corpus.write_text("another")
    assert gpu_work.default_work({"commit": "abc"}, corpus=corpus) != without
    for other in ({"commit": "def"}, {"commit": "abc", "dirty": True}, {"commit": None}, {}):
        assert gpu_work.default_work(other) != known
    monkeypatch.setattr(gpu_suite, "find_facts", lambda record, device: {"device": "cpu"})
    toys = tmp_path / "toy"
    gpu_work.check_folder(toys)
    with gpu_work.lock_work_folder(toys):
        assert gpu.main(["--stage", "tests", "--toy", "--work", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        assert f"another command works in {toys}: wait" in capsys.readouterr().err
    gpu_work.lock_work_folder(toys).close()
