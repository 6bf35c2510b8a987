"""The masks that attention is measured under, from seeds in this file: everybody gets the same packing.

    causal       one document as long as the sequence
    window       the same, each query seeing 1,024 keys
    packed       documents of log-normal lengths (median 2,048, sigma 1, clipped to 64 .. 32,768)
    multimodal   the same documents, half of their tokens in image blocks of 256 to 1,024, each seen in both directions
    images512    documents of 512 tokens, each with such blocks
    decode       one query a sequence, which sees its own prompt: lengths between a quarter and all of the cache

Log-normal lengths are what text corpora have: most documents are short, and a few hold most of the (query, key) pairs.
Image blocks are placed wherever the sequence so far has less than its share of them and the document has space, with at
least one token between two of them, as boundary tokens lie there. The last document is cut where the sequence ends, so
it may be shorter than the clip.

Everything is made on the host in milliseconds a hundred thousand tokens. Nothing here is sampled from real data.

Legend: B batch, T queries, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brine.kernels.attention import Spans

SEED = 20260
WINDOW = 1024
DECODE_BATCH = 8
KINDS = ("causal", "window", "packed", "multimodal", "images512", "decode")


@dataclass(frozen=True)
class BenchmarkMask:
    """One mask with what an implementation that knows no spans needs to express it."""

    kind: str
    """One of `KINDS`."""
    spans: Spans
    """The mask itself."""
    lengths: tuple[int, ...]
    """Tokens of each document in order; of each prompt for "decode"."""
    window: int | None = None
    """Keys that a query sees, itself included; None for no limit."""
    blocks: bool = False
    """Are there blocks that look both ways?"""

    @property
    def share(self) -> float:
        """Visible (query, key) pairs as a share of all T x S of them."""
        return self.spans.area() / max(1, self.spans.lo.numel() * self.spans.num_keys)


def make_mask(
    kind: str, num_tokens: int, *, device: str = "cpu", window: int = WINDOW, seed: int = SEED
) -> BenchmarkMask:
    """The mask of a kind over sequences of `num_tokens` tokens (a cache of so many keys for "decode").

    Raises ValueError for a kind that is not in `KINDS`.
    """
    if kind == "decode":
        prompts = decode_prompts(num_tokens, seed=seed)
        hi = torch.tensor(prompts, dtype=torch.int32, device=device)[:, None]
        return BenchmarkMask(kind, Spans(torch.zeros_like(hi), hi, num_tokens), tuple(prompts))
    if kind in ("causal", "window"):
        lengths = [num_tokens]
    elif kind == "images512":
        lengths = [512] * (num_tokens // 512) + [num_tokens % 512] * bool(num_tokens % 512)
    elif kind in ("packed", "multimodal"):
        lengths = document_lengths(num_tokens, seed=seed)
    else:
        raise ValueError(f"unknown mask {kind!r}; choose one of {', '.join(KINDS)}")
    blocks = kind in ("multimodal", "images512")
    limit = window if kind == "window" else None
    spans = Spans.packed(
        document_ids(lengths).to(device),
        block=image_blocks(lengths, seed=seed).to(device) if blocks else None,
        window=limit,
    )
    return BenchmarkMask(kind, spans, tuple(lengths), window=limit, blocks=blocks)


def document_lengths(
    num_tokens: int, *, seed: int, median: float = 2048.0, sigma: float = 1.0, low: int = 64, high: int = 32768
) -> list[int]:
    """Lengths sampled from exp(N(ln median, sigma)), clipped to [low, high], that add up to `num_tokens`."""
    random = np.random.default_rng(seed)
    lengths, left = [], num_tokens
    while left > 0:
        drawn = int(np.clip(random.lognormal(np.log(median), sigma), low, high))
        lengths.append(min(drawn, left))
        left -= lengths[-1]
    return lengths


def image_blocks(lengths: list[int], *, seed: int, share: float = 0.5, low: int = 256, high: int = 1024) -> Tensor:
    """(1, T) int32 block ids, 0 outside: blocks of `low` to `high` tokens over about `share` of all tokens."""
    random = np.random.default_rng([seed, 1])
    block = torch.zeros(1, sum(lengths), dtype=torch.int32)
    start = covered = name = 0
    for length in lengths:
        at, end = start, start + length
        while at < end:
            if covered < share * (at + 1) and end - at > low:
                size = min(int(random.integers(low, high + 1)), end - at - 1)
                name += 1
                block[0, at + 1 : at + 1 + size] = name
                covered += size
                at += 1 + size
            else:
                at = min(end, at + int(random.integers(1, low)))
        start = end
    return block


def document_ids(lengths: list[int]) -> Tensor:
    """(1, T) int32 ids 0, 0, .., 1, 1, .. of packed documents."""
    sizes = torch.tensor(lengths)
    return torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(sizes)[None]


def decode_prompts(num_keys: int, *, seed: int, batch: int = DECODE_BATCH) -> list[int]:
    """Tokens that each of `batch` sequences has in a cache of `num_keys`: unequal, the longest fills it."""
    random = np.random.default_rng([seed, 2])
    prompts = random.integers(max(1, num_keys // 4), num_keys + 1, size=batch).tolist()
    prompts[-1] = num_keys
    return prompts
