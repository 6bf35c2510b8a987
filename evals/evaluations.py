"""Evaluations on disk: the losses of one model by document, their summary, and a paired comparison of two.

Two evaluations are paired by the ids of their documents, in bits per byte, which do not depend on the tokenizer, and
in nats per token where both split the documents into the same tokens. The comparison of the two arms of one run, and
at equal cost, is in `arms.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brine.data.corpus.store import EncodedCorpus, is_corpus
from brine.evals.arms import difference_with_outcome
from brine.evals.config import EvalConfig
from brine.evals.run_files import finite, read_jsonl, read_results, upgrade_results

REMEDY = "run `brine eval RUN --data DATA --out FOLDER` and give that folder"


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
    records = map(upgrade_results, read_jsonl(run / "evaluate" / "documents.jsonl"))
    lines = [line for line in records if line.get("model") == model and line.get("condition") == "matched"]
    if not lines:
        raise ValueError(f"{run / 'evaluate' / 'documents.jsonl'} has no losses of {model}: evaluate the run again")
    first = {line["document"]: line for line in reversed(lines)}
    order = {document: index for index, document in enumerate(dict.fromkeys(line["document"] for line in lines))}
    index = [order[line["document"]] for line in lines]
    sums = {
        name: np.bincount(index, weights=[math.nan if line[name] is None else line[name] for line in lines])
        for name in ("loss", "tokens", "bytes")
    }
    return ModelLosses(
        model,
        _ids(run, [first[document] for document in order]),
        np.array([first[document]["kind"] for document in order]),
        sums["loss"],
        sums["tokens"].astype(np.int64),
        sums["bytes"].astype(np.int64),
    )


def _ids(run: Path, lines: list[dict[str, Any]]) -> list[str]:
    """Ids of documents; former evaluations hold indices into the run's corpus."""
    if all("id" in line for line in lines):
        return [line["id"] for line in lines]
    store = run / "encoded" / "store"
    if not is_corpus(store):
        raise ValueError(f"{run} does not say which documents it was measured on: evaluate it again")
    ids = EncodedCorpus.open(store).ids
    return [ids[line["document"]] for line in lines]


def summarize_losses(losses: ModelLosses, config: EvalConfig) -> dict[str, Any]:
    """Loss in nats per token and bits per byte, each with its interval, over all and per kind."""

    def entry(mask: np.ndarray) -> dict[str, Any]:
        return {
            "documents": int(mask.sum()),
            "tokens": int(losses.tokens[mask].sum()),
            "loss": config.interval(losses.loss[mask], losses.tokens[mask]).to_dict(),
            "bits_per_byte": config.interval(losses.loss[mask] / math.log(2), losses.bytes[mask]).to_dict(),
        }

    return _with_kinds(losses, entry)


def _with_kinds(losses: ModelLosses, entry: Callable[[np.ndarray], dict[str, Any]]) -> dict[str, Any]:
    """`entry(mask)` over all documents, and per kind under `kinds`."""
    kinds = [{"kind": str(kind), **entry(losses.kind == kind)} for kind in sorted(set(losses.kind))]
    return entry(np.ones(len(losses.ids), bool)) | {"kinds": kinds}


def compare_evaluations(ours: ModelLosses, theirs: ModelLosses, config: EvalConfig) -> dict[str, Any]:
    """Differences of two evaluations, ours minus theirs, with intervals over documents and outcomes.

    Raises ValueError where they are not of the same documents.
    """
    _check_same(set(ours.ids), set(theirs.ids))
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

    return finite(_with_kinds(ours, entry))


def _check_same(ours: Collection[str], theirs: Collection[str]) -> None:
    """Raise ValueError that names documents of one and not the other."""
    if ours == theirs:
        return
    only = {"the first": sorted(ours - theirs), "the second": sorted(theirs - ours)}
    examples = "; ".join(f"{len(ids)} only in {which}, such as {ids[0]}" for which, ids in only.items() if ids)
    raise ValueError(f"the two were evaluated on different documents ({examples}): {REMEDY}, once for each run")
