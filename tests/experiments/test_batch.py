"""The queue: how endings are answered, what is begun, what a stop and a full disk do; with an engine that only says."""

import dataclasses
import json
import os
import signal

import pytest

from brine.common.files import read_json, read_jsonl
from brine.experiments import batch
from brine.experiments.batch import BatchRun, TrialsFailedError, batch_lock, cancel, retry
from brine.experiments.cli import main
from brine.experiments.experiment import Grid, Seeds
from brine.experiments.progress import LiveTable, format_status, running_line, trial_status
from tests.experiments.tiny import FakeEngine, finish_trial

pytest.importorskip("brine.evals.seed_interval")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(batch, "TICK_S", 0.001)


def runner(plan, outcome, **options):
    engine = FakeEngine(outcome, **options)
    return BatchRun(plan, engine, engine_name="fake", display=LiveTable(live=False)), engine


def succeed(plan, value=lambda trial: [2.0, 3.0]):
    """An outcome that finishes the trial."""

    def outcome(job):
        trial = next(each for each in batch.load_plan_again(plan).trials if each.name == job.name)
        finish_trial(plan, trial, {"bits_per_byte": value(trial)})
        return 0

    return outcome


@pytest.fixture
def plan(make_plan, monkeypatch):
    from brine.experiments.planning.plan import load_plan

    monkeypatch.setattr(batch, "load_plan_again", lambda plan: load_plan(plan.folder), raising=False)
    return make_plan(seeds=Seeds((0, 1)))


def events(plan, name):
    return [event["trial"] for event in read_jsonl(plan.folder / "events.jsonl") if event["event"] == name]


def test_every_trial_is_run_once_and_the_table_is_written(plan):
    run, engine = runner(plan, succeed(plan))
    run.run()
    assert engine.submitted == ["01-seed0", "01-seed1", "02-seed0", "02-seed1"] and engine.most == 2
    assert engine.closed and events(plan, "ended") != []
    table = read_json(plan.folder / "table.json")
    assert table["settings"]["01"]["screen"]["mean"]["bits_per_byte"] == 2.5
    again, second = runner(plan, succeed(plan))
    again.run()
    assert second.submitted == []


@pytest.mark.parametrize(("code", "begun"), [(-9, 3), (71, 3), (137, 3), (2, 1), (1, 1), (0, 1)])
def test_what_is_killed_is_tried_twice_again_and_a_refusal_is_not(plan, code, begun):
    good = succeed(plan)
    run, engine = runner(plan, lambda job: code if job.name == "01-seed1" else good(job))
    with pytest.raises(TrialsFailedError, match=r"1 of 4 trials failed: 01-seed1 \("):
        run.run()
    assert engine.submitted.count("01-seed1") == begun and len(set(engine.submitted)) == 4
    record = read_json(plan.trial_folder("01-seed1") / "trial.json")
    assert record["outcome"] == "failed"
    if code in (2, 1):
        assert record["reason"] == "01-seed1 said this"
    table = read_json(plan.folder / "table.json")
    assert table["settings"]["01"]["screen"]["note"] == "1 of 2 seeds failed" and table["winner"]["setting"] == "02"


def test_two_kills_are_forgiven_and_retry_begins_anew(plan):
    codes = {"01-seed0": [-9, -9, None], "02-seed0": [-9] * 5 + [None]}
    good = succeed(plan)

    def outcome(job):
        code = codes.get(job.name, [None]).pop(0) if codes.get(job.name) else None
        return good(job) if code is None else code

    run, engine = runner(plan, outcome)
    with pytest.raises(TrialsFailedError, match=r"killed by SIGKILL \(3 times\)"):
        run.run()
    assert engine.submitted.count("01-seed0") == 3
    assert retry(plan, []) == ["02-seed0"]
    assert (plan.trial_folder("02-seed0") / "trial.json.old-1").exists()
    run, engine = runner(plan, outcome)
    run.run()
    assert engine.submitted == ["02-seed0"] * 3
    with pytest.raises(ValueError, match="01-seed0 is done"):
        retry(plan, ["01-seed0"])


@pytest.mark.parametrize("code", [130, 75, -2])
def test_an_interrupted_trial_goes_back_into_the_queue(plan, code):
    left, good = [code] * 4, succeed(plan)
    run, engine = runner(plan, lambda job: left.pop() if left and job.name == "01-seed0" else good(job))
    run.run()
    assert engine.submitted.count("01-seed0") == 5


def test_a_full_disk_stops_claims_and_run_continues(plan, capsys, monkeypatch):
    good = succeed(plan)
    run, engine = runner(plan, lambda job: 73 if job.name == "01-seed1" else good(job))
    with pytest.raises(ValueError, match="free some space, then `run` continues"):
        run.run()
    # what was at work ended well, nothing else was begun
    assert engine.submitted == ["01-seed0", "01-seed1"] and not (plan.trial_folder("01-seed1") / "trial.json").exists()
    free = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr(batch.shutil, "disk_usage", lambda path: free)
        run, engine = runner(plan, good)
        with pytest.raises(ValueError, match="is full"):
            run.run()
        assert engine.submitted == []
    run, engine = runner(plan, good)
    run.run()
    assert engine.submitted == ["01-seed1", "02-seed0", "02-seed1"]


