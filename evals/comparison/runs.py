"""Comparisons of evaluated models, paired by the content or id of what they were measured on.

One run against one: bits per byte, of two evaluations of the same documents (whose corpora and tokenizers may differ),
and nats per token where both have the same tokens, with intervals over documents (`brine.evals.config`). Such an
interval does not cover that another seed of training ends elsewhere, so the outcome is "no verdict".

Several runs a side: `brine.evals.seed_interval` over seeds and documents. The first measure is tested as it is, all
others are corrected together by Holm's method: "better" and "worse" hold for them jointly.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brine.common.files import finite, read_jsonl
from brine.common.tables import as_text, table
from brine.data.corpus.store import EncodedCorpus, is_corpus
from brine.evals.config import EvalConfig
from brine.evals.measurement import Measurement, MeasureSpec
from brine.evals.run_files import format_interval, read_results, upgrade_results
from brine.evals.seed_interval import holm, needed, seed_difference

NO_VERDICT = "no verdict"
"""Outcome of one seed: two equal trainings differ as well."""
REMEDY = "run `brine eval RUN --data DATA --out FOLDER` and give that folder"


def difference_with_outcome(gap: np.ndarray, denominator: np.ndarray, config: EvalConfig) -> dict[str, Any]:
    """sum(gap) / sum(denominator) of one seed with its interval over documents, as JSON. Both arguments: (n,)."""
    interval = config.interval(gap, denominator)
    return interval.to_dict(name="difference") | {"outcome": None if interval.value is None else NO_VERDICT}


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


def with_kinds(
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

    return with_kinds(_kinds_of(losses), len(losses.ids), entry)


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

    return finite(with_kinds(_kinds_of(ours), len(ours.ids), entry))


def format_comparison(found: Mapping[str, Any]) -> str:
    """The result of `compare_evaluations` as aligned text."""
    rows = [
        (part["kind"], part["documents"], format_interval(part["bits_per_byte"], "difference", "z.4f"),
         part["bits_per_byte"]["outcome"] or "not compared")
        for part in [{"kind": "all", **found}, *found["kinds"]]
    ]  # fmt: skip
    head = ("first minus second", "documents", "bits per byte, over documents", "outcome for the first")
    return f"{as_text(table(head, rows))}\none seed of training has no verdict: give several with --ours and --theirs"


def loss_measurements(losses: ModelLosses) -> dict[str, Measurement]:
    """Bits per byte over all documents and of each kind, as `bits_per_byte` and `bits_per_byte.KIND`."""

    def measure(name: str, mask: np.ndarray) -> Measurement:
        cases = tuple(case for case, chosen in zip(losses.ids, mask, strict=True) if chosen)
        kind = tuple(losses.kind[mask].tolist())
        bits, num_bytes = losses.loss[mask] / math.log(2), losses.bytes[mask].astype(np.float64)
        return Measurement(MeasureSpec(name, unit="bits"), cases, bits, num_bytes, kind)

    found = {"bits_per_byte": measure("bits_per_byte", np.ones(len(losses.ids), bool))}
    kinds = _kinds_of(losses)
    return found | {f"bits_per_byte.{kind}": measure(f"bits_per_byte.{kind}", mask) for kind, mask in kinds}


def load_seeds(runs: Sequence[Path], model: str | None = None) -> list[dict[str, Measurement]]:
    """`loss_measurements` of each evaluated run of one setting. Raises ValueError for one training that comes twice, as
    itself or as a copy: counted as two seeds it would make any difference look certain."""
    losses = [load_losses(run, model) for run in runs]
    for index, found in enumerate(losses):
        for before, other in zip(runs, losses[:index], strict=False):
            if found.ids == other.ids and np.array_equal(found.loss, other.loss):
                raise ValueError(f"{runs[index]} and {before} are one training (equal losses): give different seeds")
    return [loss_measurements(found) for found in losses]


def compare_seeds(
    ours: Sequence[Mapping[str, Measurement]], theirs: Sequence[Mapping[str, Measurement]], *,
    primary: str | None = None, confidence: float = 0.95, paired: bool = True,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """{measure: difference} of two settings, what was measured of each seed given: `SeedDifference.to_dict()` with
    `p_holm`, an outcome after Holm's correction and what is `needed`.

    primary: the measure that is tested as it is, by default the first. Raises ValueError for measures or cases that
    some seed lacks.
    """
    runs = [*ours, *theirs]
    names = list(dict.fromkeys(name for run in runs for name in run))
    for name in names:
        if lacking := [index for index, run in enumerate(runs) if name not in run]:
            side, index = ("ours", lacking[0]) if lacking[0] < len(ours) else ("theirs", lacking[0] - len(ours))
            raise ValueError(f"{name} was not measured for {side}[{index}]: measure all seeds on the same documents")
    primary = primary or names[0]
    if primary not in names:
        raise ValueError(f"{primary} was not measured: it is one of {', '.join(names)}")
    names.sort(key=lambda name: name != primary)
    differences = {
        name: seed_difference(
            [run[name] for run in ours], [run[name] for run in theirs], confidence=confidence, paired=paired
        )
        for name in names
    }
    tested = [name for name in names if name != primary and differences[name].p_value is not None]
    adjusted = dict(zip(tested, holm(differences[name].p_value for name in tested), strict=True))
    found = {}
    for name, difference in differences.items():
        entry = difference.to_dict() | {"p_holm": adjusted.get(name, difference.p_value), "needed": needed(difference)}
        if entry["outcome"] in ("better", "worse") and entry["p_holm"] > 1 - confidence:
            entry |= {"outcome": "undecided", "needed": "decided alone, not among so many measures"}
        found[name] = entry
    return found


def format_seeds(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The result of `compare_seeds` as aligned text."""
    first = next(iter(found.values()))
    seeds = " and ".join(str(count) for count in dict.fromkeys(first["num_seeds"]))
    rows = [
        (name, entry["num_cases"], format_interval(entry, "value", "z.4f"),
         "·" if entry["p_holm"] is None else format(entry["p_holm"], ".2g"), entry["outcome"], entry["needed"])
        for name, entry in found.items()
    ]  # fmt: skip
    head = ("ours minus theirs", "cases", f"over {first['interval_of']}", "p, Holm", "outcome for ours", "it needs")
    pairs = "paired by position" if first["paired"] else "not paired"
    noun = "seed" if seeds == "1" else "seeds"
    return f"{as_text(table(head, rows))}\n{seeds} {noun}, {pairs}; per seed {_per_seed(first)}"


def _per_seed(entry: Mapping[str, Any]) -> str:
    sides = (", ".join(format(value, "z.4f") for value in entry[side]) for side in ("ours", "theirs"))
    return f"{entry['measure']} {' against '.join(sides)}"
