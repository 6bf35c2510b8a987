"""The gate at the end of a round: its models join the registry, are measured, and may become the champion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brine.experiments.planning.plan import SCREEN, ExperimentPlan
from brine.experiments.rounds.line import RoundLine
from brine.experiments.table import ResultTable
from brine.registry.cli.suite_access import measure_model, open_suite
from brine.registry.registry import Registry


def ask_gate(line: RoundLine, plan: ExperimentPlan, setting: str, *, folder: Path) -> dict[str, Any] | None:
    """Ask the gate of a line's registry whether a setting of a round may become the champion; None without a registry.

    Trainings that are the champion's own leave it as it is. Raises ValueError for what cannot be asked.
    """
    if line.registry is None or line.suite is None:
        return None
    registry, suite = Registry(line.registry), open_suite(line.suite)
    models = []
    for trial in ResultTable(plan).trials_of(setting, SCREEN):
        models.append(registry.add(plan.trial_folder(trial)))
    if registry.champion in models:
        return {"outcome": "undecided", "champion": registry.champion, "note": "these are the champion's own trainings"}
    for number, model in enumerate(models):
        out = folder / "gate" / f"{number:02d}"
        measure_model(registry.folder_of(model), suite, out, device="cpu", compute_dtype=None)
        registry.measure(model, out, suite)
    promotion = registry.promote(models, suite)
    return {
        "outcome": promotion.answer.outcome,
        "promoted": promotion.model,
        "champion": registry.champion,
        "reasons": list(promotion.answer.reasons),
    }