def test_ctrl_c_ends_all_and_the_next_run_continues(plan):
    good = succeed(plan)

    def outcome(job):
        os.kill(os.getpid(), signal.SIGINT)
        return good(job)

    run, engine = runner(plan, outcome, slow=("01-seed1",))
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert engine.cancelled == ["01-seed1"] and engine.closed and not run.running
    run, engine = runner(plan, good)
    run.run()
    assert engine.submitted == ["01-seed1", "02-seed0", "02-seed1"]


@pytest.mark.parametrize("code", [None, -9, 130])
def test_three_ctrl_c_are_no_kills(plan, code):
    """Jobs that SLURM takes out of its queue, and trials that are killed since they took too long to save."""
    good = succeed(plan)
    for _ in range(3):
        run, engine = runner(plan, good, slow=[trial.name for trial in plan.trials], cancelled_code=code)

        def submit(job, engine=engine):
            # while trials are at work or wait in a queue
            os.kill(os.getpid(), signal.SIGINT)
            return FakeEngine.submit(engine, job)

        engine.submit = submit
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert engine.cancelled == engine.submitted != [] and not run.running
    assert not list(plan.folder.glob("trials/*/trial.json")) and set(events(plan, "ended")) == set(engine.submitted)
    run, engine = runner(plan, good)
    run.run()
    assert len(engine.submitted) == 4


def test_a_job_that_was_asked_to_end_by_a_run_before_is_not_killed(plan):
    """`run` left before SLURM said how the job ended."""
    good = succeed(plan)
    for _ in range(3):
        run, engine = runner(plan, good, max_jobs=1)
        trial = plan.trial("01-seed0")
        run._event("submitted", trial, engine="fake", handle="77")
        stop_file = run.job(trial).stop_file
        stop_file.parent.mkdir(exist_ok=True)
        stop_file.touch()

        def attach(job, handle, engine=engine):
            engine.jobs[job.name] = (job, 0)
            engine.cancelled.append(job.name)
            return True

        engine.attach, engine.cancelled_code = attach, None
        run._attach()
        while run.running:
            run._poll()
    kinds = [event["kind"] for event in read_jsonl(plan.folder / "events.jsonl") if event["event"] == "ended"]
    assert kinds == ["interrupted"] * 3 and not (plan.trial_folder("01-seed0") / "trial.json").exists()


def test_cancelled_trials_wait_for_retry(plan, capsys):
    runs = ["--runs", str(plan.folder.parent)]
    assert main(["cancel", "tiny", "02-seed0", *runs]) == 0
    good = succeed(plan)

    def outcome(job):
        # another process cancels one that is at work
        if job.name == "01-seed0":
            cancel(plan, ["01-seed1", "02-seed1"])
        return good(job)

    run, engine = runner(plan, outcome, slow=("01-seed1",))
    run.run()
    assert engine.submitted == ["01-seed0", "01-seed1"] and engine.cancelled == ["01-seed1"]
    assert trial_status(plan, plan.trial("02-seed0")).state == "cancelled"
    assert main(["status", "tiny", *runs]) == 0
    assert "cancelled" in capsys.readouterr().out
    assert set(retry(plan, [])) >= {"02-seed0", "02-seed1"}
    run, engine = runner(plan, good)
    run.run()
    assert "02-seed0" in engine.submitted
    assert main(["cancel", "tiny", "02-seed0", *runs]) == 2
    assert "02-seed0 is done: only trials that have not ended" in capsys.readouterr().err


def test_what_follows_is_chosen_without_a_cancelled_trial(make_plan, plan, capsys):
    best = {"01": 3.0, "02": 2.0, "03": 2.5}
    plan = make_plan("some", seeds=Seeds((0,), (7,)), axes=Grid({"large.learning_rate": [1e-3, 2e-3, 4e-3]}))
    value = lambda trial: [best[trial.setting], 1.0]  # noqa: E731
    cancel(plan, ["03-seed0"])
    run, engine = runner(plan, succeed(plan, value))
    run.run()
    assert engine.submitted == ["01-seed0", "02-seed0", "02-seed7", "01-seed7"]
    assert "1 trial cancelled (03-seed0): what followed was chosen without; `retry`" in capsys.readouterr().err
    note = read_json(plan.folder / "table.json")["winner"]["note"]
    assert "without 03 (1 of 1 seed not finished)" in note
    # what is trained after all may win, and is confirmed as well
    retry(plan, ["03-seed0"])
    best["03"] = 1.0
    run, engine = runner(batch.load_plan_again(plan), succeed(plan, value))
    run.run()
    assert engine.submitted == ["03-seed0", "03-seed7"] and "cancelled" not in capsys.readouterr().err


