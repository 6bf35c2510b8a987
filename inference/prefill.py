"""Prefill of prompts of any length, in chunks that bound memory and that can be saved and resumed.

All but the last chunk need only keys and values, so there the last layer computes nothing else (`Transformer.prefill`).
Media blocks see themselves whole, so chunks end only between them. Of many prompts, those that fit together into one
chunk share a forward, padded on the left; longer ones are read alone. A chunk of 1,024 to 8,192 tokens is equally fast
per token on 2 CPU cores, so the default is the largest. B batch, S tokens of a prompt, E width.
"""

import functools
import json
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from brine.common.tensor_files import save_tensors
from brine.data.sequence import EncodedDocument
from brine.inference.cache import KeyValueCache
from brine.inference.prompt import batch_prompts
from brine.model.device import autocast, device_of, without_compilation
from brine.model.transformer import Transformer

PREFILL_TOKENS = 8192
"""Default tokens of a forward while a prompt is read, padding included."""
MAX_RESERVED_TOKENS = 4096
"""Maximum number of answer tokens to allocate ahead for, on devices where reserved memory is used memory."""

OnPrefill = Callable[[int], None]
"""Called after each forward with the number of prompt tokens that it read."""


@dataclass(frozen=True)
class PrefillResult:
    """Prompts in a cache, padded on the left. hidden: (B, E), for the first new token; position: (B,) float32, of the
    last token."""

    cache: KeyValueCache
    hidden: Tensor
    position: Tensor


def chunk_ends(block: np.ndarray, prefill_tokens: int) -> list[int]:
    """Where chunks end, ascending, the last at S: at most `prefill_tokens` apart, unless a media block is longer.

    block: (S,) ids, 0 outside media. Raises ValueError for a chunk of no tokens.
    """
    if prefill_tokens < 1:
        raise ValueError(f"prefill_tokens = {prefill_tokens}: give at least 1")
    total, ends = len(block), [0]
    inside = (block[1:] == block[:-1]) & (block[1:] != 0)
    free = np.append(np.flatnonzero(~inside) + 1, total)
    while ends[-1] < total:
        # the last free end within `prefill_tokens`, or where that is not ahead, the first one ahead
        last = np.searchsorted(free, ends[-1] + prefill_tokens, side="right") - 1
        ahead = np.searchsorted(free, ends[-1], side="right")
        ends.append(int(free[max(last, ahead)]))
    return ends[1:]


def num_reserved_tokens(max_tokens: int, device: torch.device) -> int:
    """Tokens of an answer to allocate for: all on a CPU, where pages that are never written take no memory."""
    return max_tokens if device.type == "cpu" else min(max_tokens, MAX_RESERVED_TOKENS)


def eager_inference(model: Transformer, compute_dtype: torch.dtype | None) -> AbstractContextManager:
    """Runs compiled blocks as they were written, and matmuls in `compute_dtype` (None: that of the weights)."""
    stack = ExitStack()
    stack.enter_context(without_compilation())
    if compute_dtype != model.head_weight.dtype:
        stack.enter_context(autocast(device_of(model), compute_dtype))
    return stack


