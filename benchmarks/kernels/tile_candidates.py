"""Tiles of the Triton kernels that a sweep on a GPU times, beside those of the tables."""

from dataclasses import replace

from brine.kernels.attention.triton.tiles import TileConfig, tile_config_of

# for a sweep on sm_90, any mask: through pointers and descriptors, and those that only descriptors fit in registers
_BOTH = {
    ("fwd", 64): (
        TileConfig(128, 128, 8, 3), TileConfig(128, 128, 8, 2), TileConfig(128, 64, 8, 3), TileConfig(128, 64, 8, 2),
        TileConfig(128, 64, 4, 3), TileConfig(128, 64, 4, 2), TileConfig(64, 128, 4, 3), TileConfig(64, 64, 4, 3),
    ),
    ("fwd", 128): (
        TileConfig(128, 64, 8, 3), TileConfig(128, 64, 8, 2), TileConfig(128, 128, 8, 3), TileConfig(128, 128, 8, 2),
        TileConfig(64, 64, 4, 3), TileConfig(64, 64, 4, 2), TileConfig(64, 32, 4, 3),
    ),
    ("bwd_keys", 64): (
        TileConfig(64, 128, 8, 3), TileConfig(64, 128, 8, 2), TileConfig(64, 64, 4, 3), TileConfig(64, 64, 4, 2),
    ),
    ("bwd_keys", 128): (
        TileConfig(32, 128, 8, 2), TileConfig(32, 128, 8, 3), TileConfig(64, 128, 8, 2), TileConfig(64, 128, 8, 3),
    ),
    ("bwd_queries", 64): (
        TileConfig(128, 64, 8, 3), TileConfig(128, 64, 8, 2), TileConfig(128, 128, 8, 2), TileConfig(64, 64, 4, 3),
        TileConfig(64, 64, 4, 2),
    ),
    ("bwd_queries", 128): (
        TileConfig(128, 64, 8, 2), TileConfig(128, 64, 8, 3), TileConfig(64, 64, 4, 3), TileConfig(64, 64, 4, 2),
        TileConfig(64, 32, 4, 3), TileConfig(64, 32, 4, 2),
    ),
}  # fmt: skip
_ONLY_TMA = {
    ("fwd", 128): (TileConfig(64, 128, 4, 2),),
    ("bwd_keys", 64): (TileConfig(128, 128, 8, 2),),
    ("bwd_keys", 128): (TileConfig(64, 64, 4, 2), TileConfig(32, 64, 4, 3), TileConfig(32, 64, 4, 2)),
    ("bwd_queries", 64): (TileConfig(128, 64, 4, 2),),
    ("bwd_queries", 128): (TileConfig(128, 128, 8, 2),),
}


def candidates(name: str, dim: int, *, narrow: bool, capability: tuple[int, int]) -> list[TileConfig]:
    """Tiles worth timing for a pass in 16 bit, the table's first, as `compile_report --candidates` checks them.

    dim: BD. On architectures other than sm_90, and for dims that no list has, the table's alone.
    """
    found = [
        tile_config_of(name, dim, narrow=narrow, itemsize=2, capability=capability, tma=tma) for tma in (True, False)
    ]
    if capability[0] == 9:
        both = _BOTH.get((name, dim), ())
        found += [*_by_tma(*both, *_ONLY_TMA.get((name, dim), ())), *both]
    return list(dict.fromkeys(found))


def has_duplicate_warps(name: str, tile: TileConfig) -> bool:
    """Whether two warp groups of sm_90 would compute the same matmuls: Triton puts all warps of a chained matmul
    along its M side, 16 rows per warp."""
    return (tile.keys if name == "bwd_keys" else tile.rows) < 16 * tile.warps


def _by_tma(*tiles: TileConfig) -> tuple[TileConfig, ...]:
    return tuple(replace(tile, tma=True) for tile in tiles)
