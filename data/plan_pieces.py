"""A plan of rows that more rows do not change: for runs that may be made longer later.

`Plan.build` packs and shuffles all rows that it is asked for together, so the plan of a longer run is another one from
its first row on. Here rows are planned in pieces of whole epochs, as many as give `PIECE_ROWS` rows or one, whatever
number of rows is asked for; pieces are laid one after another, each with a seed of its own. So the rows of a shorter
plan are the first rows of a longer one.

Cost: all of a piece is planned though a run may use the beginning of it only; the few rows that stay open at the end of
a piece are not filled up by the next one; and documents of a weight below 1 are drawn anew in each piece. Weights that
change along the rows depend on how many there are, and cannot be planned like this.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from data.plan import Plan

PIECE_ROWS = 1024
"""Fewest rows of a piece; fewer waste more at its end."""


def plan_in_pieces(corpus, *, num_rows: int, seed: int = 0, **options) -> Plan:
    """As `Plan.build` with `num_rows`; options: its others, without `epochs`. Raises ValueError as it does."""
    epoch = Plan.build(corpus, epochs=1, seed=seed, **options)
    epochs = -(-PIECE_ROWS // max(1, len(epoch)))
    pieces = [epoch if epochs == 1 else Plan.build(corpus, epochs=epochs, seed=seed, **options)]
    while sum(map(len, pieces)) < num_rows:
        pieces.append(Plan.build(corpus, epochs=epochs, seed=_seed(seed, len(pieces)), **options))
    plan = _joined(pieces).rows(0, num_rows)
    # `rows` counts the lengths' rows anew from its first one, which is row 0 here
    info = {
        **pieces[0].info,
        "rows": len(plan),
        "fill": round(plan.fill, 6),
        "epochs_begun": sum(piece.info["epochs_begun"] for piece in pieces),
    }
    return dataclasses.replace(plan, info=info)


def same_beginning(one: Plan, other: Plan, *, num_rows: int) -> bool:
    """Are the first rows of two plans the same, with what attention sees of them?"""
    if num_rows > min(len(one), len(other)) or one.fingerprint != other.fingerprint:
        return False
    if any(one.segment_tokens(row) != other.segment_tokens(row) for row in _steps(one, other, num_rows)):
        return False
    first, second = one.rows(0, num_rows), other.rows(0, num_rows)
    names = ("document", "start", "stop", "blank", "offset")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def _steps(one: Plan, other: Plan, num_rows: int) -> list[int]:
    """Rows at which a length may change."""
    return [row for row in sorted({0, *(row for row, _ in (*one.lengths, *other.lengths))}) if row < num_rows]


def _seed(seed: int, piece: int) -> int:
    return int.from_bytes(hashlib.sha256(f"piece {piece} of {seed}".encode()).digest()[:4], "little") >> 1


def _joined(pieces: list[Plan]) -> Plan:
    arrays = {
        name: np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("document", "start", "stop", "blank")
    }
    before = np.cumsum([0, *(len(piece.document) for piece in pieces)])
    offset = [piece.offset[:-1] + start for piece, start in zip(pieces, before[:-1], strict=True)]
    return dataclasses.replace(pieces[0], **arrays, offset=np.concatenate([*offset, before[-1:]]))
