"""What the page of an experiment shows, as records: settings with their seeds, differences and the anchor.

The page knows these records alone, and `page_data` makes them of an experiment's files, so that either can change
without the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brine.evals.measurement import MeasureSpec

SCREEN, CONFIRM = "screen", "confirm"
DONE, DIVERGED, FAILED, MISSING = "done", "diverged", "failed", "missing"


@dataclass(frozen=True)
class ShownDifference:
    """A setting minus another by one measure. low, high: None with one seed. seeds: the difference of each seed.
    outcome: "better", "worse", "undecided", "no verdict" or "not comparable". note: why it is undecided although the
    interval excludes 0, or ""."""

    value: float | None
    low: float | None = None
    high: float | None = None
    outcome: str = "no verdict"
    p_value: float | None = None
    num_seeds: int = 0
    num_cases: int = 0
    seeds: tuple[float, ...] = ()
    note: str = ""

    @classmethod
    def of(cls, found: Mapping[str, Any] | None) -> ShownDifference | None:
        """From JSON, other keys left out; None for None."""
        if not found:
            return None
        known = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        return cls(**known | {"seeds": tuple(known.get("seeds") or ())})


@dataclass(frozen=True)
class ShownTrial:
    """One training of a setting. state: "done", "diverged", "failed" or "missing"; flops: all that it is billed for."""

    name: str
    seed: int
    phase: str = SCREEN
    state: str = DONE
    values: Mapping[str, float] = field(default_factory=dict)
    flops: float | None = None
    wall_s: float | None = None
    peak_rss_gib: float | None = None
    message: str = ""


@dataclass(frozen=True)
class ShownSetting:
    """One setting of an experiment. name: number and label, "02 learning_rate=0.006". changes: fields of its recipe
    that differ from those of the base recipe, a line each; none where it is the base recipe. differences: {measure: to
    the reference}; confirmed: the same over the confirmation seeds alone."""

    name: str
    changes: tuple[str, ...] = ()
    trials: tuple[ShownTrial, ...] = ()
    differences: Mapping[str, ShownDifference] = field(default_factory=dict)
    confirmed: Mapping[str, ShownDifference] = field(default_factory=dict)

    @property
    def number(self) -> str:
        """The number that its name begins with."""
        return self.name.partition(" ")[0]

    def mean(self, measure: str) -> float | None:
        """The mean of a measure over the screening seeds that have it; confirmation seeds may read other cases."""
        trials = [trial for trial in self.trials if trial.phase == SCREEN]
        found = [trial.values[measure] for trial in trials if trial.values.get(measure) is not None]
        return sum(found) / len(found) if found else None

    def mean_flops(self) -> float | None:
        """The mean cost of a finished training."""
        found = [trial.flops for trial in self.trials if trial.flops and trial.state == DONE]
        return sum(found) / len(found) if found else None

    def count(self, state: str) -> int:
        """How many of its trainings ended so."""
        return sum(trial.state == state for trial in self.trials)


@dataclass(frozen=True)
class PageData:
    """A whole experiment. reference: the setting that the others are compared with, which need not have the base
    recipe. anchor: {"new - anchor", "anchor - former", "new - former": difference by the primary measure, None where it
    was not measured}, empty without one. anchor_trials: the trainings that it needed. anchor_warning: what the table
    warns of, or ""."""

    name: str
    question: str
    expects: str
    primary: str
    measures: Mapping[str, MeasureSpec]
    settings: tuple[ShownSetting, ...]
    reference: str
    winner: str | None = None
    guards: tuple[str, ...] = ()
    suite: str = ""
    budget: str = ""
    commit: str = ""
    anchor: Mapping[str, ShownDifference | None] = field(default_factory=dict)
    anchor_trials: tuple[ShownTrial, ...] = ()
    anchor_warning: str = ""

    def setting(self, name: str | None) -> ShownSetting | None:
        """The setting of this name, or None."""
        return next((setting for setting in self.settings if setting.name == name), None)

    def ranked(self) -> list[ShownSetting]:
        """The settings by the primary measure, best first; those with a training that diverged last."""
        spec = self.measures[self.primary]

        def order(setting: ShownSetting) -> tuple[bool, bool, float]:
            mean = setting.mean(self.primary)
            sign = 1 if spec.lower_is_better else -1
            return (setting.count(DIVERGED) > 0, mean is None, sign * (mean or 0.0))

        return sorted(self.settings, key=order)
