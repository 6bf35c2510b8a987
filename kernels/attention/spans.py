"""Spans: the one mask. Each query sees one half-open interval of keys, `lo[i] <= j < hi[i]`.

Causal attention, sliding windows, packed documents, padding and media blocks are all such intervals, whose ends are
non-decreasing along a sequence (README.md has the proof). A mask costs two int32 per query and is built in a few
vectorized passes over (B, S) ids. Backends keep what they derive from it under its id (`serial`), unless its kind is
"moving".

Spans made on the host and moved with `Spans.to` keep their host copy, so that kernels' questions (the most visible
keys, where documents begin) need no device sync; spans made on a device are fetched once, at the first question.

Legend: B batch, T queries, S keys, R chosen queries, C chosen keys.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from brine.kernels.attention.documents import VarlenDocuments, find_documents, to_device

KINDS = ("any", "causal", "window", "block", "moving")
"""What is known of a mask. "causal": packed documents. "window": the same with a sliding window. "block": media blocks
besides, with or without a window. "moving": lo and hi are advanced in place, as in static decoding, so that nothing
derived from them is kept. "any": all else, such as restricted spans, queries after a cache, and given lo and hi."""

_serials = itertools.count(1)


class MaskCache(dict):
    """What backends derived from one Spans, by name; lives as long as the Spans or a backend's short memory."""

    __slots__ = ("__weakref__",)


_derived: WeakValueDictionary[int, MaskCache] = WeakValueDictionary()

RECENT = 8  # masks whose cache outlives their Spans: the backward often runs when the model has dropped it
_recent: OrderedDict[int, MaskCache] = OrderedDict()


class Mask(NamedTuple):
    """A Spans as an op hands it to a backend."""

    lo: Tensor
    """(B, T) int32, first visible key."""
    hi: Tensor
    """(B, T) int32, one past the last visible key."""
    serial: int
    """Of the Spans."""

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return kind_of(self.serial)


class AttentionRequest(NamedTuple):
    """What a backend is asked for, beside q, k and v."""

    mask: Mask
    scale: float
    sink: Tensor | None = None
    """(H,), a logit that takes part in the softmax and has value 0."""
    partial: bool = False
    """The keys are some of those that queries see: results are float32 (float64 for float64 inputs), to be merged."""

    def result_dtype(self, q: Tensor) -> torch.dtype:
        """Of out and of the gradients."""
        return torch.promote_types(torch.float32, q.dtype) if self.partial else q.dtype


def cached_by_mask(serial: int, name: str, make: Callable[[], Any]) -> Any:
    """What a backend derives from the Spans with this serial (never reused, as addresses are), made once and kept.

    For a Spans that is long gone, or moving, `make` runs again.
    """
    if kind_of(serial) == "moving":
        return make()
    derived = _cache_of(serial)
    if derived is None:
        derived = MaskCache()
    if name not in derived:
        derived[name] = make()
    _recent[serial] = derived
    _recent.move_to_end(serial)
    if len(_recent) > RECENT:
        _recent.popitem(last=False)
    return derived[name]


def _cache_of(serial: int) -> MaskCache | None:
    derived = _recent.get(serial)
    return _derived.get(serial) if derived is None else derived


def kind_of(serial: int) -> str:
    """The kind of the Spans with this serial, one of `KINDS`: it is part of the number."""
    return KINDS[serial % len(KINDS)]


@dataclass(frozen=True)
class SpanStats:
    """Numbers about a mask that a launch depends on."""

    max_visible_keys: int
    """The most keys that a query sees."""
    area: int
    """Number of visible (query, key) pairs."""


def _known_host(serial: int) -> tuple[Tensor, Tensor] | None:
    """(lo, hi) on the host, if they are there without a device sync."""
    derived = _cache_of(serial)
    return None if derived is None else derived.get("host")


def span_stats(mask: Mask) -> SpanStats:
    """Numbers of a mask, from its host copy, else from lo and hi with one device sync. Kept."""

    def measure() -> SpanStats:
        lo, hi = _known_host(mask.serial) or (mask.lo, mask.hi)
        if not lo.numel():
            return SpanStats(0, 0)
        visible = hi - lo
        return SpanStats(*torch.stack((visible.amax().long(), visible.sum(dtype=torch.int64))).tolist())

    return cached_by_mask(mask.serial, "stats", measure)


