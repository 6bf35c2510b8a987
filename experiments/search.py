"""Settings that Optuna asks for, and rungs: which settings of a search are trained next, and with how much budget.

Every rung is a complete training with its own decayed schedule (successive halving, Jamieson & Talwalkar 2016, over
whole schedules instead of prefixes), since a loss before the decay says little of the one after it. The sampler learns
from the first rung, where all settings have one budget. Settings are asked for in generations that are waited for, so
that what is asked does not depend on the number of workers; the journal lies beside the plan. Each generation has a
sampler of its own seed, so that one that a kill interrupted is asked again and comes out the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from brine.experiments.experiment import Budget
from brine.experiments.planning.freeze import make_trial
from brine.experiments.planning.plan import RUNG, ExperimentPlan, TrialSpec
from brine.experiments.planning.settings import budget_note, parse_recipe, whole_recipe

JOURNAL_FILE = "search.journal"
WORST = 1e12
"""Stands for a diverged setting: worse than any measure, and still something to learn from."""
Score = Callable[[str, int], float | None]
"""(setting, rung) -> the primary measure, lower is better; infinite for a diverged setting, None while unfinished."""


def next_trials(plan: ExperimentPlan, score: Score) -> list[TrialSpec]:
    """What to train now that all trials of a search have ended: the next generation of settings on the first rung, then
    the best of each rung on the next; [] at the end. Raises ValueError where Optuna is missing."""
    search, asked = plan.head["search"], _settings_of(plan, rung=0)
    if len(asked) < search["trials"]:
        count = min(search["generation"], search["trials"] - len(asked))
        found = ask(plan, count, score)
        return [trial for number, changes in enumerate(found, start=len(asked) + 1)
                for trial in rung_trials(plan, f"t{number:03d}", changes, 0)]  # fmt: skip
    for rung, (fraction, larger) in enumerate(itertools.pairwise(search["rungs"]), start=1):
        if _settings_of(plan, rung=rung):
            continue
        before = _settings_of(plan, rung=rung - 1)
        scores = {name: score(name, rung - 1) for name in before}
        kept = max(1, round(len(before) * fraction / larger))
        # one that diverged or failed does not go on
        usable = [name for name in before if (found := scores[name]) is not None and math.isfinite(found)]
        best = sorted(usable, key=lambda name: (scores[name], name))[:kept]
        changes = {trial.setting: trial.changes for trial in plan.of_phase(RUNG)}
        return [trial for name in sorted(best) for trial in rung_trials(plan, name, changes[name], rung)]
    return []


def rung_trials(plan: ExperimentPlan, setting: str, changes: dict[str, Any], rung: int) -> list[TrialSpec]:
    """The trials of a setting on a rung, one for each screening seed."""
    head = plan.head
    budget = None if head["budget"] is None else Budget(**head["budget"])
    recipe = whole_recipe(parse_recipe(head["base"]), changes, budget, fraction=head["search"]["rungs"][rung])
    return [
        make_trial(
            recipe, setting=setting, seed=seed, threads=head["threads"], gpus=head["gpus"], phase=RUNG, rung=rung,
            changes=changes, budget=budget_note(recipe, None),
        )
        for seed in head["seeds"]["screen"]
    ]  # fmt: skip


def ask(plan: ExperimentPlan, count: int, score: Score) -> list[dict[str, Any]]:
    """The changes of the next `count` settings, by a TPE sampler that knows every setting of the first rung."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ValueError("optuna is not installed: pip install brine-lm[search]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = plan.head["search"]
    space = {name: _distribution(each) for name, each in search["space"].items()}
    storage = JournalStorage(JournalFileBackend(str(plan.folder / JOURNAL_FILE)))
    known = _settings_of(plan, rung=0)
    sampler = optuna.samplers.TPESampler(
        seed=search["seed"] + 1000 * len(known), n_startup_trials=max(2, min(10, search["trials"] // 2)),
        constant_liar=True,
    )  # fmt: skip
    study = optuna.create_study(storage=storage, study_name=plan.name, sampler=sampler, load_if_exists=True)
    told = {trial.user_attrs.get("setting") for trial in study.trials if trial.state.is_finished()}
    for trial in study.trials:
        # asked for by a command that was killed before it wrote them down
        if not trial.state.is_finished():
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    changes = {trial.setting: trial.changes for trial in plan.of_phase(RUNG)}
    for name in known:
        value = score(name, 0)
        if name not in told and value is not None:
            study.add_trial(optuna.trial.create_trial(
                params={field: _to_param(search["space"][field], found) for field, found in changes[name].items()},
                distributions=space, value=value if math.isfinite(value) else WORST, user_attrs={"setting": name},
            ))  # fmt: skip
    return [
        {name: _from_param(search["space"][name], value) for name, value in study.ask(space).params.items()}
        for _ in range(count)
    ]


def _settings_of(plan: ExperimentPlan, *, rung: int) -> list[str]:
    return list(dict.fromkeys(trial.setting for trial in plan.of_phase(RUNG) if trial.rung == rung))


def _distribution(entry: dict[str, Any]) -> Any:
    from optuna import distributions

    if entry["kind"] == "Choice":
        # Optuna's choices are scalars; ours may be lists
        return distributions.CategoricalDistribution(list(range(len(entry["values"]))))
    kind = distributions.FloatDistribution if entry["kind"] == "Uniform" else distributions.IntDistribution
    return kind(entry["low"], entry["high"], log=entry["log"])


def _from_param(entry: dict[str, Any], value: Any) -> Any:
    return entry["values"][value] if entry["kind"] == "Choice" else value


def _to_param(entry: dict[str, Any], value: Any) -> Any:
    return entry["values"].index(value) if entry["kind"] == "Choice" else value
