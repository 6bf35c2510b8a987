"""The table: ranking, divergence, differences, the anchor; the same bytes in whatever order trials ended."""

import json
import random

import numpy as np
import pytest

from brine.evals.measurement import MeasureSpec
from brine.experiments.experiment import Grid, Listed, Seeds
from brine.experiments.table import ResultTable, build_table, format_table, write_table
from brine.experiments.trials.measure import load_measured, measure_own_evaluation
from tests.experiments.tiny import finish_trial

pytest.importorskip("brine.evals.seed_interval")
RATES = Grid({"large.learning_rate": [1e-3, 2e-3, 3e-3, 4e-3]})
EFFECT = {"01": 0.0, "02": -0.5, "03": 0.4, "04": -0.49}


def values(trial, *, cases=40, noise=0.02):
    """Bits of each case: the case's own, the seed's, the setting's, and noise."""
    rng = np.random.default_rng([trial.seed, int(trial.setting) if trial.setting.isdigit() else 9])
    case = np.random.default_rng(0).uniform(2, 4, cases)
    setting = EFFECT.get(trial.setting, 0.0)
    return case + setting + 0.05 * np.sin(trial.seed) + noise * rng.standard_normal(cases)


def fill(plan, *, order=None, diverged=(), failed=()):
    for trial in order or plan.trials:
        outcome = "diverged" if trial.name in diverged else "failed" if trial.name in failed else "done"
        found = values(trial)
        finish_trial(plan, trial, {"bits_per_byte": found, "gain.image": 0.5 * found / found.mean(), "memory": [3.0]},
                     outcome=outcome, weights=trial.name)  # fmt: skip


def test_settings_are_ranked_and_compared_with_the_first(make_plan):
    plan = make_plan(axes=RATES, seeds=Seeds((0, 1, 2)))
    fill(plan)
    table = build_table(plan)
    assert table["ranking"] == ["02", "04", "01", "03"]
    assert table["winner"]["setting"] == "02" and "too good" in table["winner"]["note"]
    found = table["differences"]["bits_per_byte"]
    assert {name: entry["outcome"] for name, entry in found.items()} == {"02": "better", "03": "worse", "04": "better"}
    for name, entry in found.items():
        assert entry["low"] < EFFECT[name] < entry["high"] and entry["p_holm"] >= entry["p_value"] - 1e-9
        assert len(entry["seeds"]) == 3 and entry["num_cases"] == 40
    assert table["settings"]["02"]["screen"]["seeds"]["1"]["weights"] == "02-seed1"
    # what depends on the machine is not in it
    assert table["measures"] == ["bits_per_byte", "gain.image"] and "wall" not in json.dumps(table)
    text = format_table(table)
    assert "winner: 02" in text and "expected: bits per byte fall a little" in text


def test_one_seed_gives_values_and_no_verdict(make_plan):
    plan = make_plan(axes=RATES, seeds=Seeds((0,)))
    fill(plan)
    found = build_table(plan)["differences"]["bits_per_byte"]
    assert {entry["outcome"] for entry in found.values()} == {"no verdict"}


def test_a_diverged_setting_is_ranked_last_and_has_no_difference(make_plan):
    """What survives by luck must not win: the best setting with one diverged seed of three."""
    plan = make_plan(axes=RATES, seeds=Seeds((0, 1, 2)))
    fill(plan, diverged=("02-seed1",), failed=("04-seed0",))
    table = build_table(plan)
    assert table["ranking"] == ["01", "03", "02", "04"] and table["winner"]["setting"] == "01"
    assert table["settings"]["02"]["screen"]["note"] == "1 of 3 seeds diverged"
    assert set(table["differences"]["bits_per_byte"]) == {"03", "04"}
    assert "1 of 3 seeds diverged" in format_table(table)
    assert table["winner"]["note"].endswith("; without 04 (1 of 3 seeds failed)")
    with pytest.raises(ValueError, match="'bits_per_bite' was not measured: bits_per_byte"):
        format_table(table, measures=["bits_per_bite"])
    assert table["settings"]["02"]["screen"]["seeds"]["1"]["outcome"] == "diverged"


def test_the_table_has_the_same_bytes_in_any_order(make_plan):
    plans = []
    for name in ("one", "two"):
        plan = make_plan(name, axes=RATES, seeds=Seeds((0, 1)))
        fill(plan, order=random.Random(name).sample(plan.trials, len(plan.trials)))
        write_table(plan)
        plans.append((plan.folder / "table.json").read_bytes().replace(f'"{name}"'.encode(), b'""'))
    assert plans[0] == plans[1]


def test_a_table_of_nothing_and_of_a_part(make_plan):
    plan = make_plan(axes=RATES, seeds=Seeds((0, 1)))
    table = build_table(plan)
    assert table["winner"] is None and table["differences"] == {} and "02" in format_table(table)
    fill(plan, order=[trial for trial in plan.trials if trial.setting in ("01", "03")])
    table = build_table(plan)
    assert (
        table["ranking"][:2] == ["01", "03"]
        and table["settings"]["02"]["screen"]["note"] == "2 of 2 seeds not finished"
    )


