"""Media gain: how much of the loss after media is saved by their content.

    gain = 1 - L(matched) / L(blank)        over target tokens whose last media are of that modality

L(matched) is the loss with the document's media, L(blank) with grey or silence, which some training documents have too;
L(mismatched), with the media of another document of the same kind and level, is shown beside it. 0 means that the model
ignores the media. A video's audio track is never blanked with its frames. A gain over several cells (a kind at a level)
weighs each document by its cell's part of the training mix (post-stratification). Intervals are paired over documents.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from brine.data.document import MODALITIES
from brine.data.sequence import GREY, MODALITY_CONTEXTS, SILENCE, EncodedDocument
from brine.evals.config import EvalConfig, Interval
from brine.evals.loss import DocumentLosses, split_mask

HEADLINE_KINDS = {"image": ("screenshot", "page"), "audio": ("narration",), "video": ("recording",)}
"""Kinds of the synthetic corpus that the headline gain is taken over; a corpus without them uses all kinds."""
Transform = Callable[[int, EncodedDocument], EncodedDocument]
"""(index in the list of documents, sequence) -> the sequence that is measured instead."""


def blank_media(modality: str) -> Transform:
    """The modality's media replaced by grey or silence."""
    return lambda doc_index, sequence: sequence.with_blank_media({modality})


def choose_mismatched(corpus: Any, documents: np.ndarray, modality: str, *, seed: int) -> np.ndarray:
    """(n,) int64: for each document another of the same kind and level whose media it is given, or -1 without one.

    The other has the nearest number of patches, ties broken by seed, and other targets (two images of one text would
    match).
    """
    documents = np.asarray(documents, np.int64)
    num_patches, targets = np.zeros(len(documents), np.int64), []
    for index, document in enumerate(documents):
        sequence = corpus.encoded_document(int(document))
        num_patches[index] = len(getattr(sequence, modality))
        targets.append(sequence.token_ids[sequence.loss_mask].tobytes())
    kind, level = np.asarray(corpus.kind)[documents], np.asarray(corpus.level)[documents]
    generator = np.random.default_rng((seed, MODALITIES.index(modality)))
    mismatched = np.full(len(documents), -1, np.int64)
    for index in range(len(documents)):
        candidates = np.flatnonzero((kind == kind[index]) & (level == level[index]) & (num_patches > 0))
        candidates = np.array([other for other in candidates if targets[other] != targets[index]], np.int64)
        if len(candidates):
            distance = np.abs(num_patches[candidates] - num_patches[index]) + generator.random(len(candidates))
            mismatched[index] = documents[candidates[np.argmin(distance)]]
    return mismatched


def mismatched_media(corpus: Any, mismatched: np.ndarray, modality: str) -> Transform:
    """Each document's patches of the modality replaced by those of `choose_mismatched`, truncated or padded."""

    def transform(doc_index: int, sequence: EncodedDocument) -> EncodedDocument:
        if mismatched[doc_index] < 0:
            return sequence
        matched = getattr(sequence, modality)
        theirs = getattr(corpus.encoded_document(int(mismatched[doc_index])), modality)[: len(matched)]
        patches = np.full_like(matched, SILENCE if modality == "audio" else GREY)
        patches[: len(theirs)] = theirs
        return dataclasses.replace(sequence, **{modality: patches})

    return transform


def drop_unmatched(losses: DocumentLosses, mismatched: np.ndarray) -> DocumentLosses:
    """The same documents; those without mismatched media get no loss and no target."""
    keep = (mismatched >= 0)[:, None]
    return dataclasses.replace(losses, loss=losses.loss * keep, tokens=losses.tokens * keep, bytes=losses.bytes * keep)


