"""Held-out loss per document; gains, intervals and comparisons are arithmetic on it.

`measure_losses` runs the model over chosen documents; two measurements of the same documents line up, so intervals can
be paired. The loss is the plain cross-entropy of the hard labels in float32, whatever the training loss was. The end
token is a target of 0 bytes, a document's first token never one. Documents are packed as for training, but from
`EncodedDocument`s and not from a plan, since the same ones are measured several times with other media.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from brine.data.batch import Batch, collate
from brine.data.document import SPLITS
from brine.data.packing.chunks import split_document
from brine.data.packing.pack import pack
from brine.data.sequence import MODALITY_CONTEXTS, EncodedDocument
from brine.evals.config import EvalConfig
from brine.kernels.linear_loss import linear_cross_entropy
from brine.model.device import autocast, device_of, without_compilation

NUM_MODALITY_CONTEXTS = len(MODALITY_CONTEXTS)


@dataclass(frozen=True)
class DocumentLosses:
    """Losses of n documents; the last axis of `loss`, `tokens` and `bytes` is an index into MODALITY_CONTEXTS.

    document: (n,) int64, index in the corpus. kind: (n,) int64, index into `kinds`. level: (n,) int64. loss: (n, 4)
    float64, summed cross-entropy in nats. tokens, bytes: (n, 4) int64, target tokens and their UTF-8 bytes.
    """

    document: np.ndarray
    kind: np.ndarray
    level: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.document)

    def select(self, chosen: np.ndarray) -> "DocumentLosses":
        """Only the chosen documents, by a boolean mask or indices."""
        columns = (getattr(self, name)[chosen] for name in ("document", "kind", "level", "loss", "tokens", "bytes"))
        return DocumentLosses(*columns, self.kinds)

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
        """(kind, level, mask) of every cell with a document, by kind and level."""
        found = sorted({(self.kinds[k], int(level)) for k, level in zip(self.kind, self.level, strict=True)})
        return [(kind, level, self.of_kind(kind) & (self.level == level)) for kind, level in found]

    def records(self) -> list[dict[str, Any]]:
        """One JSON object for each document and context that has targets."""
        return [
            {
                "document": int(self.document[n]), "kind": self.kinds[self.kind[n]], "level": int(self.level[n]),
                "modality_context": MODALITY_CONTEXTS[context], "loss": round(float(self.loss[n, context]), 6),
                "tokens": int(self.tokens[n, context]), "bytes": int(self.bytes[n, context]),
            }
            for n, context in zip(*np.nonzero(self.tokens), strict=True)
        ]  # fmt: skip


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
    """(num_documents,) bool: documents of a split."""
    return np.asarray(corpus.split) == SPLITS.index(split)


def held_out_split(corpus: Any, config: EvalConfig) -> str:
    """The configured split, or the other held-out one where that is empty.

    Raises ValueError when the corpus has no held-out document.
    """
    for split in (config.split, "test", "validation"):
        if split_mask(corpus, split).any():
            return split
    raise ValueError("the corpus has no held-out document: give some documents the split validation or test")


def require_targets(corpus: Any, split: str, *, what: str = "held-out document") -> None:
    """Raise ValueError where no document of a split has a target."""
    inside = np.flatnonzero(split_mask(corpus, split)).tolist()
    if not any(corpus.tokens(number).loss_mask[1:].any() for number in inside):
        raise ValueError(
            f'no {what} has a target (0 of {len(inside):,}): their text is empty, marked "loss_mask": false, or not '
            "of the assistant, so nothing can be measured"
        )


def split_documents(corpus: Any, documents: np.ndarray, seq_len: int) -> dict[str, int]:
    """How many documents are longer than seq_len, and so split into chunks that do not attend to each other."""
    tokens = np.asarray(corpus.num_tokens)[documents]
    found = {"documents": int((tokens > seq_len).sum()), "total_documents": len(tokens), "seq_len": seq_len}
    return found | {"longest_tokens": int(tokens.max(initial=0))}


def token_byte_lengths(tokenizer: Any) -> np.ndarray:
    """(V,) int64: UTF-8 bytes of each token id; 0 for special tokens."""
    return np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)], np.int64)


def packed_batches(
    load_sequence: Callable[[int], EncodedDocument], lengths: Sequence[int], *, seq_len: int, batch_size: int
) -> Iterator[Batch]:
    """Documents 0 .. len(lengths) - 1, packed; `Batch.document` is that number. Every target occurs once.

    A chunk that cannot be split (a long video) is a batch of its length; all others have shape (batch_size,
    seq_len).
    """
    unlimited = np.zeros(0, np.int64)
    # chunks of a long document follow each other, so that it is read about once
    load_long = functools.lru_cache(maxsize=1)(load_sequence)
    chunks = []
    for number, length in enumerate(lengths):
        parts = [(0, length)]
        if length > seq_len:
            parts = split_document(load_long(number), seq_len, unlimited, allow_longer=True)[:, :2].tolist()
        chunks += [(number, start, stop) for start, stop in parts if stop]

    def assemble(packed: list[list[tuple[int, int, int]]], length: int) -> Batch:
        def load(number: int, start: int, stop: int) -> EncodedDocument:
            return (load_long if lengths[number] > seq_len else load_sequence)(number).slice(start, stop)

        rows = [[(number, stop - start, load(number, start, stop)) for number, start, stop in row] for row in packed]
        return collate(rows, seq_len=length)

    short = [chunk for chunk in chunks if chunk[2] - chunk[1] <= seq_len]
    for chunk in chunks:
        if chunk[2] - chunk[1] > seq_len:
            yield assemble([[chunk]], chunk[2] - chunk[1])
    if not short:
        return
    number, start, stop = np.array(short).T
    sequence, count = pack(stop - start, np.zeros((len(short), 0), np.int64), number, seq_len=seq_len, budget=unlimited)
    packed: list[list[tuple[int, int, int]]] = [[] for _ in range(count)]
    for chunk, row in zip(short, sequence.tolist(), strict=True):
        packed[row].append(chunk)
    for first in range(0, count, batch_size):
        chosen = packed[first : first + batch_size]
        yield assemble(chosen + [[]] * (batch_size - len(chosen)), seq_len)


@torch.no_grad()
def measure_losses(
    model: Any, corpus: Any, documents: np.ndarray, *, token_bytes: np.ndarray, config: EvalConfig,
    transform: Callable[[int, EncodedDocument], EncodedDocument] | None = None,
    compute_dtype: torch.dtype | None = None, progress: Callable[[int], None] | None = None,
) -> DocumentLosses:  # fmt: skip
    """Loss of a model over documents of a corpus.

    model: a Transformer (or anything with its `forward`, `config` and `head_weight`), left in its mode. documents: (n,)
    indices into corpus. token_bytes: from `token_byte_lengths`. transform(index in documents, sequence) gives the
    sequence to measure instead, of the same length and targets. compute_dtype: of matmuls, None for the weights'.
    progress(documents newly reached) is called after each batch.
    """
    documents = np.asarray(documents, np.int64)

    def load_sequence(doc_index: int) -> EncodedDocument:
        sequence = corpus.encoded_document(int(documents[doc_index]))
        return transform(doc_index, sequence) if transform is not None else sequence

    count = len(documents)
    loss = np.zeros(count * NUM_MODALITY_CONTEXTS)
    tokens, num_bytes = np.zeros(len(loss), np.int64), np.zeros(len(loss), np.int64)
    finished = np.zeros(0, np.int64)
    lengths = [int(corpus.num_tokens[document]) for document in documents]
    device = device_of(model)
    for batch in packed_batches(load_sequence, lengths, seq_len=config.seq_len, batch_size=config.batch_size):
        truth = batch.labels.flatten().numpy()
        target = np.flatnonzero(truth >= 0)
        doc_index = batch.document.flatten().numpy()[target].astype(np.int64)
        cell = doc_index * NUM_MODALITY_CONTEXTS + batch.modality_context.flatten().numpy()[target]
        batch.inputs.make_masks(model.config)
        batch = batch.to(device)
        # blocks that were compiled for training run eagerly: these shapes are not theirs
        with autocast(device, compute_dtype), without_compilation():
            hidden = model(batch.inputs)
            _, token_loss = linear_cross_entropy(
                hidden.flatten(0, 1), model.head_weight, batch.labels.flatten(), return_token_loss=True,
                backend=model.loss_backend,
            )  # fmt: skip
        values = token_loss.double().cpu().numpy()[target]
        loss += np.bincount(cell, weights=values, minlength=len(loss))
        tokens += np.bincount(cell, minlength=len(loss))
        num_bytes += np.bincount(cell, weights=token_bytes[truth[target]], minlength=len(loss)).astype(np.int64)
        if progress is not None:
            fresh = np.setdiff1d(doc_index, finished)
            finished = np.concatenate((finished, fresh))
            progress(len(fresh))
    shape = (count, NUM_MODALITY_CONTEXTS)
    return DocumentLosses(
        documents, np.asarray(corpus.kind)[documents].astype(np.int64),
        np.asarray(corpus.level)[documents].astype(np.int64), loss.reshape(shape), tokens.reshape(shape),
        num_bytes.reshape(shape), tuple(corpus.kinds),
    )  # fmt: skip


def loss_table(losses: DocumentLosses) -> list[dict[str, Any]]:
    """Loss per kind and level: one JSON object a cell, with nats per token, bits per byte and counts."""

    def entry(cell: DocumentLosses) -> dict[str, Any]:
        means = {"loss": cell.mean(), "bits_per_byte": cell.bits_per_byte()}
        return means | {"documents": len(cell), "tokens": int(cell.tokens.sum())}

    return [{"kind": kind, "level": level} | entry(losses.select(mask)) for kind, level, mask in losses.cells()]


def loss_by_modality_context(losses: DocumentLosses) -> dict[str, float]:
    """Nats per target token in each modality context that occurs ("none": before any media)."""
    return {
        name: float(losses.loss[:, context].sum() / losses.tokens[:, context].sum())
        for context, name in enumerate(MODALITY_CONTEXTS)
        if losses.tokens[:, context].any()
    }


def text_bits_per_byte(losses: DocumentLosses) -> float | None:
    """Bits per byte of documents of kind "text"; where the corpus has no such kind, of documents without media."""
    mask = losses.of_kind("text")
    if not mask.any():
        mask = losses.tokens[:, 1:].sum(axis=1) == 0
    return losses.select(mask).bits_per_byte()
