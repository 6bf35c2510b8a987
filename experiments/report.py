"""The page of an experiment, `experiment.html` in its folder, from its plan, table.json and costs.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brine.common.files import differences, read_json, to_plain
from brine.evals.measurement import MeasureSpec
from brine.experiments.page.records import (
    CONFIRM,
    DIVERGED,
    DONE,
    FAILED,
    MISSING,
    SCREEN,
    PageData,
    ShownDifference,
    ShownSetting,
    ShownTrial,
)
from brine.experiments.page.render import write_page
from brine.experiments.planning.plan import (
    ANCHOR_SETTING,
    FORMER_SETTING,
    TRIAL_FILE,
    ExperimentPlan,
    load_plan,
    setting_label,
)
from brine.experiments.planning.settings import parse_recipe
from brine.experiments.table import COSTS_FILE
from brine.experiments.trials import ending

_APART = ("name: ", "seed: ", "small.seed: ", "large.seed: ", "runtime.num_threads: ")
"""Fields of a recipe in which all trials of a setting, or of a plan, differ from the base recipe anyway."""
PAGE_FILE = "experiment.html"
_ANCHORS = {"new_anchor": "new - anchor", "anchor_former": "anchor - former", "new_former": "new - former"}
_STATES = {ending.FINISHED: DONE, ending.DIVERGED: DIVERGED, ending.FAILED: FAILED}


def write_report(folder: Path, table: Mapping[str, Any]) -> Path:
    """Write the page of the experiment in a folder; returns its path. table: what `build_table` gave."""
    plan = load_plan(folder)
    return write_page(folder / PAGE_FILE, page_data(plan, table, read_json(folder / COSTS_FILE) or {}))


def page_data(plan: ExperimentPlan, table: Mapping[str, Any], costs: Mapping[str, Any]) -> PageData:
    """What the page shows. costs: {trial: times and memory}, as in costs.json."""
    names = _shown_names(table)
    confirmation = table.get("confirmation") or {}
    settings = tuple(
        ShownSetting(
            names[key],
            _changes(plan, key),
            tuple(
                _trial(plan, int(seed), phase, trial, costs.get(trial["trial"]) or {})
                for phase in (SCREEN, CONFIRM)
                for seed, trial in entry.get(phase, {}).get("seeds", {}).items()
            ),
            _differences(table["differences"], key),
            _entries(confirmation.get("differences") or {}) if confirmation.get("setting") == key else {},
        )
        for key, entry in table["settings"].items()
    )
    anchor = table.get("anchor") or {}
    shown = {_ANCHORS[key]: (anchor.get(key) or {}).get(table["primary"]) for key in _ANCHORS} if anchor else {}
    suite, winner = table["suite"], table.get("winner") or {}
    return PageData(
        name=table["experiment"],
        question=table["question"],
        expects=table["expects"],
        primary=table["primary"],
        measures={
            name: MeasureSpec(name, lower_is_better=table["lower_is_better"][name])
            for name in dict.fromkeys([table["primary"], *table["measures"]])
            if name in table["lower_is_better"]
        }
        or {table["primary"]: MeasureSpec(table["primary"])},
        settings=settings,
        reference=names[table["reference"]],
        winner=names.get(winner.get("setting")),
        guards=tuple(table["guards"]),
        suite=f"{suite['name']} {(suite.get('digest') or '')[:16]}".strip(),
        commit=plan.head["code"]["commit"] or "",
        anchor={name: ShownDifference.of(entry) for name, entry in shown.items()},
        anchor_trials=_anchor_trials(plan, costs),
        anchor_warning=anchor.get("warning", ""),
    )


def _anchor_trials(plan: ExperimentPlan, costs: Mapping[str, Any]) -> tuple[ShownTrial, ...]:
    """The trainings of the anchor and the measurements of its former self; what they measured is in its differences."""
    found = []
    for trial in plan.trials:
        if trial.setting in (ANCHOR_SETTING, FORMER_SETTING):
            record = read_json(plan.trial_folder(trial) / TRIAL_FILE) or {}
            entry = {"trial": trial.name, "values": {}, "outcome": "missing", **record}
            found.append(_trial(plan, trial.seed, trial.phase, entry, costs.get(trial.name) or {}))
    return tuple(found)


def _shown_names(table: Mapping[str, Any]) -> dict[str, str]:
    """Settings by number and by what they change: "02 arms=salt, kd_fraction=0.3"."""
    changes = {key: entry["changes"] for key, entry in table["settings"].items()}
    return {
        key: f"{key} {setting_label({name: _value(value) for name, value in changed.items()})}"
        for key, changed in changes.items()
    }


def _value(value: Any) -> str:
    """Lists without quotes and brackets; sources, and whatever else has a name, by it."""
    if isinstance(value, dict) and value.get("name"):
        return str(value["name"])
    if isinstance(value, list):
        return "+".join(map(_value, value)) or "none"
    return str(value)


def _changes(plan: ExperimentPlan, setting: str) -> tuple[str, ...]:
    """How the recipe of a setting differs from the base recipe, a line each, seeds and threads apart."""
    recipes = [(trial.rung, trial.recipe) for trial in plan.trials if trial.setting == setting and trial.recipe]
    if not recipes:
        return ("its recipe is not in the plan",)
    # of a search the whole training, not the shorter ones of lower rungs
    _, ours = max(recipes, key=lambda pair: pair[0])
    lines = differences(to_plain(parse_recipe(plan.head["base"])), parse_recipe(ours))
    return tuple(line for line in lines if not line.startswith(_APART))


def _trial(
    plan: ExperimentPlan, seed: int, phase: str, trial: Mapping[str, Any], costs: Mapping[str, Any]
) -> ShownTrial:
    parts, wanted = trial["values"], "dev" if phase == SCREEN else "test"
    values = parts.get(wanted) or next(iter(parts.values()), {})
    flops = trial.get("flops") or {}
    return ShownTrial(
        trial["trial"], seed, phase, _STATES.get(trial["outcome"], MISSING),
        {name: value for name, value in values.items() if value is not None},
        float(sum(flops.values())) if flops else None, costs.get("wall_s"), costs.get("peak_rss_gib"),
        trial.get("reason", ""),
    )  # fmt: skip


def _differences(found: Mapping[str, Any], setting: str) -> dict[str, ShownDifference]:
    return _entries({measure: entries[setting] for measure, entries in found.items() if setting in entries})


def _entries(found: Mapping[str, Any]) -> dict[str, ShownDifference]:
    shown = {}
    for measure, entry in found.items():
        counts = entry.get("num_seeds") or (0, 0)
        entry = {**entry, "num_seeds": min(counts), "p_value": entry.get("p_holm", entry.get("p_value"))}
        difference = ShownDifference.of(entry)
        if difference is not None:
            shown[measure] = difference
    return shown
