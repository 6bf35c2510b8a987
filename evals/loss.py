"""Held-out loss, kept per document: everything else (means, gains, intervals, comparisons) is arithmetic on it.

`measure` runs the model over chosen documents once and returns `DocumentLoss`: for each document and each context (no
medium yet, after a picture, after sound, after film) the summed cross-entropy in nats, the number of target tokens
and the number of UTF-8 bytes they stand for. Two measurements of the same documents, under two conditions or by two
models, line up entry by entry, which is what makes paired intervals possible.

The loss is the plain cross-entropy of the hard labels in float32, whatever the model was trained with. The end token
is a target as any other: it counts as a token with 0 bytes. A document's first token is never a target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.document import SPLITS
from data.sequence import CONTEXT, Sequence
from evals.config import EvalConfig
from evals.rows import batches
from kernels import linear_cross_entropy
from model.device import autocast, device_of
from model.geometry import Geometry

NUM_CONTEXTS = len(CONTEXT)


@dataclass(frozen=True)
class DocumentLoss:
    """Losses of n documents. The last axis of `loss`, `tokens` and `bytes` is the context, an index into CONTEXT."""

    document: np.ndarray
    """(n,) int64: index in the corpus."""
    kind: np.ndarray
    """(n,) int64: index into `kinds`."""
    level: np.ndarray
    """(n,) int64."""
    loss: np.ndarray
    """(n, 4) float64: summed cross-entropy, nats."""
    tokens: np.ndarray
    """(n, 4) int64: target tokens."""
    bytes: np.ndarray
    """(n, 4) int64: UTF-8 bytes that the targets stand for."""
    kinds: tuple[str, ...]
    """Names of the kinds."""

    def __len__(self) -> int:
        return len(self.document)

    def select(self, chosen: np.ndarray) -> DocumentLoss:
        """Only the documents chosen: a boolean mask or places."""
        columns = (getattr(self, name)[chosen] for name in ("document", "kind", "level", "loss", "tokens", "bytes"))
        return DocumentLoss(*columns, self.kinds)

    def of_kind(self, kind: str) -> np.ndarray:
        """(n,) bool: documents of this kind."""
        return self.kind == (self.kinds.index(kind) if kind in self.kinds else -1)

    def mean(self) -> float | None:
        """Nats per target token over all documents; None without any."""
        return _ratio(self.loss.sum(), self.tokens.sum())

    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte of the targets; None without any."""
        return _ratio(self.loss.sum() / math.log(2), self.bytes.sum())

    def cells(self) -> list[tuple[str, int, np.ndarray]]:
        """(kind, level, mask) of every cell that holds a document, by kind and level."""
        found = sorted({(self.kinds[k], int(level)) for k, level in zip(self.kind, self.level, strict=True)})
        return [(kind, level, self.of_kind(kind) & (self.level == level)) for kind, level in found]

    def records(self) -> list[dict[str, Any]]:
        """One JSON object for each document and context that has targets."""
        return [
            {
                "document": int(self.document[n]),
                "kind": self.kinds[self.kind[n]],
                "level": int(self.level[n]),
                "context": CONTEXT[context],
                "loss": round(float(self.loss[n, context]), 6),
                "tokens": int(self.tokens[n, context]),
                "bytes": int(self.bytes[n, context]),
            }
            for n, context in zip(*np.nonzero(self.tokens), strict=True)
        ]


def _ratio(above: float, below: float) -> float | None:
    return float(above) / float(below) if below else None


def choose_documents(corpus: Any, *, split: str, per_cell: int, seed: int) -> np.ndarray:
    """(n,) int64, ascending: at most `per_cell` documents of each kind and level of a split, by seed alone.

    corpus: an `EncodedCorpus`. The choice for one cell does not depend on what other cells hold.
    """
    inside = np.flatnonzero(split_mask(corpus, split))
    kind, level = np.asarray(corpus.kind)[inside], np.asarray(corpus.level)[inside]
    chosen = []
    for k, number in sorted({(int(k), int(n)) for k, n in zip(kind, level, strict=True)}):
        cell = inside[(kind == k) & (level == number)]
        # the first of one fixed shuffle, so that a larger bound only adds documents
        order = np.random.default_rng((seed, k, number)).permutation(len(cell))
        chosen.append(cell[order[:per_cell]])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def split_mask(corpus: Any, split: str) -> np.ndarray:
    """(num_documents,) bool: documents of a split, whether the corpus keeps splits as names or as numbers."""
    splits = np.asarray(corpus.split)
    return splits == (split if splits.dtype.kind in "UO" else SPLITS.index(split))


def held_out_split(corpus: Any, config: EvalConfig) -> str:
    """The configured split, or the other held-out one where that is empty.

    Raises ValueError, telling the remedy, when the corpus holds nothing out.
    """
    for split in (config.split, "test", "validation"):
        if split_mask(corpus, split).any():
            return split
    raise ValueError(
        "the corpus has no held-out document: give some lines of the manifest the split validation or test"
    )


def require_targets(corpus: Any, split: str, *, what: str = "held-out document") -> None:
    """Raise ValueError where no document of a split has a token to predict, so that nothing can be measured."""
    inside = np.flatnonzero(split_mask(corpus, split)).tolist()
    if not any(corpus.tokens(number).learn[1:].any() for number in inside):
        raise ValueError(
            f'no {what} has a target (0 of {len(inside):,}): their text is empty, marked "learn": false, or said by '
            "others than the assistant, so that nothing can be measured"
        )


