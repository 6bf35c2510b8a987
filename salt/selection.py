"""Which documents to train on first: those that an early small model finds hard, yet learnable.

A document's score is the median loss of its *learnable* tokens, whose target is among the `top_k` likeliest of a small
model's early checkpoint; other tokens are dropped (as zeros, one reading of equation 10 of 2410.18779, they would make
a document easy by being unlearnable). The highest scores are kept until a fraction of the training tokens is reached,
within each kind of document by default. The cost is one forward pass of the small model over them, in the cost
category `scoring`. SALT's ablation found little in selection (52.81 against 52.96), so it is off by default.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from brine.common.files import replacing, write_text
from brine.model.device import autocast, device_of
from brine.salt.cost import batch_flops

if TYPE_CHECKING:
    from brine.data.batch import Batch
    from brine.data.packing.plan import PackingPlan
    from brine.model.transformer import Transformer

CHUNK_LOGITS = 2**22


class CostRecorder(Protocol):
    """The part of the cost accounting that is used here."""

    def add_cost(self, cost_category: str, *, flops: int, seconds: float) -> None:
        """Adds to a category."""


@dataclass(frozen=True)
class DocumentScores:
    """Scores of D documents, ascending.

    document (D,) int64 index in the corpus; score (D,) float64 median loss of learnable tokens, nats, -inf where too
    few; num_learnable and num_targets (D,) int64 tokens.
    """

    document: np.ndarray
    score: np.ndarray
    num_learnable: np.ndarray
    num_targets: np.ndarray

    def select_documents(self, *, keep: float, kind: np.ndarray | None = None) -> np.ndarray:
        """(D,) bool: the highest scores, until a fraction `keep` of the targets is reached.

        kind: (D,) int; select within each kind. Equal scores go to the lower index. Raises ValueError for a fraction
        outside (0, 1].
        """
        if not 0 < keep <= 1:
            raise ValueError(f"keep = {keep} must lie in (0, 1]: the fraction of the training tokens to keep")
        tokens = self.num_targets
        kinds = np.zeros(len(self.document), dtype=np.int64) if kind is None else np.asarray(kind)
        kept = np.zeros(len(self.document), dtype=bool)
        for value in np.unique(kinds):
            member = np.flatnonzero(kinds == value)
            ordered = member[np.lexsort((self.document[member], -self.score[member]))]
            # a document is taken while the tokens before it fall short of the fraction
            before = np.cumsum(tokens[ordered]) - tokens[ordered]
            kept[ordered] = (before < keep * tokens[member].sum()) & np.isfinite(self.score[ordered])
        return kept

    def save(self, folder: Path, *, kept: np.ndarray, ids: Sequence[str]) -> None:
        """Writes `scores.npz` (arrays) and `selection.jsonl` (a line per document, with the reason). ids: all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "scores.npz", "wb") as file:
            np.savez(file, **vars(self), kept=kept)
        records = zip(*(array.tolist() for array in (*vars(self).values(), kept)), strict=True)
        lines = (
            {
                "document": document,
                "id": ids[document],
                "score": score if np.isfinite(score) else None,
                "learnable": learnable,
                "targets": targets,
                "kept": taken,
                "reason": self.reason(index, kept=taken),
            }
            for index, (document, score, learnable, targets, taken) in enumerate(records)
        )
        write_text(folder / "selection.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def reason(self, index: int, *, kept: bool) -> str:
        """One phrase: why this document was kept or left out."""
        if not np.isfinite(self.score[index]):
            return f"only {self.num_learnable[index]} learnable tokens of {self.num_targets[index]}"
        return "among the highest median losses" if kept else "easier than those kept"


def token_losses(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, top_k: int, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Loss of each token, and whether its target is among the `top_k` likeliest.

    hidden (N, E), weight (V, E), labels (N,) int64 with -100 for no target -> loss (N,) float32 (float64 for float64
    input; 0 without target) and learnable (N,) bool (False without target). Of equal logits those at a lower id count
    as likelier, so exactly k ids are in the top k. Holds logits of `chunk_tokens` tokens at a time.
    """
    if chunk_tokens is None:
        chunk_tokens = max(64, CHUNK_LOGITS // len(weight))
    wide = torch.promote_types(torch.float32, hidden.dtype)
    loss = torch.zeros(labels.shape, dtype=wide, device=hidden.device)
    learnable = torch.zeros(labels.shape, dtype=torch.bool, device=hidden.device)
    ids = torch.arange(len(weight), device=hidden.device)
    for at in (labels >= 0).nonzero().flatten().split(chunk_tokens):
        label = labels[at][:, None]
        logits = (hidden[at] @ weight.to(hidden.dtype).T).to(wide)
        target = logits.gather(1, label)
        ahead = (logits > target) | ((logits == target) & (ids < label))
        loss[at] = (logits.logsumexp(-1, keepdim=True) - target).flatten()
        learnable[at] = ahead.sum(-1) < top_k
    # of a model that has diverged no token is learnable
    return loss, learnable & loss.isfinite()


@torch.no_grad()
def score_documents(
    model: Transformer,
    *,
    plan: PackingPlan,
    batches: Iterable[Batch],
    top_k: int = 10,
    min_learnable_tokens: int = 4,
    compute_dtype: torch.dtype | None = None,
    compute_cost: CostRecorder | None = None,
) -> DocumentScores:
    """Score every document of the packed sequences that `batches` deliver; each sequence of the plan once.

    `batch.sequence_index` are the sequences of the plan that it holds, -1 being padding; a document in several
    sequences is scored from all its chunks. Raises ValueError where a sequence of a batch is shorter than its plan.
    """
    model.eval()
    device = device_of(model)
    losses: dict[int, list[np.ndarray]] = defaultdict(list)
    targets: dict[int, int] = defaultdict(int)
    for batch in batches:
        start_s = time.perf_counter()
        targets_BT, flops = (batch.labels >= 0).numpy(), batch_flops(model, batch.inputs)
        batch = batch.to(device)
        with autocast(device, compute_dtype):
            hidden = model(batch.inputs).flatten(0, 1)
            loss, learnable = token_losses(hidden, model.head_weight, batch.labels.flatten(), top_k=top_k)
        loss_BT = loss.double().view(batch.labels.shape).cpu().numpy()
        learnable_BT = learnable.view(batch.labels.shape).cpu().numpy()
        for b, sequence in enumerate(batch.sequence_index):
            offset = 0
            for document, start, stop, *_ in plan.chunks(sequence) if sequence >= 0 else ():
                chunk = slice(offset, offset + stop - start)
                offset = chunk.stop
                if offset > loss_BT.shape[1]:
                    raise ValueError(
                        f"sequence {sequence} of the plan holds {offset} tokens, its batch {loss_BT.shape[1]}"
                    )
                losses[document].append(loss_BT[b, chunk][learnable_BT[b, chunk]])
                targets[document] += int(targets_BT[b, chunk].sum())
        if compute_cost is not None:
            compute_cost.add_cost("scoring", flops=flops, seconds=time.perf_counter() - start_s)
    chunks = {document: np.concatenate(losses[document]) for document in sorted(losses)}
    scores = [np.median(chunk) if len(chunk) >= min_learnable_tokens else -np.inf for chunk in chunks.values()]
    return DocumentScores(
        document=np.asarray(list(chunks), dtype=np.int64),
        score=np.asarray(scores, dtype=np.float64),
        num_learnable=np.asarray([len(chunk) for chunk in chunks.values()], dtype=np.int64),
        num_targets=np.asarray([targets[document] for document in chunks], dtype=np.int64),
    )


def require_selected(kept: np.ndarray, *, min_learnable_tokens: int) -> None:
    """Raises ValueError, with the remedy, where a selection (D,) bool kept no document."""
    if not kept.any():
        raise ValueError(
            f"salt.selection keeps none of {len(kept):,} documents: none has salt.min_learnable_tokens = "
            f"{min_learnable_tokens} learnable tokens; lower --salt.min-learnable-tokens or raise --salt.top-k"
        )
