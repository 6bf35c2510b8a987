"""`table.json`: what an experiment's trials measured and how its settings differ, the same bytes whoever ran them.

    settings         values of every seed and their mean, ranked by the primary measure; below all that trained those
                     with a diverged seed, which is a result, then those that have none yet
    differences      each setting minus the first, over screening seeds, Holm-adjusted over the settings
    winner           the best by screening seeds: picked, so its number is too good
    confirmation     the winner minus the first, over confirmation seeds alone: the verdict
    anchor           new - anchor (what the batch brought), anchor - former (what code and machine moved), new - former

No times, hosts or paths are in it; those, latency and memory are in `costs.json`. Values come from sums over cases, so
that the order in which trials ended changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from brine.common.files import finite, read_json, write_json
from brine.common.formatting import counted
from brine.evals.measurement import Measurement, MeasureSpec
from brine.experiments.planning.plan import (
    ANCHOR_SETTING,
    CONFIRM,
    FORMER_SETTING,
    RUNG,
    SCREEN,
    TABLE_FILE,
    TRIAL_FILE,
    ExperimentPlan,
    TrialSpec,
)
from brine.experiments.trials.ending import DIVERGED, FAILED, FINISHED
from brine.experiments.trials.measure import EVALUATE, TIMED, Measured, load_measured, own_spec

COSTS_FILE = "costs.json"
LEVEL = 0.05
"""A difference counts when its Holm-adjusted p-value lies below."""
PICKED = "picked among the settings by these seeds, so its number is too good"
NOT_BETTER = "no setting was better"
DECIDED_ALONE = "decided alone, not among so many settings"
ROUND_P = 10
"""Digits of p-values: more would hang on the order of sums in libraries."""


class ResultTable:
    """The results of a plan, read once."""

    def __init__(self, plan: ExperimentPlan):
        self.plan = plan
        self.records: dict[str, dict[str, Any]] = {}
        self.measured: dict[str, Measured] = {}
        for trial in plan.trials:
            record = read_json(plan.trial_folder(trial) / TRIAL_FILE)
            if isinstance(record, dict):
                self.records[trial.name] = record
                if record["outcome"] == FINISHED:
                    self.measured[trial.name] = load_measured(plan.trial_folder(trial), plan.head["suite"])
        self.rungs = len(plan.head["search"]["rungs"]) if plan.head["search"] else 0

    def trials_of(self, setting: str, phase: str) -> list[TrialSpec]:
        """The trials of a setting whose values are compared: of a search's those of the last rung, at the whole
        budget."""
        found = [trial for trial in self.plan.trials if trial.setting == setting]
        last = [trial for trial in found if trial.phase == RUNG and trial.rung == self.rungs - 1]
        return [trial for trial in found if trial.phase == phase] + (last if phase == SCREEN else [])

    def part(self, phase: str) -> str | None:
        """The suite's part that a phase is read from: winners are chosen on "dev" and confirmed on "test"."""
        parts = sorted({part for measured in self.measured.values() for part in measured})
        wanted = "dev" if phase == SCREEN else "test"
        return wanted if wanted in parts or not parts else parts[0]

    def outcomes(self, setting: str, phase: str) -> dict[str, int]:
        """How many trials of a setting ended how."""
        ended = [self.records.get(trial.name, {}).get("outcome", "missing") for trial in self.trials_of(setting, phase)]
        return {name: ended.count(name) for name in sorted(set(ended))}

    def measurement(self, trial: TrialSpec, measure: str, phase: str) -> Measurement | None:
        """One trial's measurement, None where it has none."""
        return self.measured.get(trial.name, {}).get(self.part(phase) or "", {}).get(measure)

    def mean(self, setting: str, measure: str, phase: str = SCREEN) -> float | None:
        """Mean over seeds; None unless every seed has a value."""
        found = [self.measurement(trial, measure, phase) for trial in self.trials_of(setting, phase)]
        values = [None if each is None else each.value for each in found]
        if not values or any(value is None for value in values):
            return None
        return math.fsum(values) / len(values)

    def spec(self, measure: str) -> MeasureSpec:
        """The specification of a measure. Raises ValueError for an unknown one."""
        if self.plan.head["suite"]["name"] == EVALUATE:
            return own_spec(measure)
        for each in self.plan.head["suite"]["measures"]:
            if each["name"] == measure:
                return MeasureSpec(**each)
        raise ValueError(f"the suite has no measure {measure!r}")

    def ranking(self) -> list[str]:
        """Compared settings, best first by the primary measure; then those with a diverged seed, then those without
        all values."""
        primary = self.plan.head["primary"]
        sign = 1.0 if self.spec(primary).lower_is_better else -1.0

        def order(setting: str) -> tuple[float, float, str]:
            diverged, mean = self.outcomes(setting, SCREEN).get(DIVERGED, 0), self.mean(setting, primary)
            missing = mean is None and not diverged
            return (1e9 if missing else diverged, math.inf if mean is None else sign * mean, setting)

        return sorted((name for name in self.plan.settings if self.trials_of(name, SCREEN)), key=order)

    def winner(self) -> str | None:
        """The best setting, None while no setting has all its values."""
        ranking = self.ranking()
        return ranking[0] if ranking and self.mean(ranking[0], self.plan.head["primary"]) is not None else None

    def measures(self) -> list[str]:
        """Every measure that was taken and does not depend on the machine, the primary first."""
        names = {name for measured in self.measured.values() for part in measured.values() for name in part}
        return sorted(names - set(TIMED), key=lambda name: (name != self.plan.head["primary"], name))

    def difference(self, ours: str, theirs: str, measure: str, phase: str) -> dict[str, Any] | None:
        """A setting minus another over the seeds that both have, as `brine.evals.seed_interval` gives it; None where
        there are none. A diverged seed leaves no difference: only what survives would be compared."""
        from brine.evals.seed_interval import seed_difference

        sides = [{trial.seed: trial for trial in self.trials_of(name, phase)} for name in (ours, theirs)]
        if any(self.outcomes(name, phase).get(DIVERGED) for name in (ours, theirs)):
            return None
        pairs = []
        for seed in sorted(sides[0].keys() & sides[1].keys()):
            pair = [self.measurement(side[seed], measure, phase) for side in sides]
            if None not in pair:
                pairs.append(pair)
        if not pairs:
            return None
        try:
            found = seed_difference([pair[0] for pair in pairs], [pair[1] for pair in pairs]).to_dict()
        except ValueError as error:
            return {"value": None, "outcome": "not comparable", "reason": str(error)}
        per_seed = [pair[0].value - pair[1].value for pair in pairs]
        return {**found, "seeds": per_seed}

    def differences(self, settings: Iterable[str], reference: str, phase: str) -> dict[str, dict[str, Any]]:
        """{measure: {setting: difference}} to a reference, with `p_holm` over the settings of each measure, and a
        `note` where that makes one undecided whose interval excludes 0."""
        from brine.evals.seed_interval import holm

        found: dict[str, dict[str, Any]] = {}
        for measure in self.measures():
            entries = {name: self.difference(name, reference, measure, phase) for name in settings if name != reference}
            entries = {name: entry for name, entry in entries.items() if entry is not None}
            tested = [name for name, entry in entries.items() if entry.get("p_value") is not None]
            adjusted = holm([entries[name]["p_value"] for name in tested]) if tested else []
            for name, p_value in zip(tested, adjusted, strict=True):
                entries[name]["p_holm"] = round(float(p_value), ROUND_P)
                if p_value > LEVEL and entries[name]["outcome"] in ("better", "worse"):
                    entries[name] |= {"outcome": "undecided", "note": DECIDED_ALONE}
            if entries:
                found[measure] = entries
        return found


