"""The evaluate stage: all measurements of a finished run, and the files that the report reads.

Into `evaluate/` go results.json (all numbers), documents.jsonl (loss per document, modality context, model and
condition), transcripts.jsonl and `media/`, copies of the samples' media. Losses are measured for every model on the
same documents, in the condition `matched`; media gains (`blank MODALITY`, `mismatched MODALITY`) and transcriptions
for the main model.
"""

import logging
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brine.common.files import finite, read_jsonl
from brine.common.formatting import progress_bar
from brine.common.plugins import load_plugin, plugins
from brine.data.document import MODALITIES, Text, modality_of
from brine.evals import loss, run_files
from brine.evals.comparison.arms import compare_arms
from brine.evals.config import EvalConfig
from brine.evals.gain import measure_gain, mix_weights
from brine.evals.loss import DocumentLosses
from brine.evals.report.samples import MIME
from brine.evals.run_files import STAGES
from brine.evals.transcribe import Transcript, easiest_level_rates, rate_table, transcribe
from brine.inference.decode import generate_batch
from brine.model.device import autocast, compute_info, device_of

logger = logging.getLogger(__name__)
_COPY = re.compile(r"\d+_\d+\.\w+")


def evaluate(
    folder: Path, *, corpus: Any, models: Mapping[str, Any], config: EvalConfig, stages: Collection[str] = STAGES,
    compute_dtype: torch.dtype | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a run's models on held-out documents and write the files above; returns the content of results.json.

    folder: `runs/<name>/evaluate`; metrics and costs are read from its neighbours. corpus: an `EncodedCorpus`. models:
    stage -> `LoadedModel`, each evaluated on its device. stages: those that belong to this run. compute_dtype: of
    matmuls, None for the weights'. Installed packages' entry points of `brine.metrics` are called with corpus, losses
    {model: DocumentLosses}, transcripts and config. Raises ValueError without a model or a held-out document."""
    if not models:
        raise ValueError("there is no model to evaluate: train one first")
    folder.mkdir(parents=True, exist_ok=True)
    # a broken one ends the command before the work
    metrics = {name: load_plugin(entry) for name, entry in plugins("brine.metrics").items()}
    main = run_files.main_model(models)
    split = loss.held_out_split(corpus, config)
    documents = loss.choose_documents(corpus, split=split, per_cell=config.documents_per_cell, seed=config.seed)
    ids = {int(document): corpus.document(int(document)).id for document in documents}
    token_bytes = loss.token_byte_lengths(models[main].tokenizer)
    records: list[dict[str, Any]] = []

    def measure(name: str, chosen: np.ndarray, condition: str, **more: Any) -> DocumentLosses:
        title = f"loss of {name}, {condition}"
        with progress_bar(total=len(chosen), desc=title, unit="doc", leave=False) as bar:
            losses = loss.measure_losses(
                models[name].model, corpus, chosen, token_bytes=token_bytes, config=config, compute_dtype=compute_dtype,
                progress=bar.update, **more,
            )  # fmt: skip
        more = ({"id": ids[record["document"]], **record} for record in losses.records())
        records.extend({"model": name, "condition": condition, **record} for record in more)
        return losses

    cut = loss.split_documents(corpus, documents, config.seq_len)
    if cut["documents"]:
        logger.warning(
            "%d of %d held-out documents are longer than seq_len %d and are split into chunks that do not attend to "
            "each other; seq_len %d keeps them whole",
            *cut.values(),
        )  # fmt: skip
    matched = {name: measure(name, documents, "matched") for name in models}
    gains, weights = {}, mix_weights(corpus, documents)
    for modality in MODALITIES:
        gain = measure_gain(corpus, matched[main], modality, partial(measure, main), config, weights)
        gains |= {modality: gain} if gain else {}
    transcripts = _transcripts(corpus, models[main], split, config, compute_dtype=compute_dtype)
    easiest = {name: easiest_level_rates(transcripts, name, config) or {} for name in MODALITIES}
    results = finite({
        "split": split,
        "split_documents": cut,
        "main_model": main,
        "stages": [name for name in STAGES if name in stages],
        "bits_per_byte": loss.text_bits_per_byte(matched[main]),
        "models": {
            name: {
                "parameters": models[name].model.num_parameters(),
                "loss": losses.mean(),
                "bits_per_byte": losses.bits_per_byte(),
                "contexts": loss.loss_by_modality_context(losses),
                "cells": loss.loss_table(losses),
            }
            for name, losses in matched.items()
        },
        "media_gain": gains,
        "transcription": rate_table(transcripts, config),
        "cer": {modality: easiest[modality].get("cer") for modality in ("image", "audio")},
        "identifier_recall": {modality: easiest[modality].get("identifier_recall") for modality in MODALITIES},
        "metrics": {
            name: metric(corpus=corpus, losses=matched, transcripts=transcripts, config=config)
            for name, metric in metrics.items()
        },
        "compare": _compare_arms(folder.parent, matched, config, stages),
        "targets": asdict(config.targets),
        "compute_info": compute_info(models[main].model, compute_dtype),
    })  # fmt: skip
    run_files.write_jsonl(folder / "documents.jsonl", records)
    run_files.write_jsonl(folder / "transcripts.jsonl", _with_samples(folder, corpus, transcripts, config))
    run_files.write_results(folder / "results.json", results)
    return results


def _transcripts(
    corpus: Any, loaded: Any, split: str, config: EvalConfig, *, compute_dtype: torch.dtype | None
) -> list[Transcript]:
    if not config.transcripts_per_cell:
        return []
    documents = loss.choose_documents(corpus, split=split, per_cell=config.transcripts_per_cell, seed=config.seed + 1)
    decode = partial(
        generate_batch, loaded.model, batch_size=config.decode_batch_size, vocab_size=loaded.tokenizer.vocab_size
    )
    with autocast(device_of(loaded.model), compute_dtype):
        return transcribe(corpus, documents, decode=decode, tokenizer=loaded.tokenizer, config=config)


def _with_samples(folder: Path, corpus: Any, transcripts: list[Transcript], config: EvalConfig) -> list[dict[str, Any]]:
    """The transcripts as JSON; `samples_per_cell` of each cell, sampled regardless of their quality, get their
    media."""
    for path in folder.glob("media/*"):
        # other files stay
        if _COPY.fullmatch(path.name):
            path.unlink()
    lines = [asdict(found) | {"id": corpus.document(found.document).id} for found in transcripts]
    num_samples: Counter[tuple[str, str, int]] = Counter()
    for index in np.random.default_rng(config.seed).permutation(len(transcripts)):
        found = transcripts[index]
        cell = (found.modality, found.kind, found.level)
        if num_samples[cell] < config.samples_per_cell:
            num_samples[cell] += 1
            lines[index]["media"] = copy_media(folder, corpus, found.document, max_mib=config.max_sample_mib)
    return lines


def copy_media(folder: Path, corpus: Any, document: int, *, max_mib: float) -> list[dict[str, Any]]:
    """Copy a document's media into `folder`/media and name them, relative to the run folder; a file that is too large,
    missing, or of a type that browsers do not show is named without a copy."""
    found = []
    for number, part in enumerate(corpus.document(document).parts):
        if isinstance(part, Text):
            continue
        entry: dict[str, Any] = {"type": modality_of(part), "name": Path(part.path).name}
        source = Path(corpus.path_of(part))
        suffix = source.suffix.lower()
        if suffix in MIME and source.is_file() and source.stat().st_size <= max_mib * 2**20:
            (folder / "media").mkdir(exist_ok=True)
            target = folder / "media" / f"{document}_{number}{suffix}"
            shutil.copyfile(source, target)
            entry["file"] = f"{folder.name}/media/{target.name}"
        found.append(entry)
    return found


def _compare_arms(
    run: Path, matched: Mapping[str, DocumentLosses], config: EvalConfig, stages: Collection[str]
) -> dict[str, Any] | None:
    if not {"large_salt", "large_baseline"} <= set(matched):
        return None
    costs = run_files.stage_costs(run, stages)
    return compare_arms(
        matched["large_salt"], matched["large_baseline"], read_jsonl(run / "large_salt" / "metrics.jsonl"),
        read_jsonl(run / "large_baseline" / "metrics.jsonl"), config,
        teacher_training_flops=run_files.teacher_training_flops(costs),
        scoring_flops=run_files.sum_flops(costs.get("select")),
    )  # fmt: skip
