"""Two settings by three seeds of the recipe `quick`, with one worker and with two: the time, equal bytes, what was
built once, and what the table says of a learning rate of a hundredth.

The arm without a teacher, uncompiled, without transcripts: five minutes with one worker on idle cores."""

import time

import pytest

from brine.common.files import read_json
from tests.experiments.builds import builds_by_stage, stored_stages
from tests.experiments.machine_load import cores_of_others, processor_times
from tests.experiments.test_run import ENVIRONMENT, finish, start, weights

MOST_TIME = 0.65
"""Of one worker's time, with two workers on two cores."""
MOST_BY_OTHERS = 0.1
"""Of the processor's time, what other processes may take while the clock runs; above it a time says nothing."""
STAGES = {"corpus": 1, "encoded": 1, "large_baseline": 6, "evaluate": 6}
"""Stages that the experiment consists of, and how many of each."""
TIMEOUT_S = 3600
TEXT = '''"""Is a learning rate of a hundredth worse?"""

from dataclasses import replace

from brine.experiments.experiment import Experiment, Grid, Seeds
from brine.recipes.quick import quick


def rates():
    base = quick()
    base = replace(base, arms=("baseline",), runtime=replace(base.runtime, compile=False, device="cpu"),
                   evals=replace(base.evals, transcripts_per_cell=0, samples_per_cell=0))
    return Experiment("Is a learning rate of a hundredth worse?", "bits per byte rise by half or more", base,
                      Grid({"large.learning_rate": [6e-3, 6e-5]}), seeds=Seeds((0, 1, 2)))
'''


def timed_run(folder, workers):
    """(folder of the experiment, seconds, share of the processor's time that other processes took)."""
    path = folder / "rates.py"
    path.write_text(TEXT, encoding="utf-8")
    before, begun = processor_times(), time.monotonic()
    # a child of this process, not of the server that forks: once waited for, what it took counts as our own
    process = start("run", path, folder / "runs", "--workers", str(workers), environment=dict(ENVIRONMENT))
    finish(process, timeout_s=TIMEOUT_S)
    return folder / "runs" / "rates", time.monotonic() - begun, cores_of_others(before, processor_times())


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    return timed_run(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    return timed_run(tmp_path_factory.mktemp("two"), 2)


def test_two_workers_give_the_same_and_build_shared_stages_once(one_worker, two_workers):
    for folder, _, _ in (one_worker, two_workers):
        assert builds_by_stage(folder) == STAGES
        assert stored_stages(folder) == STAGES
    alone, beside = one_worker[0], two_workers[0]
    assert weights(alone) == weights(beside) and len(set(weights(alone).values())) == 6
    assert (alone / "table.json").read_bytes() == (beside / "table.json").read_bytes()


def test_a_hundredth_of_the_learning_rate_is_worse(one_worker):
    table = read_json(one_worker[0] / "table.json")
    found = table["differences"]["bits_per_byte"]["02"]
    assert found["outcome"] == "worse" and found["low"] > 0.1 and found["p_holm"] < 0.05
    assert table["winner"]["setting"] == "01" and table["ranking"] == ["01", "02"]


def test_two_workers_take_less_time(one_worker, two_workers):
    ratio = two_workers[1] / one_worker[1]
    said = f"{two_workers[1]:.0f} s with two workers, {one_worker[1]:.0f} s with one: {ratio:.2f}"
    taken = max(one_worker[2], two_workers[2])
    print(said, f"(others took at most {taken:.0%} of the processor's time)")
    if taken > MOST_BY_OTHERS:
        pytest.skip(f"other processes took {taken:.0%} of the processor's time, so that {said} says nothing")
    assert ratio <= MOST_TIME, said