def test_the_anchor_tells_the_idea_from_the_code(make_plan):
    old = make_plan("old", axes=RATES, seeds=Seeds((0, 1, 2)))
    fill(old)
    write_table(old)
    new = make_plan("new", anchor="last", axes=Listed([{}, {"large.grad_clip": 0.5}]), seeds=Seeds((0, 1, 2)))
    # the setting that won is 0.3 better than its former self under today's code, and the new one 0.1 better than that
    shift = {"01": 0.0, "02": -0.9, "anchor": -0.8, "former": -0.5}
    for trial in new.trials:
        finish_trial(new, trial, {"bits_per_byte": values(trial) - EFFECT.get(trial.setting, 0) + shift[trial.setting]})
    anchor = build_table(new)["anchor"]
    expected = {"new_anchor": -0.1, "anchor_former": -0.3, "new_former": -0.4}
    for name, value in expected.items():
        assert anchor[name]["bits_per_byte"]["value"] == pytest.approx(value, abs=0.02), name
        assert anchor[name]["bits_per_byte"]["outcome"] == "better"
    assert "older tables do not compare" in anchor["warning"] and anchor["source"] == "old/02"
    assert "anchor - former: -0.3" in format_table(build_table(new))


@pytest.mark.parametrize(
    ("seeds", "shift", "outcome"),
    [
        ((0, 1, 2), 0.0, "undecided"),
        ((0, 1, 2), 0.5, "worse"),
        ((0,), 0.0, "no verdict"),
        ((0, 1, 2), None, "not comparable"),
    ],
)
def test_an_anchor_of_which_nothing_was_shown_is_a_warning(make_plan, seeds, shift, outcome):
    """One seed, or documents of another corpus, tell nothing of what code and machine did."""
    old = make_plan("old", axes=RATES, seeds=Seeds(seeds))
    fill(old)
    write_table(old)
    new = make_plan("new", anchor="last", axes=Listed([{"large.grad_clip": 0.5}]), seeds=Seeds(seeds))
    for trial in new.trials:
        found = values(trial) + (trial.setting == "anchor") * (shift or 0.0)
        finish_trial(
            new, trial, {"bits_per_byte": found[:30] if shift is None and trial.setting == "former" else found}
        )
    table = build_table(new)
    assert table["anchor"]["anchor_former"]["bits_per_byte"]["outcome"] == outcome
    if outcome == "undecided":
        assert "warning" not in table["anchor"] and "WARNING" not in format_table(table)
    else:
        assert f"({outcome}): older tables" in table["anchor"]["warning"] and "WARNING: " in format_table(table)


def test_what_was_decided_alone_is_said_beside_its_interval(make_plan):
    """Six settings that do nothing and one that does a little: significant alone, not among seven."""
    plan = make_plan(axes=Grid({"large.learning_rate": [1e-3 * n for n in range(1, 9)]}), seeds=Seeds((0, 1, 2)))
    for trial in plan.trials:
        rng = np.random.default_rng([trial.seed, int(trial.setting)])
        effect = 0.0 if trial.setting != "02" else -0.005
        finish_trial(plan, trial, {"bits_per_byte": 3 + effect + 0.02 * rng.standard_normal(40)})
    table = build_table(plan)
    found = table["differences"]["bits_per_byte"]["02"]
    assert found["low"] * found["high"] > 0 and found["outcome"] == "undecided" and found["p_holm"] > 0.05
    assert found["note"] == "decided alone, not among so many settings"
    line = next(line for line in format_table(table).splitlines() if line.startswith("02"))
    assert "undecided; decided alone, not among so many settings" in line
    assert all("note" not in entry for name, entry in table["differences"]["bits_per_byte"].items() if name != "02")


def test_higher_is_better_turns_the_ranking(make_plan):
    plan = make_plan(axes=RATES, seeds=Seeds((0, 1)), primary="gain.image")
    for trial in plan.trials:
        finish_trial(plan, trial, {"gain.image": [0.1 * int(trial.setting), 0.2]})
    table = build_table(plan)
    # 1 minus the ratio: the smallest ratio is the largest gain
    assert table["ranking"] == ["01", "02", "03", "04"] and table["lower_is_better"] == {"gain.image": False}
    assert ResultTable(plan).spec("gain.image") == MeasureSpec("gain.image", False, True)


def test_a_run_s_own_evaluation_is_measured(make_plan, tmp_path):
    folder = tmp_path / "run" / "evaluate"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"main_model": "large_salt"}))
    base = {"model": "large_salt", "condition": "matched", "kind": "page", "level": 1, "tokens": 4}
    lines = [
        {**base, "id": "a", "modality_context": "none", "loss": 2.0, "bytes": 8},
        {**base, "id": "a", "modality_context": "image", "loss": 1.0, "bytes": 4},
        {**base, "id": "b", "modality_context": "none", "loss": 3.0, "bytes": 10, "kind": "text"},
        {**base, "id": "a", "modality_context": "image", "loss": 4.0, "bytes": 4, "condition": "blank image"},
        {**base, "id": "b", "modality_context": "none", "loss": 9.0, "bytes": 10, "model": "small"},
    ]
    (folder / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measure_own_evaluation(tmp_path / "run")["test"]
    assert found["bits_per_byte"].value == pytest.approx(6.0 / np.log(2) / 22)
    assert found["bits_per_byte.page"].value == pytest.approx(3.0 / np.log(2) / 12)
    assert found["gain.image"].value == pytest.approx(0.75) and found["gain.image"].case == ("a",)
    with pytest.raises(ValueError, match="is not evaluated"):
        measure_own_evaluation(tmp_path)
    plan = make_plan()
    with pytest.raises(ValueError, match="cannot be read"):
        load_measured(plan.trial_folder("01-seed0"), plan.head["suite"])