def build_table(plan: ExperimentPlan) -> dict[str, Any]:
    """The table of what is finished; plain JSON."""
    results, head = ResultTable(plan), plan.head
    settings, winner, reference = plan.settings, results.winner(), plan.reference
    ranking = results.ranking()
    table: dict[str, Any] = {
        "experiment": plan.name, "question": head["question"], "expects": head["expects"],
        "suite": {name: head["suite"][name] for name in ("name", "digest")}, "primary": head["primary"],
        "guards": head["guards"], "measures": results.measures(), "reference": reference,
        "lower_is_better": {name: results.spec(name).lower_is_better for name in results.measures()},
        "ranking": ranking, "settings": {name: _setting(results, name) for name in settings},
    }  # fmt: skip
    table["differences"] = results.differences(ranking, reference, SCREEN)
    table["winner"] = winner and {
        "setting": winner, "label": settings[winner]["label"], "value": results.mean(winner, head["primary"]),
        "note": "; ".join([PICKED if len(ranking) > 1 else "the only setting", *_without(results, ranking)]),
    }  # fmt: skip
    table["confirmation"] = _confirmation(results, winner)
    table["anchor"] = _anchor(results, winner) if head["anchor"] else None
    return finite(table)


def write_table(plan: ExperimentPlan) -> dict[str, Any]:
    """Write table.json and costs.json; returns the table."""
    table = build_table(plan)
    write_json(plan.folder / TABLE_FILE, table)
    results = ResultTable(plan)
    costs = {
        name: {key: record.get(key) for key in ("wall_s", "peak_rss_gib", "host")}
        | {measure: found.value for part in results.measured.get(name, {}).values() for measure, found in part.items()
           if measure in TIMED}
        for name, record in results.records.items()
    }  # fmt: skip
    write_json(plan.folder / COSTS_FILE, finite(costs))
    return table


