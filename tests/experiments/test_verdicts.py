"""What the table says of real trainings: a setting against itself is undecided, a hundredth of the learning rate worse,
and only the best settings of a search's rung are trained on the next."""

import dataclasses

import pytest

from brine.common.files import read_json
from brine.data.tokenizer import train_tokenizer
from brine.experiments.experiment import Grid, Listed, Search, Seeds, Uniform
from brine.experiments.planning.plan import load_plan
from brine.experiments.planning.settings import parse_recipe
from brine.experiments.table import ResultTable
from tests.experiments.tiny import run_here, tiny_recipe

pytestmark = pytest.mark.slow
SEEDS = Seeds((0, 1, 2))
OTHER_SEEDS = 500
"""By how much the seeds of the same setting are moved in the experiment that it is compared with: less than one seed of
an experiment moves them."""


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch):
    monkeypatch.setattr("brine.experiments.batch.TICK_S", 0.001)


def with_other_seeds(recipe):
    """The same setting under seeds that no trial of the experiment has."""
    models = {name: dataclasses.replace(getattr(recipe, name), seed=getattr(recipe, name).seed + OTHER_SEEDS)
              for name in ("small", "large")}  # fmt: skip
    return dataclasses.replace(recipe, seed=recipe.seed + OTHER_SEEDS, **models)


def test_the_same_setting_is_undecided_and_a_hundredth_of_the_rate_worse(make_plan, source):
    rates = run_here(make_plan("rates", axes=Grid({"large.learning_rate": [6e-3, 6e-5]}), seeds=SEEDS))
    found = rates["differences"]["bits_per_byte"]["02"]
    assert found["outcome"] == "worse" and found["low"] > 0 and found["p_holm"] < 0.05
    assert min(found["seeds"]) > 0 and rates["winner"]["setting"] == "01"
    assert tiny_recipe(source).large.learning_rate == 6e-3
    # the same recipe, trained three times from other seeds, as if it were a new idea
    again = make_plan("again", base=with_other_seeds(tiny_recipe(source)), axes=Listed([{}]), seeds=SEEDS,
                      anchor="rates/01")  # fmt: skip
    anchor = run_here(again)["anchor"]
    same = anchor["new_anchor"]["bits_per_byte"]
    assert same["outcome"] == "undecided" and same["low"] < 0 < same["high"]
    assert all(value != 0 for value in same["seeds"]) and len(set(same["seeds"])) == 3
    # trained again by the same code on this machine: the same bits
    repeated = anchor["anchor_former"]["bits_per_byte"]
    assert repeated["seeds"] == [0, 0, 0] and repeated["outcome"] == "undecided" and "warning" not in anchor


def test_a_search_prunes_by_what_was_trained(make_plan, source):
    """Four settings on rungs of 3, 9 and 27 steps: whole schedules, the best go on by their measured loss."""
    pytest.importorskip("optuna")
    axes = Search({"large.learning_rate": Uniform(1e-5, 1e-2, log=True)}, trials=4, generation=2, seed=1,
                  rungs=(1 / 9, 1 / 3, 1.0))  # fmt: skip
    table = run_here(make_plan("search", axes=axes, base=tiny_recipe(source, steps=27), seeds=Seeds((0,))))
    plan = load_plan(make_plan.runs / "search")
    results = ResultTable(plan)
    rungs = [[trial for trial in plan.of_phase("rung") if trial.rung == rung] for rung in range(3)]
    assert [len(trials) for trials in rungs] == [4, 1, 1]
    losses = {}
    for trials, steps in zip(rungs, (3, 9, 27), strict=True):
        for trial in trials:
            large = parse_recipe(trial.recipe).large
            assert large.num_steps == steps and results.records[trial.name]["outcome"] == "done"
            losses[trial.name] = results.measured[trial.name]["test"]["bits_per_byte"].value
    best = min(rungs[0], key=lambda trial: losses[trial.name])
    assert rungs[1][0].setting == rungs[2][0].setting == best.setting
    assert len({losses[trial.name] for trial in rungs[0]}) == 4
    # more of the budget is better, and the table compares the whole budget alone
    assert losses[rungs[2][0].name] < losses[rungs[1][0].name] < losses[best.name]
    assert sorted(table["ranking"]) == sorted(["base", best.setting])
    assert table["settings"][best.setting]["screen"]["mean"]["bits_per_byte"] == losses[rungs[2][0].name]


def test_given_weights_are_compared_with_random_ones(make_plan, source):
    """The winner of a batch goes on against a fresh start, by the name of its run; its digest is the stage's."""
    first = make_plan("first", axes=Listed([{}]), seeds=Seeds((0,)))
    run_here(first)
    run = str(first.trial_folder("01-seed0"))
    base = tiny_recipe(source)
    base = dataclasses.replace(base, corpus=dataclasses.replace(base.corpus, tokenizer=run))
    plan = make_plan("second", base=base, axes=Grid({"large.init_from": [None, run]}), seeds=Seeds((0,)))
    table = run_here(plan)
    begun = read_json(plan.trial_folder("02-seed0") / "large_baseline" / "stage.json")["config"]["train"]
    assert begun["init_digest"] == read_json(first.trial_folder("01-seed0") / "trial.json")["weights"]
    found = table["differences"]["bits_per_byte"]["02"]
    assert found["outcome"] == "no verdict" and found["value"] < -0.1


def test_two_tokenizers_are_compared_on_the_same_documents(make_plan, source, tmp_path):
    small = train_tokenizer(["red"], 270)
    small.save(tmp_path / "small.json")
    axes = Grid({"corpus.tokenizer": [None, str(tmp_path / "small.json")]})
    plan = make_plan("words", axes=axes, seeds=Seeds((0,)))
    table = run_here(plan)
    measured = [ResultTable(plan).measured[trial.name]["test"]["bits_per_byte"] for trial in plan.trials]
    assert measured[0].case == measured[1].case and measured[0].value != measured[1].value
    # every byte of a document is counted once under either
    assert (measured[0].denominator == measured[1].denominator).all()
    assert table["differences"]["bits_per_byte"]["02"]["outcome"] == "no verdict"
