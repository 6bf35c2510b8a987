"""Paired comparison of SALT and baseline on the same held-out documents, with confidence intervals.

At equal student steps, final losses are compared document by document. At equal cost, the run with SALT has also paid
for the teacher's forward passes and for scoring, so its loss is read from its periodic validations, per document,
interpolated over the logarithm of the cost and never extrapolated. Its learning rate has not yet decayed there, so
this comparison is biased *against* the run that costs more per step. It is made with the teacher's training counted
and without.

The outcome is "win" when the whole interval of the difference lies below 0, "loss" when above, else "undecided". The
interval is over documents; it does not cover the variance between seeds of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brine.evals.bootstrap import Interval
from brine.evals.config import EvalConfig

if TYPE_CHECKING:
    from brine.evals.loss import DocumentLosses


@dataclass(frozen=True)
class ValidationCurve:
    """Periodic validations of one run. P points, n documents."""

    step: np.ndarray
    """(P,) int64, ascending."""
    cost: np.ndarray
    """(P,) float64: FLOPs until that step, ascending."""
    loss: np.ndarray
    """(P, n) float64: summed cross-entropy of each validation document, nats."""
    tokens: np.ndarray
    """(n,) int64: its target tokens."""

    def mean(self) -> np.ndarray:
        """(P,) nats per target token."""
        return self.loss.sum(axis=1) / max(1, self.tokens.sum())

    def interpolate(self, cost: float) -> np.ndarray | None:
        """(n,) losses at a cost; None outside what was measured."""
        if not self.cost[0] <= cost <= self.cost[-1]:
            return None
        index = int(np.searchsorted(self.cost, cost, side="left"))
        if self.cost[index] == cost:
            return self.loss[index]
        low, high = np.log(self.cost[index - 1]), np.log(self.cost[index])
        share = (np.log(cost) - low) / (high - low)
        return (1 - share) * self.loss[index - 1] + share * self.loss[index]


def validation_curve_of(metrics: Iterable[Mapping[str, Any]]) -> ValidationCurve | None:
    """The validations among the lines of metrics.jsonl; None where no line has losses per document.

    A line counts when it has `validation.documents`, `validation.tokens` (see `validation.py`) and `flops.total`. Of a
    step that occurs twice the last line counts.
    """
    points: dict[int, tuple[float, list[float]]] = {}
    tokens: list[int] | None = None
    for line in metrics:
        validation = line.get("validation") or {}
        cost = (line.get("flops") or {}).get("total")
        if not validation.get("documents") or not cost:
            continue
        if tokens is None or len(validation["tokens"]) == len(tokens):
            tokens = validation["tokens"]
            points[int(line["step"])] = (float(cost), validation["documents"])
    if not points:
        return None
    steps = sorted(points)
    cost, loss = zip(*(points[step] for step in steps), strict=True)
    return ValidationCurve(np.array(steps, np.int64), np.array(cost), np.array(loss, np.float64), np.array(tokens))


def outcome(interval: Interval) -> str:
    """ "win", "loss" or "undecided" of a difference of losses (ours minus theirs)."""
    if interval.high is not None and interval.high < 0:
        return "win"
    return "loss" if interval.low is not None and interval.low > 0 else "undecided"


def difference_with_outcome(gap: np.ndarray, denominator: np.ndarray, config: EvalConfig) -> dict[str, Any]:
    """sum(gap) / sum(denominator) with its interval and outcome, as JSON. Both arguments: (n,)."""
    interval = config.interval(gap, denominator)
    return interval.to_dict(name="difference") | {"outcome": outcome(interval)}


def paired_difference(ours: np.ndarray, theirs: np.ndarray, tokens: np.ndarray, config: EvalConfig) -> dict[str, Any]:
    """Paired difference of losses, nats per target token, with interval and outcome. All arguments: (n,)."""
    total = max(1, int(tokens.sum()))
    return difference_with_outcome(ours - theirs, tokens, config) | {
        "ours": float(ours.sum() / total),
        "theirs": float(theirs.sum() / total),
    }


def at_equal_steps(ours: DocumentLosses, theirs: DocumentLosses, config: EvalConfig) -> dict[str, Any]:
    """Difference of the final losses of two runs, and under `kinds` the same per kind.

    Raises ValueError when the documents differ.
    """
    if not np.array_equal(ours.document, theirs.document):
        raise ValueError("two runs are compared on the same documents; these losses are of different ones")

    def entry(mask: np.ndarray) -> dict[str, Any]:
        sums = (losses.loss[mask].sum(axis=1) for losses in (ours, theirs))
        return paired_difference(*sums, ours.tokens[mask].sum(axis=1), config)

    kinds = [{"kind": kind, **entry(ours.of_kind(kind))} for kind in ours.kinds if ours.of_kind(kind).any()]
    return entry(np.ones(len(ours), bool)) | {"kinds": kinds}


def at_equal_cost(
    ours: ValidationCurve, theirs: ValidationCurve, config: EvalConfig, *, prior_flops: float = 0.0
) -> dict[str, Any]:
    """Both runs at the largest cost that both have reached: the end of the cheaper one.

    ours: the run with SALT; theirs: the baseline. prior_flops: FLOPs of ours before its first step (teacher training,
    scoring). Where one was not yet validated at that cost, the outcome is "undecided", with the reason in `note`.
    """
    ours = replace(ours, cost=ours.cost + prior_flops)
    cost = float(min(ours.cost[-1], theirs.cost[-1]))
    here, there = ours.interpolate(cost), theirs.interpolate(cost)
    if here is None or there is None or len(here) != len(there):
        validated = here is not None and there is not None
        return Interval().to_dict(name="difference") | {
            "outcome": "undecided",
            "ours": None,
            "theirs": None,
            "cost_flops": cost,
            "note": "the runs were validated on different documents"
            if validated
            else "at the end of the cheaper run, the other had not been validated",
        }
    which = "SALT" if ours.cost[-1] > theirs.cost[-1] else "the baseline"
    return paired_difference(here, there, theirs.tokens, config) | {
        "cost_flops": cost,
        "note": f"{which} is read from its validation curve before its end, its learning rate not yet decayed",
    }


def cost_to_match(
    ours: ValidationCurve, theirs: ValidationCurve, *, prior_flops: float = 0.0
) -> dict[str, float | None]:
    """Step and cost at which ours first reaches their final validation loss, as fractions of their whole run.

    None where it never does. The mean loss is interpolated over the logarithm of the cost.
    """
    goal = theirs.mean()[-1]
    mean, cost = ours.mean(), np.log(ours.cost)
    reached = np.flatnonzero(mean <= goal)
    if not len(reached):
        return {"step_fraction": None, "cost_fraction": None}
    index = int(reached[0])
    share = 1.0 if not index else (mean[index - 1] - goal) / (mean[index - 1] - mean[index])
    before = max(0, index - 1)
    flops = float(np.exp(cost[before] + share * (cost[index] - cost[before])))
    step = float(ours.step[before] + share * (ours.step[index] - ours.step[before]))
    return {
        "step_fraction": step / float(theirs.step[-1]),
        "cost_fraction": (flops + prior_flops) / float(theirs.cost[-1]),
    }


def compare_arms(
    ours: DocumentLosses,
    theirs: DocumentLosses,
    our_metrics: Iterable[Mapping[str, Any]],
    their_metrics: Iterable[Mapping[str, Any]],
    config: EvalConfig,
    *,
    teacher_training_flops: float = 0.0,
    scoring_flops: float = 0.0,
) -> dict[str, Any]:
    """The whole comparison as JSON: `equal_steps`, and where both runs have validations `equal_cost` and
    `cost_to_match`, each `without_teacher_training` and `with_teacher_training`."""
    result: dict[str, Any] = {"equal_steps": at_equal_steps(ours, theirs, config)}
    mine, base = validation_curve_of(our_metrics), validation_curve_of(their_metrics)
    if mine is None or base is None:
        return result
    prior = {"without_teacher_training": scoring_flops, "with_teacher_training": scoring_flops + teacher_training_flops}
    return result | {
        "equal_cost": {name: at_equal_cost(mine, base, config, prior_flops=paid) for name, paid in prior.items()},
        "cost_to_match": {name: cost_to_match(mine, base, prior_flops=paid) for name, paid in prior.items()},
    }
