"""What a trial measures anew: an anchor and its former self, whatever was measured of equal weights before."""

from brine.experiments.experiment import Listed, Seeds
from brine.experiments.table import write_table
from brine.experiments.trials import trial as trials
from tests.experiments.test_table import fill


def test_the_anchor_and_its_former_self_are_measured_without_the_cache(make_plan, monkeypatch):
    old = make_plan("old", seeds=Seeds((0,)))
    fill(old)
    write_table(old)
    plan = make_plan("new", anchor="old/02", axes=Listed([{"large.grad_clip": 0.5}]), seeds=Seeds((0,)))
    measured = {}

    def measure(run, suite, recipe, *, out, cache):
        measured[out.name] = (run, cache)

    monkeypatch.setattr(trials, "measure_run", measure)
    monkeypatch.setattr(trials, "_train", lambda recipe, folder, runs: folder)
    monkeypatch.setattr(trials, "_trained", lambda run, recipe: {})
    monkeypatch.setattr(trials, "stage_costs", lambda folder: {})
    for each in plan.trials:
        trials.run_trial(plan, each)
    runs, folder = plan.folder.parent, plan.folder / "trials"
    assert measured == {
        "01-seed0": (folder / "01-seed0", runs / ".store"),
        "anchor-seed0": (folder / "anchor-seed0", None),
        "former-seed0": (runs / "old/trials/02-seed0", None),
    }
