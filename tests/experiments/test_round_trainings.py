"""The trainings of a round that fail, are cancelled, or would be for a gate that cannot be asked."""

import pytest

from brine.common.files import read_json
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.experiments.batch import cancel, retry
from brine.experiments.planning.plan import load_plan
from brine.experiments.rounds import driver
from brine.experiments.trials.ending import DONE, REFUSED
from brine.registry.registry import Registry
from tests.experiments.rounds import tiny_line, write_images
from tests.experiments.tiny import FakeEngine, finish_trial
from tests.registry.fakes import SUITE, make_run, write_measured


@pytest.fixture
def run_line(tmp_path, monkeypatch):
    """Runs the first round of a line on an engine that makes results up: `run_line(fails={"02-seed1"}, **line)`."""
    runs = tmp_path / "runs"
    monkeypatch.setattr("brine.experiments.planning.freeze.take_snapshot", lambda folder: {"commit": "none"})
    monkeypatch.setattr(driver.LineRun, "_trained_data", lambda self, plan: {})
    feedback = write_images(tmp_path / "feedback", count=4, first=400, labelled=True, mark=9)

    def run(fails=(), **changes):
        engines = []

        def open_engine(folder):
            def outcome(job):
                if job.name in fails:
                    return REFUSED
                plan = load_plan(folder)
                finish_trial(plan, plan.trial(job.name), {"bits_per_byte": [1.0, 2.0]})
                return DONE

            engines.append(FakeEngine(outcome))
            return engines[-1]

        line = tiny_line(tmp_path, **{"feedback": feedback, "unlabelled": None} | changes)
        try:
            (found,) = driver.LineRun("line", line, runs=runs, open_engine=open_engine).run(1)
        finally:
            run.submitted = [name for engine in engines for name in engine.submitted]
        return found

    run.folder = runs
    return run


def test_a_round_with_a_failed_training_does_not_go_on(run_line):
    """What was never tried would be left out for good."""
    done, experiment = run_line.folder / "line/round_01/round.json", run_line.folder / "line-r01"
    with pytest.raises(ValueError, match=r"1 of 4 trials failed: 02-seed1.*`brine experiments retry line-r01`"):
        run_line(fails={"02-seed1"})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"02-seed1.*`brine experiments retry line-r01`"):
            run_line()
        assert not done.exists() and run_line.submitted == []
    assert retry(load_plan(experiment), []) == ["02-seed1"]
    # nor with one that was cancelled
    cancel(load_plan(experiment), ["02-seed1"])
    with pytest.raises(ValueError, match=r"02-seed1 \(not finished\).*`brine experiments retry line-r01`"):
        run_line()
    assert not done.exists()
    retry(load_plan(experiment), ["02-seed1"])
    found = run_line()
    assert run_line.submitted == ["02-seed1"] and found["rejected"] == [] and found["accepted"]
    assert found["brought"]["num_seeds"] == [2, 2] and read_json(done) == found


def test_nothing_is_trained_for_a_gate_that_cannot_be_asked(run_line, tmp_path, caplog):
    held_out = write_images(tmp_path / "held-out", count=20, first=1000, labelled=True, mark=7)
    config = SuiteConfig(transcripts_per_cell=0, timing=False)
    suite = make_suite("colours", [held_out], config, root=tmp_path / "suites", workers=1)
    registry = Registry(tmp_path / "registry")
    lone = registry.add(make_run(tmp_path / "others", "lone"))
    registry.measure(lone, write_measured(tmp_path / "measured", lone), SUITE)
    registry.promote([lone], SUITE)
    found = run_line(suite=str(suite.folder), registry=registry.root)
    assert sorted(run_line.submitted) == ["01-seed0", "01-seed1", "02-seed0", "02-seed1"]
    assert found["gate"]["outcome"] == "not asked" and "has 1 training of its setting" in found["gate"]["reasons"][0]
    assert "the gate is not going to be asked" in caplog.text