def test_nothing_follows_where_all_was_cancelled(make_plan, plan, capsys):
    plan = make_plan("all", seeds=Seeds((0,), (7,)), axes=Grid({"large.learning_rate": [1e-3, 2e-3, 4e-3]}))
    good = succeed(plan, lambda trial: [4.0 - int(trial.setting), 1.0])

    def outcome(job):
        # two are done, the third is cancelled with all that would follow
        if job.name == "02-seed0":
            cancel(plan, [])
        return good(job)

    run, engine = runner(plan, outcome, slow=("03-seed0",))
    run.run()
    assert engine.submitted[-1] in ("02-seed0", "03-seed0") and len(engine.submitted) <= 3
    assert "all was cancelled: nothing more is trained before `retry`" in capsys.readouterr().err
    retry(plan, [])
    run, engine = runner(batch.load_plan_again(plan), good)
    run.run()
    assert engine.submitted == ["03-seed0", "03-seed7", "01-seed7"]


def test_one_run_at_a_time(plan):
    with batch_lock(plan.folder), pytest.raises(ValueError, match="is being run by another process"):
        runner(plan, succeed(plan))[0].run()


def test_a_run_that_was_killed_takes_up_the_jobs_of_its_engine(plan):
    run, engine = runner(plan, succeed(plan), max_jobs=1)
    run._event("submitted", plan.trial("01-seed0"), engine="fake", handle="77")
    run._event("submitted", plan.trial("02-seed0"), engine="other", handle="78")
    attached = []

    def attach(job, handle):
        attached.append((job.name, handle))
        engine.jobs[job.name] = (job, 0)
        return True

    engine.attach = attach
    run.run()
    assert attached == [("01-seed0", "77")]
    assert engine.submitted == ["01-seed1", "02-seed0", "02-seed1"]


def test_the_winner_is_confirmed_on_other_seeds(make_plan, plan):
    best = {"01": 3.0, "02": 2.0, "03": 2.5}
    plan = make_plan(
        "confirmed", seeds=Seeds((0, 1), (7, 8, 9)), axes=Grid({"large.learning_rate": [1e-3, 2e-3, 4e-3]})
    )
    value = lambda trial: [best[trial.setting] + 0.01 * trial.seed, 1.0]  # noqa: E731
    run, engine = runner(plan, succeed(plan, value))
    run.run()
    assert engine.submitted[6:] == [f"{setting}-seed{seed}" for setting in ("02", "01") for seed in (7, 8, 9)]
    confirmed = read_json(plan.folder / "table.json")["confirmation"]
    assert confirmed["setting"] == "02" and confirmed["verdict"] in ("better", "undecided")
    assert confirmed["differences"]["bits_per_byte"]["seeds"] == pytest.approx([-0.5] * 3)


def test_nothing_is_confirmed_where_nothing_is_better(make_plan, plan):
    plan = make_plan("flat", seeds=Seeds((0,), (7,)))
    run, engine = runner(plan, succeed(plan, lambda trial: [2.0 + (trial.setting == "02")]))
    run.run()
    assert len(engine.submitted) == 2
    assert read_json(plan.folder / "table.json")["confirmation"]["verdict"] == "no setting was better"


def test_the_status_shows_step_loss_and_time_left(plan):
    folder = plan.trial_folder("01-seed0") / "large_baseline"
    folder.mkdir(parents=True)
    lines = ['{"step": 2, "loss": 5.0, "tokens": 200, "time": {"tokens_per_s": 10.0}}',
             '{"step": 2, "validation": {"loss": 1}}', '{"step": 4, "loss": 4.5, "tok']  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    found = trial_status(plan, plan.trial("01-seed0"), running=["01-seed0"])
    assert (found.state, found.step, found.num_steps, found.loss, found.s_left) == ("running", 2, 6, 5.0, 40.0)
    assert "01-seed0  running  large_baseline   2/6  5.0000" in format_status(plan, running=["01-seed0"])
    more = dataclasses.replace(found, loss=2.718281828459045)
    assert running_line(more) == "01-seed0: large_baseline step 2/6, loss 2.7183, about 0:40 left"
    assert running_line(dataclasses.replace(more, loss=None, s_left=None)) == "01-seed0: large_baseline step 2/6"


def test_a_long_reason_ends_at_a_word_in_the_status(plan):
    reason = "the data changed since the plan was made, so that this trial refuses to train on documents of another day"
    folder = plan.trial_folder("01-seed0")
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps({"outcome": "failed", "reason": reason}))
    shown = next(line for line in format_status(plan).splitlines() if line.startswith("01-seed0"))
    assert shown.endswith("so that this trial refuses to train...") and reason not in shown
