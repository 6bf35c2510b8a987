"""Which documents to learn from first: those that an early small model finds hard, yet learnable.

A document's score is the median loss of its *learnable* tokens under a small model's early checkpoint; a token
is learnable if its target is among that model's `top_k` likeliest. Masked tokens are dropped: counting them as
zeros, as one may read equation 10 of 2410.18779, would make a document easy by being unlearnable. Documents with too
few learnable tokens score -inf and are never kept. The highest scores are kept until a share of the pool's
tokens is reached, within each kind of document by default.

The cost is one forward pass of the small model over the pool, billed to `scoring`. Logits exist for a few
rows at a time: the loss needs their log-sum-exp, and membership in the top k only a count of the larger ones. An even
number of learnable tokens has the mean of the middle two as its median. A document cut over several rows is
scored from all its pieces. SALT's own ablation found little in selection (52.81 against 52.96), so it is an option
here, and off in the comparison that is reported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model.device import autocast, device_of
from model.geometry import Geometry
from salt.cost import batch_flops

if TYPE_CHECKING:
    from data.batch import Batch

CHUNK_LOGITS = 2**22


class Bill(Protocol):
    """What this file needs of a ledger."""

    def bill(self, account: str, *, flops: int, seconds: float) -> None:
        """Add to an account."""


class Rows(Protocol):
    """What this file needs of a row plan."""

    def row(self, index: int) -> Sequence[tuple[int, int, int, object]]:
        """The pieces of a row, in order: (document, start, stop, ...)."""


@dataclass(frozen=True)
class Scores:
    """Scores of a pool of D documents; arrays of length D in ascending order of document."""

    document: np.ndarray
    """(D,) int64 index in the corpus."""
    score: np.ndarray
    """(D,) float64 median loss of learnable tokens, nats; -inf where too few."""
    num_learnable: np.ndarray
    """(D,) int64 learnable tokens."""
    num_targets: np.ndarray
    """(D,) int64 target tokens seen."""

    def choose(
        self, *, keep: float, num_tokens: np.ndarray | None = None, kind: np.ndarray | None = None
    ) -> np.ndarray:
        """(D,) bool: the highest scores, until a share `keep` of the tokens is reached.

        num_tokens: (D,) tokens of each document (targets by default). kind: (D,) int; choose within each kind.
        Equal scores go to the lower index. Raises ValueError for a share outside (0, 1].
        """
        if not 0 < keep <= 1:
            raise ValueError(f"keep = {keep} must lie in (0, 1]: the share of the pool's tokens to keep")
        tokens = self.num_targets if num_tokens is None else np.asarray(num_tokens)
        kinds = np.zeros(len(self.document), dtype=np.int64) if kind is None else np.asarray(kind)
        kept = np.zeros(len(self.document), dtype=bool)
        for value in np.unique(kinds):
            member = np.flatnonzero(kinds == value)
            ordered = member[np.lexsort((self.document[member], -self.score[member]))]
            # a document is taken while what was taken before it falls short of the share
            before = np.cumsum(tokens[ordered]) - tokens[ordered]
            kept[ordered] = (before < keep * tokens[member].sum()) & np.isfinite(self.score[ordered])
        return kept

    def save(self, folder: Path, *, kept: np.ndarray, names: Sequence[str] | None = None) -> None:
        """Write `scores.npz` (arrays) and `selection.jsonl` (a line per document, saying why it was kept or not)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".scores.npz.tmp", "wb") as file:
            np.savez(
                file,
                document=self.document,
                score=self.score,
                num_learnable=self.num_learnable,
                num_targets=self.num_targets,
                kept=kept,
            )
        (folder / ".scores.npz.tmp").replace(folder / "scores.npz")
        with open(folder / ".selection.jsonl.tmp", "w", encoding="utf-8") as file:
            for i, document in enumerate(self.document):
                line = {
                    "document": int(document),
                    "id": names[i] if names is not None else None,
                    "score": float(self.score[i]) if np.isfinite(self.score[i]) else None,
                    "learnable": int(self.num_learnable[i]),
                    "targets": int(self.num_targets[i]),
                    "kept": bool(kept[i]),
                    "why": self.why(i, kept=bool(kept[i])),
                }
                file.write(json.dumps(line) + "\n")
        (folder / ".selection.jsonl.tmp").replace(folder / "selection.jsonl")

    def why(self, index: int, *, kept: bool) -> str:
        """One phrase: why this document was kept or left out."""
        if not np.isfinite(self.score[index]):
            return f"only {self.num_learnable[index]} learnable tokens of {self.num_targets[index]}"
        return "among the highest median losses" if kept else "easier than those kept"


