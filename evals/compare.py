"""Paired comparisons on the same held-out documents, with confidence intervals: of two runs, or of SALT and baseline.

Two runs are paired by document id, in bits per byte, and in nats per token where both have the same tokens. SALT and
baseline are compared at equal student steps by their final losses, and at equal cost: SALT's loss is read from its
periodic validations, interpolated over the logarithm of the cost and never extrapolated. Its learning rate has not yet
decayed there, so this is biased *against* the run that costs more per step. The outcome is "win" when the interval lies
below 0, "loss" when above, else, and on fewer than six documents, "undecided". It does not cover the variance between
seeds of training.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brine.common.files import finite, read_jsonl
from brine.common.tables import as_text, table
from brine.data.corpus.store import EncodedCorpus, is_corpus
from brine.evals.config import EvalConfig, Interval
from brine.evals.loss import DocumentLosses
from brine.evals.run_files import format_interval, read_results, upgrade_results

MIN_DOCUMENTS = 6
"""Fewer are always "undecided": equal models differ in one direction on all five of five in 1 of 16 cases."""
REMEDY = "run `brine eval RUN --data DATA --out FOLDER` and give that folder"


def outcome(interval: Interval) -> str:
    """ "win", "loss" or "undecided" of a difference of losses (ours minus theirs)."""
    if interval.num_documents < MIN_DOCUMENTS:
        return "undecided"
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
    means = {"ours": float(ours.sum() / total), "theirs": float(theirs.sum() / total)}
    return difference_with_outcome(ours - theirs, tokens, config) | means


@dataclass(frozen=True)
class ModelLosses:
    """Losses of one model over n documents, in the order of their corpus. kind: (n,) names; loss: (n,) float64, summed
    cross-entropy in nats; tokens, bytes: (n,) int64, target tokens and their UTF-8 bytes."""

    model: str
    ids: list[str]
    kind: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray


def load_losses(run: Path, model: str | None = None) -> ModelLosses:
    """Losses of one model of an evaluated run, by default the main one. Raises ValueError naming what is missing."""
    results = read_results(run)
    if not run.is_dir():
        raise ValueError(f"{run} does not exist: give an evaluated run, or {REMEDY}")
    if not results:
        raise ValueError(f"{run} is not evaluated (no evaluate/results.json): {REMEDY}")
    model, models = model or results.get("main_model"), results.get("models") or {}
    if model not in models:
        raise ValueError(f"{run} has no model {model!r}: choose one of {', '.join(models)}")
    path = run / "evaluate" / "documents.jsonl"
    records = map(upgrade_results, read_jsonl(path))
    lines = [line for line in records if line.get("model") == model and line.get("condition") == "matched"]
    if not lines:
        raise ValueError(f"{path} has no losses of {model}: evaluate the run again")
    first = {line["document"]: line for line in reversed(lines)}
    order = {document: index for index, document in enumerate(dict.fromkeys(line["document"] for line in lines))}
    index = [order[line["document"]] for line in lines]
    loss, tokens, num_bytes = (
        np.bincount(index, weights=[math.nan if line[name] is None else line[name] for line in lines])
        for name in ("loss", "tokens", "bytes")
    )
    documents = [first[document] for document in order]
    kind = np.array([line["kind"] for line in documents])
    return ModelLosses(model, _ids(run, documents), kind, loss, tokens.astype(np.int64), num_bytes.astype(np.int64))


def _ids(run: Path, lines: list[dict[str, Any]]) -> list[str]:
    """Ids of documents; former evaluations hold indices into the run's corpus."""
    if all("id" in line for line in lines):
        return [line["id"] for line in lines]
    store = run / "encoded" / "store"
    if not is_corpus(store):
        raise ValueError(f"{run} does not say which documents it was measured on: evaluate it again")
    ids = EncodedCorpus.open(store).ids
    return [ids[line["document"]] for line in lines]


def _with_kinds(
    kinds: Iterable[tuple[str, np.ndarray]], num_documents: int, entry: Callable[[np.ndarray], dict[str, Any]]
) -> dict[str, Any]:
    """`entry(mask)` over all documents, and per kind under `kinds`."""
    per_kind = [{"kind": kind, **entry(mask)} for kind, mask in kinds]
    return entry(np.ones(num_documents, bool)) | {"kinds": per_kind}


def _kinds_of(losses: ModelLosses) -> list[tuple[str, np.ndarray]]:
    return [(str(kind), losses.kind == kind) for kind in sorted(set(losses.kind))]


def summarize_losses(losses: ModelLosses, config: EvalConfig) -> dict[str, Any]:
    """Loss in nats per token and bits per byte, each with its interval, over all and per kind."""

    def entry(mask: np.ndarray) -> dict[str, Any]:
        return {
            "documents": int(mask.sum()),
            "tokens": int(losses.tokens[mask].sum()),
            "loss": config.interval(losses.loss[mask], losses.tokens[mask]).to_dict(),
            "bits_per_byte": config.interval(losses.loss[mask] / math.log(2), losses.bytes[mask]).to_dict(),
        }

    return _with_kinds(_kinds_of(losses), len(losses.ids), entry)


def compare_evaluations(ours: ModelLosses, theirs: ModelLosses, config: EvalConfig) -> dict[str, Any]:
    """Differences of two evaluations, ours minus theirs, with intervals over documents and outcomes.

    Raises ValueError where they are not of the same documents.
    """
    only = {"the first": sorted({*ours.ids} - {*theirs.ids}), "the second": sorted({*theirs.ids} - {*ours.ids})}
    if any(only.values()):
        examples = "; ".join(f"{len(ids)} only in {which}, such as {ids[0]}" for which, ids in only.items() if ids)
        raise ValueError(f"the two were evaluated on different documents ({examples}): {REMEDY}, once for each run")
    index = {name: number for number, name in enumerate(theirs.ids)}
    order = [index[name] for name in ours.ids]
    their_loss, their_tokens, their_bytes = theirs.loss[order], theirs.tokens[order], theirs.bytes[order]
    if (different := np.flatnonzero(ours.bytes != their_bytes)).size:
        first = int(different[0])
        raise ValueError(
            f"document {ours.ids[first]} has {ours.bytes[first]} bytes of targets in one and {their_bytes[first]} in "
            "the other: evaluate both runs on the same documents"
        )
    same_tokens = np.array_equal(ours.tokens, their_tokens)

    def entry(mask: np.ndarray) -> dict[str, Any]:
        gap = ours.loss[mask] - their_loss[mask]
        return {
            "documents": int(mask.sum()),
            "bits_per_byte": difference_with_outcome(gap / math.log(2), ours.bytes[mask], config),
            "nats_per_token": difference_with_outcome(gap, ours.tokens[mask], config) if same_tokens else None,
        }

    return finite(_with_kinds(_kinds_of(ours), len(ours.ids), entry))


def format_comparison(found: Mapping[str, Any]) -> str:
    """The result of `compare_evaluations` as aligned text."""
    rows = [
        (part["kind"], part["documents"], format_interval(part["bits_per_byte"], "difference", "z.4f"),
         part["bits_per_byte"]["outcome"])
        for part in [{"kind": "all", **found}, *found["kinds"]]
    ]  # fmt: skip
    return as_text(table(("first minus second", "documents", "bits per byte", "outcome for the first"), rows))


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
    return _with_kinds(kinds, len(ours), entry)


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
