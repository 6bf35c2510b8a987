"""The gate at the end of a round: its models join the registry, are measured, and may become the champion.

The models are those of the confirmation seeds: the seeds that chose between the arms of a round have done so because
they did well, and are never what the gate counts. A question is asked once: one that the registry's log answers, for
the same models, suite and champion, is not asked again, be it that a kill came before the round's record or that
nothing has changed since an earlier round.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from brine.common.files import read_json, write_json
from brine.common.formatting import counted
from brine.experiments.planning.plan import CONFIRM, ExperimentPlan
from brine.experiments.rounds.line import RoundLine
from brine.experiments.table import ResultTable
from brine.experiments.trials.ending import FINISHED
from brine.registry.cli.suite_access import measure_model, open_suite
from brine.registry.measured import SuiteInfo
from brine.registry.promotion import MIN_SEEDS, trainings_of_champion
from brine.registry.registry import Registry
from brine.training.runtime import resolve_runtime

ASKED_FILE = "asked.json"
"""In the round's folder `gate`: the models, and the lines that the log had before they were asked about."""


def ask_gate(
    line: RoundLine, plan: ExperimentPlan, setting: str, *, suite: Path, folder: Path, refused: str = ""
) -> dict[str, Any] | None:
    """Ask the gate of a line's registry whether a setting of a round may become the champion; None without a registry.

    suite: its folder. folder: the round's. refused: why it was not going to be asked when the round began, and so has
    no confirmation seeds. Raises ValueError for what cannot be asked.
    """
    if line.registry is None:
        return None
    results = ResultTable(plan)
    trials = results.trials_of(setting, CONFIRM)
    if ended := [
        f"{trial.name} is {outcome}"
        for trial in trials
        if (outcome := results.records.get(trial.name, {}).get("outcome", "not finished")) != FINISHED
    ]:
        return _not_asked(ended)
    if not trials:
        return _not_asked([refused or "nothing was trained under the confirmation seeds"])
    registry, opened = Registry(line.registry), open_suite(str(suite))
    models = [registry.add(plan.trial_folder(trial)) for trial in trials]
    asked = read_json(folder / "gate" / ASKED_FILE)
    if not isinstance(asked, dict) or asked.get("models") != models:
        asked = {"models": models, "lines": len(registry.log.scan().entries)}
        (folder / "gate").mkdir(exist_ok=True)
        write_json(folder / "gate" / ASKED_FILE, asked)
    if (known := _known_answer(registry, models, opened, lines=asked["lines"])) is not None:
        return known
    if why := _too_few_champions(registry, models):
        return _not_asked([why]) | {"models": models}
    runtime = resolve_runtime(line.base.runtime)
    for model in _in_turn(models, trainings_of_champion(registry, without=models)):
        out = folder / "gate" / model[:16]
        measure_model(
            registry.folder_of(model), opened, out, device=runtime.device, compute_dtype=runtime.compute_dtype
        )
        registry.measure(model, out, opened)
    promotion = registry.promote(models, opened)
    answer = promotion.answer
    return _said(models, answer.outcome, promotion.model, answer.reasons)


def why_not_askable(line: RoundLine) -> str:
    """Why the gate of a line's registry cannot be asked now, whatever a round trains, or ""."""
    return "" if line.registry is None else _too_few_champions(Registry(line.registry), ())


def _too_few_champions(registry: Registry, candidates: Sequence[str]) -> str:
    """Why these models cannot be compared with the champion's trainings, or ""."""
    if registry.champion is None:
        return ""
    found = trainings_of_champion(registry, without=candidates)
    for model in found:
        if not (folder := registry.folder_of(model) / "model").is_dir():
            return f"{folder}, a training of the champion's setting, is gone: put it back from a copy of the registry"
    if len(found) >= MIN_SEEDS:
        return ""
    return (
        f"the champion {registry.champion[:12]} has {counted(len(found), 'training')} of its setting in "
        f"{registry.root}, and the gate needs {MIN_SEEDS}: train it under {MIN_SEEDS - len(found)} more seeds, then "
        "`brine registry add` them"
    )


def _in_turn(candidates: Sequence[str], champions: Sequence[str]) -> list[str]:
    """Candidate, champion, candidate, ...: what else the machine does meanwhile slows both sides down."""
    return [model for model in chain.from_iterable(zip_longest(candidates, champions)) if model is not None]


def _not_asked(reasons: Sequence[str]) -> dict[str, Any]:
    return {"outcome": "not asked", "promoted": None, "reasons": list(reasons)}


def _known_answer(registry: Registry, models: Sequence[str], suite: SuiteInfo, *, lines: int) -> dict[str, Any] | None:
    """What the log says about these models; None for a question that was not asked. lines: those that the log had when
    this round came to its gate."""
    entries, wanted = registry.log.scan().entries, sorted(models)
    mine = [
        (number, entry)
        for number, entry in enumerate(entries)
        if entry["event"] == "gate" and sorted(entry["models"]) == wanted and entry["suite"]["digest"] == suite.digest
    ]
    promotions = [
        (number, entry)
        for number, entry in enumerate(entries)
        if entry["event"] == "promote" and sorted(entry["seeds"]) == wanted
    ]
    if mine and promotions and promotions[-1][0] >= lines:
        answer = mine[-1][1]
        return _said(models, answer["outcome"], promotions[-1][1]["model"], answer["reasons"])
    if registry.champion in models:
        return _said(models, "undecided", None, ["these are the champion's own trainings"])
    if not mine:
        return None
    number, answer = mine[-1]
    # one that passed and was rolled back stays rolled back; one that passed, and was cut off before it was promoted, is
    # asked about again
    if answer["champion"] != registry.champion or (answer["passed"] and not promotions):
        return None
    note = {} if number >= lines else {"note": f"asked before, in line {answer['line']} of the registry's log"}
    return _said(models, answer["outcome"], None, answer["reasons"]) | note


def _said(models: Sequence[str], outcome: str, promoted: str | None, reasons: Sequence[str]) -> dict[str, Any]:
    return {"outcome": outcome, "promoted": promoted, "models": list(models), "reasons": list(reasons)}
