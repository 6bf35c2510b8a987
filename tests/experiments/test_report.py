"""The page of a plan's results: settings by their labels, seeds, differences, what diverged, the page's command."""

import json
from pathlib import Path

from brine.experiments.cli import main
from brine.experiments.experiment import Grid, Listed, Seeds
from brine.experiments.report import page_data, write_report
from brine.experiments.table import write_table
from tests.experiments.test_table import RATES, fill
from tests.experiments.tiny import finish_trial


def test_settings_are_shown_with_their_seeds_and_differences(make_plan):
    plan = make_plan(axes=RATES, seeds=Seeds((0, 1, 2), (100, 101, 102)))
    fill(plan, diverged=("03-seed2",))
    table = write_table(plan)
    costs = {"01-seed0": {"wall_s": 5.0, "peak_rss_gib": 1.5}}
    data = page_data(plan, table, costs)
    assert [setting.name for setting in data.settings] == [
        f"0{number} learning_rate=0.00{number}" for number in (1, 2, 3, 4)
    ]
    base, best, diverged, _ = data.settings
    assert data.reference == base.name and data.winner == best.name
    # of the recipe that all are made from, which is none of these
    assert base.changes == ("large.learning_rate: 0.006 -> 0.001",)
    assert best.changes == ("large.learning_rate: 0.006 -> 0.002",)
    assert base.trials[0].wall_s == 5.0 and [trial.seed for trial in base.trials] == [0, 1, 2]
    found = best.differences["bits_per_byte"]
    assert (
        found.outcome == "better" and found.num_seeds == 3 and len(found.seeds) == 3 and found.low < -0.5 < found.high
    )
    assert diverged.count("diverged") == 1 and not diverged.differences
    assert data.ranked()[-1] is diverged


def test_the_setting_with_the_base_recipe_has_no_changes(make_plan):
    plan = make_plan(axes=Grid({"large.learning_rate": [3e-3, 6e-3]}), seeds=Seeds((0, 1)))
    fill(plan)
    data = page_data(plan, write_table(plan), {})
    assert [setting.changes for setting in data.settings] == [("large.learning_rate: 0.006 -> 0.003",), ()]
    assert data.reference == "01 learning_rate=0.003"


def test_the_command_writes_the_page(make_plan, capsys):
    plan = make_plan(axes=RATES, seeds=Seeds((0, 1)))
    fill(plan)
    assert main(["report", plan.name, "--runs", str(plan.folder.parent)]) == 0
    page = json.loads(capsys.readouterr().out.splitlines()[-1])["report"]
    words = Path(page).read_text(encoding="utf-8")
    assert "bits per byte fall a little" in words and "learning_rate=0.002" in words and "no verdict" not in words
    assert write_report(plan.folder, write_table(plan)).read_text() == words


def test_one_seed_has_no_verdict_on_the_page(make_plan):
    plan = make_plan(axes=RATES, seeds=Seeds((0,)))
    fill(plan)
    assert "no verdict" in write_report(plan.folder, write_table(plan)).read_text()


def test_an_anchor_that_failed_is_on_the_page_with_its_reason(make_plan):
    old = make_plan("old", seeds=Seeds((0, 1)))
    for trial in old.trials:
        finish_trial(old, trial, {"bits_per_byte": [2.0 if trial.setting == "02" else 3.0]})
    write_table(old)
    plan = make_plan("new", anchor="last", axes=Listed([{"large.grad_clip": 0.5}]), seeds=Seeds((0, 1)))
    for trial in plan.trials:
        outcome = "failed" if trial.name == "anchor-seed1" else "done"
        finish_trial(plan, trial, {"bits_per_byte": [1.5]}, outcome=outcome)
    path = plan.trial_folder("anchor-seed1") / "trial.json"
    path.write_text(json.dumps({"outcome": "failed", "reason": "its former code is gone"}))
    table = write_table(plan)
    data = page_data(plan, table, {})
    assert [trial.state for trial in data.anchor_trials].count("failed") == 1
    words = write_report(plan.folder, table).read_text()
    assert table["anchor"]["warning"] in words and "no verdict" in table["anchor"]["warning"]
    assert "its former code is gone" in words and "The anchor" in words and "5 of 6" in words