def _setting(results: ResultTable, setting: str) -> dict[str, Any]:
    known = results.plan.settings[setting]
    entry: dict[str, Any] = {key: known[key] for key in ("label", "changes", "budget")}
    for phase in (SCREEN, CONFIRM):
        trials = results.trials_of(setting, phase)
        if trials:
            entry[phase] = {"outcomes": results.outcomes(setting, phase), "note": _note(results, setting, phase),
                            "seeds": {str(trial.seed): _trial(results, trial) for trial in trials},
                            "mean": _means(results, setting, phase)}  # fmt: skip
    return entry


def _note(results: ResultTable, setting: str, phase: str) -> str:
    """ "1 of 3 seeds diverged", or "" where all are done."""
    counts, total = results.outcomes(setting, phase), len(results.trials_of(setting, phase))
    words = {DIVERGED: "diverged", FAILED: "failed", "missing": "not finished"}
    return "; ".join(
        f"{counts[name]} of {counted(total, 'seed')} {what}" for name, what in words.items() if counts.get(name)
    )


def _without(results: ResultTable, ranking: Sequence[str]) -> list[str]:
    """Which settings could not be chosen, since they have no result: "without 03 (3 of 3 seeds not finished)"."""
    notes = {name: _note(results, name, SCREEN) for name in ranking}
    return [f"without {name} ({note})" for name, note in notes.items() if note and DIVERGED not in note]


def _trial(results: ResultTable, trial: TrialSpec) -> dict[str, Any]:
    record = results.records.get(trial.name, {})
    values = {
        part: {name: found.value for name, found in measures.items() if name not in TIMED}
        for part, measures in results.measured.get(trial.name, {}).items()
    }
    kept = {key: record[key] for key in ("reason", "loss", "flops", "weights", "model") if key in record}
    return {"trial": trial.name, "outcome": record.get("outcome", "missing"), "values": values, **kept}


def _means(results: ResultTable, setting: str, phase: str) -> dict[str, float]:
    found = {name: results.mean(setting, name, phase) for name in results.measures()}
    return {name: value for name, value in found.items() if value is not None}


def _confirmation(results: ResultTable, winner: str | None) -> dict[str, Any] | None:
    plan, reference = results.plan, results.plan.reference
    if winner is None or not plan.head["seeds"]["confirm"]:
        return None
    if winner == reference:
        return {"setting": winner, "reference": reference, "differences": {}, "verdict": NOT_BETTER}
    found = results.differences([winner], reference, CONFIRM)
    entries = {measure: entry[winner] for measure, entry in found.items()}
    primary = entries.get(plan.head["primary"])
    guards = {name: entries[name]["outcome"] if name in entries else "not measured" for name in plan.head["guards"]}
    return {
        "setting": winner, "reference": reference, "differences": entries,
        "verdict": "not confirmed yet" if primary is None else primary["outcome"], "guards": guards,
    }  # fmt: skip