def mix_weights(corpus: Any, documents: np.ndarray) -> np.ndarray:
    """(n,) float64: for each document, training documents of its kind and level per document of it given here.

    The weights have mean 1 and are 0 for a cell without training documents. Where no cell has any, all are 1.
    """
    documents = np.asarray(documents, np.int64)
    cell = np.stack([np.asarray(corpus.kind), np.asarray(corpus.level)], axis=1).astype(np.int64)
    _, cell = np.unique(cell, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    trained = np.bincount(cell[split_mask(corpus, "train")], minlength=cell.max() + 1 if len(cell) else 0)
    given = np.bincount(cell[documents], minlength=len(trained))
    weights = trained[cell[documents]] / given[cell[documents]]
    return weights / weights.mean() if weights.any() else np.ones(len(documents))


def gain_interval(
    matched: DocumentLosses, blank: DocumentLosses, modality: str, config: EvalConfig, weights: np.ndarray | None = None
) -> Interval:
    """1 - L(matched) / L(blank) over targets after the modality's media.

    weights: (n,) from `mix_weights`; None counts each document once. Raises ValueError for different documents.
    """
    if not np.array_equal(matched.document, blank.document):
        raise ValueError("a media gain pairs losses of the same documents; these two differ")
    context = MODALITY_CONTEXTS.index(modality)
    weights = np.ones(len(matched)) if weights is None else weights
    return config.interval(weights * matched.loss[:, context], weights * blank.loss[:, context], one_minus=True)


def summarize_gain(
    matched: DocumentLosses, blank: DocumentLosses, mismatched: DocumentLosses | None, modality: str,
    config: EvalConfig, *, weights: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The gain of one modality as JSON: gain, low, high, num_documents, and under `matched`, `blank` and `mismatched`
    the loss in nats per token; the same in `cells` per kind and level, and in `kinds` per kind.
    mismatched: None where it was not measured. weights: (n,) from `mix_weights`; None counts each document once."""
    conditions = {"matched": matched, "blank": blank, "mismatched": mismatched}
    context = MODALITY_CONTEXTS.index(modality)

    def mean(losses: DocumentLosses | None, mask: np.ndarray, weights: np.ndarray) -> float | None:
        tokens = 0.0 if losses is None else float(weights @ losses.tokens[mask, context])
        return float(weights @ losses.loss[mask, context]) / tokens if tokens else None

    def entry(mask: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
        weights = weights[mask]
        interval = gain_interval(matched.select(mask), blank.select(mask), modality, config, weights=weights)
        return interval.to_dict(name="gain") | {n: mean(losses, mask, weights) for n, losses in conditions.items()}

    alike = np.ones(len(matched))
    weights = alike if weights is None else weights
    present = sorted({matched.kinds[kind] for kind in np.unique(matched.kind)})
    chosen = [kind for kind in HEADLINE_KINDS[modality] if kind in present] or present
    mask = np.any([matched.of_kind(kind) for kind in chosen], axis=0) if chosen else np.zeros(len(matched), bool)
    return entry(mask, weights) | {
        "headline_kinds": chosen,
        "kinds": [{"kind": kind, **entry(matched.of_kind(kind), weights)} for kind in present],
        # within a cell all documents count alike, also where the training mix has none
        "cells": [{"kind": kind, "level": level, **entry(cell, alike)} for kind, level, cell in matched.cells()],
    }


def measure_gain(
    corpus: Any, matched: DocumentLosses, modality: str, measure: Callable[..., DocumentLosses], config: EvalConfig,
    weights: np.ndarray,
) -> dict[str, Any] | None:  # fmt: skip
    """`summarize_gain` of the documents with targets after the modality's media; None without any.

    measure(documents, condition, transform=...) gives losses under a condition. weights: (n,) from `mix_weights`.
    """
    indices = np.flatnonzero(matched.tokens[:, MODALITY_CONTEXTS.index(modality)])
    if not len(indices):
        return None
    matched, weights = matched.select(indices), weights[indices]
    partners = choose_mismatched(corpus, matched.document, modality, seed=config.seed)
    blank = measure(matched.document, f"blank {modality}", transform=blank_media(modality))
    replaced = mismatched_media(corpus, partners, modality)
    mismatched = drop_unmatched(measure(matched.document, f"mismatched {modality}", transform=replaced), partners)
    return summarize_gain(matched, blank, mismatched, modality, config, weights=weights)
