"""The sections of an experiment's page: each a dict for the template of its id, or None with nothing to show."""

from __future__ import annotations

from typing import Any

from brine.common.formatting import counted
from brine.evals.report.charts import IntervalPoint, dot_chart
from brine.evals.report.tables import duration, interval, number
from brine.experiments.page.charts import CHAR_WIDTH, CostPoint, cost_chart, cut, difference_map
from brine.experiments.page.records import (
    DIVERGED,
    DONE,
    FAILED,
    MISSING,
    SCREEN,
    PageData,
    ShownDifference,
    ShownSetting,
)

OUTCOME_STYLE = {"better": 0, "worse": 1}
_NAME_LENGTH = 24
_BESIDE = 4
"""Settings whose values stand in a table beside a chart; more take the whole width."""
_NAMED = 8
"""Settings that a caption names."""
_MEASURES_SHOWN = 24


def cards(data: PageData) -> list[dict[str, Any]]:
    """The winner, what was expected and how many trainings ended how."""
    shown: list[dict[str, Any]] = []
    winner = data.setting(data.winner)
    if winner is not None:
        found = winner.confirmed.get(data.primary)
        if found is not None:
            words = f"{found.outcome} than {data.reference}" if found.outcome in OUTCOME_STYLE else found.outcome
            measured = f"{number(found.value, 4)} {data.primary}, {interval(_ends(found), 4) or 'no interval'}"
            shown.append({
                "name": "Winner, on the confirmation seeds", "value": winner.number, "words": True,
                "below": _after_label(winner, measured),
                "badge": words, "tone": {"better": "good", "worse": "bad"}.get(found.outcome, ""),
            })  # fmt: skip
        else:
            shown.append({
                "name": "Best of the screening", "value": winner.number, "words": True,
                "below": _after_label(winner, "picked among several, so its number is too good; not confirmed yet"),
            })  # fmt: skip
    trials = [*(trial for setting in data.settings for trial in setting.trials), *data.anchor_trials]
    counts = {state: sum(trial.state == state for trial in trials) for state in (DONE, DIVERGED, FAILED, MISSING)}
    below = ", ".join(f"{count} {state}" for state, count in counts.items() if count and state != DONE)
    shown.append({"name": "Trainings", "value": f"{counts[DONE]} of {len(trials)}", "below": below or "all finished"})
    spent = sum(trial.wall_s or 0.0 for trial in trials)
    if spent:
        shown.append({"name": "Time of all trainings", "value": duration(spent), "below": data.budget})
    return shown


def expectation_section(data: PageData) -> dict[str, Any]:
    """What was expected beside what came out."""
    lines = []
    for setting in data.ranked():
        if setting.name != data.reference:
            lines.append([setting.name, *_difference_cells(setting, data.primary), _seeds_note(setting)])
    return {
        "id": "expectation",
        "question": data.question,
        "expects": data.expects,
        "outcomes": {
            "caption": f"{data.primary}, minus that of {data.reference}; confirmation seeds where there are any",
            "head": ("setting", "difference", "95 % interval", "outcome", "trainings"),
            "rows": lines,
        },
        "several": sum(setting.name != data.reference for setting in data.settings) > 1,
    }


def forest_section(data: PageData) -> dict[str, Any] | None:
    """Differences to the reference by the primary measure, with intervals and each seed."""
    screen = [_dot(setting, setting.differences.get(data.primary)) for setting in data.ranked()]
    confirm = [_dot(setting, setting.confirmed.get(data.primary)) for setting in data.ranked()]
    better = "below" if data.measures[data.primary].lower_is_better else "above"
    reference = data.setting(data.reference)
    label = f"minus {reference.number if reference else data.reference}; {better} 0 is better"
    charts = []
    for title, found in (("Screening seeds", screen), ("Confirmation seeds", confirm)):
        dots = [dot for dot in found if dot]
        left = max(118.0, 18 + CHAR_WIDTH * max((len(dot.name) for dot in dots), default=0))
        if chart := dot_chart(title, dots, x_label=label, left=left):
            charts.append((title, chart))
    about = {"primary": data.primary, "reference": data.reference, "better": better}
    return {"id": "forest", "charts": charts, **about} if charts else None


def cost_section(data: PageData) -> dict[str, Any] | None:
    """Quality against all that each setting is billed for, and what the trainings took."""
    points = []
    for setting in data.settings:
        pairs = [
            (trial.flops, trial.values[data.primary])
            for trial in setting.trials
            if trial.phase == SCREEN and trial.state == DONE and trial.flops
            if trial.values.get(data.primary) is not None
        ]
        if pairs:
            cost, quality = (sum(pair[axis] for pair in pairs) / len(pairs) for axis in (0, 1))
            points.append(CostPoint(setting.name, cost, quality, pairs, setting.name == data.winner))
    lower = data.measures[data.primary].lower_is_better
    chart = cost_chart(
        "Quality against cost", points, x_label="FLOPs billed, teacher and scoring included", y_label=data.primary,
        lower_is_better=lower,
    )  # fmt: skip
    rows = [
        [setting.name, f"{flops:.3g}" if (flops := setting.mean_flops()) else "",
         duration(_mean([trial.wall_s for trial in setting.trials])),
         number(_mean([trial.peak_rss_gib for trial in setting.trials]), 1)]
        for setting in data.settings
    ]  # fmt: skip
    head = ("setting", "FLOPs", "time", "peak memory, GiB")
    table = {"caption": "Mean of a training", "head": head, "rows": rows}
    return {"id": "cost", "chart": chart, "table": table} if chart or any(any(row[1:]) for row in rows) else None