def token_losses(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, top_k: int, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Loss of each token, and whether its target is among the `top_k` likeliest.

    hidden (N, E), weight (V, E), labels (N,) int64 with -100 for no target -> loss (N,) float32 (float64 for
    float64 input; 0 without target) and learnable (N,) bool (False without target). Of equal logits those at a lower id
    count as likelier, so exactly k ids are in the top k. Holds `chunk_tokens` rows of logits at a time.
    """
    if chunk_tokens is None:
        chunk_tokens = max(64, CHUNK_LOGITS // len(weight))
    wide = torch.promote_types(torch.float32, hidden.dtype)
    loss = torch.zeros(labels.shape, dtype=wide, device=hidden.device)
    learnable = torch.zeros(labels.shape, dtype=torch.bool, device=hidden.device)
    ids = torch.arange(len(weight), device=hidden.device)
    targets = (labels >= 0).nonzero().flatten()
    for start in range(0, len(targets), chunk_tokens):
        at = targets[start : start + chunk_tokens]
        label = labels[at][:, None]
        logits = (hidden[at] @ weight.to(hidden.dtype).T).to(wide)
        own = logits.gather(1, label)
        ahead = (logits > own) | ((logits == own) & (ids < label))
        loss[at] = (logits.logsumexp(-1, keepdim=True) - own).flatten()
        learnable[at] = ahead.sum(-1) < top_k
    # a model that has diverged tells nothing about any token
    return loss, learnable & loss.isfinite()


@torch.no_grad()
def score_documents(
    model: nn.Module,
    *,
    plan: Rows,
    batches: Iterable[Batch],
    top_k: int = 10,
    min_learnable: int = 4,
    compute_dtype: torch.dtype | None = None,
    ledger: Bill | None = None,
) -> Scores:
    """Score every document of the rows that `batches` deliver; each row of the plan once.

    A batch says in `rows` which rows of the plan it holds, -1 being padding; it goes to the device that the model is
    on. compute_dtype: of the matrix products, None for the weights' own. Costs a forward pass of `model`, billed to
    `scoring`. Raises ValueError where a row of a batch is shorter than its plan.
    """
    model.eval()
    device = device_of(model)
    losses: dict[int, list[np.ndarray]] = {}
    targets: dict[int, int] = {}
    for batch in batches:
        start_s = time.perf_counter()
        geometry, targets_BT = Geometry.of(batch, model), (batch.labels >= 0).numpy()
        flops = batch_flops(model, batch, geometry)
        batch, geometry = batch.to(device), geometry.to(device)
        with autocast(device, compute_dtype):
            hidden = model(
                batch.token_ids, batch.position, batch.segment, batch.block, batch.media, geometry=geometry
            ).flatten(0, 1)
            loss, learnable = token_losses(hidden, model.head_weight, batch.labels.flatten(), top_k=top_k)
        loss_BT = loss.double().view(batch.labels.shape).cpu().numpy()
        learnable_BT = learnable.view(batch.labels.shape).cpu().numpy()
        for b, row in enumerate(batch.rows):
            place = 0
            for document, start, stop, *_ in plan.row(row) if row >= 0 else ():
                piece = slice(place, place + stop - start)
                place = piece.stop
                if place > loss_BT.shape[1]:
                    raise ValueError(f"row {row} of the plan holds {place} tokens, its batch {loss_BT.shape[1]}")
                losses.setdefault(document, []).append(loss_BT[b, piece][learnable_BT[b, piece]])
                targets[document] = targets.get(document, 0) + int(targets_BT[b, piece].sum())
        if ledger is not None:
            ledger.bill("scoring", flops=flops, seconds=time.perf_counter() - start_s)
    return _medians(losses, targets, min_learnable)


def require_kept(kept: np.ndarray, *, min_learnable: int) -> None:
    """Raise ValueError, with the remedy, where a choice (D,) bool kept no document."""
    if not kept.any():
        raise ValueError(
            f"salt.selection keeps none of {len(kept):,} documents: none has salt.min_learnable = {min_learnable} "
            "tokens that the small model finds likely enough to be learned; give a lower --salt.min-learnable or a "
            "higher --salt.top-k, or leave selection out"
        )


def _medians(losses: dict[int, list[np.ndarray]], targets: dict[int, int], min_learnable: int) -> Scores:
    documents = sorted(losses)
    pieces = [np.concatenate(losses[document]) for document in documents]
    return Scores(
        document=np.asarray(documents, dtype=np.int64),
        score=np.asarray(
            [np.median(piece) if len(piece) >= min_learnable else -np.inf for piece in pieces], dtype=np.float64
        ),
        num_learnable=np.asarray([len(piece) for piece in pieces], dtype=np.int64),
        num_targets=np.asarray([targets[document] for document in documents], dtype=np.int64),
    )
