"""What a plan's packed sequences are made of, in tokens: by modality, kind and source.

Counted by numpy over the plan's chunks; only documents that were split are read, for where their media lie.
"""

import numpy as np

from brine.data.document import MODALITIES
from brine.data.tokenizer import MEDIA_TOKEN_ID


def count_chunk_tokens(corpus, plan) -> np.ndarray:
    """(E, 4) int64 tokens of each chunk of a plan: text, image, audio, video."""
    media = np.stack([corpus.num_media[name][plan.document] for name in MODALITIES], axis=1).astype(np.int64)
    length = plan.stop.astype(np.int64) - plan.start
    part = np.flatnonzero(length < corpus.num_tokens[plan.document])
    part = part[media[part].any(axis=1)]
    # chunks of one document together, so that each is read once
    part = part[np.argsort(plan.document[part], kind="stable")]
    for chunks in np.split(part, np.flatnonzero(np.diff(plan.document[part])) + 1) if len(part) else ():
        ids = corpus.tokens(int(plan.document[chunks[0]])).token_ids
        for column, name in enumerate(MODALITIES):
            at = np.flatnonzero(ids == MEDIA_TOKEN_ID[name])
            media[chunks, column] = np.searchsorted(at, plan.stop[chunks]) - np.searchsorted(at, plan.start[chunks])
    return np.concatenate([(length - media.sum(axis=1))[:, None], media], axis=1)


def tokens_per_sequence(plan, chunk_tokens: np.ndarray) -> np.ndarray:
    """(R, 4) int64 tokens of each packed sequence by modality, from those of the chunks."""
    total = np.concatenate([np.zeros((1, chunk_tokens.shape[1]), np.int64), np.cumsum(chunk_tokens, axis=0)])
    return total[plan.offset[1:]] - total[plan.offset[:-1]]


def binned(tokens: np.ndarray, num_bins: int) -> np.ndarray:
    """(b, 4) tokens of at most `num_bins` equal parts of a plan, from those of its packed sequences."""
    edges = np.linspace(0, len(tokens), min(num_bins, len(tokens)) + 1).round().astype(np.int64)
    total = np.concatenate([np.zeros((1, tokens.shape[1]), np.int64), np.cumsum(tokens, axis=0)])
    return np.diff(total[edges], axis=0)


def realized_mixture(plan, corpus, num_bins: int) -> dict:
    """Shares of tokens, padding left out, in `num_bins` equal parts of a plan; see `PackingPlan.mixture`."""
    if plan.fingerprint != corpus.fingerprint:
        raise ValueError("this plan was made for another corpus (or another encoding): build the plan again")
    edges = np.linspace(0, len(plan), max(1, min(num_bins, len(plan))) + 1).round().astype(np.int64)
    at = np.searchsorted(plan.offset[edges[1:]], np.arange(len(plan.document)), side="right")
    length = (plan.stop - plan.start).astype(np.float64)
    total = np.maximum(np.bincount(at, length, minlength=len(edges) - 1), 1)

    def shares(names: list[str], which: np.ndarray) -> dict[str, list[float]]:
        table = np.bincount(which * len(total) + at, length, minlength=len(names) * len(total))
        return dict(zip(names, (table.reshape(len(names), -1) / total).round(6).tolist(), strict=True))

    media = count_chunk_tokens(corpus, plan)[:, 1:]
    modality = {name: np.bincount(at, media[:, column], len(total)) for column, name in enumerate(MODALITIES)}
    modality = {"text": total - sum(modality.values()), **modality}
    return {
        "sequences": edges.tolist(),
        "kind": shares(corpus.kinds, corpus.kind[plan.document].astype(np.int64)),
        "source": shares(corpus.sources, corpus.source[plan.document].astype(np.int64)),
        "modality": {name: (tokens / total).round(6).tolist() for name, tokens in modality.items()},
    }