def measures_section(data: PageData) -> dict[str, Any] | None:
    """Every measure of every setting: relative differences to the reference as a map, and the values."""
    names = [name for name in data.measures if any(setting.mean(name) is not None for setting in data.settings)]
    others = [setting for setting in data.ranked() if setting.name != data.reference]
    reference = data.setting(data.reference)
    if not names:
        return None
    shown = names[:_MEASURES_SHOWN]

    def cell(setting: ShownSetting, name: str) -> tuple[float, bool] | None:
        found, level = setting.differences.get(name), reference.mean(name) if reference else None
        if found is None or found.value is None or not level:
            return None
        sign = -1 if data.measures[name].lower_is_better else 1
        return sign * found.value / abs(level), found.outcome in OUTCOME_STYLE

    chart = difference_map(
        "Differences by measure and setting", [setting.name for setting in others], shown,
        [[cell(setting, name) for setting in others] for name in shown],
        x_label=f"per cent, against {reference.number if reference else data.reference}",
    )  # fmt: skip
    rows = [[name, *(number(setting.mean(name), 4) for setting in data.settings)] for name in names]
    head = ("measure", *(setting.number for setting in data.settings))
    named = ", ".join(setting.name for setting in data.settings) if len(data.settings) <= _NAMED else ""
    caption = "Mean over the screening seeds, by setting" + (f": {named}" if named else "")
    return {
        "id": "measures",
        "chart": chart if others else "",
        "table": {"caption": caption, "head": head, "rows": rows},
        "num_more": len(names) - len(shown),
        "beside": len(data.settings) <= _BESIDE,
    }


def anchor_section(data: PageData) -> dict[str, Any] | None:
    """What the batch brought, what code and machine moved, and both together."""
    if not data.anchor:
        return None
    rows = [
        [
            name,
            *(
                (number(found.value, 4), interval(_ends(found), 4), found.outcome)
                if found
                else ("", "", "not measured")
            ),
        ]
        for name, found in data.anchor.items()
    ]
    head = ("difference", data.primary, "95 % interval", "outcome")
    return {
        "id": "anchor",
        "table": {"caption": "", "head": head, "rows": rows},
        "warning": data.anchor_warning,
    }


def record_section(data: PageData) -> dict[str, Any]:
    """Differences between recipes, failures, and where the numbers are from."""
    trials = [(setting.name, trial) for setting in data.settings for trial in setting.trials]
    trials += [(trial.name.rpartition("-")[0], trial) for trial in data.anchor_trials]
    failures = [
        [f"{name}, seed {trial.seed}", trial.state, trial.message]
        for name, trial in trials
        if trial.state in (FAILED, DIVERGED) or trial.message
    ]
    return {
        "id": "record",
        "recipes": [
            {"name": setting.name, "changes": (*(setting.changes or ("the base recipe",)), *_role(setting, data))}
            for setting in data.settings
        ],
        "failures": {"caption": "", "head": ("training", "outcome", "what it said"), "rows": failures},
        "pairs": [
            (name, value)
            for name, value in (("suite", data.suite), ("commit", data.commit), ("budget", data.budget))
            if value
        ],
    }


def _dot(setting: ShownSetting, found: ShownDifference | None) -> IntervalPoint | None:
    if found is None or found.value is None:
        return None
    style, note = OUTCOME_STYLE.get(found.outcome, 5), f", {found.outcome}, {counted(found.num_seeds, 'seed')}"
    return IntervalPoint(
        cut(setting.name, _NAME_LENGTH), found.value, found.low, found.high, style, note=note, parts=found.seeds,
        emphasized=found.outcome in OUTCOME_STYLE,
    )  # fmt: skip


def _difference_cells(setting: ShownSetting, measure: str) -> list[str]:
    """Of the confirmation seeds where there are any."""
    found = setting.confirmed.get(measure) or setting.differences.get(measure)
    if found is None:
        return ["", "", "not measured"]
    return [number(found.value, 4), interval(_ends(found), 4), "; ".join(filter(None, (found.outcome, found.note)))]


def _seeds_note(setting: ShownSetting) -> str:
    total = len(setting.trials)
    bad = [f"{setting.count(state)} of {total} {state}" for state in (DIVERGED, FAILED) if setting.count(state)]
    return ", ".join(bad) or f"{setting.count(DONE)} of {total} done"


def _after_label(setting: ShownSetting, words: str) -> str:
    """Words behind what a setting's name says after its number."""
    label = setting.name.partition(" ")[2]
    return f"{label}: {words}" if label else words


def _role(setting: ShownSetting, data: PageData) -> tuple[str, ...]:
    return ("(the others are compared with this one)",) if setting.name == data.reference else ()


def _ends(found: ShownDifference) -> dict[str, float | None]:
    return {"low": found.low, "high": found.high}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
