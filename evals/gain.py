"""Media gain: how much of the loss after a medium is saved by what the medium shows.

    gain = 1 - L(own) / L(blank)        over target tokens whose last medium is of that modality

L(own) is the loss with the document's own medium, L(blank) with its places kept and its content replaced by grey or
silence. 0 means that the model does not look; 1 that the medium tells it everything. A part of the training documents
is blanked in the same way, so blank is nothing that the model has never met, and the gain is not the price of a
surprise. Beside it stands L(other): the medium of another document of the same kind and level. A model that looks is
*worse* with another's medium than with none, which is why that ratio is shown and not used as the gain.

Video blanks its frames only; the sound track stays, so its gain is what the pictures add to the sound.

Held-out sets hold many documents of rare cells (a kind at a level), so that each has an interval. A gain over several
cells therefore weighs each document by what its cell is of the training mix (`mix_weights`, post-stratification): it
estimates the gain on documents as the model met them, whatever the proportions held out.

Intervals are paired over documents (see `bootstrap.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from data.document import MODALITIES
from data.sequence import CONTEXT, GREY, SILENCE, Sequence
from evals.bootstrap import Interval, ratio_interval
from evals.config import EvalConfig
from evals.loss import DocumentLoss, split_mask

HEADLINE_KINDS = {"image": ("screenshot", "page"), "audio": ("narration",), "video": ("recording",)}
"""Kinds of the workbench that the headline gain of a modality is taken over; a corpus without them uses all kinds."""


def blank(modality: str) -> Callable[[int, Sequence], Sequence]:
    """An alteration for `loss.measure`: the modality's media replaced by grey or silence."""
    return lambda item, sequence: sequence.blanked({modality})


def choose_partners(corpus: Any, documents: np.ndarray, modality: str, *, seed: int) -> np.ndarray:
    """(n,) int64: for each document another of the same kind and level whose medium it is shown, or -1 without one.

    The partner has the nearest number of slots; among equals it is drawn by seed. A partner whose targets are the same
    (two pictures of one line) would be no other medium and is passed over.
    """
    documents = np.asarray(documents, np.int64)
    slots, targets = np.zeros(len(documents), np.int64), []
    for place, document in enumerate(documents):
        sequence = corpus.sequence(int(document))
        slots[place] = len(getattr(sequence, modality))
        targets.append(sequence.token_ids[sequence.learn].tobytes())
    kind, level = np.asarray(corpus.kind)[documents], np.asarray(corpus.level)[documents]
    generator = np.random.default_rng((seed, MODALITIES.index(modality)))
    partners = np.full(len(documents), -1, np.int64)
    for place in range(len(documents)):
        fitting = np.flatnonzero((kind == kind[place]) & (level == level[place]) & (slots > 0))
        fitting = np.array([other for other in fitting if targets[other] != targets[place]], np.int64)
        if len(fitting):
            distance = np.abs(slots[fitting] - slots[place]) + generator.random(len(fitting))
            partners[place] = documents[fitting[np.argmin(distance)]]
    return partners


def other_medium(corpus: Any, partners: np.ndarray, modality: str) -> Callable[[int, Sequence], Sequence]:
    """An alteration for `loss.measure`: each document's patches of the modality replaced by its partner's, in slot
    order, cut or filled up with blank to its own number of slots."""

    def alter(item: int, sequence: Sequence) -> Sequence:
        if partners[item] < 0:
            return sequence
        own = getattr(sequence, modality)
        theirs = getattr(corpus.sequence(int(partners[item])), modality)[: len(own)]
        patches = np.full_like(own, SILENCE if modality == "audio" else GREY)
        patches[: len(theirs)] = theirs
        return dataclasses.replace(sequence, **{modality: patches})

    return alter


def only_with_partner(losses: DocumentLoss, partners: np.ndarray) -> DocumentLoss:
    """The same documents, those without a partner emptied: they carry no loss and no target."""
    keep = (partners >= 0)[:, None]
    return dataclasses.replace(losses, loss=losses.loss * keep, tokens=losses.tokens * keep, bytes=losses.bytes * keep)


def mix_weights(corpus: Any, documents: np.ndarray) -> np.ndarray:
    """(n,) float64: for each document, training documents of its kind and level per document of it given here.

    The weights have mean 1 and are 0 for a cell that was not trained on. Where none was, all are 1: there is no mix to
    weigh by.
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
    own: DocumentLoss, without: DocumentLoss, modality: str, config: EvalConfig, *, weights: np.ndarray | None = None
) -> Interval:
    """1 - L(own) / L(without) over targets after the modality's media. The two must hold the same documents.

    weights: (n,) what each document counts, see `mix_weights`; None counts each once.
    """
    if not np.array_equal(own.document, without.document):
        raise ValueError("a media gain pairs losses of the same documents; these two differ")
    context = CONTEXT.index(modality)
    weights = np.ones(len(own)) if weights is None else weights
    return ratio_interval(
        weights * own.loss[:, context],
        weights * without.loss[:, context],
        num_resamples=config.bootstrap_resamples,
        confidence=config.confidence,
        seed=config.seed,
        one_minus=True,
    )


def summarise(
    own: DocumentLoss,
    without: DocumentLoss,
    other: DocumentLoss | None,
    modality: str,
    config: EvalConfig,
    *,
    weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """The gain of one modality with everything beside it, as JSON.

    own, without, other: losses of the same documents with their own, a blank, and another document's medium (None:
    not measured). weights: (n,) what each document counts, see `mix_weights`; None counts each once. Gives gain, low,
    high, num_documents; own, blank and other loss in nats per token; `cells`, the same per kind and level, and `kinds`,
    per kind.
    """
    weights = np.ones(len(own)) if weights is None else weights

    def entry(mask: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
        return _entry(own, without, other, mask, modality, config, weights)

    present = {own.kinds[k] for k in np.unique(own.kind)}
    chosen = [kind for kind in HEADLINE_KINDS[modality] if kind in present] or sorted(present)
    mask = np.any([own.of_kind(kind) for kind in chosen], axis=0) if chosen else np.zeros(len(own), bool)
    result = entry(mask, weights) | {"over_kinds": chosen}
    result["kinds"] = [{"kind": kind, **entry(own.of_kind(kind), weights)} for kind in sorted(present)]
    # within a cell all documents count alike, also where nothing like it was trained on
    alike = np.ones(len(own))
    result["cells"] = [{"kind": kind, "level": level, **entry(cell, alike)} for kind, level, cell in own.cells()]
    return result


def _entry(
    own: DocumentLoss,
    without: DocumentLoss,
    other: DocumentLoss | None,
    mask: np.ndarray,
    modality: str,
    config: EvalConfig,
    weights: np.ndarray,
) -> dict[str, Any]:
    weights = weights[mask]
    interval = gain_interval(own.select(mask), without.select(mask), modality, config, weights=weights)
    context = CONTEXT.index(modality)

    def mean(losses: DocumentLoss | None) -> float | None:
        tokens = 0.0 if losses is None else float(weights @ losses.tokens[mask, context])
        return float(weights @ losses.loss[mask, context]) / tokens if tokens else None

    return interval.to_dict(name="gain") | {"own": mean(own), "blank": mean(without), "other": mean(other)}
