"""Spans: the one mask. Each query row sees one half-open interval of keys, `lo[i] <= j < hi[i]`.

Causal rows, sliding windows, packed documents, padding and media blocks that look at themselves in both directions
are all such intervals, and both ends never decrease along a row (README.md has the proof). So a mask costs two int32
per row, 8 MB at a million tokens, and every backend, the ring and decoding with a cache read the same two arrays.

Building is a handful of vectorised passes over (B, S) ids, cheap enough for every training step. A `Spans` cannot be
changed after it is made, unless its kind says that it moves: backends keep what they derive from it (a tile plan, small
masks) under its serial number.
It does not know heads, dtypes or devices other than where `lo` and `hi` lie.

Nothing here waits for a device, but to check ends or indices that lie there and came from outside. Made from a batch's
ids on the host and moved with `Spans.to`, spans keep their host's copy, and what kernels must know as numbers (the most
keys that a row sees, where documents begin) is taken from it when it is first asked for. Spans made on a device have
none: there the first question waits once, and the answer is kept.

Legend: B batch, T query rows, S keys, R chosen rows, C chosen keys.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from brine.kernels.attention.documents import VarlenDocuments, find_documents, to_device

KINDS = ("any", "causal", "window", "block", "moving")
"""What is known of a mask when it is made. "causal": packed documents, each row sees its document up to itself.
"window": the same, up to a number of keys back. "block": media blocks besides, with or without a window. "any": all
else, as spans restricted to some rows or keys, rows after a cache, and spans given as lo and hi. "moving": any mask
whose lo and hi are advanced in place by their owner, as in static decoding: nothing derived from them is kept."""

_serials = itertools.count(1)


class MaskCache(dict):
    """What backends worked out from one Spans, by name; lives as long as the Spans or a backend's short memory."""

    __slots__ = ("__weakref__",)


_derived: WeakValueDictionary[int, MaskCache] = WeakValueDictionary()

RECENT = 8
"""Masks whose scratch is kept after their Spans is gone: the backward often runs when the model has dropped it."""
_recent: OrderedDict[int, MaskCache] = OrderedDict()


def cached_by_mask(serial: int, name: str, make: Callable[[], Any]) -> Any:
    """What a backend derives from the Spans with this serial under `name`: made at the first call, then kept.

    Serials are never used twice, so one mask's scratch cannot be taken for another's, as it could by address. For a
    Spans that is long gone `make` runs again, and for one that moves at every call.
    """
    if kind_of(serial) == "moving":
        return make()
    derived = _recent.get(serial)
    if derived is None:
        derived = _derived.get(serial)
    if derived is None:
        derived = MaskCache()
    if name not in derived:
        derived[name] = make()
    _recent[serial] = derived
    _recent.move_to_end(serial)
    if len(_recent) > RECENT:
        _recent.popitem(last=False)
    return derived[name]


def known(serial: int, name: str) -> Any:
    """What `cached_by_mask` has under `name`, or None where nothing has been made yet."""
    derived = _recent.get(serial)
    if derived is None:
        derived = _derived.get(serial)
    return None if derived is None else derived.get(name)


def kind_of(serial: int) -> str:
    """The kind of the Spans with this serial, one of `KINDS`. It is part of the number, and so never forgotten."""
    return KINDS[serial % len(KINDS)]


@dataclass(frozen=True)
class SpanStats:
    """Numbers about a mask that a launch depends on."""

    max_visible_keys: int
    """The most keys that a row sees."""
    area: int
    """Number of (row, key) pairs that are seen."""


def span_stats(serial: int, lo: Tensor, hi: Tensor) -> SpanStats:
    """The facts of the Spans with this serial, from its host's copy, else from lo and hi with one wait. Kept."""

    def measure() -> SpanStats:
        first, stop = known(serial, "host") or (lo, hi)
        if not first.numel():
            return SpanStats(0, 0)
        visible = stop - first
        return SpanStats(*torch.stack((visible.amax().long(), visible.sum(dtype=torch.int64))).tolist())

    return cached_by_mask(serial, "facts", measure)


