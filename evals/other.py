"""A finished run on other documents, and two evaluated runs held against each other.

`measure_on` has the documents as the run's own tokenizer and encoder make them (`evals.documents`) and lets
`evals.evaluate` measure the run's models on all of them. Where the corpus that the run was trained on is there, those
of its training split are counted (equal tokens and patches), since on them it is no test.

    OUT/encoded/       the documents as tokens and patches, unless they were given as such
    OUT/evaluate/      results.json, documents.jsonl, ... as in a run, so that `compare` reads it like one
    OUT/request.json   which run, which documents, and how much was measured

`compare` pairs the losses of two evaluations by the ids of their documents, in bits per byte, which tokenizers do not
change, and in nats per token where both cut the documents alike. Which arm had help, and at what cost, is the report's
matter (`evals.compare`).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.check import default_workers
from data.document import SPLITS
from data.formats import open_source
from data.store import EncodedCorpus, is_corpus
from evals.bootstrap import ratio_interval
from evals.compare import verdict
from evals.config import EvalConfig, Targets
from evals.documents import documents_at, reasons
from evals.evaluate import MAIN, evaluate
from evals.loss import require_targets
from evals.summary import finite, read_json, read_jsonl, write_whole
from model.load import LoadedModel, find_model, load, unfinished

logger = logging.getLogger(__name__)
NO_TARGETS = Targets(None, None, None, None, None)


@dataclass(frozen=True)
class Losses:
    """Losses of one model over n documents, one entry each."""

    model: str
    """Its name in the evaluation."""
    ids: list[str]
    """Of the documents, in the order of their corpus."""
    kind: np.ndarray
    """(n,) names of kinds."""
    loss: np.ndarray
    """(n,) float64: summed cross-entropy, nats."""
    tokens: np.ndarray
    """(n,) int64: target tokens."""
    bytes: np.ndarray
    """(n,) int64: UTF-8 bytes that the targets stand for."""


def models_of(run: Path, *, device: torch.device) -> dict[str, LoadedModel]:
    """The final models of a run by their stage; of a stage or a model folder that one.

    Raises ValueError where there is none.
    """
    found = {name: run / name for name in MAIN if (run / name / "model" / "model.safetensors").is_file()}
    if not found:
        folder = find_model(run)
        found = {folder.parent.name if folder.name == "model" else folder.name: folder}
    elif left := unfinished(run):
        logger.warning("%s: %s not trained to the end, and left out", run, " and ".join(left))
    return {name: load(folder, device=device) for name, folder in found.items()}


def config_of(run: Path, **changes: Any) -> EvalConfig:
    """What the run's recipe measures, as far as it says, without targets and with the changes that are not None."""
    recipe = read_json(run / "recipe.json")
    told = recipe.get("evals") if isinstance(recipe, dict) else None
    known = {field.name for field in fields(EvalConfig)} - {"targets"}
    settings = {name: value for name, value in told.items() if name in known} if isinstance(told, dict) else {}
    settings |= {name: value for name, value in changes.items() if value is not None}
    try:
        return EvalConfig(**settings, targets=NO_TARGETS)
    except TypeError as error:
        raise ValueError(f"{run / 'recipe.json'}: evals cannot be read ({error})") from None


