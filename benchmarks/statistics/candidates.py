"""Made-up candidates for a gate: a champion trained K times, a candidate trained S times, one primary and G guards.

In units of the standard deviation of one training's value, measure g of training s on case i is

    sqrt(h) shared[s, g] + sqrt(n (1 - h)) noise[s, g, i]  (+ sqrt(n v) case[g, i] for the candidate)

so that half (h) of what differs between equal trainings is the whole model's and half is a case's; v makes a candidate
differ in single cases though it is equal on the average. Half of the guards share a factor: their `shared` parts have
correlation 0.8. All measures are "lower is better"; the primary is measure 0. Champion, calibration and candidate are
drawn anew for every problem, so that rates are averages over lines of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brine.evals.comparison.seed_variance import CrossedVariance, crossed_variance, holm_adjusted
from brine.evals.measurement import Measurement, MeasureSpec
from brine.registry.gate import FAMILY_ERROR, margin_factor

LEVEL = 1000.0
"""Value of an equal model: far from 0, so that denominators matter as they do in measures."""


@dataclass(frozen=True)
class GateDesign:
    """What is simulated. Raises ValueError for fewer trainings of the champion than it is compared with."""

    guards: int = 8
    seeds: int = 3
    trainings: int = 5
    """Equal trainings of the champion, K; the first `seeds` of them are what candidates are compared with."""
    cases: int = 60
    correlation: float = 0.8
    whole_model: float = 0.5
    """h above."""
    case_variance: float = 0.0
    """v above, in units of the variance of one training."""

    def __post_init__(self):
        if self.trainings < self.seeds:
            raise ValueError(f"{self.trainings} trainings of the champion are fewer than its {self.seeds} seeds")


@dataclass(frozen=True)
class Candidates:
    """R problems. candidate: (R, 1 + G, S, n), champion: (R, 1 + G, K, n), float64; margins: (R, G)."""

    design: GateDesign
    candidate: np.ndarray
    champion: np.ndarray
    margins: np.ndarray

    def worse_by(self, guard: int, margins: float) -> Candidates:
        """The same with one guard worse by so many of its margins."""
        candidate = self.candidate.copy()
        candidate[:, 1 + guard] += margins * self.margins[:, guard, None, None]
        return Candidates(self.design, candidate, self.champion, self.margins)

    def better_by(self, gain: float) -> Candidates:
        """The same with a primary that is better by `gain` standard deviations of one training."""
        candidate = self.candidate.copy()
        candidate[:, 0] -= gain
        return Candidates(self.design, candidate, self.champion, self.margins)

    def differences(self, measures: slice | int = slice(None)) -> CrossedVariance:
        """Candidate minus champion of some measures, in one computation."""
        ours, theirs = self.candidate[:, measures], self.champion[:, measures, : self.design.seeds]
        return crossed_variance(ours, np.ones_like(ours), theirs, np.ones_like(theirs))

    def runs(self, problem: int) -> tuple[list[dict[str, Measurement]], list[dict[str, Measurement]]]:
        """(candidate, champion) of one problem as `brine.registry.gate.decide` takes them; of the champion all K."""
        cases = tuple(f"case-{number}" for number in range(self.design.cases))
        names = ("primary", *(f"guard-{number}" for number in range(self.design.guards)))

        def of(values: np.ndarray) -> list[dict[str, Measurement]]:
            return [
                {name: Measurement(MeasureSpec(name), cases, values[index, seed], np.ones(len(cases)))
                 for index, name in enumerate(names)}
                for seed in range(values.shape[1])
            ]  # fmt: skip

        return of(self.candidate[problem]), of(self.champion[problem])


def draw(design: GateDesign, problems: int, rng: np.random.Generator) -> Candidates:
    """Candidates that are equal to their champions in everything."""
    measures, runs = 1 + design.guards, design.seeds + design.trainings
    correlated = np.zeros(measures)
    correlated[1 : 1 + design.guards // 2] = np.sqrt(design.correlation)
    shared = np.sqrt(1 - correlated**2)[:, None] * rng.standard_normal((problems, measures, runs))
    shared = shared + correlated[:, None] * rng.standard_normal((problems, 1, runs))
    noise = rng.standard_normal((problems, measures, runs, design.cases))
    values = LEVEL + np.sqrt(design.whole_model) * shared[..., None]
    values = values + np.sqrt(design.cases * (1 - design.whole_model)) * noise
    candidate, champion = values[:, :, : design.seeds], values[:, :, design.seeds :]
    if design.case_variance:
        own = rng.standard_normal((problems, measures, 1, design.cases))
        candidate = candidate + np.sqrt(design.cases * design.case_variance) * own
    # the mean over pairs of the squared difference is twice the variance
    spread = 2 * champion[:, 1:].mean(axis=-1).var(axis=-1, ddof=1)
    margins = margin_factor(design.trainings, design.guards) * np.sqrt(spread / design.seeds)
    return Candidates(design, candidate, champion, margins)


def primary_better(candidates: Candidates) -> np.ndarray:
    """(R,) whether the whole interval of the primary lies on the better side."""
    found = candidates.differences(0)
    return found.value + found.half_width(0.95) < 0


def guards_failed(candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """(significant, beyond its margin), each (R, G)."""
    found = candidates.differences(slice(1, None))
    tail = found.tail()
    worse = np.where(found.value > 0, tail, 1 - tail)
    return holm_adjusted(worse) <= FAMILY_ERROR, found.value > candidates.margins
