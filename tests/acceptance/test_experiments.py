"""Two settings by three seeds with one worker, two workers, ten random kills, and on a Ray cluster that loses a node:
equal weights and equal bytes of the table."""

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
from tests.experiments.ray_nodes import small_cluster
from tests.experiments.test_run import finish, start, weights
from tests.experiments.tiny import make_source, write_experiment
from tests.paths import ROOT

pytest.importorskip("brine.evals.seed_interval")
SEEDS = "seeds=Seeds((0, 1, 2))"
KILLS = 10
MOST_TIME = 0.65
"""Of one worker's time, with two workers on two cores."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("texts") / "source")


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory):
    """(folder, seconds) of the experiment with one worker."""
    folder = tmp_path_factory.mktemp("alone")
    path, begun = write_experiment(folder / "batch.py", source, more=SEEDS), time.monotonic()
    finish(start("run", path, folder / "runs"), timeout_s=900)
    return folder / "runs" / "batch", time.monotonic() - begun


def assert_equal(folder, other):
    assert weights(folder) == weights(other) and len(set(weights(folder).values())) == 6
    assert (folder / "table.json").read_bytes() == (other / "table.json").read_bytes()
    done = [event["trial"] for event in read_jsonl(folder / "events.jsonl") if event.get("kind") == "done"]
    assert len(done) == len(set(done)), "a trial was finished twice"


def test_two_workers_take_less_time_for_the_same(alone, source, tmp_path):
    folder, seconds = alone
    path, begun = write_experiment(tmp_path / "batch.py", source, more=SEEDS), time.monotonic()
    finish(start("run", path, tmp_path / "runs", "--workers", "2"), timeout_s=900)
    ratio = (time.monotonic() - begun) / seconds
    assert_equal(tmp_path / "runs" / "batch", folder)
    # cores that others use too say nothing
    if os.getloadavg()[0] < 3.5:
        assert ratio <= MOST_TIME, f"{ratio:.2f} of one worker's {seconds:.0f} s"
    print(f"two workers: {ratio:.2f} of one worker's {seconds:.0f} s")


def test_ten_random_kills(alone, source, tmp_path):
    """Of trials, and now and then of the run itself with all that it started."""
    draw, kills, folder = random.Random(0), 0, tmp_path / "runs" / "batch"
    path = write_experiment(tmp_path / "batch.py", source, more=SEEDS)
    finish(start("plan", path, tmp_path / "runs"))
    process = start("run", "batch", tmp_path / "runs", "--workers", "2")
    while kills < KILLS:
        time.sleep(draw.uniform(0.5, 6.0))
        if process.poll() is not None:
            # all done, or one was killed a third time
            if main(["retry", "batch", "--runs", str(tmp_path / "runs")]) == 0 and process.returncode == 0:
                break
        elif draw.random() < 0.3:
            process.kill()
            kills += 1
        else:
            events = read_jsonl(folder / "events.jsonl")
            ended = {event["handle"] for event in events if "handle" in event}
            alive = [int(handle) for handle in ended if is_trial(int(handle))]
            if not alive:
                continue
            os.kill(draw.choice(sorted(alive)), signal.SIGKILL)
            kills += 1
            continue
        process.communicate(timeout=60)
        process = start("run", "batch", tmp_path / "runs", "--workers", "2")
    process.communicate(timeout=900)
    while process.returncode != 0:
        main(["retry", "batch", "--runs", str(tmp_path / "runs")])
        process = start("run", "batch", tmp_path / "runs", "--workers", "2")
        process.communicate(timeout=900)
    assert kills >= 5
    assert_equal(folder, alone[0])


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
    assert_equal(plan.folder, alone[0])
    assert len({event["trial"] for event in read_jsonl(plan.folder / "events.jsonl")}) == 6
    assert [trial.name for trial in load_plan(plan.folder).trials] == sorted(weights(alone[0]))


def test_the_trial_command_is_one_that_a_person_can_type(alone):
    """A finished trial is left as it is."""
    folder = alone[0]
    before = (folder / "trials" / "01-seed0" / "trial.json").stat().st_mtime_ns
    command = [sys.executable, "-m", "brine.experiments.trials.trial", str(folder), "01-seed0"]
    environment = os.environ | {"PYTHONPATH": str(folder / "code")}
    assert subprocess.run(command, env=environment, cwd=folder, timeout=120).returncode == 0
    assert (folder / "trials" / "01-seed0" / "trial.json").stat().st_mtime_ns == before