def measure_on(
    run: Path,
    data: Path,
    out: Path,
    *,
    device: torch.device,
    compute_dtype: torch.dtype | None = None,
    workers: int | None = None,
    quiet: bool = False,
    format: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Measure a run on other documents, write the files above into `out`, and return what is said of it as JSON.

    workers: decoding servers. format: of the documents, where it is not to be found out. changes: of `config_of`.
    Raises ValueError for a run without a model, documents that cannot be read or used, and an `out` that holds
    something else.
    """
    models = models_of(run, device=device)
    main = next((name for name in MAIN if name in models), next(iter(models)))
    config = config_of(run, **changes)
    tokenizer, encoder = models[main].tokenizer, models[main].encode_config
    if not is_corpus(data):
        # a mistake is told before anything is made
        open_source(data, format=format, max_file_mib=encoder.max_file_mib)
    elif format is not None:
        raise ValueError(f"{data} is a built corpus, which has no format: leave --format out")
    request = {"run": str(run.resolve()), "on": str(data.resolve()), "config": repr(config)}
    _claim(out, request if format is None else request | {"format": format})
    with documents_at(
        data, out / "encoded", tokenizer=tokenizer, config=encoder, split=config.split,
        workers=workers or default_workers(), quiet=quiet, format=format,
    ) as (corpus, told):  # fmt: skip
        chosen = np.flatnonzero(corpus.split == SPLITS.index(config.split))
        require_targets(corpus, config.split, what=f"document of {data}")
        trained, set_aside = _trained_on(run, corpus, chosen), corpus.quarantine()
        results = evaluate(
            out / "evaluate", corpus=corpus, models=models, config=config, compute_dtype=compute_dtype, quiet=quiet,
            stages=tuple(models),
        )  # fmt: skip
    return finite({
        "run": str(run),
        "on": str(data),
        "documents": len(chosen),
        "told": told,
        "set_aside": len(set_aside),
        "set_aside_for": reasons(set_aside),
        "measured": len(losses_of(out).ids),
        "trained_on": trained,
        "main_model": results["main_model"],
        "models": {name: means(losses_of(out, name), config) for name in models},
        "media_gain": {
            modality: {name: entry[name] for name in ("gain", "low", "high", "num_documents", "kinds")}
            for modality, entry in results["media_gain"].items()
        },
        "computed": results["computed"],
    })  # fmt: skip


def _claim(out: Path, request: dict[str, str]) -> None:
    """Begin a folder for this request, or go on in one. Raises ValueError where it holds anything else."""
    path = out / "request.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and read_json(path) != request)):
        raise ValueError(f"{out} holds something else already, which is not replaced: give a new folder as --out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(request, indent=1) + "\n")


def _trained_on(run: Path, corpus: EncodedCorpus, documents: np.ndarray) -> int | None:
    """How many of these documents the run was trained on, token for token; None where its corpus is not there."""
    store = _corpus_of(run)
    if store is None:
        return None
    own = EncodedCorpus.open(store)
    train = np.asarray(own.split) == SPLITS.index("train")
    seen = set(zip(own.num_tokens[train].tolist(), own.checksums[train].tolist(), strict=True))
    asked = zip(corpus.num_tokens[documents].tolist(), corpus.checksums[documents].tolist(), strict=True)
    return sum(pair in seen for pair in asked)


def _corpus_of(run: Path) -> Path | None:
    """The corpus that a run was trained on, of its own making or given; run: also a stage of it, or a model folder.

    None where it is not there, also where another took its place since.
    """
    for folder in (run.resolve(), *run.resolve().parents[:2]):
        begun = read_json(folder / "stage.json")
        was = ((begun.get("inputs") or {}) if isinstance(begun, dict) else {}).get("encoded")
        done = read_json(folder.parent / "encoded" / "done")
        if was and isinstance(done, dict) and done.get("digest") != was:
            return None
        recipe = read_json(folder / "recipe.json")
        given = (recipe.get("corpus") or {}).get("manifest") if isinstance(recipe, dict) else None
        for store in (folder / "encoded" / "store", *([Path(given)] if isinstance(given, str) else [])):
            if is_corpus(store):
                return store
    return None


def losses_of(run: Path, model: str | None = None) -> Losses:
    """Losses of one model of an evaluated run, the main one unless named. Raises ValueError naming what is missing."""
    results = read_json(run / "evaluate" / "results.json")
    if not run.is_dir():
        raise ValueError(f"{run} does not exist: give a run, or a folder that python -m evals RUN --on DATA --out made")
    if not isinstance(results, dict):
        raise ValueError(
            f"{run} is not evaluated (no evaluate/results.json): measure it, python -m evals {run} --on DATA --out "
            "FOLDER, and give that folder in its place"
        )
    model = model or results.get("main_model")
    if model not in (results.get("models") or {}):
        raise ValueError(f"{run} has no model {model!r}: choose one of {', '.join(results.get('models') or {})}")
    lines = [
        line
        for line in read_jsonl(run / "evaluate" / "documents.jsonl")
        if line.get("model") == model and line.get("condition") == "own"
    ]
    if not lines:
        raise ValueError(f"{run / 'evaluate' / 'documents.jsonl'} has no losses of {model}: evaluate the run again")
    order: dict[int, int] = {}
    for line in lines:
        order.setdefault(line["document"], len(order))
    place = [order[line["document"]] for line in lines]
    sums = {
        name: np.bincount(place, weights=[math.nan if line[name] is None else line[name] for line in lines])
        for name in ("loss", "tokens", "bytes")
    }
    first = {line["document"]: line for line in reversed(lines)}
    return Losses(
        model,
        _ids(run, [first[document] for document in order]),
        np.array([first[document]["kind"] for document in order]),
        sums["loss"],
        sums["tokens"].astype(np.int64),
        sums["bytes"].astype(np.int64),
    )


def _ids(run: Path, lines: list[dict[str, Any]]) -> list[str]:
    """Ids of documents; evaluations of before hold numbers alone, which the run's corpus explains."""
    if all("id" in line for line in lines):
        return [line["id"] for line in lines]
    store = run / "encoded" / "store"
    if not is_corpus(store):
        raise ValueError(f"{run} does not say which documents it was measured on: evaluate it again")
    ids = EncodedCorpus.open(store).ids
    return [ids[line["document"]] for line in lines]


def means(losses: Losses, config: EvalConfig) -> dict[str, Any]:
    """Loss in nats per token and bits per byte, each with its interval, over all and per kind."""

    def entry(mask: np.ndarray) -> dict[str, Any]:
        return {
            "documents": int(mask.sum()),
            "tokens": int(losses.tokens[mask].sum()),
            "loss": _interval(losses.loss[mask], losses.tokens[mask], config),
            "bits_per_byte": _interval(losses.loss[mask] / math.log(2), losses.bytes[mask], config),
        }

    kinds = [{"kind": str(kind), **entry(losses.kind == kind)} for kind in sorted(set(losses.kind))]
    return entry(np.ones(len(losses.ids), bool)) | {"kinds": kinds}


def _interval(above: np.ndarray, below: np.ndarray, config: EvalConfig, *, name: str = "value") -> dict[str, Any]:
    return ratio_interval(
        above, below, num_resamples=config.bootstrap_resamples, confidence=config.confidence, seed=config.seed
    ).to_dict(name=name)


def compare_evaluations(ours: Losses, theirs: Losses, config: EvalConfig) -> dict[str, Any]:
    """Differences of two evaluations, ours minus theirs, with intervals over documents and verdicts.

    Raises ValueError where they are not of the same documents.
    """
    _check_same(set(ours.ids), set(theirs.ids))
    order = [dict(zip(theirs.ids, range(len(theirs.ids)), strict=True))[name] for name in ours.ids]
    their_loss, their_tokens, their_bytes = theirs.loss[order], theirs.tokens[order], theirs.bytes[order]
    if (other := np.flatnonzero(ours.bytes != their_bytes)).size:
        place = int(other[0])
        raise ValueError(
            f"document {ours.ids[place]} has {ours.bytes[place]} bytes of targets in one and {their_bytes[place]} in "
            "the other: two documents of one id; evaluate both runs on the same documents"
        )

    def entry(mask: np.ndarray) -> dict[str, Any]:
        gap = ours.loss[mask] - their_loss[mask]
        found = {"documents": int(mask.sum()), "bits_per_byte": _decided(gap / math.log(2), ours.bytes[mask], config)}
        alike = np.array_equal(ours.tokens, their_tokens)
        return found | {"nats_per_token": _decided(gap, ours.tokens[mask], config) if alike else None}

    kinds = [{"kind": str(kind), **entry(ours.kind == kind)} for kind in sorted(set(ours.kind))]
    return finite(entry(np.ones(len(ours.ids), bool)) | {"kinds": kinds})


def _decided(gap: np.ndarray, below: np.ndarray, config: EvalConfig) -> dict[str, Any]:
    interval = ratio_interval(
        gap, below, num_resamples=config.bootstrap_resamples, confidence=config.confidence, seed=config.seed
    )
    return interval.to_dict(name="difference") | {"verdict": verdict(interval)}


def _check_same(ours: Collection[str], theirs: Collection[str]) -> None:
    """ValueError that names documents of one and not the other."""
    if ours == theirs:
        return
    only = [sorted(one - other) for one, other in ((ours, theirs), (theirs, ours))]
    examples = "; ".join(
        f"{len(names)} only in {which}, such as {names[0]}"
        for names, which in zip(only, ("the first", "the second"), strict=True)
        if names
    )
    raise ValueError(
        f"the two were evaluated on different documents ({examples}): measure both on the same ones, "
        "python -m evals RUN --on DATA --out FOLDER, and compare the two folders"
    )
