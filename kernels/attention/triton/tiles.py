"""Tile sizes of the Triton kernels, in tables.

A tile is chosen from a table over (pass, head dim, mask class, architecture) and nothing else, so that no length and no
packing compiles a kernel anew. The mask class is "narrow" where queries see few keys: large tiles would be mostly mask.
The tables were filled from compile reports (`python -m benchmarks.kernels.compile_report`) under Triton 3.6.0 and
3.7.1; no sweep has run. A sweep times its candidates (`benchmarks.kernels.tile_candidates`) under `override_tiles`.

Legend: BM queries and BN keys of a tile, BD = head dim rounded up to a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

PASSES = ("fwd", "bwd_keys", "bwd_queries")  # forward, dk and dv, dq
PADDED_ROWS = 128  # the backward's sums by query are padded to a multiple of this, the largest BM


@dataclass(frozen=True)
class TileConfig:
    """Tile and compiler options of one pass."""

    rows: int  # BM, queries of a tile
    keys: int  # BN, keys of a tile
    warps: int
    stages: int  # depth of the software pipeline: tiles of keys (or queries) in flight
    tma: bool = False
    """Whether tiles are read through tensor descriptors (sm_90 and newer), where the inputs' strides allow it."""

    def options(self) -> dict[str, int]:
        return {"BM": self.rows, "BN": self.keys, "num_warps": self.warps, "num_stages": self.stages}

    def __str__(self) -> str:
        return f"{self.rows}x{self.keys}-w{self.warps}-s{self.stages}" + ("-tma" if self.tma else "")


def _by_tma(*tiles: TileConfig) -> tuple[TileConfig, ...]:
    return tuple(replace(tile, tma=True) for tile in tiles)


