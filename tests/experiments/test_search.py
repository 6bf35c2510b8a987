"""Searches: settings are asked for in generations, only the best of a rung go on, a kill changes nothing."""

import math

import pytest

from brine.experiments import batch
from brine.experiments.experiment import Choice, Integers, Search, Seeds, Uniform
from brine.experiments.planning.plan import load_plan
from brine.experiments.planning.settings import parse_recipe
from brine.experiments.search import ask, next_trials
from tests.experiments.tiny import FakeEngine, finish_trial, tiny_recipe

pytest.importorskip("optuna")
SPACE = {
    "large.learning_rate": Uniform(1e-4, 1e-1, log=True), "large.model.num_layers": Integers(1, 3),
    "corpus.filters": Choice([(), ("exact_duplicates",)]),
}  # fmt: skip


@pytest.fixture
def plan(make_plan, source):
    axes = Search(SPACE, trials=9, generation=4, seed=3)
    return make_plan(axes=axes, base=tiny_recipe(source, steps=90), seeds=Seeds((0, 1), (8,)))


def quality(trial):
    """Best at a rate of 1e-2; a rate above 5e-2 diverges. More budget is better."""
    rate = trial.recipe["large"]["learning_rate"]
    return math.inf if rate > 5e-2 else abs(math.log10(rate) + 2) + 30 / trial.recipe["large"]["num_steps"]


def score_of(plan):
    def score(setting, rung):
        trials = [each for each in load_plan(plan.folder).trials if (each.setting, each.rung) == (setting, rung)]
        return sum(map(quality, trials)) / len(trials)

    return score


def run_search(plan):
    """All trials, without training."""
    score = score_of(plan)
    while more := next_trials(plan, score):
        plan = plan.append(more)
    return plan


def test_rungs_are_whole_schedules_and_the_best_go_on(plan):
    plan = run_search(plan)
    by_rung = [[trial for trial in plan.of_phase("rung") if trial.rung == rung] for rung in range(3)]
    assert [len(trials) for trials in by_rung] == [18, 6, 2]
    for rung, (trials, steps) in enumerate(zip(by_rung, (10, 30, 90), strict=True)):
        for trial in trials:
            recipe = parse_recipe(trial.recipe)
            assert recipe.large.num_steps == steps and recipe.name == f"{trial.setting}-r{rung}-seed{trial.seed}"
    score = score_of(plan)
    for before, after in ((0, 1), (1, 2)):
        ranked = sorted({trial.setting for trial in by_rung[before]}, key=lambda name: score(name, before))
        assert {trial.setting for trial in by_rung[after]} == set(ranked[: len(ranked) // 3])
    assert plan.settings["t001"]["changes"].keys() == SPACE.keys()


@pytest.mark.slow
def test_a_kill_between_asking_and_writing_changes_nothing(plan, make_plan, source):
    expected = [(trial.name, trial.changes) for trial in run_search(plan).trials]
    killed = make_plan("killed", axes=Search(SPACE, trials=9, generation=4, seed=3),
                       base=tiny_recipe(source, steps=90), seeds=Seeds((0, 1), (8,)))  # fmt: skip
    score = score_of(killed)
    while True:
        asked = {trial.setting for trial in killed.of_phase("rung")}
        if len(asked) < 9:
            # asked for, and never written down
            ask(killed, min(4, 9 - len(asked)), score)
        if not (more := next_trials(load_plan(killed.folder), score)):
            break
        killed = killed.append(more)
    assert [(trial.name, trial.changes) for trial in killed.trials] == expected


def test_the_sampler_learns_and_divergence_does_not_go_on(plan):
    plan = run_search(plan)
    score = score_of(plan)
    names = list(plan.settings)[1:]
    first, last = ([score(name, 0) for name in part if score(name, 0) < 1e9] for part in (names[:4], names[4:]))
    assert min(last) < max(first)
    final = [trial for trial in plan.of_phase("rung") if trial.rung > 0]
    assert all(math.isfinite(quality(trial)) for trial in final)


@pytest.mark.slow
def test_a_search_is_run_ranked_and_confirmed(plan, monkeypatch):
    pytest.importorskip("brine.evals.seed_interval")
    monkeypatch.setattr(batch, "TICK_S", 0.001)

    def outcome(job):
        now = load_plan(plan.folder)
        trial = now.trial(job.name)
        value = quality(trial)
        finish_trial(now, trial, {"bits_per_byte": [value, value + 1]} if value < 1e9 else {},
                     outcome="done" if value < 1e9 else "diverged")  # fmt: skip
        return 0

    run = batch.BatchRun(plan, FakeEngine(outcome, max_jobs=3), engine_name="fake")
    run.run()
    table = batch.write_table(load_plan(plan.folder))
    # the base, at the whole budget, and what came through all rungs
    assert len(table["ranking"]) == 2 and "base" in table["ranking"]
    winner = table["winner"]["setting"]
    confirmed = [trial.name for trial in load_plan(plan.folder).of_phase("confirm")]
    assert confirmed == ([f"{winner}-seed8", "base-seed8"] if winner != "base" else [])


def test_a_cancelled_setting_does_not_end_a_search(plan, monkeypatch):
    pytest.importorskip("brine.evals.seed_interval")
    monkeypatch.setattr(batch, "TICK_S", 0.001)

    def outcome(job):
        now = load_plan(plan.folder)
        finish_trial(
            now, now.trial(job.name), {"bits_per_byte": [float(job.name[1:4]) if job.name[0] == "t" else 20.0]}
        )
        return 0

    engine = FakeEngine(outcome, max_jobs=1)
    submit = engine.submit

    def and_cancel(job):
        if job.name == "t002-r0-seed0":
            batch.cancel(load_plan(plan.folder), ["t002-r0-seed1"])
        return submit(job)

    engine.submit = and_cancel
    batch.BatchRun(plan, engine, engine_name="fake").run()
    assert "t002-r0-seed1" not in engine.submitted
    by_rung = [{trial.setting for trial in load_plan(plan.folder).of_phase("rung") if trial.rung == rung}
               for rung in range(3)]  # fmt: skip
    # the second is the next best, and does not go on
    assert len(by_rung[0]) == 9 and by_rung[1] == {"t001", "t003", "t004"} and by_rung[2] == {"t001"}


def test_without_optuna_the_extra_is_named(plan, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install brine-lm\[search\]"):
        next_trials(plan, lambda setting, rung: 1.0)
