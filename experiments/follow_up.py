"""What follows from results: the next trials of a search, then the confirmation of the winner.

All is a function of what has ended, so that it does not matter who ran it, when, or how often it was killed.
"""

from __future__ import annotations

import math

from brine.common.files import read_json
from brine.experiments.planning.freeze import again_with_seed
from brine.experiments.planning.plan import ANCHOR_SETTING, CANCELLED_FILE, RUNG, TRIAL_FILE, ExperimentPlan, TrialSpec
from brine.experiments.search import next_trials
from brine.experiments.table import SCREEN, ResultTable
from brine.experiments.trials.ending import DIVERGED


def follow_up(plan: ExperimentPlan) -> list[TrialSpec]:
    """Trials to append to a plan now; [] while some have not ended, at the end, and where all was cancelled.

    A trial that was cancelled by its name has ended: what follows is chosen without its setting."""
    if (plan.folder / CANCELLED_FILE).exists():
        return []
    for trial in plan.trials:
        folder = plan.trial_folder(trial)
        if read_json(folder / TRIAL_FILE) is None and not (folder / CANCELLED_FILE).exists():
            return []
    results = ResultTable(plan)
    if plan.head["search"]:
        more = next_trials(plan, lambda setting, rung: rung_score(results, setting, rung))
        if more:
            return more
    return confirmation(plan, results)


def confirmation(plan: ExperimentPlan, results: ResultTable) -> list[TrialSpec]:
    """Trials of the confirmation seeds for the winner and what it is compared with; none where nothing beats the first
    setting and there is no anchor."""
    seeds, winner = plan.head["seeds"]["confirm"], results.winner()
    anchored = plan.head["anchor"] is not None
    if not seeds or winner is None or (winner == plan.reference and not anchored):
        return []
    settings = [winner, plan.reference, *([ANCHOR_SETTING] if anchored else [])]
    if winner == plan.reference:
        settings = [winner, ANCHOR_SETTING]
    known = {trial.name for trial in plan.trials}
    found = []
    for setting in settings:
        first = next(trial for trial in [*results.trials_of(setting, SCREEN), *plan.trials] if trial.setting == setting)
        trials = [again_with_seed(first, seed, gpus=plan.head["gpus"]) for seed in seeds]
        found += [trial for trial in trials if trial.name not in known]
    return found


def rung_score(results: ResultTable, setting: str, rung: int) -> float | None:
    """The primary measure of a setting on a rung, over its seeds, negated where higher is better."""
    primary = results.plan.head["primary"]
    trials = [trial for trial in results.plan.of_phase(RUNG) if trial.setting == setting and trial.rung == rung]
    if any(results.records.get(trial.name, {}).get("outcome") == DIVERGED for trial in trials):
        return math.inf
    found = [results.measurement(trial, primary, SCREEN) for trial in trials]
    values = [None if each is None else each.value for each in found]
    if not values or any(value is None for value in values):
        return None
    mean = math.fsum(values) / len(values)
    return mean if results.spec(primary).lower_is_better else -mean
