"""The gate's decision, from measurements alone: may a candidate take the champion's place?

Both are measured on the gate part of one suite under at least 3 seeds of training. The candidate passes where its
primary measure is better with its whole interval over seeds and cases (`brine.evals.seed_interval`), and no guard that
the suite declares has failed. A guard fails where its worsening is *significant* (one-sided, Holm over all guards at 5
%) or where its point estimate passes its *margin*. Nothing declared may be unmeasured.

With few seeds a test sees little: with 3 seeds and 20 guards Holm's first step needs t = 14 with 2 degrees of freedom.
So margins do most of the refusing. They come from K equal trainings of the champion, whose values v_1 .. v_K differ by
chance alone, and are the difference of two means over S seeds that one of G guards passes by chance with probability
0.05 / G:

    margin = t(1 - 0.05 / G; K - 1 degrees) * sqrt(mean over pairs of (v_j - v_k)^2 / S)

at least 1 % of the champion's value, for what hardly varies (memory). Equal guards then all stay within their margins
in 95 % of cases at least, whatever K is, and a worsening of twice the margin passes it as surely as chance does not.
What K decides is how wide margins are: for 8 guards t is 2.8 at K = 20, 4.3 at 5 and 8.9 at 3. So 5 equal trainings
are recommended, of which the champion's confirmation seeds are a part, and 3 is the least. `python -m
benchmarks.statistics.gate` measures all this, with `docs/gate_power.png`.

Questions to the gate part are few, and each answer says little: "better" comes with its numbers, all others without
(the Ladder: Blum and Hardt, arXiv 1502.04585). What is promoted is the seed whose value on `dev` is the median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import stdtrit

from brine.evals.measurement import Measurement
from brine.evals.seed_interval import SeedDifference, holm, needed, seed_difference

Run = Mapping[str, Measurement]
"""What was measured of one training: measure -> Measurement, of one part of a suite."""
LEAST_SEEDS = 3
"""Confirmation seeds of the candidate and of the champion."""
LEAST_CALIBRATION = 3
"""Equal trainings of the champion from which margins can be had."""
FAMILY_ERROR = 0.05
"""How often equal guards may fail by chance: once for all tests together, once for all margins together."""
LEAST_MARGIN = 0.01
"""Smallest margin, as a fraction of the champion's value."""


@dataclass(frozen=True)
class GuardOutcome:
    """What became of one guard."""

    name: str
    """The measure."""
    significant: bool
    """Its worsening is significant after Holm's correction."""
    beyond_margin: bool
    """Its point estimate is worse by more than the margin."""
    difference: SeedDifference
    """Candidate minus champion."""
    margin: float
    """In the measure's own unit."""
    p_adjusted: float
    """Holm's, of the one-sided test that the candidate is worse."""

    @property
    def failed(self) -> bool:
        """By either rule."""
        return self.significant or self.beyond_margin

    @property
    def why(self) -> str | None:
        """ "significant", "margin", "significant, margin" or None."""
        found = ["significant"] * self.significant + ["margin"] * self.beyond_margin
        return ", ".join(found) or None


@dataclass(frozen=True)
class GateDecision:
    """The gate's answer. `to_dict` withholds numbers of the gate part unless the candidate passed."""

    outcome: str
    """ "better" (passed), "refused" (a guard failed, or something was not measured), "not better" (the primary is worse
    with its whole interval) or "undecided"."""
    primary: SeedDifference | None
    """Candidate minus champion in the primary measure; None where it was not measured."""
    guards: tuple[GuardOutcome, ...]
    """Every guard that was measured."""
    unmeasured: tuple[str, ...] = ()
    """What was declared and not measured: "gain.audio of candidate[1]"."""
    needed: str = ""
    """Where undecided, what would decide: "about 4 more seeds or 300 more cases"."""

    @property
    def passed(self) -> bool:
        """Whether the candidate may be promoted."""
        return self.outcome == "better"

    @property
    def failed_guards(self) -> tuple[str, ...]:
        """Names of the guards that failed."""
        return tuple(guard.name for guard in self.guards if guard.failed)

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence for each thing that stands against the candidate; no number of the gate part."""
        words = {"significant": "is significantly worse", "margin": "is worse by more than its margin",
                 "significant, margin": "is significantly worse, and by more than its margin"}  # fmt: skip
        found = [f"{name} was not measured" for name in self.unmeasured]
        found += [f"guard {guard.name} {words[guard.why]}" for guard in self.guards if guard.why]
        if self.primary is None or self.passed:
            return tuple(found)
        name = self.primary.measure
        if self.primary.outcome == "worse":
            found.append(f"{name} is worse")
        elif self.primary.outcome != "better" or self.outcome == "undecided":
            found.append(f"{name} is undecided: {self.needed or needed(self.primary)} would decide")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: outcome, failed guards by name with their reasons; differences only where the candidate passed."""
        guards = [
            {"name": guard.name, "failed": guard.failed, "why": guard.why, "margin": guard.margin}
            | ({"difference": guard.difference.to_dict(), "p_adjusted": guard.p_adjusted} if self.passed else {})
            for guard in self.guards
        ]
        return {
            "passed": self.passed, "outcome": self.outcome, "needed": self.needed, "unmeasured": list(self.unmeasured),
            "failed_guards": list(self.failed_guards), "reasons": list(self.reasons), "guards": guards,
            "primary": self.primary.to_dict() if self.passed and self.primary else None,
        }  # fmt: skip


