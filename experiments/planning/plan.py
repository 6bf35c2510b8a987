"""The frozen plan of an experiment: its trials with their whole recipes, and the folder that it lies in.

    runs/<experiment>/plan.json       the question, settings, seeds, suite, threads, commit; never rewritten
    runs/<experiment>/trials.jsonl    one line per trial with its recipe; screening trials first, later ones appended
    runs/<experiment>/code/           what every trial imports
    runs/<experiment>/trials/<name>/  the run folder of a trial; trial.json is written last
    runs/<experiment>/events.jsonl    what the engine did
    runs/<experiment>/table.json      what is compared

Confirmation trials, and those that a search asks for, follow from results, so that they are appended when they are
known; a line is never changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brine.common.files import differences, finite, read_json, read_jsonl, to_plain, write_json
from brine.training.logging.metrics import repair_lines

PLAN_FILE, TRIALS_FILE, EVENTS_FILE, TABLE_FILE = "plan.json", "trials.jsonl", "events.jsonl", "table.json"
TRIALS_FOLDER, LOGS_FOLDER, TRIAL_FILE, CANCELLED_FILE = "trials", "logs", "trial.json", "cancelled"
LOCK_FILE = "run.lock"
"""Held while a plan is frozen and while it is run."""
SCREEN, CONFIRM, RUNG = "screen", "confirm", "rung"
ANCHOR_SETTING, FORMER_SETTING = "anchor", "former"
"""The winner of an earlier experiment under today's code, and as it was trained then."""
FORMAT = 1


@dataclass(frozen=True)
class TrialSpec:
    """One trial of a plan."""

    name: str
    """Its folder's name, such as "01-seed0"."""
    setting: str
    """The setting that it trains, such as "01" or "anchor"."""
    seed: int
    phase: str = SCREEN
    """ "screen", "confirm", or "rung" of a search."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The whole recipe as plain JSON, the trial's name and seeds in it."""
    digest: str = ""
    """Of what the recipe trains."""
    resources: dict[str, float] = field(default_factory=dict)
    """{"cores", "gpus", "memory_gib"}."""
    budget: dict[str, Any] = field(default_factory=dict)
    """{"large_steps", "large_flops"}, and by how much a budget of FLOPs is missed."""
    rung: int = 0
    """Rung of a search: an index into its fractions of the budget."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Dotted name of a recipe's field -> value, as the setting has it."""
    measured_run: str = ""
    """A finished run to measure again instead of training: the former self of an anchor."""


@dataclass(frozen=True)
class ExperimentPlan:
    """A plan as it lies in its folder. head: what plan.json holds."""

    folder: Path
    head: dict[str, Any]
    trials: tuple[TrialSpec, ...]

    @property
    def name(self) -> str:
        return self.head["name"]

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Name of a setting -> {"name", "label", "changes", "budget"}, in order; those of a search come with their
        first trial."""
        found = {each["name"]: each for each in self.head["settings"]}
        for trial in self.of_phase(RUNG):
            found[trial.setting] = {"name": trial.setting, "label": setting_label(trial.changes),
                                    "changes": trial.changes, "budget": trial.budget}  # fmt: skip
        return found

    @property
    def reference(self) -> str:
        """The setting that the others are compared with: the first."""
        return self.head["settings"][0]["name"]

    def trial(self, name: str) -> TrialSpec:
        """A trial by name. Raises ValueError for an unknown one."""
        found = next((trial for trial in self.trials if trial.name == name), None)
        if found is None:
            raise ValueError(f"{self.name} has no trial {name!r}: {', '.join(trial.name for trial in self.trials)}")
        return found

    def of_phase(self, *phases: str) -> list[TrialSpec]:
        """Trials of some phases, in order."""
        return [trial for trial in self.trials if trial.phase in phases]

    def trial_folder(self, trial: TrialSpec | str) -> Path:
        """The run folder of a trial, absolute."""
        return self.folder.absolute() / TRIALS_FOLDER / (trial if isinstance(trial, str) else trial.name)

    def append(self, trials: list[TrialSpec]) -> ExperimentPlan:
        """The plan with more trials, written in one piece; those that are there already are left out."""
        known = {trial.name for trial in self.trials}
        fresh = [trial for trial in trials if trial.name not in known]
        if fresh:
            _append(self.folder / TRIALS_FILE, fresh)
        return ExperimentPlan(self.folder, self.head, (*self.trials, *fresh))


def write_plan(folder: Path, head: dict[str, Any], trials: list[TrialSpec]) -> ExperimentPlan:
    """Freeze a plan in an empty folder, plan.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRIALS_FILE).unlink(missing_ok=True)
    _append(folder / TRIALS_FILE, trials)
    write_json(folder / PLAN_FILE, {"format": FORMAT, **head})
    return load_plan(folder)


def load_plan(folder: Path) -> ExperimentPlan:
    """The plan in a folder. Raises ValueError where there is none, or one of another version."""
    head = read_json(folder / PLAN_FILE)
    if not isinstance(head, dict):
        raise ValueError(f"{folder} has no {PLAN_FILE}: `brine experiments plan` writes one")
    if head.get("format") != FORMAT:
        raise ValueError(f"{folder / PLAN_FILE} has format {head.get('format')}, not {FORMAT}: plan it newly named")
    repair_lines(folder / TRIALS_FILE)
    known = set(TrialSpec.__dataclass_fields__)
    try:
        trials = tuple(TrialSpec(**line) for line in read_jsonl(folder / TRIALS_FILE) if set(line) <= known)
    except TypeError as error:
        raise ValueError(
            f"{folder / TRIALS_FILE} cannot be read ({error}): restore it, or plan under a new name"
        ) from None
    if len(trials) < head["planned_trials"]:
        raise ValueError(f"{folder / TRIALS_FILE} lacks trials of its plan: restore it, or plan under a new name")
    return ExperimentPlan(folder, head, trials)


def plan_changes(old: ExperimentPlan, head: dict[str, Any], trials: list[TrialSpec]) -> list[str]:
    """What a plan made now would change of the one that lies there, a line each; code, commit and paths of the
    environment do not count."""
    apart = {"code", "format", "python", "planned", "planned_trials"}
    before = {key: value for key, value in old.head.items() if key not in apart}
    now = json.loads(json.dumps(finite(to_plain({key: value for key, value in head.items() if key not in apart}))))
    lines = differences(before, now)
    kept = {trial.name: trial.digest for trial in old.trials[: old.head["planned_trials"]]}
    asked = {trial.name: trial.digest for trial in trials}
    lines += [f"trial {name}: {'new' if name not in kept else 'other settings'}" for name, found in asked.items()
              if kept.get(name) != found]  # fmt: skip
    return lines + [f"trial {name}: gone" for name in kept if name not in asked]


def setting_label(changes: Mapping[str, Any]) -> str:
    """A setting in a few words: "learning_rate=0.004, filters=['near_duplicates']", or "base"."""
    last = [name.rpartition(".")[2] for name in changes]
    names = [short if last.count(short) == 1 else name for name, short in zip(changes, last, strict=True)]
    return ", ".join(f"{name}={value}" for name, value in zip(names, changes.values(), strict=True)) or "base"


def _append(path: Path, trials: list[TrialSpec]) -> None:
    text = "".join(json.dumps(to_plain(trial), sort_keys=True) + "\n" for trial in trials)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
