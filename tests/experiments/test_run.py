"""Real trials in processes of their own: killed, interrupted, diverged, and run under the code of their plan."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brine.common.files import read_json, read_jsonl
from brine.experiments.cli import main
from brine.experiments.planning.plan import load_plan
from tests.experiments.builds import builds_by_stage, stored_stages
from tests.experiments.tiny import write_experiment
from tests.forked import Command
from tests.paths import ROOT

pytest.importorskip("brine.evals.seed_interval")
pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(verb, path, runs, *more, environment=ENVIRONMENT):
    words = ["-m", "brine.experiments", verb, str(path), "--runs", str(runs), *more]
    if environment is ENVIRONMENT:
        return Command(words, cwd=runs.parent, env=environment)
    words = [sys.executable, *words]
    return subprocess.Popen(words, cwd=runs.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def finish(process, code=0, timeout_s=300):
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == code, output[-3000:]
    return output


def wait_until(there, process, timeout_s=120):
    end = time.monotonic() + timeout_s
    while not there():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def weights(folder):
    return {path.parent.name: read_json(path)["weights"] for path in sorted(folder.glob("trials/*/trial.json"))}


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """The tiny experiment, run with two workers."""
    folder = tmp_path_factory.mktemp("finished")
    output = finish(start("run", write_experiment(folder / "tiny.py", source), folder / "runs", "--workers", "2"))
    assert "winner: " in output
    return folder / "runs" / "tiny"


def test_trials_are_ordinary_runs_that_were_measured(finished):
    plan = load_plan(finished)
    for trial in plan.trials:
        folder = plan.trial_folder(trial)
        record = read_json(folder / "trial.json")
        assert record["outcome"] == "done" and record["flops"]["student"] > 0 and record["peak_rss_gib"] > 0.1
        assert read_json(folder / "recipe.json")["large"]["learning_rate"] == trial.changes["large.learning_rate"]
        assert (folder / "report.html").exists() and (folder / "suites/evaluate/measurements.jsonl").exists()
        assert read_json(folder / "runtime.json")["resolved"]["num_threads"] == 1
    table = read_json(finished / "table.json")
    assert table["settings"]["01"]["screen"]["seeds"]["0"]["values"]["test"]["bits_per_byte"] > 1
    assert len(set(weights(finished).values())) == 2
    assert builds_by_stage(finished) == stored_stages(finished) == {"encoded": 1, "large_baseline": 2, "evaluate": 2}
    assert read_json(finished / "costs.json")["01-seed0"]["wall_s"] > 0


def test_two_workers_build_what_they_share_once(source, tmp_path):
    """Two settings of the arm with a teacher, two seeds: one corpus and its encoding, with its tokenizer; a teacher for
    each seed, which both settings share; and a large model for each trial. One worker is halted while it makes the
    corpus until the other has come to it and waits."""
    path, runs = tmp_path / "shared.py", tmp_path / "runs"
    write_experiment(path, source, more="base=shared_recipe(SOURCE), seeds=Seeds((0, 1))")
    path.write_text(path.read_text().replace("import tiny_experiment", "import shared_recipe, tiny_experiment")
                    .replace("SOURCE", f"Path({str(source)!r})"))  # fmt: skip
    process, folder = start("run", path, runs, "--workers", "2"), runs / "shared"
    store, held = runs / ".store" / "corpus", re.compile(r"process (\d+) on ")

    def builder():
        return next((int(found[1]) for lock in store.glob("*.lock") if (found := held.match(lock.read_text()))), None)

    wait_until(builder, process)
    first = builder()
    os.kill(first, signal.SIGSTOP)
    try:
        assert not list(store.glob("*/done")), "the corpus was made before its builder could be halted"
        waiting = f"corpus: process {first} on "
        wait_until(lambda: any(waiting in log.read_text() for log in folder.glob("logs/*.log")), process)
        assert not list(store.glob("*/done"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGCONT)
    finish(process)
    expected = {"corpus": 1, "encoded": 1, "small": 2, "large_salt": 4, "evaluate": 4}
    assert builds_by_stage(folder) == expected and stored_stages(folder) == expected
    assert len(set(weights(folder).values())) == 4
    shared = [{trial: (folder / "trials" / trial / stage).resolve() for trial in weights(folder)}
              for stage in ("corpus", "encoded", "small")]  # fmt: skip
    assert [len(set(each.values())) for each in shared] == [1, 1, 2]
    assert all(shared[2][f"01-seed{seed}"] == shared[2][f"02-seed{seed}"] for seed in (0, 1))


def test_a_killed_trial_and_an_interrupted_run_end_with_the_same_weights(finished, source, tmp_path):
    path, runs = write_experiment(tmp_path / "tiny.py", source), tmp_path / "runs"
    process = start("run", path, runs)
    folder, checkpoints = runs / "tiny", "trials/{}/large_baseline/checkpoints/step_00000002"
    wait_until((folder / checkpoints.format("01-seed0")).exists, process)
    handle = read_jsonl(folder / "events.jsonl")[0]["handle"]
    os.kill(int(handle), signal.SIGKILL)
    wait_until((folder / "trials/01-seed0/trial.json").exists, process)
    # Ctrl-C while the second one trains or starts
    wait_until(lambda: read_jsonl(folder / "events.jsonl")[-1]["trial"] == "02-seed0", process)
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    assert "tried again" in output and "the same command continues" in output
    kinds = [event.get("kind") for event in read_jsonl(folder / "events.jsonl") if event["event"] == "ended"]
    assert kinds[:2] == ["killed", "done"] and kinds[2:] in (["interrupted"], ["done"])
    finish(start("run", "tiny", runs))
    assert weights(folder) == weights(finished)
    assert (folder / "table.json").read_bytes() == (finished / "table.json").read_bytes()


def test_editing_the_tree_changes_nothing(finished, source, tmp_path):
    """A checkout whose learning rate is edited to nothing after the plan was frozen."""
    checkout, runs = tmp_path / "checkout", tmp_path / "runs"
    left_out = shutil.ignore_patterns(
        *(".git", ".types", ".venv", ".pytest_cache", "tests", "runs", "docs", "notebooks", "__pycache__", "benchmarks")
    )
    shutil.copytree(ROOT, checkout, ignore=left_out)
    (checkout / "tests").mkdir()
    shutil.copytree(ROOT / "tests" / "experiments", checkout / "tests" / "experiments")
    environment = ENVIRONMENT | {"PYTHONPATH": str(checkout)}
    path = write_experiment(tmp_path / "tiny.py", source, root=checkout)
    finish(start("plan", path, runs, environment=environment))
    config = checkout / "training" / "config.py"
    text = config.read_text()
    edited = text.replace(
        "    if step < config.warmup_steps:\n", "    if step >= 0:\n        return 1e-9\n    if False:\n"
    )
    assert edited != text
    config.write_text(edited)
    folder = runs / "tiny"
    command = [sys.executable, "-m", "brine.experiments.trials.trial", str(folder), "01-seed0"]
    refused = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "not from the experiment's code" in refused.stderr
    assert main(["cancel", "tiny", "02-seed0", "--runs", str(runs)]) == 0
    finish(start("run", "tiny", runs, environment=environment))
    assert weights(folder)["01-seed0"] == weights(finished)["01-seed0"]


def test_divergence_is_a_result(source, tmp_path):
    more = "axes=Listed([{'large.max_rollbacks': 0}, {'large.max_rollbacks': 0, 'large.learning_rate': 1e30}])"
    path, runs = write_experiment(tmp_path / "tiny.py", source, more=more), tmp_path / "runs"
    output = finish(start("run", path, runs, "--workers", "2"))
    assert "1 of 1 seed diverged" in output and "winner: 01" in output
    record = read_json(runs / "tiny" / "trials" / "02-seed0" / "trial.json")
    assert record["outcome"] == "diverged" and "rolled back" in record["reason"]
    assert not [event for event in read_jsonl(runs / "tiny" / "events.jsonl") if event.get("kind") == "killed"]


def test_a_trial_that_is_refused_fails_with_its_line(source, tmp_path):
    """A folder that a person made under the trial's name."""
    path, runs = write_experiment(tmp_path / "tiny.py", source), tmp_path / "runs"
    finish(start("plan", path, runs))
    stage = runs / "tiny" / "trials" / "02-seed0" / "encoded"
    stage.mkdir(parents=True)
    (stage / "mine.txt").write_text("mine")
    finish(start("cancel", "tiny", runs, "01-seed0"))
    output = finish(start("run", "tiny", runs), 2)
    assert "1 of 2 trials failed: 02-seed0" in output and "is not empty" in output
    assert (stage / "mine.txt").read_text() == "mine" and len(list(Path(runs / "tiny" / "logs").glob("*.log"))) == 1
