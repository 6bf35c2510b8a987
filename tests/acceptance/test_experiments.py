"""Two settings by three seeds with one worker, two workers, ten random kills, and on a Ray cluster that loses a node:
equal weights and equal bytes of the table, and what trials share built once. `test_quick_experiment.py` has the time.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from brine.common.files import read_jsonl
from brine.experiments.batch import BatchRun
from brine.experiments.cli import main
from brine.experiments.planning.freeze import find_experiment, freeze
from brine.experiments.planning.plan import load_plan
from tests.experiments.builds import builds_by_stage, stored_stages
from tests.experiments.ray_nodes import small_cluster
from tests.experiments.test_run import finish, start, weights
from tests.experiments.tiny import make_source, write_experiment
from tests.paths import ROOT

pytest.importorskip("brine.evals.seed_interval")
SEEDS = "seeds=Seeds((0, 1, 2))"
STAGES = {"encoded": 1, "large_baseline": 6, "evaluate": 6}
"""Stages that the experiment consists of, and how many of each."""
KILLS = ("trial",) * 7 + ("run",) * 3
"""What is killed: one trial, or the run itself with all that it started."""
NEXT_TIMEOUT_S = 120.0
"""How long to wait for something to be written before the next kill."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("texts") / "source")


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory):
    """The experiment's folder, run with one worker."""
    folder = tmp_path_factory.mktemp("alone")
    path = write_experiment(folder / "batch.py", source, more=SEEDS)
    finish(start("run", path, folder / "runs"), timeout_s=900)
    return folder / "runs" / "batch"


def assert_equal(folder, other):
    assert weights(folder) == weights(other) and len(set(weights(folder).values())) == 6
    assert (folder / "table.json").read_bytes() == (other / "table.json").read_bytes()
    done = [event["trial"] for event in read_jsonl(folder / "events.jsonl") if event.get("kind") == "done"]
    assert len(done) == len(set(done)), "a trial was finished twice"
    assert builds_by_stage(folder) == STAGES and stored_stages(folder) == STAGES


def test_two_workers_give_the_same(alone, source, tmp_path):
    path = write_experiment(tmp_path / "batch.py", source, more=SEEDS)
    finish(start("run", path, tmp_path / "runs", "--workers", "2"), timeout_s=900)
    assert_equal(tmp_path / "runs" / "batch", alone)


def test_ten_random_kills(alone, source, tmp_path):
    """Each kill comes a moment after one to three more things were written, so that all ten fall into the work, however
    fast the machine is."""
    draw, folder, runs = random.Random(0), tmp_path / "runs" / "batch", tmp_path / "runs"
    finish(start("plan", write_experiment(tmp_path / "batch.py", source, more=SEEDS), runs))
    process, seen, kills = start("run", "batch", runs, "--workers", "2"), written(folder), []
    for kind in draw.sample(KILLS, len(KILLS)):
        wanted, end = len(seen) + draw.randint(1, 3), time.monotonic() + NEXT_TIMEOUT_S
        while len(seen) < wanted:
            seen |= written(folder)
            if process.poll() is not None:
                process = run_again(process, runs)
            assert time.monotonic() < end, f"nothing was written for {NEXT_TIMEOUT_S:.0f} s, after {len(kills)} kills"
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        if kind == "run":
            process.kill()
            process = run_again(process, runs)
        else:
            while not (alive := trials_alive(folder)):
                if process.poll() is not None:
                    process = run_again(process, runs)
                assert time.monotonic() < end, f"no trial was begun any more, after {len(kills)} kills"
                time.sleep(0.02)
            os.kill(chosen := draw.choice(alive), signal.SIGKILL)
            while is_trial(chosen):
                assert time.monotonic() < end, "it does not die"
                time.sleep(0.02)
        kills.append(kind)
    process.communicate(timeout=900)
    while process.returncode != 0:
        process = run_again(process, runs)
        process.communicate(timeout=900)
    assert len(kills) == len(KILLS) == 10
    assert_equal(folder, alone)


def run_again(process, runs):
    """The same command once more after one that ended, with what was killed three times back in the queue."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 2), f"it ended before the last kill: {output[-2000:]}"
    main(["retry", "batch", "--runs", str(runs)])
    return start("run", "batch", runs, "--workers", "2")


def written(folder):
    """What trials have written so far that stays: stages, checkpoints, models, records."""
    names = ("*", "large_baseline/checkpoints/step_*", "large_baseline/model", "large_baseline/done", "evaluate/done")
    return {path for name in names for path in folder.glob(f"trials/*/{name}")}


def trials_alive(folder):
    """Process ids of trials that have no result yet, in order."""
    begun = [event for event in read_jsonl(folder / "events.jsonl") if "handle" in event]
    at_work = {int(each["handle"]) for each in begun if not (folder / "trials" / each["trial"] / "trial.json").exists()}
    return sorted(handle for handle in at_work if is_trial(handle))


def is_trial(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"brine.experiments.trials.trial" in file.read()
    except OSError:
        return False


def test_a_ray_cluster_that_loses_a_node(alone, source, tmp_path):
    """Three node processes; one is killed with its worker while a trial trains there."""
    pytest.importorskip("ray")
    from brine.experiments.engines.ray_cluster import RayEngine

    path = write_experiment(tmp_path / "batch.py", source, more=SEEDS)
    name, experiment = find_experiment(str(path))
    plan = freeze(name, experiment, runs=tmp_path / "runs", threads=1)
    with small_cluster(3, pythonpath=str(ROOT)) as cluster:
        run = BatchRun(plan, RayEngine(address=cluster.address), engine_name="ray")
        poll, lost = run._poll, []

        def poll_and_kill():
            poll()
            checkpoints = list(plan.folder.glob("trials/*/large_baseline/checkpoints/step_*"))
            if checkpoints and not lost:
                lost.append(next(iter(cluster.worker_nodes)))
                cluster.remove_node(lost[0], allow_graceful=False)

        run._poll = poll_and_kill
        run.run()
        assert lost
    assert_equal(plan.folder, alone)
    assert len({event["trial"] for event in read_jsonl(plan.folder / "events.jsonl")}) == 6
    assert [trial.name for trial in load_plan(plan.folder).trials] == sorted(weights(alone))


def test_the_trial_command_is_one_that_a_person_can_type(alone):
    """A finished trial is left as it is."""
    folder = alone
    before = (folder / "trials" / "01-seed0" / "trial.json").stat().st_mtime_ns
    command = [sys.executable, "-m", "brine.experiments.trials.trial", str(folder), "01-seed0"]
    environment = os.environ | {"PYTHONPATH": str(folder / "code")}
    assert subprocess.run(command, env=environment, cwd=folder, timeout=120).returncode == 0
    assert (folder / "trials" / "01-seed0" / "trial.json").stat().st_mtime_ns == before
