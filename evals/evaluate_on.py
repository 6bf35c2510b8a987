"""Evaluates a finished run on other documents, encoded with the run's tokenizer and encoder.

    OUT/encoded/       the documents as tokens and patches, unless they were given as such
    OUT/evaluate/      results.json, documents.jsonl, ... as in a run, so that `brine compare` reads it like one
    OUT/request.json   which run, which documents, and the settings

The run is not modified. Where the corpus that it was trained on is there, documents of its training split are counted
(equal tokens and patches), since on them the evaluation is no test.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brine.common.files import read_json
from brine.data.corpus.store import EncodedCorpus, is_corpus
from brine.data.document import SPLITS
from brine.data.formats.open import open_source
from brine.data.inspect.check import default_decode_workers
from brine.evals.documents import open_eval_corpus, quarantine_reasons
from brine.evals.evaluate import evaluate
from brine.evals.evaluations import load_losses, summarize_losses
from brine.evals.loss import require_targets
from brine.evals.run_files import MODEL_PREFERENCE, eval_config_of, finite, main_model, read_object, write_results
from brine.inference.load import LoadedModel, find_model_folder, load, unfinished_stages

logger = logging.getLogger(__name__)


def load_models(run: Path, *, device: torch.device) -> dict[str, LoadedModel]:
    """The final models of a run by stage; of a stage or a model folder that one. Raises ValueError without any."""
    found = {name: run / name for name in MODEL_PREFERENCE if (run / name / "model" / "model.safetensors").is_file()}
    if not found:
        folder = find_model_folder(run)
        found = {folder.parent.name if folder.name == "model" else folder.name: folder}
    elif unfinished := unfinished_stages(run):
        logger.warning("%s: %s not trained to the end, and left out", run, " and ".join(unfinished))
    return {name: load(folder, device=device) for name, folder in found.items()}


def evaluate_on(
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
    """Evaluate a run on other documents, write the files above into `out`, and return a summary as JSON.

    workers: decoding processes. format: of the documents (default: detected). changes: of `eval_config_of`. Raises
    ValueError for a run without a model, unusable documents, and an `out` that holds something else.
    """
    models = load_models(run, device=device)
    main = models[main_model(models)]
    config = eval_config_of(run, **changes)
    if not is_corpus(data):
        # raises before anything is written
        open_source(data, format=format, max_file_mib=main.encode_config.max_file_mib)
    elif format is not None:
        raise ValueError(f"{data} is a built corpus, which has no format: leave --format out")
    request = {"run": str(run.resolve()), "data": str(data.resolve()), "config": repr(config)}
    _open_output_folder(out, request | ({"format": format} if format else {}))
    with open_eval_corpus(
        data, out / "encoded", tokenizer=main.tokenizer, config=main.encode_config, split=config.split,
        workers=workers or default_decode_workers(), quiet=quiet, format=format,
    ) as (corpus, notes):  # fmt: skip
        chosen = np.flatnonzero(corpus.split == SPLITS.index(config.split))
        require_targets(corpus, config.split, what=f"document of {data}")
        num_trained_on, quarantined = _count_trained_on(run, corpus, chosen), corpus.quarantine()
        results = evaluate(
            out / "evaluate", corpus=corpus, models=models, config=config, compute_dtype=compute_dtype, quiet=quiet,
            stages=tuple(models),
        )  # fmt: skip
    losses = {name: load_losses(out, name) for name in models}
    return finite({
        "run": str(run),
        "data": str(data),
        "documents": len(chosen),
        "notes": notes,
        "quarantined": len(quarantined),
        "quarantine_reasons": quarantine_reasons(quarantined),
        "num_measured": len(losses[results["main_model"]].ids),
        "num_trained_on": num_trained_on,
        "main_model": results["main_model"],
        "models": {name: summarize_losses(found, config) for name, found in losses.items()},
        "media_gain": {
            modality: {name: entry[name] for name in ("gain", "low", "high", "num_documents", "kinds")}
            for modality, entry in results["media_gain"].items()
        },
        "compute_info": results["compute_info"],
    })  # fmt: skip


def _open_output_folder(out: Path, request: dict[str, str]) -> None:
    """Create a folder for this request, or resume in one. Raises ValueError where it holds anything else."""
    path = out / "request.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and read_json(path) != request)):
        raise ValueError(f"{out} already holds something else, which is not replaced: give a new folder as --out")
    out.mkdir(parents=True, exist_ok=True)
    write_results(path, request)


def _count_trained_on(run: Path, corpus: EncodedCorpus, documents: np.ndarray) -> int | None:
    """How many of these documents the run was trained on, token for token; None where its corpus is not there."""
    store = _training_corpus(run)
    if store is None:
        return None
    trained = EncodedCorpus.open(store)
    train = np.asarray(trained.split) == SPLITS.index("train")
    seen = set(zip(trained.num_tokens[train].tolist(), trained.checksums[train].tolist(), strict=True))
    given = zip(corpus.num_tokens[documents].tolist(), corpus.checksums[documents].tolist(), strict=True)
    return sum(pair in seen for pair in given)


def _training_corpus(run: Path) -> Path | None:
    """The corpus that a run was trained on, built by it or given; run: also a stage of it, or a model folder.

    None where it is not there, also where another has replaced it since.
    """
    for folder in (run.resolve(), *run.resolve().parents[:2]):
        trained_digest = (read_object(folder / "stage.json").get("inputs") or {}).get("encoded")
        done = read_object(folder.parent / "encoded" / "done")
        if trained_digest and done and done.get("digest") != trained_digest:
            return None
        given = (read_object(folder / "recipe.json").get("corpus") or {}).get("manifest")
        for store in (folder / "encoded" / "store", *([Path(given)] if isinstance(given, str) else [])):
            if is_corpus(store):
                return store
    return None