class ChunkedPrefill:
    """One prompt being read, chunk by chunk."""

    def __init__(
        self, model: Transformer, prompt: EncodedDocument, *, prefill_tokens: int = PREFILL_TOKENS, max_tokens: int = 0,
        compute_dtype: torch.dtype | None = None, cache_only: bool = False,
    ):  # fmt: skip
        """max_tokens: new tokens to allocate for. compute_dtype: of matmuls, keys and values; None for
        the weights'. cache_only: compute no hidden state for the head, since another prompt follows this one. Raises
        ValueError for a prompt without tokens."""
        if not len(prompt):
            raise ValueError("the prompt holds no token: give a text that is not empty, or media")
        self.model = model
        self.prompt = prompt
        self.compute_dtype, self.cache_only = compute_dtype, cache_only
        self.ends = chunk_ends(prompt.block, prefill_tokens)
        self.cache = KeyValueCache(
            model.config, reserve=len(prompt) + num_reserved_tokens(max_tokens, device_of(model))
        )
        self.hidden: Tensor | None = None

    @property
    def num_prefilled(self) -> int:
        """Tokens read so far."""
        return self.cache.num_tokens

    @property
    def done(self) -> bool:
        """Whether the whole prompt is read."""
        return self.num_prefilled == len(self.prompt)

    @torch.no_grad()
    def prefill_chunk(self) -> int:
        """Read the next chunk -> its number of tokens, 0 when all is read."""
        if self.done:
            return 0
        start = self.num_prefilled
        stop = self.ends[np.searchsorted(self.ends, start, side="right")]
        inputs = batch_prompts([self.prompt.slice(start, stop)], device=device_of(self.model))
        with eager_inference(self.model, self.compute_dtype):
            if stop < len(self.prompt) or self.cache_only:
                self.model.prefill(inputs, cache=self.cache)
            else:
                self.hidden = self.model(inputs, cache=self.cache)[:, -1].clone()
        return stop - start

    def prefilled(self) -> PrefillResult:
        """The prompt in its cache. Raises ValueError before all chunks are read, and with `cache_only`."""
        if self.cache_only:
            raise ValueError("cache_only gives no hidden state: take `cache` and let a prompt follow")
        if not self.done:
            raise ValueError(
                f"{self.num_prefilled} of {len(self.prompt)} tokens are read: call prefill_chunk until it gives 0"
            )
        position = torch.tensor([float(self.prompt.position[-1].max())], device=self.hidden.device)
        return PrefillResult(self.cache, self.hidden, position)

    def save(self, path: str | Path) -> None:
        """Write the cache to a file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        tensors = {name: value.cpu().contiguous() for name, value in self.cache.state().items()}
        if self.hidden is not None:
            tensors["hidden"] = self.hidden.cpu()
        save_tensors(tensors, partial, metadata={"reading": json.dumps(self._identity)})
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)

    def resume(self, path: str | Path) -> None:
        """Continue where `save` left off, with bit-identical results at the same number of threads. Raises ValueError,
        naming the file, where it is broken or of another prompt, model, chunk length or dtype."""
        device = device_of(self.model)
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                saved = json.loads((file.metadata() or {}).get("reading", "{}"))
                if differs := [name for name, value in self._identity.items() if saved.get(name) != value]:
                    raise ValueError(f"{path} is of another {' and '.join(differs)}: delete it to start again")
                names = set(file.keys())
                # an earlier version wrote "document" for "segment"
                old = {"segment": "document"} if "document" in names else {}
                self.cache.load_state(lambda name: file.get_tensor(old.get(name, name)))
                self.hidden = file.get_tensor("hidden") if "hidden" in names else None
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is not a whole saved prefill ({error}): delete it to start again") from None

    @functools.cached_property
    def _identity(self) -> dict[str, object]:
        """What must be equal for a resumed prefill to be bit-identical."""
        weights = 0
        for value in self.model.state_dict().values():
            weights = zlib.crc32(value.detach().cpu().contiguous().view(torch.uint8).numpy(), weights)
        return {
            "model": [self.model.config.to_dict() | {"rope_sections": list(self.model.config.sections)}, weights],
            "prompt": [len(self.prompt), self.prompt.crc32()],
            "chunk length": self.ends,
            "dtype": str(self.compute_dtype or self.model.head_weight.dtype),
        }


def prefill_prompts(
    model: Transformer, prompts: Sequence[EncodedDocument], *, prefill_tokens: int = PREFILL_TOKENS,
    max_tokens: int = 0, compute_dtype: torch.dtype | None = None, on_prefill: OnPrefill = lambda num_tokens: None,
) -> PrefillResult:  # fmt: skip
    """Read many prompts, each as if alone, into one cache, allocated for `max_tokens` more. on_prefill: called after
    each forward with its number of prompt tokens. Raises ValueError for no prompt or one without tokens."""
    if not prompts:
        raise ValueError("there is no prompt: give at least one")
    reserve = max(map(len, prompts)) + num_reserved_tokens(max_tokens, device_of(model))
    results = []
    for group in group_prompts([len(prompt) for prompt in prompts], prefill_tokens):
        members = [prompts[number] for number in group]
        whole = len(members) == len(prompts)
        if len(members) == 1:
            prefill = ChunkedPrefill(
                model, members[0], prefill_tokens=prefill_tokens, compute_dtype=compute_dtype,
                max_tokens=reserve - len(members[0]) if whole else 0,
            )  # fmt: skip
            while num_tokens := prefill.prefill_chunk():
                on_prefill(num_tokens)
            results.append(prefill.prefilled())
        else:
            results.append(_prefill_group(model, members, reserve if whole else 0, compute_dtype))
            on_prefill(sum(map(len, members)))
    if len(results) == 1:
        return results[0]
    cache = KeyValueCache.merge([one.cache for one in results], reserve=reserve)
    return PrefillResult(
        cache, torch.cat([one.hidden for one in results]), torch.cat([one.position for one in results])
    )


def group_prompts(lengths: Sequence[int], prefill_tokens: int) -> list[list[int]]:
    """Numbers of neighbouring prompts that are read together: as many as fit into one chunk, padding included."""
    groups: list[list[int]] = []
    for number, length in enumerate(lengths):
        longest = max([length, *(lengths[other] for other in groups[-1])]) if groups else length
        if groups and longest * (len(groups[-1]) + 1) <= prefill_tokens:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


@torch.no_grad()
def _prefill_group(
    model: Transformer, prompts: Sequence[EncodedDocument], reserve: int, compute_dtype: torch.dtype | None
) -> PrefillResult:
    inputs = batch_prompts(prompts, device=device_of(model))
    cache = KeyValueCache(model.config, reserve=reserve)
    with eager_inference(model, compute_dtype):
        hidden = model(inputs, cache=cache)[:, -1].clone()
    # text after media has a position behind all of them, so the last token decides
    return PrefillResult(cache, hidden, inputs.position[:, -1].amax(-1))