def host_of(serial: int, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """lo and hi of the Spans with this serial on the host, fetched with one wait where they are not there. Kept."""
    if lo.device.type == "cpu":
        return lo, hi
    return cached_by_mask(serial, "host", lambda: tuple(torch.stack((lo, hi)).cpu()))


def documents_of(serial: int, lo: Tensor, hi: Tensor) -> VarlenDocuments:
    """The documents of the Spans with this serial, of kind "causal" or "window", on the device of lo. Kept.

    Found on the host; without its copy there, lo is fetched with one wait.
    """

    def find() -> VarlenDocuments:
        held = host_documents(serial) or find_documents(host_of(serial, lo, hi)[0])
        return to_device(held, lo.device)

    return cached_by_mask(serial, "documents", find)


def host_documents(serial: int) -> VarlenDocuments | None:
    """The same on the host, where spans on a device have their copy; None where the device would be waited for."""
    host = known(serial, "host")
    return None if host is None else cached_by_mask(serial, "documents on the host", lambda: find_documents(host[0]))


@dataclass(frozen=True, eq=False)
class Spans:
    """Which keys each query row sees: row (b, i) sees keys j with `lo[b, i] <= j < hi[b, i]`.

    Raises ValueError, with the row and its values, when an interval leaves [0, num_keys], ends before it starts, or
    when `lo` or `hi` decreases along a row. Build outside of compiled code: a compiled function takes a Spans as an
    argument and sees another one at each call.
    """

    layout = None
    """How keys lie on ranks; None where all are here (`brine.kernels.context_parallel.layout.ShardedSpans` has one)."""
    lo: Tensor
    """(B, T) int32, first key that the row sees."""
    hi: Tensor
    """(B, T) int32, one past the last key that the row sees; equal to `lo` for a row that sees nothing."""
    num_keys: int
    """S, the number of keys that `lo` and `hi` index."""
    _: KW_ONLY
    kind: str = "any"
    """What is known of the mask, one of `KINDS`; anything but "any" is for those who know that it is so."""
    valid: InitVar[bool] = False
    """True: lo and hi are right by construction. Nothing is checked, and no device waited for."""
    serial: Tensor = field(init=False, repr=False)
    """() int64 on the CPU, unique to this Spans in this process. A tensor, so that compiled code takes it as an input
    and does not recompile when it changes."""
    derived: MaskCache = field(init=False, repr=False)
    """Scratch of the backends."""

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

    # apart from `_register`, since the decorator imports the compiler (seconds) at its first call
    @torch._disable_dynamo
    def _register_uncompiled(self) -> None:
        self._register()

    def _register(self) -> None:
        serial, derived = next(_serials) * len(KINDS) + KINDS.index(self.kind), MaskCache()
        object.__setattr__(self, "serial", torch.tensor(serial, dtype=torch.int64, device="cpu"))
        object.__setattr__(self, "derived", derived)
        _derived[serial] = derived

    def __reduce__(self):
        # a copy, perhaps in another process, must get a serial of its own
        return _rebuild, (type(self), {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init})

    @classmethod
    def packed(
        cls,
        document: Tensor,
        *,
        block: Tensor | None = None,
        window: int | None = None,
        num_queries: int | None = None,
    ) -> Spans:
        """Spans of packed rows: causal inside a document, both ways inside a block, never past the window.

        A document or a block is a maximal run of equal ids. With `start`, `end` of row i's document and `block_end`
        of its block (i + 1 where it has none), row i sees `[max(start, i - window + 1), min(block_end, i + window,
        end))`.

        document: (B, S) integer ids; a negative id is padding, and each such row is a document of its own.
        block: (B, S) integer ids of media blocks, 0 where there is none.
        window: keys that a row sees at most to each side, itself included; None for no limit.
        num_queries: T, keep only the last T rows (queries that follow a cache of S - T keys); all S by default.
        The kind is as the arguments say. That blocks are all 0 is seen only on the host: a device would be waited for.
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
        if block is not None and block.device.type == "cpu" and not block.any():
            block = None
        row = torch.arange(num_keys, device=document.device, dtype=torch.int32).expand(document.shape)
        start, end = _run_ends(document, row, singletons=document < 0)
        lo, hi = start, row + 1
        if block is not None:
            _, block_end = _run_ends(block, row, singletons=block == 0)
            hi = torch.minimum(block_end, end)
        if window is not None:
            lo = torch.maximum(lo, row - (window - 1))
            hi = torch.minimum(hi, row + window)
        kind = "block" if block is not None else "causal" if window is None else "window"
        if num_queries is not None and num_queries < num_keys:
            lo, hi, kind = lo[:, num_keys - num_queries :], hi[:, num_keys - num_queries :], "any"
        return cls(lo.contiguous(), hi.contiguous(), num_keys, kind=kind, valid=True)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.lo.shape[0]

    @property
    def num_queries(self) -> int:
        """T."""
        return self.lo.shape[1]

    def restrict(self, rows: Tensor | range, keys: Tensor | range) -> Spans:
        """The same mask between chosen rows and chosen keys, renumbered from 0; a row may end up seeing nothing.

        rows: (R,) or (B, R) indices into the T rows; keys: (C,) or (B, C) indices into the S keys; both strictly
        ascending. -> Spans of (B, R) rows over C keys. Raises ValueError for indices out of order or range.
        """
        rows = _ascending("rows", rows, self.num_queries, self)
        keys = _ascending("keys", keys, self.num_keys, self).contiguous()
        # among ascending keys those in [lo, hi) are the ones from the first >= lo to before the first >= hi
        ends = [torch.searchsorted(keys, end.long().gather(1, rows)).int() for end in (self.lo, self.hi)]
        return Spans(ends[0], ends[1], keys.shape[1], valid=True)

    def area(self) -> int:
        """Number of (row, key) pairs that are seen: what an exact kernel has to compute per head."""
        return span_stats(int(self.serial), self.lo, self.hi).area

    def host(self) -> tuple[Tensor, Tensor]:
        """(lo, hi) on the host, without a wait where the spans came from there."""
        return host_of(int(self.serial), self.lo, self.hi)

    def dense(self) -> Tensor:
        """(B, T, S) bool, True where a row sees a key. For references, tests and images: T * S memory."""
        key = torch.arange(self.num_keys, device=self.lo.device)
        return (key >= self.lo[..., None]) & (key < self.hi[..., None])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Spans:
        """The same spans with `lo` and `hi` on another device, and their host's copy kept at hand.

        non_blocking: the copy to a GPU runs beside what follows; what is not pinned yet is pinned for it.
        """
        device = torch.device(device)
        if device.type == "cpu":
            return self._with(*self.host())
        lo, hi = self.lo, self.hi
        if non_blocking and device.type == "cuda" and lo.device.type == "cpu":
            lo, hi = lo.pin_memory(), hi.pin_memory()
        return self._with(lo.to(device, non_blocking=non_blocking), hi.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Spans:
        """The same spans in pinned memory, from where copies to a GPU run by themselves; without a GPU, these."""
        if self.lo.device.type != "cpu" or not torch.accelerator.is_available():
            return self
        return self._with(self.lo.pin_memory(), self.hi.pin_memory())

    def _with(self, lo: Tensor, hi: Tensor) -> Spans:
        """These spans as other tensors of the same values, with what is known of them."""
        if lo is self.lo:
            return self
        other = dataclasses.replace(self, lo=lo, hi=hi, valid=True)
        if self.kind == "moving":
            return other
        known = {name: self.derived[name] for name in ("host", "facts") if name in self.derived}
        for spans in (self, other):
            if spans.lo.device.type == "cpu":
                known["host"] = (spans.lo, spans.hi)
        other.derived.update(known)
        return other


def _rebuild(kind_of_spans: type[Spans], fields: dict[str, Any]) -> Spans:
    return kind_of_spans(**fields, valid=True)


def _run_ends(ids: Tensor, row: Tensor, singletons: Tensor) -> tuple[Tensor, Tensor]:
    """(start, end) int32 of the maximal run of equal ids around each row; rows in `singletons` are runs of one."""
    num = ids.shape[1]
    opens = torch.ones_like(singletons)
    opens[:, 1:] = (ids[:, 1:] != ids[:, :-1]) | singletons[:, 1:] | singletons[:, :-1]
    start = torch.where(opens, row, 0).cummax(dim=1).values
    closes = torch.ones_like(singletons)
    closes[:, :-1] = opens[:, 1:]
    end = torch.where(closes, row + 1, num).flip(1).cummin(dim=1).values.flip(1)
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
        raise ValueError(f"{name} has {index.shape[0]} rows, but the spans have a batch of {spans.batch_size}")
    rows = index if index.dim() == 2 else index[None]
    wrong = (rows < 0) | (rows >= size)
    wrong[:, 1:] |= rows[:, 1:] <= rows[:, :-1]
    if wrong.any():
        b, i = wrong.nonzero()[0].tolist()
        before = rows[b, i - 1].item() if i else "nothing"
        raise ValueError(
            f"{name} must be strictly ascending and lie in [0, {size}); "
            f"batch {b}, entry {i} is {rows[b, i].item()} after {before}"
        )
    return rows.to(spans.lo.device).expand(spans.batch_size, -1)


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
            f"row {i} of batch {b} sees [{lo[b, i].item()}, {hi[b, i].item()}), "
            f"which is no interval inside the {num_keys} keys"
        )
    b, i = falls.nonzero()[0].tolist()
    raise ValueError(
        f"spans must never decrease along a row: in batch {b}, row {i} sees [{lo[b, i].item()}, {hi[b, i].item()}) "
        f"but row {i + 1} sees [{lo[b, i + 1].item()}, {hi[b, i + 1].item()}); are the rows in ascending order?"
    )
