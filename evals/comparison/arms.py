"""Paired comparison of one model with SALT and one without, at equal steps and at equal cost.

Paired by document: ours minus theirs, the loss with SALT minus that without, so that below 0 SALT is better. They are
compared at equal student steps by their final losses, and at equal cost: SALT's loss is read from its periodic
validations, interpolated over the logarithm of the cost and never extrapolated. Its learning rate has not yet decayed
there, so this is biased *against* the run that costs more per step.

A run trains each arm once. So there are values and intervals over documents, and the outcome of each is "no verdict":
two equal trainings differ as well, often by more (`brine.evals.seed_interval`). Several runs are compared by `brine
compare --ours ... --theirs ...`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brine.evals.comparison.runs import difference_with_outcome, with_kinds
from brine.evals.config import EvalConfig, Interval
from brine.evals.loss import DocumentLosses


def paired_difference(ours: np.ndarray, theirs: np.ndarray, tokens: np.ndarray, config: EvalConfig) -> dict[str, Any]:
    """Paired difference of losses, nats per target token, with its interval over documents. All arguments: (n,)."""
    total = max(1, int(tokens.sum()))
    means = {"ours": float(ours.sum() / total), "theirs": float(theirs.sum() / total)}
    return difference_with_outcome(ours - theirs, tokens, config) | means


@dataclass(frozen=True)
class ValidationCurve:
    """P periodic validations of one run over n documents. step: (P,) int64 and cost: (P,) float64, FLOPs until that
    step, ascending; loss: (P, n) float64, summed cross-entropy in nats; tokens: (n,) int64, target tokens."""

    step: np.ndarray
    cost: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray

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

    A line counts when it has `validation.documents`, `validation.tokens` (`validation.py`) and `flops.total`; of a
    repeated step the last line counts.
    """
    points: dict[int, tuple[float, list[float]]] = {}
    tokens: list[int] | None = None
    for line in metrics:
        validation = line.get("validation") or {}
        cost = (line.get("flops") or {}).get("total")
        if validation.get("documents") and cost and (tokens is None or len(validation["tokens"]) == len(tokens)):
            tokens = validation["tokens"]
            points[int(line["step"])] = (float(cost), validation["documents"])
    if not points:
        return None
    steps = sorted(points)
    cost, loss = zip(*(points[step] for step in steps), strict=True)
    return ValidationCurve(np.array(steps, np.int64), np.array(cost), np.array(loss, np.float64), np.array(tokens))


def at_equal_steps(ours: DocumentLosses, theirs: DocumentLosses, config: EvalConfig) -> dict[str, Any]:
    """Difference of the final losses of two runs, and under `kinds` the same per kind. Raises ValueError for different
    documents."""
    if not np.array_equal(ours.document, theirs.document):
        raise ValueError("two runs are compared on the same documents: these losses are of different ones")

    def entry(mask: np.ndarray) -> dict[str, Any]:
        sums = (losses.loss[mask].sum(axis=1) for losses in (ours, theirs))
        return paired_difference(*sums, ours.tokens[mask].sum(axis=1), config)

    kinds = [(kind, ours.of_kind(kind)) for kind in ours.kinds if ours.of_kind(kind).any()]
    return with_kinds(kinds, len(ours), entry)


def at_equal_cost(
    ours: ValidationCurve, theirs: ValidationCurve, config: EvalConfig, *, prior_flops: float = 0.0
) -> dict[str, Any]:
    """Both runs at the largest cost that both have reached: the end of the cheaper one.

    ours: the run with SALT; theirs: the baseline. prior_flops: FLOPs of ours before its first step (teacher training,
    scoring). Where one was not yet validated at that cost, difference and outcome are None, the reason is in `note`.
    """
    ours = replace(ours, cost=ours.cost + prior_flops)
    cost = float(min(ours.cost[-1], theirs.cost[-1]))
    here, there = ours.interpolate(cost), theirs.interpolate(cost)
    if here is None or there is None or len(here) != len(there):
        note = "the runs were validated on different documents"
        if here is None or there is None:
            note = "at the end of the cheaper run, the other had not been validated"
        missing = {"outcome": None, "ours": None, "theirs": None, "cost_flops": cost, "note": note}
        return Interval().to_dict(name="difference") | missing
    which = "SALT" if ours.cost[-1] > theirs.cost[-1] else "the baseline"
    return paired_difference(here, there, theirs.tokens, config) | {
        "cost_flops": cost,
        "note": f"{which} is interpolated from its validation curve, before its learning rate has decayed",
    }


def cost_to_match(
    ours: ValidationCurve, theirs: ValidationCurve, *, prior_flops: float = 0.0
) -> dict[str, float | None]:
    """Step and cost at which ours first reaches their final validation loss, as fractions of their whole run; None
    where it never does. The mean loss is interpolated over the logarithm of the cost."""
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
    ours: DocumentLosses, theirs: DocumentLosses, our_metrics: Iterable[Mapping[str, Any]],
    their_metrics: Iterable[Mapping[str, Any]], config: EvalConfig, *, teacher_training_flops: float = 0.0,
    scoring_flops: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """The whole comparison as JSON: `equal_steps`, and where both runs have several validations `equal_cost` and
    `cost_to_match`, each `without_teacher_training` and `with_teacher_training`."""
    result: dict[str, Any] = {"equal_steps": at_equal_steps(ours, theirs, config)}
    mine, base = validation_curve_of(our_metrics), validation_curve_of(their_metrics)
    if mine is None or base is None or min(len(mine.step), len(base.step)) < 2:
        return result
    prior = {"without_teacher_training": scoring_flops, "with_teacher_training": scoring_flops + teacher_training_flops}
    return result | {
        "equal_cost": {name: at_equal_cost(mine, base, config, prior_flops=paid) for name, paid in prior.items()},
        "cost_to_match": {name: cost_to_match(mine, base, prior_flops=paid) for name, paid in prior.items()},
    }