def host_of(mask: Mask) -> tuple[Tensor, Tensor]:
    """lo and hi on the host, fetched with one device sync where they are not there. Kept."""
    if mask.lo.device.type == "cpu":
        return mask.lo, mask.hi
    return cached_by_mask(mask.serial, "host", lambda: tuple(torch.stack((mask.lo, mask.hi)).cpu()))


def documents_of(mask: Mask) -> VarlenDocuments:
    """The documents of a mask of kind "causal" or "window", on the device of lo; found on the host. Kept."""

    def find() -> VarlenDocuments:
        held = host_documents(mask.serial) or find_documents(host_of(mask)[0])
        return to_device(held, mask.lo.device)

    return cached_by_mask(mask.serial, "documents", find)


def host_documents(serial: int) -> VarlenDocuments | None:
    """The same on the host; None where that would need a device sync."""
    host = _known_host(serial)
    return None if host is None else cached_by_mask(serial, "documents on the host", lambda: find_documents(host[0]))


@dataclass(frozen=True, eq=False)
class Spans:
    """Which keys each query sees: query (b, i) sees keys j with `lo[b, i] <= j < hi[b, i]`.

    Raises ValueError, with the query and its values, for an interval outside [0, num_keys], one that ends before it
    starts, and ends that decrease. Build it outside of compiled code, which takes Spans as an argument.
    """

    sharded: ClassVar[bool] = False
    """Whether the keys lie on several ranks (`brine.kernels.context_parallel.layout.ShardedSpans`)."""
    lo: Tensor
    """(B, T) int32, first visible key."""
    hi: Tensor
    """(B, T) int32, one past the last visible key; equal to `lo` for an empty query."""
    num_keys: int
    """S, the number of keys that `lo` and `hi` index."""
    _: KW_ONLY
    kind: str = "any"
    """What is known of the mask, one of `KINDS`; only makers that guarantee it may claim another than "any"."""
    valid: InitVar[bool] = False
    """True: lo and hi are right by construction. Nothing is checked, and there is no device sync."""
    serial: Tensor = field(init=False, repr=False)
    """() int64 on the CPU, unique in this process. A tensor, so that compiled code does not specialize on it."""
    derived: MaskCache = field(init=False, repr=False)
    """What backends keep with the mask."""

    def __post_init__(self, valid: bool) -> None:
        if self.kind not in KINDS or (self.kind != "any" and not valid):
            raise ValueError(f'kind {self.kind!r} cannot be claimed for spans given as lo and hi; leave it at "any"')
        if not valid:
            _validate(self.lo, self.hi, self.num_keys)
        # compiled code that builds a Spans must break here: a traced serial would be a constant
        if torch.compiler.is_compiling():
            self._register_uncompiled()
        else:
            self._register()

    # separate from `_register`, since the decorator imports the compiler (seconds) at its first call
    @torch._disable_dynamo
    def _register_uncompiled(self) -> None:
        self._register()

    def _register(self) -> None:
        serial, derived = next(_serials) * len(KINDS) + KINDS.index(self.kind), MaskCache()
        object.__setattr__(self, "serial", torch.tensor(serial, dtype=torch.int64, device="cpu"))
        object.__setattr__(self, "derived", derived)
        _derived[serial] = derived

    def __reduce__(self):
        # a copy, perhaps in another process, must get another serial
        return _rebuild, (type(self), {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init})

    @classmethod
    def packed(
        cls, document: Tensor, *, block: Tensor | None = None, window: int | None = None, num_queries: int | None = None
    ) -> Spans:
        """Spans of packed sequences: causal in a document, bidirectional in a media block, never past the window.

        document: (B, S) integer ids, a document being a maximal run of equal ids; negative ids are padding, each token
        a document of its own. block: (B, S) integer ids of media blocks, likewise runs, 0 where there is none.
        window: visible keys to each side at most, the query's among them; None for no limit. num_queries: T, keep the
        last T queries (after a cache of S - T keys). With `start`, `end` of the document and `block_end` of the block
        (i + 1 without one), query i sees `[max(start, i - window + 1), min(block_end, i + window, end))`.
        Raises ValueError for wrong shapes, dtypes or numbers.
        """
        _check_ids("document", document, None)
        if block is not None:
            _check_ids("block", block, document)
        if window is not None and (not isinstance(window, int) or window < 1):
            raise ValueError(f"window must be an int of at least 1, or None for no limit; got {window!r}")
        num_keys = document.shape[1]
        if num_queries is not None and not 0 <= num_queries <= num_keys:
            raise ValueError(f"num_queries must lie in [0, {num_keys}], the number of keys; got {num_queries}")

        if window is not None and window >= num_keys:
            window = None
        # on a device the question would be a sync
        if block is not None and block.device.type == "cpu" and not block.any():
            block = None
        index = torch.arange(num_keys, device=document.device, dtype=torch.int32).expand(document.shape)
        start, end = _run_ends(document, index, singletons=document < 0)
        lo, hi = start, index + 1
        if block is not None:
            _, block_end = _run_ends(block, index, singletons=block == 0)
            hi = torch.minimum(block_end, end)
        if window is not None:
            lo = torch.maximum(lo, index - (window - 1))
            hi = torch.minimum(hi, index + window)
        kind = "block" if block is not None else "causal" if window is None else "window"
        if num_queries is not None and num_queries < num_keys:
            lo, hi, kind = lo[:, num_keys - num_queries :], hi[:, num_keys - num_queries :], "any"
        return cls(lo.contiguous(), hi.contiguous(), num_keys, kind=kind, valid=True)

    @property
    def mask(self) -> Mask:
        """As backends take it."""
        return Mask(self.lo, self.hi, int(self.serial))

    @property
    def batch_size(self) -> int:
        """B."""
        return self.lo.shape[0]

    @property
    def num_queries(self) -> int:
        """T."""
        return self.lo.shape[1]

    def restrict(self, queries: Tensor | range, keys: Tensor | range) -> Spans:
        """The same mask between chosen queries and chosen keys, renumbered from 0; queries may become empty.

        queries: (R,) or (B, R) indices among the T; keys: (C,) or (B, C) indices among the S; both strictly ascending.
        -> Spans of (B, R) queries over C keys. Raises ValueError for indices out of order or range.
        """
        queries = _ascending("queries", queries, self.num_queries, self)
        keys = _ascending("keys", keys, self.num_keys, self).contiguous()
        # among ascending keys those in [lo, hi) are the ones from the first >= lo to before the first >= hi
        ends = [torch.searchsorted(keys, end.long().gather(1, queries)).int() for end in (self.lo, self.hi)]
        return Spans(ends[0], ends[1], keys.shape[1], valid=True)

    def area(self) -> int:
        """Number of visible (query, key) pairs: what an exact kernel has to compute per head."""
        return span_stats(self.mask).area

    def host(self) -> tuple[Tensor, Tensor]:
        """(lo, hi) on the host, without a device sync where the spans came from there."""
        return host_of(self.mask)

    def dense(self) -> Tensor:
        """(B, T, S) bool, True where a query sees a key. For references, tests and figures: T * S memory."""
        key = torch.arange(self.num_keys, device=self.lo.device)
        return (key >= self.lo[..., None]) & (key < self.hi[..., None])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Spans:
        """The same spans on another device, with their host copy kept; non_blocking: pinned first where need be."""
        device = torch.device(device)
        if device.type == "cpu":
            return self._with(*self.host())
        lo, hi = self.lo, self.hi
        if non_blocking and device.type == "cuda" and lo.device.type == "cpu":
            lo, hi = lo.pin_memory(), hi.pin_memory()
        return self._with(lo.to(device, non_blocking=non_blocking), hi.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Spans:
        """The same spans in pinned memory; without a GPU, these."""
        if self.lo.device.type != "cpu" or not torch.accelerator.is_available():
            return self
        return self._with(self.lo.pin_memory(), self.hi.pin_memory())

    def _with(self, lo: Tensor, hi: Tensor) -> Spans:
        if lo is self.lo:
            return self
        other = dataclasses.replace(self, lo=lo, hi=hi, valid=True)
        if self.kind == "moving":
            return other
        known = {name: self.derived[name] for name in ("host", "stats") if name in self.derived}
        for spans in (self, other):
            if spans.lo.device.type == "cpu":
                known["host"] = (spans.lo, spans.hi)
        other.derived.update(known)
        return other


def _rebuild(cls: type[Spans], fields: dict[str, Any]) -> Spans:
    return cls(**fields, valid=True)


def _run_ends(ids: Tensor, index: Tensor, singletons: Tensor) -> tuple[Tensor, Tensor]:
    """(start, end) int32 of the maximal run of equal ids around each token; `singletons` are runs of one."""
    num = ids.shape[1]
    opens = torch.ones_like(singletons)
    opens[:, 1:] = (ids[:, 1:] != ids[:, :-1]) | singletons[:, 1:] | singletons[:, :-1]
    start = torch.where(opens, index, 0).cummax(dim=1).values
    closes = torch.ones_like(singletons)
    closes[:, :-1] = opens[:, 1:]
    end = torch.where(closes, index + 1, num).flip(1).cummin(dim=1).values.flip(1)
    return start, end


def _check_ids(name: str, ids: Tensor, like: Tensor | None) -> None:
    if ids.dim() != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be (B, S) integer ids; got shape {tuple(ids.shape)} of {ids.dtype}")
    if like is not None and ids.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, but document has {tuple(like.shape)}")


def _ascending(name: str, index: Tensor | range, size: int, spans: Spans) -> Tensor:
    """-> (B, n) int64 on the device of the spans, checked to be strictly ascending in [0, size) where they lie."""
    if isinstance(index, range):
        index = torch.arange(index.start, index.stop, index.step)
    if index.dtype == torch.bool or index.is_floating_point() or index.dim() not in (1, 2):
        raise ValueError(f"{name} must be (n,) or (B, n) integer indices; got {tuple(index.shape)} of {index.dtype}")
    index = index.to(dtype=torch.int64)
    if index.dim() == 2 and index.shape[0] != spans.batch_size:
        raise ValueError(f"{name} has batch size {index.shape[0]}, but the spans are a batch of {spans.batch_size}")
    index = index if index.dim() == 2 else index[None]
    wrong = (index < 0) | (index >= size)
    wrong[:, 1:] |= index[:, 1:] <= index[:, :-1]
    if wrong.any():
        b, i = wrong.nonzero()[0].tolist()
        before = index[b, i - 1].item() if i else "nothing"
        raise ValueError(
            f"{name} must be strictly ascending and lie in [0, {size}); "
            f"batch {b}, index {i} is {index[b, i].item()} after {before}"
        )
    return index.to(spans.lo.device).expand(spans.batch_size, -1)


def _validate(lo: Tensor, hi: Tensor, num_keys: int) -> None:
    for name, end in (("lo", lo), ("hi", hi)):
        if end.dim() != 2 or end.dtype != torch.int32:
            raise ValueError(f"{name} must be (B, T) int32; got {tuple(end.shape)} of {end.dtype}")
    if lo.shape != hi.shape or lo.device != hi.device:
        raise ValueError(f"lo is {tuple(lo.shape)} on {lo.device}, but hi is {tuple(hi.shape)} on {hi.device}")
    if not 0 <= num_keys < 2**31:
        raise ValueError(f"num_keys must lie in [0, 2**31), as the spans are int32; got {num_keys}")
    wrong = (lo < 0) | (lo > hi) | (hi > num_keys)
    falls = (lo[:, 1:] < lo[:, :-1]) | (hi[:, 1:] < hi[:, :-1])
    # one synchronisation for the usual, valid case
    if not bool(wrong.any() | falls.any()):
        return
    if wrong.any():
        b, i = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"query {i} of batch {b} sees [{lo[b, i].item()}, {hi[b, i].item()}), "
            f"which is not an interval inside the {num_keys} keys"
        )
    b, i = falls.nonzero()[0].tolist()
    raise ValueError(
        f"span ends must be non-decreasing: in batch {b}, query {i} sees [{lo[b, i].item()}, {hi[b, i].item()}) "
        f"but query {i + 1} sees [{lo[b, i + 1].item()}, {hi[b, i + 1].item()}); put queries in ascending order"
    )