# (pass, BD) -> (tile for wide masks, tile for narrow ones), 16-bit inputs
_HOPPER = {
    ("fwd", 32): (TileConfig(128, 128, 8, 3), TileConfig(64, 64, 4, 3)),
    ("fwd", 64): (TileConfig(128, 128, 8, 3), TileConfig(64, 64, 4, 3)),
    ("fwd", 128): (TileConfig(128, 64, 8, 3), TileConfig(64, 32, 4, 3)),
    ("fwd", 256): (TileConfig(128, 64, 8, 2), TileConfig(128, 32, 8, 2)),
    ("bwd_keys", 32): (TileConfig(64, 128, 8, 3), TileConfig(64, 64, 4, 3)),
    ("bwd_keys", 64): (TileConfig(64, 128, 8, 3), TileConfig(64, 64, 4, 3)),
    ("bwd_keys", 128): (TileConfig(32, 128, 8, 2), TileConfig(32, 128, 8, 2)),
    ("bwd_keys", 256): (TileConfig(32, 64, 8, 2), TileConfig(32, 64, 8, 2)),
    ("bwd_queries", 32): (TileConfig(128, 64, 8, 3), TileConfig(64, 64, 4, 3)),
    ("bwd_queries", 64): (TileConfig(128, 64, 8, 3), TileConfig(64, 64, 4, 3)),
    ("bwd_queries", 128): (TileConfig(128, 64, 8, 2), TileConfig(64, 32, 4, 2)),
    ("bwd_queries", 256): (TileConfig(128, 32, 8, 2), TileConfig(128, 32, 8, 2)),
}
# the same through tensor descriptors, which take fewer registers; what is absent here goes through pointers
_HOPPER_TMA = {
    ("fwd", 64): _by_tma(TileConfig(128, 128, 8, 3), TileConfig(64, 64, 4, 3)),
    ("fwd", 128): _by_tma(TileConfig(128, 64, 8, 3), TileConfig(64, 64, 4, 2)),
    ("fwd", 256): _by_tma(TileConfig(128, 64, 8, 2), TileConfig(128, 32, 8, 2)),
    ("bwd_keys", 64): _by_tma(TileConfig(64, 128, 8, 3), TileConfig(64, 64, 4, 3)),
    ("bwd_keys", 128): _by_tma(TileConfig(32, 128, 8, 2), TileConfig(32, 64, 4, 3)),
    ("bwd_keys", 256): _by_tma(TileConfig(32, 64, 8, 2), TileConfig(16, 64, 8, 3)),
    ("bwd_queries", 64): _by_tma(TileConfig(128, 64, 8, 3), TileConfig(64, 64, 4, 2)),
    ("bwd_queries", 128): _by_tma(TileConfig(128, 64, 8, 2), TileConfig(64, 32, 4, 3)),
    ("bwd_queries", 256): _by_tma(TileConfig(128, 32, 8, 2), TileConfig(64, 32, 4, 2)),
}
_AMPERE = _HOPPER | {
    ("fwd", 64): (TileConfig(128, 64, 8, 3), TileConfig(64, 64, 4, 3)),
    ("bwd_keys", 64): (TileConfig(64, 128, 8, 3), TileConfig(32, 64, 4, 3)),
    ("fwd", 128): (TileConfig(128, 32, 8, 2), TileConfig(64, 64, 4, 2)),
    ("fwd", 256): (TileConfig(64, 32, 8, 2), TileConfig(64, 32, 8, 2)),
    ("bwd_keys", 128): (TileConfig(32, 64, 8, 2), TileConfig(32, 64, 8, 2)),
    ("bwd_keys", 256): (TileConfig(32, 64, 8, 1), TileConfig(32, 64, 8, 1)),
    ("bwd_queries", 128): (TileConfig(64, 64, 8, 2), TileConfig(64, 32, 4, 2)),
    ("bwd_queries", 256): (TileConfig(64, 32, 8, 1), TileConfig(64, 32, 8, 1)),
}
_BLACKWELL = _HOPPER | {
    ("fwd", 128): (TileConfig(128, 64, 8, 3), TileConfig(64, 64, 4, 2)),
    ("fwd", 256): (TileConfig(128, 64, 8, 2), TileConfig(64, 64, 8, 2)),
    ("bwd_keys", 128): (TileConfig(64, 128, 8, 2), TileConfig(64, 64, 8, 2)),
    ("bwd_keys", 256): (TileConfig(32, 64, 8, 1), TileConfig(32, 64, 8, 1)),
    ("bwd_queries", 256): (TileConfig(64, 32, 8, 1), TileConfig(64, 32, 8, 1)),
}
TILES = {8: _AMPERE, 9: _HOPPER, 10: _BLACKWELL}  # by major compute capability; a newer one takes the last
# fp32 takes twice the shared memory and no tensor cores: small tiles, for any mask and GPU, up to D = 64 and above
_FP32 = {
    "fwd": (TileConfig(32, 32, 8, 1), TileConfig(32, 32, 8, 1)),
    "bwd_keys": (TileConfig(32, 32, 8, 1), TileConfig(16, 32, 8, 1)),
    "bwd_queries": (TileConfig(32, 32, 8, 1), TileConfig(16, 16, 8, 2)),
}
# set by `override_tiles`
_instead: dict[tuple[str, int, bool], TileConfig] = {}


def tile_config_of(
    name: str, dim: int, *, narrow: bool, itemsize: int, capability: tuple[int, int], tma: bool = True
) -> TileConfig:
    """The tile of a pass. dim: BD; itemsize: bytes of an input number; tma: whether descriptors can read the inputs."""
    if (name, dim, narrow) in _instead:
        return _instead[name, dim, narrow]
    if itemsize == 4:
        return _FP32[name][dim > 64]
    if tma and capability[0] == 9 and (name, dim) in _HOPPER_TMA:
        return _HOPPER_TMA[name, dim][narrow]
    return TILES[min(max(capability[0], min(TILES)), max(TILES))][name, max(dim, 32)][narrow]


@contextmanager
def override_tiles(tiles: Mapping[tuple[str, int, bool], TileConfig]) -> Iterator[None]:
    """Inside, (pass, BD, narrow) use these tiles; not thread-safe. ValueError for unknown passes and bad sizes."""
    for (name, _, _), tile in tiles.items():
        if name not in PASSES:
            raise ValueError(f"unknown pass {name!r}; choose one of {', '.join(PASSES)}")
        for size in (tile.rows, tile.keys):
            if size < 16 or size & (size - 1):
                raise ValueError(f"tiles are powers of two of at least 16; got {tile}")
        if tile.rows > PADDED_ROWS:
            raise ValueError(f"a tile has at most {PADDED_ROWS} queries, to which sums are padded; got {tile}")
    before = dict(_instead)
    _instead.update(tiles)
    try:
        yield
    finally:
        _instead.clear()
        _instead.update(before)
