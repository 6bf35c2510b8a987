"""The evaluate stage: every measurement of a finished run, and the files that the report reads.

    evaluate/results.json         all numbers, see `evaluate`
    evaluate/documents.jsonl      loss per document, context, model and condition: the raw material of every interval
    evaluate/transcripts.jsonl    truth and model's words; samples name their media
    evaluate/media/*              copies of the samples' media, so that the report needs the run folder alone

Losses are measured for every model of the run on the same documents; gains and transcriptions for the main one. Each
condition is one pass over the documents it concerns, so the cost is about 1 pass a model and, for the main model, 2
more per modality over its own documents, and the decoding. Nothing is trained and nothing is billed.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.document import MODALITIES, Text, modality_of
from data.sequence import CONTEXT
from evals.compare import compare_runs
from evals.config import EvalConfig
from evals.gain import blank, choose_partners, mix_weights, only_with_partner, other_medium, summarise
from evals.loss import (
    DocumentLoss,
    bits_per_byte_of_text,
    by_context,
    byte_lengths,
    choose_documents,
    held_out_split,
    in_pieces,
    measure,
    table,
)
from evals.report_samples import MIME
from evals.summary import STAGES, finite, flops_of, ledgers, read_jsonl, teacher_training_flops, write_whole
from evals.transcribe import easiest, rate_table, transcribe
from model.device import autocast, computed_on, device_of
from model.generate import transcribe as decode_together

logger = logging.getLogger(__name__)
_COPY = re.compile(r"\d+_\d+\.\w+")
MAIN = ("large_salt", "large_baseline", "small")
"""Which model is the main one: the first of these that there is."""


def evaluate(
    folder: Path,
    *,
    corpus: Any,
    models: Mapping[str, Any],
    config: EvalConfig,
    stages: Collection[str] = STAGES,
    compute_dtype: torch.dtype | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a run's models on held-out documents and write the files above.

    folder: the stage's folder, `runs/<name>/evaluate`; metrics and ledgers are read from its neighbours. corpus: an
    `EncodedCorpus`. models: stage name -> `model.LoadedModel`. stages: those that belong to this run and are billed; a
    folder that an earlier request left behind is not. compute_dtype: of matrix products, None for the
    weights' own; each model is measured on the device that it is on. quiet: no progress bars. Returns what results.json
    holds:

        split, main_model, stages, bits_per_byte, cer {image, audio}, names_recovered {image, audio, video}, targets
        models          {name: {parameters, loss, bits_per_byte, contexts, cells}}
        media_gain      {modality: see `gain.summarise`}
        transcription   one object per kind and level, see `transcribe.rates`
        compare         see `compare.compare_runs`; None with one arm only
        computed        device, precision and backends, see `model.device.computed_on`

    Raises ValueError when there is no model or no held-out document.
    """
    if not models:
        raise ValueError("there is no model to evaluate: train one first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    main = next((name for name in MAIN if name in models), next(iter(models)))
    split = held_out_split(corpus, config)
    documents = choose_documents(corpus, split=split, per_cell=config.documents_per_cell, seed=config.seed)
    ids = {int(document): corpus.document(int(document)).id for document in documents}
    token_bytes = byte_lengths(models[main].tokenizer)
    records: list[dict[str, Any]] = []

    def run(name: str, chosen: np.ndarray, condition: str, **more: Any) -> DocumentLoss:
        title = f"loss of {name}, {condition}"
        with tqdm(total=len(chosen), desc=title, unit="doc", disable=quiet, leave=False) as bar:
            losses = measure(
                models[name].model,
                corpus,
                chosen,
                token_bytes=token_bytes,
                config=config,
                compute_dtype=compute_dtype,
                progress=bar.update,
                **more,
            )
        records.extend(
            {"model": name, "condition": condition, "id": ids[record["document"]], **record}
            for record in losses.records()
        )
        return losses

    cut = in_pieces(corpus, documents, config.row_tokens)
    if cut["documents"]:
        logger.warning(
            "%d of %d held-out documents are longer than row_tokens %d and are measured in pieces that do not see each "
            "other; row_tokens %d keeps them whole",
            *cut.values(),
        )  # fmt: skip
    own = {name: run(name, documents, "own") for name in models}
    gains = {}
    weights = mix_weights(corpus, documents)
    for modality in MODALITIES:
        places = np.flatnonzero(own[main].tokens[:, CONTEXT.index(modality)])
        if not len(places):
            continue
        chosen = documents[places]
        partners = choose_partners(corpus, chosen, modality, seed=config.seed)
        without = run(main, chosen, f"blank {modality}", alter=blank(modality))
        other = run(main, chosen, f"other {modality}", alter=other_medium(corpus, partners, modality))
        gains[modality] = summarise(
            own[main].select(places),
            without,
            only_with_partner(other, partners),
            modality,
            config,
            weights=weights[places],
        )

    transcripts, rows, easy = _transcripts(
        folder, corpus, models[main], split, config, compute_dtype=compute_dtype, quiet=quiet
    )
    results = finite({
        "split": split,
        "in_pieces": cut,
        "main_model": main,
        "stages": [name for name in STAGES if name in stages],
        "bits_per_byte": bits_per_byte_of_text(own[main]),
        "models": {
            name: {
                "parameters": models[name].model.num_parameters(),
                "loss": losses.mean(),
                "bits_per_byte": losses.bits_per_byte(),
                "contexts": by_context(losses),
                "cells": table(losses),
            }
            for name, losses in own.items()
        },
        "media_gain": gains,
        "transcription": rows,
        "cer": {modality: (easy[modality] or {}).get("cer") for modality in ("image", "audio")},
        "names_recovered": {modality: (easy[modality] or {}).get("names_recovered") for modality in MODALITIES},
        "compare": _compare(folder.parent, own, config, stages),
        "targets": asdict(config.targets),
        "computed": computed_on(models[main].model, compute_dtype),
    })  # fmt: skip
    _write_lines(folder / "documents.jsonl", records)
    _write_lines(folder / "transcripts.jsonl", transcripts)
    write_whole(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def _transcripts(
    folder: Path,
    corpus: Any,
    loaded: Any,
    split: str,
    config: EvalConfig,
    *,
    compute_dtype: torch.dtype | None,
    quiet: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, dict[str, Any] | None]]:
    """Transcripts as JSON, samples with their media; the table of rates; rates of each modality's easiest level."""
    if not config.transcripts_per_cell:
        return [], [], dict.fromkeys(MODALITIES)
    documents = choose_documents(corpus, split=split, per_cell=config.transcripts_per_cell, seed=config.seed + 1)
    decode = partial(
        decode_together, loaded.model, batch_size=config.decode_batch, vocab_size=loaded.tokenizer.vocab_size
    )
    with (
        tqdm(total=len(documents), desc="transcriptions", unit="doc", disable=quiet, leave=False) as bar,
        autocast(device_of(loaded.model), compute_dtype),
    ):
        found = transcribe(
            corpus, documents, decode=decode, tokenizer=loaded.tokenizer, config=config, progress=bar.update
        )
    # samples are drawn by place in a shuffle, before anyone has seen how good they are
    order = np.random.default_rng(config.seed).permutation(len(found))
    taken: dict[tuple[str, str, int], int] = {}
    samples = set()
    for place in order:
        cell = (found[place].modality, found[place].kind, found[place].level)
        if taken.get(cell, 0) < config.samples_per_cell:
            taken[cell] = taken.get(cell, 0) + 1
            samples.add(int(place))
    for path in folder.glob("media/*"):
        # what is named otherwise is somebody's
        if _COPY.fullmatch(path.name):
            path.unlink()
    lines = []
    for place, transcript in enumerate(found):
        line = transcript.to_dict() | {"id": corpus.document(transcript.document).id}
        if place in samples:
            line["media"] = copy_media(folder, corpus, transcript.document, max_mib=config.max_sample_mib)
        lines.append(line)
    return lines, rate_table(found, config), {name: easiest(found, name, config) for name in MODALITIES}


def copy_media(folder: Path, corpus: Any, document: int, *, max_mib: float) -> list[dict[str, Any]]:
    """Copy a document's media into `folder`/media and name them, relative to the run folder.

    A file that is too large, gone, or of a sort no browser shows is named without a copy.
    """
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


def _compare(
    run: Path, own: Mapping[str, DocumentLoss], config: EvalConfig, stages: Collection[str]
) -> dict[str, Any] | None:
    if not {"large_salt", "large_baseline"} <= set(own):
        return None
    books = ledgers(run, stages)
    return compare_runs(
        own["large_salt"],
        own["large_baseline"],
        read_jsonl(run / "large_salt" / "metrics.jsonl"),
        read_jsonl(run / "large_baseline" / "metrics.jsonl"),
        config,
        teacher_training_flops=teacher_training_flops(books),
        scoring_flops=flops_of(books.get("select")),
    )


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines))


if __name__ == "__main__":
    from evals.commands import measure as command

    raise SystemExit(command())
