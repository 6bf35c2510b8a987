"""The forecast of a run: what its formula counts, and that it comes near two runs that were timed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brine.pipeline.recipe import Recipe
from brine.planner.estimate_run import COMPILE_S, DECODE_STEP_S, estimate_run, estimate_stages
from brine.recipes.registry import RECIPES
from brine.training.config import RuntimeConfig
from brine.training.logging.device_specs import MEASURED, PeakFlops


def seconds(recipe: Recipe, flops_per_s: float = 1e11, compiled: bool = True) -> dict[str, float]:
    return {each.name: each.seconds for each in estimate_stages(recipe, flops_per_s=flops_per_s, compiled=compiled)}


@pytest.mark.parametrize(
    ("name", "flops_per_s", "measured_s"),
    [("quick", 2.2e11, 141.0), ("demo", 4.8e11, 965.0)],
    ids=["quick-float32", "demo-bfloat16"],
)
def test_the_forecast_is_near_what_was_measured(name, flops_per_s, measured_s):
    """LOG.md and benchmarks/results/demo.json, two idle cores; peaks are those that the runs' FLOPs and seconds imply.
    Fixed seconds once made three times `quick`'s time."""
    assert sum(seconds(RECIPES[name](), flops_per_s).values()) == pytest.approx(measured_s, rel=0.3)


def test_only_stages_of_the_recipe_are_counted():
    recipe = RECIPES["quick"]()
    assert list(seconds(recipe)) == ["start", "corpus", "small", "large_salt", "large_baseline", "evaluation"]
    alone = replace(recipe, arms=("baseline",))
    assert list(seconds(alone)) == ["start", "corpus", "large_baseline", "evaluation"]
    assert seconds(alone)["evaluation"] < seconds(recipe)["evaluation"]


def test_a_model_is_compiled_once_and_only_where_blocks_are():
    recipe = RECIPES["quick"]()
    with_compiler, without = seconds(recipe), seconds(recipe, compiled=False)
    added = {name: with_compiler[name] - without[name] for name in without}
    assert {name for name, more in added.items() if more} == {"small", "large_salt"}
    assert added["small"] == pytest.approx(COMPILE_S)


def test_time_follows_the_work():
    recipe = RECIPES["quick"]()
    before = seconds(recipe, compiled=False)
    longer = seconds(replace(recipe, large=replace(recipe.large, num_steps=280)), compiled=False)
    assert longer["large_baseline"] == pytest.approx(2 * before["large_baseline"], rel=0.02)
    # no cell has so many documents
    more = replace(recipe.evals, documents_per_cell=10**6)
    assert seconds(replace(recipe, evals=more), compiled=False)["evaluation"] == before["evaluation"]
    silent = seconds(replace(recipe, evals=replace(recipe.evals, transcripts_per_cell=0)), compiled=False)
    # five cells, of which one has two documents: 34 transcripts in three batches
    assert before["evaluation"] - silent["evaluation"] == pytest.approx(3 * 320 * DECODE_STEP_S)


def test_a_faster_processor_shortens_what_is_computed():
    slow, fast = (seconds(RECIPES["quick"](), speed, compiled=False) for speed in (1e11, 2e11))
    assert fast["small"] == pytest.approx(slow["small"] / 2) and fast["corpus"] == slow["corpus"]


def test_every_kind_of_document_takes_time():
    assert seconds(RECIPES["needle"]())["corpus"] > 300


@pytest.mark.parametrize("busy", [False, True])
def test_a_speed_measured_beside_other_work_is_said_to_be(busy, monkeypatch):
    clock = iter([0.0, 1.0])
    used = iter([0.0, 0.5 * torch.get_num_threads() if busy else torch.get_num_threads()])
    monkeypatch.setattr("brine.planner.estimate_run.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("brine.planner.estimate_run.time.process_time", lambda: next(used))
    monkeypatch.setattr("brine.planner.estimate_run.find_peak", lambda device, dtype: PeakFlops(1e11, MEASURED))
    said = estimate_run(replace(RECIPES["quick"](), runtime=RuntimeConfig(device="cpu", compile=False)))
    assert ("beside other processes" in said) is busy and "at the speed measured now" in said


def test_a_given_corpus_has_no_time_of_its_own(monkeypatch):
    monkeypatch.setattr("brine.planner.estimate_run.find_compiler", lambda device: None)
    recipe = RECIPES["demo"]()
    given = replace(recipe, corpus=replace(recipe.corpus, manifest=Path("mine")), runtime=RuntimeConfig(device="cpu"))
    assert "mine: time depends on its documents" in estimate_run(given)