def decide(
    candidate: Sequence[Run], champion: Sequence[Run], *, primary: str, guards: Sequence[str],
    margins: Mapping[str, float], confidence: float = 0.95, paired: bool = True,
) -> GateDecision:  # fmt: skip
    """Decide from what was measured on the gate part, a `Run` for each seed of both.

    paired: whether seeds are paired by position. Raises ValueError for a guard without a margin, seeds that cannot be
    paired, and cases that differ between seeds.
    """
    guards = tuple(name for name in dict.fromkeys(guards) if name != primary)
    if lacking := [name for name in guards if not margins.get(name, -1.0) >= 0]:
        raise ValueError(f"no margin for {', '.join(lacking)}: calibrate margins with equal trainings of the champion")
    unmeasured = tuple(
        f"{name} of {side}[{index}]"
        for name in (primary, *guards)
        for side, runs in (("candidate", candidate), ("champion", champion))
        for index, run in enumerate(runs)
        if name not in run or run[name].value is None
    )
    if min(len(candidate), len(champion)) < LEAST_SEEDS:
        few = f"at least {LEAST_SEEDS} seeds of candidate and champion"
        return GateDecision("refused" if unmeasured else "undecided", None, (), unmeasured, few)
    missing = {name.partition(" of ")[0] for name in unmeasured}

    def difference(name: str) -> SeedDifference:
        ours, theirs = ([run[name] for run in runs] for runs in (candidate, champion))
        return seed_difference(ours, theirs, confidence=confidence, paired=paired)

    found = [difference(name) for name in guards if name not in missing]
    # where nothing varies there is nothing to test with: the margin decides
    tests = [each.p_worse if varies(each) else 1.0 for each in found]
    outcomes = tuple(
        GuardOutcome(each.measure, adjusted <= FAMILY_ERROR, worsening(each) > margins[each.measure], each,
                     margins[each.measure], adjusted)
        for each, adjusted in zip(found, holm(tests), strict=True)
    )  # fmt: skip
    first = None if primary in missing else difference(primary)
    if unmeasured or any(guard.failed for guard in outcomes):
        return GateDecision("refused", first, outcomes, unmeasured)
    if first.outcome == "better":
        return GateDecision("better", first, outcomes)
    if first.outcome == "worse":
        return GateDecision("not better", first, outcomes)
    return GateDecision("undecided", first, outcomes, needed=needed(first))


def worsening(difference: SeedDifference) -> float:
    """By how much ours is worse; negative where it is better."""
    return difference.value if difference.lower_is_better else -difference.value


def varies(difference: SeedDifference) -> bool:
    """Whether seeds or cases differ by more than rounding."""
    return bool(difference.variance.variance > 4 * difference.variance.rounding**2)


def margin_factor(runs: int, guards: int) -> float:
    """t(1 - 0.05 / G; K - 1) of the margin's formula. runs: K equal trainings; guards: G."""
    return float(stdtrit(runs - 1, 1 - FAMILY_ERROR / max(1, guards)))


def calibrate_margins(
    runs: Sequence[Run], *, guards: Sequence[str], seeds: int = LEAST_SEEDS, least: float = LEAST_MARGIN
) -> dict[str, float]:
    """{guard: margin}, from equal trainings of the champion that differ in their seeds alone, measured on one part.

    seeds: confirmation seeds of candidate and champion, S; more seeds, smaller margins. least: smallest margin as a
    fraction of the champion's value. Raises ValueError for fewer than 3 runs, a guard that one of them lacks, and runs
    measured on different cases.
    """
    if len(runs) < LEAST_CALIBRATION:
        raise ValueError(
            f"margins need at least {LEAST_CALIBRATION} equal trainings of the champion, not {len(runs)}: train it "
            "under more seeds (5 are recommended)"
        )
    if seeds < 1:
        raise ValueError(f"seeds = {seeds} must be at least 1")
    margins = {}
    for name in dict.fromkeys(guards):
        values = []
        for index, run in enumerate(runs):
            if name not in run or run[name].value is None:
                raise ValueError(f"{name} was not measured on training {index} of the champion: measure it first")
            if set(run[name].case) != set(runs[0][name].case):
                raise ValueError(f"{name}: trainings 0 and {index} were measured on different cases: use one suite")
            values.append(run[name].value)
        spread = float(np.mean([(a - b) ** 2 for a, b in combinations(values, 2)]))
        margin = margin_factor(len(runs), len(set(guards))) * math.sqrt(spread / seeds)
        margins[name] = max(margin, least * abs(float(np.mean(values))))
    return margins


def median_seed(runs: Sequence[Run], primary: str) -> int:
    """Position of the seed whose primary value, on `dev`, is the median; of an even number the worse of the two in the
    middle, and the earlier of equal ones. Raises ValueError where one lacks the measure."""
    if not runs:
        raise ValueError("no seeds to choose from: measure the candidate on dev first")
    lacking = [index for index, run in enumerate(runs) if primary not in run or run[primary].value is None]
    if lacking:
        raise ValueError(f"{primary} was not measured on dev for seed {lacking[0]}: measure it first")
    sign = 1.0 if runs[0][primary].spec.lower_is_better else -1.0
    order = sorted(range(len(runs)), key=lambda index: (sign * runs[index][primary].value, index))
    return order[len(runs) // 2]
