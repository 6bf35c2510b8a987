"""Rounds whose process group dies by SIGKILL give the digests of those that were left in peace."""

import json
import random
import time

import pytest

from brine.common.files import file_digest, read_json
from tests.experiments.killed_rounds import run_killed
from tests.experiments.rounds import write_line

SELF_PLAY = 'self_play=SelfPlayConfig(families=("needle",), num_cases=32, block_size=8, max_tokens=4)'
STEPS = ("inputs", "teacher", "audit", "labels", "self-play", "data", "trainings", "comparison", "gate", "round")
WITHIN = ("inputs", "teacher", "audit", "labels", "data", "data", "trainings")
"""Boundaries after which the teacher is trained, the audit runs, labels are made, self-play plays, trainings run."""


def arguments(line, runs, *, rounds=1, workers=1):
    return ["round", str(line), "--runs", str(runs), "--rounds", str(rounds), "--workers", str(workers)]


def made(runs, line="line"):
    """Digests of all that the rounds made: what trainings see, pools, audits, weights; and what the records say."""
    found = {}
    for pattern in (f"{line}/round_*/*/*.json*", f"{line}/round_*/*/*/*.jsonl", ".store/words/*/*.json*"):
        found |= {str(path.relative_to(runs)): file_digest(path) for path in runs.glob(pattern) if "teacher" not in
                  path.parts and path.name != "stage.json" and not path.name.startswith(".")}  # fmt: skip
    for name in ("audit/*/audit.json", "relabel/*/*.jsonl", "self_play/*/pool.jsonl", "large_baseline/*/model/*"):
        found |= {str(path.relative_to(runs)): file_digest(path) for path in runs.glob(f".store/{name}")}
    for path in runs.glob(f"{line}/round_*/round.json"):
        record = read_json(path)
        record["pools"] = {name: [each.rpartition(".store")[2] for each in paths]
                           for name, paths in record["pools"].items()}  # fmt: skip
        found[path.parent.name] = record
    return found


def steps_of(schedule):
    """[(key of a boundary, seconds until the next)] of a call that was left in peace."""
    times = [json.loads(line) for line in schedule.with_name(f"{schedule.name}.times").read_text().splitlines()]
    ends = [time for _, time in times[1:]] + [times[-1][1]]
    return [(key, max(0.0, end - start)) for (key, start), end in zip(times, ends, strict=True)]


@pytest.mark.slow
def test_killed_within_the_audit(tmp_path):
    """Up to the trainings, which have tests of their own."""
    line = write_line(tmp_path / "line.py", tmp_path, more="seeds=(0,)")
    end = {"1 data": 0.0}
    assert run_killed(tmp_path / "whole.json", end, arguments(line, tmp_path / "whole"), last="1 data") == 1
    within = dict(steps_of(tmp_path / "whole.json"))["1 teacher"] / 2
    kills = {"1 teacher+": max(0.01, within), **end}
    assert run_killed(tmp_path / "killed.json", kills, arguments(line, tmp_path / "killed"), last="1 data") == 2
    whole = made(tmp_path / "whole")
    assert made(tmp_path / "killed") == whole and any("relabel" in name for name in whole)


@pytest.mark.acceptance
def test_three_rounds_killed_at_each_boundary_and_within_steps(tmp_path):
    line = write_line(tmp_path / "line.py", tmp_path, more=SELF_PLAY)
    start = time.monotonic()
    options = {"rounds": 3, "workers": 2}
    assert run_killed(tmp_path / "whole.json", {}, arguments(line, tmp_path / "whole", **options)) == 0
    print(f"\nthree rounds in peace: {time.monotonic() - start:.0f} s")
    lengths = steps_of(tmp_path / "whole.json")
    assert [key.split()[1] for key, _ in lengths] == [*STEPS] * 3
    rng = random.Random(1)
    kills = {key: 0.0 for key, _ in lengths}
    for number, name in enumerate(WITHIN):
        key = f"{1 + number % 3} {name}"
        kills[f"{key}+"] = max(0.01, rng.random() * dict(lengths)[key])
    start = time.monotonic()
    deaths = run_killed(tmp_path / "killed.json", kills, arguments(line, tmp_path / "killed", **options))
    print(f"killed {deaths} times, {len(kills) - len(lengths)} of them asked for within steps: "
          f"{time.monotonic() - start:.0f} s")  # fmt: skip
    assert deaths >= len(lengths)
    assert made(tmp_path / "killed") == made(tmp_path / "whole")
