"""Spans: the one mask. Each query row sees one half-open interval of keys, `lo[i] <= j < hi[i]`.

Causal rows, sliding windows, packed documents, padding and media blocks that look at themselves in both directions
are all such intervals, and both ends never decrease along a row (README.md has the proof). So a mask costs two int32
per row, 8 MB at a million tokens, and every backend, the ring and decoding with a cache read the same two arrays.

Building is a handful of vectorised passes over (B, S) ids, cheap enough for every training step. A `Spans` cannot be
changed after it is made: backends keep what they derive from it (a tile plan, small masks) under its serial number.
It does not know heads, dtypes or devices other than where `lo` and `hi` lie.

Legend: B batch, T query rows, S keys, R chosen rows, C chosen keys.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_serials = itertools.count(1)


class Derived(dict):
    """What backends worked out from one Spans, by name; lives as long as the Spans or a backend's short memory."""

    __slots__ = ("__weakref__",)


_derived: WeakValueDictionary[int, Derived] = WeakValueDictionary()

RECENT = 8
"""Masks whose scratch is kept after their Spans is gone: the backward often runs when the model has dropped it."""
_recent: OrderedDict[int, Derived] = OrderedDict()


def recall(serial: int, name: str, make: Callable[[], Any]) -> Any:
    """What a backend derives from the Spans with this serial under `name`: made at the first call, then kept.

    Serials are never used twice, so one mask's scratch cannot be taken for another's, as it could by address. For a
    Spans that is long gone `make` runs again.
    """
    derived = _recent.get(serial)
    if derived is None:
        derived = _derived.get(serial)
    if derived is None:
        derived = Derived()
    if name not in derived:
        derived[name] = make()
    _recent[serial] = derived
    _recent.move_to_end(serial)
    if len(_recent) > RECENT:
        _recent.popitem(last=False)
    return derived[name]


@dataclass(frozen=True, eq=False)
class Spans:
    """Which keys each query row sees: row (b, i) sees keys j with `lo[b, i] <= j < hi[b, i]`.

    Raises ValueError, with the row and its values, when an interval leaves [0, num_keys], ends before it starts, or
    when `lo` or `hi` decreases along a row. Build outside of compiled code: a compiled function takes a Spans as an
    argument and sees another one at each call.
    """

    layout = None
    """How keys lie on ranks; None where all are here (`kernels.ring_attention.layout.ShardedSpans` has one)."""
    lo: Tensor
    """(B, T) int32, first key that the row sees."""
    hi: Tensor
    """(B, T) int32, one past the last key that the row sees; equal to `lo` for a row that sees nothing."""
    num_keys: int
    """S, the number of keys that `lo` and `hi` index."""
    serial: Tensor = field(init=False, repr=False)
    """() int64 on the CPU, unique to this Spans in this process. A tensor, so that compiled code takes it as an input
    and does not recompile when it changes."""
    derived: Derived = field(init=False, repr=False)
    """Scratch of the backends."""

    def __post_init__(self) -> None:
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
        serial, derived = next(_serials), Derived()
        object.__setattr__(self, "serial", torch.tensor(serial, dtype=torch.int64, device="cpu"))
        object.__setattr__(self, "derived", derived)
        _derived[serial] = derived

    def __reduce__(self):
        # a copy, perhaps in another process, must get a serial of its own
        return Spans, (self.lo, self.hi, self.num_keys)

    @classmethod
    def packed(
        cls,
        document: Tensor,
        *,
        block: Tensor | None = None,
        window: int | None = None,
        num_rows: int | None = None,
    ) -> Spans:
        """Spans of packed rows: causal inside a document, both ways inside a block, never past the window.

        A document or a block is a maximal run of equal ids. With `start`, `end` of row i's document and `block_end`
        of its block (i + 1 where it has none), row i sees `[max(start, i - window + 1), min(block_end, i + window,
        end))`.

        document: (B, S) integer ids; a negative id is padding, and each such row is a document of its own.
        block: (B, S) integer ids of media blocks, 0 where there is none.
        window: keys that a row sees at most to each side, itself included; None for no limit.
        num_rows: T, keep only the last T rows (queries that follow a cache of S - T keys); all S by default.
        Raises ValueError for wrong shapes, dtypes or numbers.
        """
        _check_ids("document", document, None)
        if block is not None:
            _check_ids("block", block, document)
        if window is not None and (not isinstance(window, int) or window < 1):
            raise ValueError(f"window must be an int of at least 1, or None for no limit; got {window!r}")
        num_keys = document.shape[1]
        if num_rows is not None and not 0 <= num_rows <= num_keys:
            raise ValueError(f"num_rows must lie in [0, {num_keys}], the number of keys; got {num_rows}")

        row = torch.arange(num_keys, device=document.device, dtype=torch.int32).expand(document.shape)
        start, end = _run_ends(document, row, alone=document < 0)
        lo, hi = start, row + 1
        if block is not None:
            _, block_end = _run_ends(block, row, alone=block == 0)
            hi = torch.minimum(block_end, end)
        if window is not None:
            lo = torch.maximum(lo, row - (window - 1))
            # a window near 2**31 would overflow int32; past num_keys it changes nothing
            hi = torch.minimum(hi, row + min(window, num_keys))
        if num_rows is not None:
            lo, hi = lo[:, num_keys - num_rows :], hi[:, num_keys - num_rows :]
        return cls(lo.contiguous(), hi.contiguous(), num_keys)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.lo.shape[0]

    @property
    def num_rows(self) -> int:
        """T."""
        return self.lo.shape[1]

    def onto(self, rows: Tensor | range, keys: Tensor | range) -> Spans:
        """The same mask between chosen rows and chosen keys, renumbered from 0; a row may end up seeing nothing.

        rows: (R,) or (B, R) indices into the T rows; keys: (C,) or (B, C) indices into the S keys; both strictly
        ascending. -> Spans of (B, R) rows over C keys. Raises ValueError for indices out of order or range.
        """
        rows = _ascending("rows", rows, self.num_rows, self)
        keys = _ascending("keys", keys, self.num_keys, self).contiguous()
        # among ascending keys those in [lo, hi) are the ones from the first >= lo to before the first >= hi
        ends = [torch.searchsorted(keys, end.long().gather(1, rows)).int() for end in (self.lo, self.hi)]
        return Spans(ends[0], ends[1], keys.shape[1])

    def area(self) -> int:
        """Number of (row, key) pairs that are seen: what an exact kernel has to compute per head."""
        return int((self.hi - self.lo).sum(dtype=torch.int64))

    def dense(self) -> Tensor:
        """(B, T, S) bool, True where a row sees a key. For references, tests and pictures: T * S memory."""
        key = torch.arange(self.num_keys, device=self.lo.device)
        return (key >= self.lo[..., None]) & (key < self.hi[..., None])

    def to(self, device: torch.device | str) -> Spans:
        """The same spans with `lo` and `hi` on another device."""
        if self.lo.device == torch.device(device):
            return self
        return Spans(self.lo.to(device), self.hi.to(device), self.num_keys)


