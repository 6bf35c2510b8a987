"""Did the small model's help pay? Two runs, the same held-out documents, and an interval that decides.

At equal student steps: both runs are finished, so their final losses are compared document by document.

At equal billed cost: the run with help has paid for the teacher's forward passes (and scoring, and labels) as well,
so when the baseline is finished, the other run, at that same cost, still has steps to go. Its loss there is read off
its own periodic validations, per document, linearly between the logarithms of the two neighbouring costs; nothing is
ever extrapolated. Its learning rate has not yet decayed at that point, so this comparison is biased *against* the run
that costs more per step; a fair one would be a second run scheduled to end there. It is made twice: with the teacher's
training billed, as when the teacher exists for this run alone, and without, as when it is there already.

A verdict is "win" when the whole interval of the difference lies below 0, "loss" when above, else "undecided". The
interval is over documents: another seed of training would move the difference too, and one pair of runs cannot show
by how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.bootstrap import Interval, ratio_interval
from evals.config import EvalConfig

if TYPE_CHECKING:
    from evals.loss import DocumentLoss


@dataclass(frozen=True)
class Curve:
    """Periodic validations of one run. P points, n documents."""

    step: np.ndarray
    """(P,) int64, ascending."""
    cost: np.ndarray
    """(P,) float64: FLOPs billed until that step, ascending."""
    loss: np.ndarray
    """(P, n) float64: summed cross-entropy of each validation document, nats."""
    tokens: np.ndarray
    """(n,) int64: its target tokens."""

    def __len__(self) -> int:
        return len(self.step)

    def mean(self) -> np.ndarray:
        """(P,) nats per target token."""
        return self.loss.sum(axis=1) / max(1, self.tokens.sum())

    def shifted(self, cost: float) -> Curve:
        """The same run with a cost paid before it began."""
        return Curve(self.step, self.cost + cost, self.loss, self.tokens)

    def at(self, cost: float) -> np.ndarray | None:
        """(n,) losses at a cost, between two validations; None outside what was measured."""
        if not len(self) or not self.cost[0] <= cost <= self.cost[-1]:
            return None
        place = int(np.searchsorted(self.cost, cost, side="left"))
        if self.cost[place] == cost:
            return self.loss[place]
        low, high = np.log(self.cost[place - 1]), np.log(self.cost[place])
        share = (np.log(cost) - low) / (high - low)
        return (1 - share) * self.loss[place - 1] + share * self.loss[place]


def curve_of(metrics: Iterable[Mapping[str, Any]]) -> Curve | None:
    """The validations among a run's lines of metrics; None when there is none with losses per document.

    A line counts when it holds `validation.documents` and `validation.tokens` (see `evals.validation`) and
    `flops.total`, what was billed so far. A step that occurs twice counts once, as it was last.
    """
    points: dict[int, tuple[float, list[float]]] = {}
    tokens: list[int] | None = None
    for line in metrics:
        validation = line.get("validation") or {}
        cost = (line.get("flops") or {}).get("total")
        if not validation.get("documents") or not cost:
            continue
        if tokens is not None and len(validation["tokens"]) != len(tokens):
            continue
        tokens = validation["tokens"]
        points[int(line["step"])] = (float(cost), validation["documents"])
    if not points:
        return None
    steps = sorted(points)
    return Curve(
        np.array(steps, np.int64),
        np.array([points[step][0] for step in steps]),
        np.array([points[step][1] for step in steps], np.float64),
        np.array(tokens, np.int64),
    )


def verdict(interval: Interval) -> str:
    """ "win", "loss" or "undecided" of a difference of losses (ours minus theirs)."""
    if interval.high is not None and interval.high < 0:
        return "win"
    if interval.low is not None and interval.low > 0:
        return "loss"
    return "undecided"


def difference(ours: np.ndarray, theirs: np.ndarray, tokens: np.ndarray, config: EvalConfig) -> dict[str, Any]:
    """Paired difference of losses, nats per target token, with interval and verdict. All arguments: (n,)."""
    interval = ratio_interval(
        ours - theirs,
        tokens,
        num_resamples=config.bootstrap_resamples,
        confidence=config.confidence,
        seed=config.seed,
    )
    total = max(1, int(tokens.sum()))
    return interval.to_dict(name="difference") | {
        "verdict": verdict(interval),
        "ours": float(ours.sum() / total),
        "theirs": float(theirs.sum() / total),
    }


def at_equal_steps(ours: DocumentLoss, theirs: DocumentLoss, config: EvalConfig) -> dict[str, Any]:
    """Final losses of two finished runs over the same documents; `kinds` gives the same per kind.

    Raises ValueError when the documents differ.
    """
    if not np.array_equal(ours.document, theirs.document):
        raise ValueError("two runs are compared on the same documents; these losses are of different ones")

    def entry(mask: np.ndarray) -> dict[str, Any]:
        sums = (losses.loss[mask].sum(axis=1) for losses in (ours, theirs))
        return difference(*sums, ours.tokens[mask].sum(axis=1), config)

    kinds = [{"kind": kind, **entry(ours.of_kind(kind))} for kind in ours.kinds if ours.of_kind(kind).any()]
    return entry(np.ones(len(ours), bool)) | {"kinds": kinds}


def at_equal_cost(ours: Curve, theirs: Curve, config: EvalConfig, *, paid_before: float = 0.0) -> dict[str, Any]:
    """Both runs at the largest cost that both have reached: the cheaper one's end.

    ours: the run with help; theirs: the baseline. paid_before: FLOPs that ours has paid before its first step (the
    teacher's training, scoring). Where our first validation is already dearer than their whole run, there is nothing
    to compare and the verdict is "undecided", with the reason in `note`.
    """
    ours = ours.shifted(paid_before)
    cost = float(min(ours.cost[-1], theirs.cost[-1]))
    here, there = ours.at(cost), theirs.at(cost)
    if here is None or there is None or len(here) != len(there):
        reason = (
            "the runs were validated on different documents"
            if here is not None and there is not None
            else ("when the cheaper run had ended, the other had not been validated once")
        )
        return Interval(None, None, None).to_dict(name="difference") | {
            "verdict": "undecided", "ours": None, "theirs": None, "cost_flops": cost, "note": reason,
        }  # fmt: skip
    which = "SALT" if ours.cost[-1] > theirs.cost[-1] else "the baseline"
    return difference(here, there, theirs.tokens, config) | {
        "cost_flops": cost,
        "note": f"{which} is read off its validation curve before its end, its learning rate not yet decayed",
    }


def cost_to_match(ours: Curve, theirs: Curve, *, paid_before: float = 0.0) -> dict[str, float | None]:
    """At which cost and step ours first reaches their final validation loss, and as a share of their whole run.

    None where it never does. Between two validations the mean loss is interpolated over the logarithm of the cost.
    """
    goal = theirs.mean()[-1]
    mean, cost = ours.mean(), np.log(ours.cost)
    reached = np.flatnonzero(mean <= goal)
    if not len(reached):
        return {"step_share": None, "cost_share": None}
    place = int(reached[0])
    share = 1.0 if not place else (mean[place - 1] - goal) / (mean[place - 1] - mean[place])
    before = max(0, place - 1)
    flops = float(np.exp(cost[before] + share * (cost[place] - cost[before])))
    step = float(ours.step[before] + share * (ours.step[place] - ours.step[before]))
    return {
        "step_share": step / float(theirs.step[-1]),
        "cost_share": (flops + paid_before) / float(theirs.cost[-1]),
    }


def compare_runs(
    ours: DocumentLoss,
    theirs: DocumentLoss,
    our_metrics: Iterable[Mapping[str, Any]],
    their_metrics: Iterable[Mapping[str, Any]],
    config: EvalConfig,
    *,
    teacher_training_flops: float = 0.0,
    scoring_flops: float = 0.0,
) -> dict[str, Any]:
    """Everything the report says about two runs, as JSON: `equal_steps`, and where both runs were validated on the
    way `equal_cost` and `to_match`, each `without_teacher_training` and `with_teacher_training`."""
    result: dict[str, Any] = {"equal_steps": at_equal_steps(ours, theirs, config)}
    mine, base = curve_of(our_metrics), curve_of(their_metrics)
    if mine is None or base is None:
        return result
    bills = {
        "without_teacher_training": scoring_flops,
        "with_teacher_training": scoring_flops + teacher_training_flops,
    }
    result["equal_cost"] = {name: at_equal_cost(mine, base, config, paid_before=paid) for name, paid in bills.items()}
    result["to_match"] = {name: cost_to_match(mine, base, paid_before=paid) for name, paid in bills.items()}
    return result


if __name__ == "__main__":
    from evals.commands import compare as command

    raise SystemExit(command())