def _anchor(results: ResultTable, winner: str | None) -> dict[str, Any]:
    """The three differences of the winner, the anchor and its former self, by confirmation seeds where both have them,
    else by screening seeds."""
    pairs = {"new_anchor": (winner, ANCHOR_SETTING), "anchor_former": (ANCHOR_SETTING, FORMER_SETTING),
             "new_former": (winner, FORMER_SETTING)}  # fmt: skip
    found: dict[str, Any] = dict(results.plan.head["anchor"])
    for name, (ours, theirs) in pairs.items():
        entries = {}
        for measure in results.measures() if ours is not None else ():
            for phase in (CONFIRM, SCREEN):
                entry = results.difference(ours, theirs, measure, phase)
                if entry is not None:
                    entries[measure] = {**entry, "phase": phase}
                    break
        found[name] = entries
    moved = found["anchor_former"].get(results.plan.head["primary"])
    if moved is None:
        found["warning"] = "the anchor's former self could not be measured: older tables do not compare"
    elif moved["outcome"] in ("better", "worse"):
        found["warning"] = f"code or machine moved the anchor itself ({moved['outcome']}): older tables do not compare"
    elif moved["outcome"] != "undecided":
        found["warning"] = (
            f"nothing shows whether code or machine moved the anchor ({moved['outcome']}): older tables may not compare"
        )
    return found


def format_table(table: dict[str, Any], *, measures: Sequence[str] = ()) -> str:
    """The table for a console: ranked settings, differences of the primary measure, winner, verdict, anchor."""
    from brine.common.tables import as_text
    from brine.common.tables import table as make

    primary = table["primary"]
    if unknown := [name for name in measures if name not in table["measures"]]:
        known = ", ".join(table["measures"]) or "nothing yet"
        raise ValueError(f"{unknown[0]!r} was not measured: {known} was")
    shown = list(measures) or [primary, *[name for name in table["measures"] if name in table["guards"]]]
    head = ["setting", "", *shown, f"minus {table['reference']}", "outcome", "seeds"]
    rows = []
    for name in table["ranking"]:
        entry = table["settings"][name]
        found = (table["differences"].get(primary) or {}).get(name)
        means = [entry["screen"]["mean"].get(measure) for measure in shown]
        count = sum(entry["screen"]["outcomes"].values())
        rows.append([name, entry["label"], *[_number(value) for value in means], _interval(found),
                     _outcome(found), entry["screen"]["note"] or str(count)])  # fmt: skip
    lines = [f"question: {table['question']}", f"expected: {table['expects']}", "", as_text(make(head, rows))]
    if winner := table["winner"]:
        lines.append(f"winner: {winner['setting']} ({winner['label']}), {winner['note']}")
    if confirmed := table["confirmation"]:
        entry = confirmed["differences"].get(primary)
        if confirmed["verdict"] == NOT_BETTER:
            lines.append(f"nothing was confirmed: {NOT_BETTER} than {confirmed['reference']} by the screening seeds")
        else:
            lines.append(f"verdict by the confirmation seeds: {confirmed['verdict']} {_interval(entry)}".rstrip())
        worse = [name for name, outcome in (confirmed.get("guards") or {}).items() if outcome == "worse"]
        lines += [f"guards that are worse: {', '.join(worse)}"] if worse else []
        lacking = [name for name, outcome in (confirmed.get("guards") or {}).items() if outcome == "not measured"]
        lines += [f"guards that were not measured: {', '.join(lacking)}"] if lacking else []
    if anchor := table["anchor"]:
        names = {"new_anchor": "new - anchor", "anchor_former": "anchor - former", "new_former": "new - former"}
        for key, words in names.items():
            entry = anchor[key].get(primary)
            lines.append(f"{words}: {_interval(entry) or 'not measured'} {entry['outcome'] if entry else ''}".rstrip())
        lines += [f"WARNING: {anchor['warning']}"] if "warning" in anchor else []
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _outcome(entry: dict[str, Any] | None) -> str:
    return "" if entry is None else "; ".join(filter(None, (entry["outcome"], entry.get("note"))))


def _interval(entry: dict[str, Any] | None) -> str:
    if not entry or entry.get("value") is None:
        return ""
    ends = [entry.get(end) for end in ("low", "high")]
    return f"{entry['value']:+.4f}" + ("" if None in ends else f" [{ends[0]:+.4f}, {ends[1]:+.4f}]")