def _run_ends(ids: Tensor, row: Tensor, alone: Tensor) -> tuple[Tensor, Tensor]:
    """(start, end) int32 of the maximal run of equal ids around each row; rows in `alone` are runs of one."""
    num = ids.shape[1]
    opens = torch.ones_like(alone)
    opens[:, 1:] = (ids[:, 1:] != ids[:, :-1]) | alone[:, 1:] | alone[:, :-1]
    start = torch.where(opens, row, 0).cummax(dim=1).values
    closes = torch.ones_like(alone)
    closes[:, :-1] = opens[:, 1:]
    end = torch.where(closes, row + 1, num).flip(1).cummin(dim=1).values.flip(1)
    return start, end


def _check_ids(name: str, ids: Tensor, like: Tensor | None) -> None:
    if ids.dim() != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be (B, S) integer ids; got shape {tuple(ids.shape)} of {ids.dtype}")
    if like is not None and ids.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, but document has {tuple(like.shape)}")


def _ascending(name: str, index: Tensor | range, size: int, spans: Spans) -> Tensor:
    """-> (B, n) int64, checked to be strictly ascending in [0, size)."""
    device = spans.lo.device
    if isinstance(index, range):
        index = torch.arange(index.start, index.stop, index.step, device=device)
    if index.dtype == torch.bool or index.is_floating_point() or index.dim() not in (1, 2):
        raise ValueError(f"{name} must be (n,) or (B, n) integer indices; got {tuple(index.shape)} of {index.dtype}")
    index = index.to(device=device, dtype=torch.int64)
    index = index.expand(spans.batch_size, -1) if index.dim() == 1 else index
    if index.shape[0] != spans.batch_size:
        raise ValueError(f"{name} has {index.shape[0]} rows, but the spans have a batch of {spans.batch_size}")
    wrong = (index < 0) | (index >= size)
    wrong[:, 1:] |= index[:, 1:] <= index[:, :-1]
    if wrong.any():
        b, i = wrong.nonzero()[0].tolist()
        before = index[b, i - 1].item() if i else "nothing"
        raise ValueError(
            f"{name} must be strictly ascending and lie in [0, {size}); "
            f"batch {b}, entry {i} is {index[b, i].item()} after {before}"
        )
    return index


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
