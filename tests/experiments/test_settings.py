"""Settings are checked before anything runs: fields, types, effects, seeds, budgets."""

from dataclasses import replace

import pytest

from brine.experiments.experiment import Budget, Choice, Experiment, Grid, Integers, Listed, Search, Seeds, Uniform
from brine.experiments.planning.settings import (
    apply_changes,
    budget_note,
    check_experiment,
    recipe_digest,
    step_flops,
    with_budget,
    with_seed,
)
from brine.recipes.demo import demo
from brine.recipes.quick import quick
from tests.experiments.tiny import tiny_experiment, tiny_recipe


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (Grid({"large.learning_rat": [1e-3]}), r"no such field \(did you mean large.learning_rate\?\)"),
        (Grid({"larg.learning_rate": [1e-3]}), "larg is no group"),
        (Grid({"large.num_layers.x": [1e-3]}), "large.num_layers is no group"),
        (Grid({"large.learning_rate": ["1e-3"]}), "is str: give float"),
        (Grid({"large.learning_rate": [-1.0]}), "must be positive"),
        (Grid({"packing.seq_len": [64, 8]}), "packing.seq_len = 8 is too short"),
        (Grid({"large.log_every": [1, 5]}), "axis large.log_every has no effect"),
        (Grid({"large.learning_rate": [1e-3, 2e-3], "large.log_every": [1, 5]}), "axis large.log_every has no effect"),
        # the arm with the small model is not trained
        (Grid({"small.learning_rate": [1e-3, 2e-3]}), "axis small.learning_rate has no effect"),
        (Grid({"salt.distill_weight": [0.1, 0.2]}), "axis salt.distill_weight has no effect"),
        (Grid({"large.learning_rate": [2e-3, 2e-3]}), "has no effect"),
        (Listed([{}, {"large.log_every": 3}]), "differ in nothing that has an effect"),
        (Grid({"evals.seed": [0, 1]}), "evals.seed is no axis"),
        (Grid({"corpus.synth.seed": [0, 1]}), "corpus.synth.seed is no axis"),
        (Grid({"large.seed": [0, 1]}), "seeds move together"),
        (Grid({"seed": [0, 1]}), "seeds move together"),
        (Grid({"runtime.num_threads": [1, 2]}), "--threads"),
        (Grid({"name": ["a", "b"]}), "name is no axis"),
        (Grid({"large.num_steps": [4, 6]}), "budget=None"),
        (Grid({"corpus.manifest": ["a", "b"]}), "give a suite"),
        (Search({"large.log_every": Integers(1, 9)}), "axis large.log_every has no effect"),
    ],
)  # fmt: skip
def test_wrong_axes_are_refused_by_name(axes, message, source):
    with pytest.raises(ValueError, match=message):
        check_experiment(tiny_experiment(source, axes=axes))


def test_missing_documents_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        check_experiment(tiny_experiment(source, base=tiny_recipe(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="no documents"):
        check_experiment(tiny_experiment(source, base=__import__("brine.recipes.base", fromlist=["base"]).base()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Seeds(screen=()), "give at least one"),
        (lambda: Seeds(screen=(0, 1), confirm=(1, 2)), "come twice"),
        (lambda: Seeds(screen=(0.5,)), "whole numbers"),
        (lambda: Budget(large_steps=3, large_flops=1e9), "not both"),
        (lambda: Budget(large_flops=0), "above 0"),
        (lambda: Grid({}), "varies nothing"),
        (lambda: Grid({"corpus.filters": "near_duplicates"}), "give a list"),
        (lambda: Listed([3]), "takes settings"),
        (lambda: Search({"large.learning_rate": [1, 2]}), "Uniform"),
        (lambda: Search({"large.learning_rate": Uniform(1e-3, 1e-2)}, rungs=(0.5, 0.2, 1)), "must rise"),
        (lambda: Search({"large.learning_rate": Uniform(1e-3, 1e-2)}, rungs=(0.2, 0.5)), "must rise"),
        (lambda: Uniform(0.0, 1.0, log=True), "above 0"),
        (lambda: Choice([1]), "at least two"),
        (lambda: Experiment("", "", quick(), Grid({"a": [1]})), "needs a question"),
        (lambda: Experiment("q", "e", "quick", Grid({"a": [1]})), "base = 'quick'"),
        (lambda: Experiment("q", "e", quick(), Grid({"a": [1]}), guards="some"), "guards"),
    ],
)  # fmt: skip
def test_wrong_parts_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_grid_is_every_combination_and_equal_settings_are_one(source):
    axes = Grid({"large.learning_rate": [1e-3, 2e-3], "packing.blank_fraction": [0.0, 0.1, 0.0]})
    found = check_experiment(tiny_experiment(source, axes=axes))
    assert [changes for changes, _ in found] == [
        {"large.learning_rate": rate, "packing.blank_fraction": part} for rate in (1e-3, 2e-3) for part in (0.0, 0.1)
    ]
    assert len({recipe_digest(recipe) for _, recipe in found}) == 4
    assert all(recipe.large.learning_rate == changes["large.learning_rate"] for changes, recipe in found)


def test_fields_that_depend_on_each_other_are_set_at_once():
    # one after the other, warm-up would at first be longer than the run
    changed = apply_changes(quick(), {"large.warmup_steps": 200, "large.num_steps": 300})
    assert (changed.large.warmup_steps, changed.large.num_steps) == (200, 300)


def test_a_seed_moves_all_training_seeds_and_nothing_else():
    base = quick()
    moved = with_seed(base, 3)
    assert (moved.seed, moved.small.seed, moved.large.seed) == (3000, 3001, 3002)
    assert with_seed(base, 0) == base and with_seed(moved, -3) == base
    assert (moved.evals, moved.corpus) == (base.evals, base.corpus)
    seeds = {getattr(with_seed(base, seed), name).seed for seed in range(9) for name in ("small", "large")}
    assert len(seeds) == 18


def test_equal_flops_give_each_size_its_steps():
    small, large = demo(), apply_changes(demo(), {"large.model.num_layers": 8})
    budget = Budget(large_flops=50 * step_flops(large))
    notes = [budget_note(with_budget(each, budget), budget) for each in (small, large)]
    assert notes[1]["large_steps"] == 50 and notes[0]["large_steps"] > 60
    for note in notes:
        assert abs(note["large_flops"] / budget.large_flops - 1) < 0.5 / note["large_steps"] + 1e-9
        assert note["off_budget"] == pytest.approx(note["large_flops"] / budget.large_flops - 1, abs=1e-6)
    with pytest.raises(ValueError, match="raise it"):
        with_budget(large, Budget(large_flops=step_flops(large)))
    with pytest.raises(ValueError, match="warmup_steps"):
        with_budget(large, Budget(large_steps=20))


def test_a_fraction_of_a_budget_is_a_whole_schedule():
    recipe = replace(demo(), large=replace(demo().large, schedule="wsd", decay_steps=90))
    third = with_budget(recipe, Budget(large_steps=300), fraction=1 / 3).large
    assert (third.num_steps, third.warmup_steps, third.decay_steps) == (100, 10, 30)
    assert third.decay_start == 70


def test_the_digest_is_of_what_is_trained():
    base = quick()
    same = [replace(base, name="other"), apply_changes(base, {"runtime.num_threads": 3, "large.log_every": 1})]
    other = [with_seed(base, 1), apply_changes(base, {"large.grad_clip": 0.5}), replace(base, arms=("baseline",))]
    assert {recipe_digest(each) for each in same} == {recipe_digest(base)}
    assert len({recipe_digest(each) for each in [base, *other]}) == 4