def in_pieces(corpus: Any, documents: np.ndarray, row_tokens: int) -> dict[str, int]:
    """How many documents are longer than a row, and so measured in pieces that do not see each other."""
    tokens = np.asarray(corpus.num_tokens)[documents]
    found = {"documents": int((tokens > row_tokens).sum()), "of_documents": len(tokens), "row_tokens": row_tokens}
    return found | {"longest": int(tokens.max(initial=0))}


def byte_lengths(tokenizer: Any) -> np.ndarray:
    """(V,) int64: UTF-8 bytes that each id stands for; 0 for special tokens."""
    return np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)], np.int64)


@torch.no_grad()
def measure(
    model: Any,
    corpus: Any,
    documents: np.ndarray,
    *,
    token_bytes: np.ndarray,
    config: EvalConfig,
    alter: Callable[[int, Sequence], Sequence] | None = None,
    compute_dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> DocumentLoss:
    """Loss of a model over documents of a corpus.

    model: a Transformer (or anything with its `forward` and `head_weight`). documents: (n,) indices into corpus.
    token_bytes: from `byte_lengths`. alter(place in documents, sequence) gives what is measured instead of the
    sequence; it must keep its length and targets. compute_dtype: of the matrix products, None for the weights' own.
    progress(documents newly reached) is called after each batch. The model's train/eval mode is left as it is; rows go
    to the device that its weights are on.
    """
    documents = np.asarray(documents, np.int64)

    def sequence_of(item: int) -> Sequence:
        sequence = corpus.sequence(int(documents[item]))
        return alter(item, sequence) if alter is not None else sequence

    count = len(documents)
    loss = np.zeros(count * NUM_CONTEXTS)
    tokens, num_bytes = np.zeros(len(loss), np.int64), np.zeros(len(loss), np.int64)
    finished = np.zeros(0, np.int64)
    rows = batches(
        count,
        sequence_of,
        [int(corpus.num_tokens[document]) for document in documents],
        row_tokens=config.row_tokens,
        rows_per_batch=config.rows_per_batch,
    )
    device = device_of(model)
    for batch in rows:
        geometry, truth = Geometry.of(batch, model), batch.labels.flatten().numpy()
        batch, geometry = batch.to(device), geometry.to(device)
        # blocks that were compiled for training run eagerly: these shapes are not theirs
        with (
            autocast(device, compute_dtype),
            torch.compiler.set_stance("force_eager"),
        ):
            hidden = model(batch.token_ids, batch.position, batch.document, batch.block, batch.media, geometry=geometry)
            _, token_loss = linear_cross_entropy(
                hidden.flatten(0, 1), model.head_weight, batch.labels.flatten(), return_token_loss=True,
                backend=model.loss_backend,
            )  # fmt: skip
        target = np.flatnonzero(batch.item.ravel() >= 0)
        place = batch.item.ravel()[target] * NUM_CONTEXTS + batch.context.ravel()[target]
        values = token_loss.double().cpu().numpy()[target]
        loss += np.bincount(place, weights=values, minlength=len(loss))
        tokens += np.bincount(place, minlength=len(loss))
        num_bytes += np.bincount(place, weights=token_bytes[truth[target]], minlength=len(loss)).astype(np.int64)
        if progress is not None:
            fresh = np.setdiff1d(batch.item[batch.item >= 0], finished)
            finished = np.concatenate((finished, fresh))
            progress(len(fresh))
    shape = (count, NUM_CONTEXTS)
    return DocumentLoss(
        documents,
        np.asarray(corpus.kind)[documents].astype(np.int64),
        np.asarray(corpus.level)[documents].astype(np.int64),
        loss.reshape(shape),
        tokens.reshape(shape),
        num_bytes.reshape(shape),
        tuple(corpus.kinds),
    )


def table(losses: DocumentLoss) -> list[dict[str, Any]]:
    """Loss per kind and level: one JSON object a cell, with nats per token, bits per byte and counts."""
    return [{"kind": kind, "level": level, **_row(losses.select(mask))} for kind, level, mask in losses.cells()]


def by_context(losses: DocumentLoss) -> dict[str, float | None]:
    """Nats per target token after each medium, and before any ("none"); only contexts that occur."""
    return {
        name: float(losses.loss[:, context].sum() / losses.tokens[:, context].sum())
        for context, name in enumerate(CONTEXT)
        if losses.tokens[:, context].any()
    }


def bits_per_byte_of_text(losses: DocumentLoss, *, kinds: Iterable[str] = ("text",)) -> float | None:
    """Bits per byte of text documents; where the corpus has no kind of that name, of documents without any medium."""
    mask = np.zeros(len(losses), bool)
    for kind in kinds:
        mask |= losses.of_kind(kind)
    if not mask.any():
        mask = losses.tokens[:, 1:].sum(axis=1) == 0
    return losses.select(mask).bits_per_byte()


def _row(losses: DocumentLoss) -> dict[str, Any]:
    return {
        "loss": losses.mean(),
        "bits_per_byte": losses.bits_per_byte(),
        "documents": len(losses),
        "tokens": int(losses.tokens.sum()),
    }
