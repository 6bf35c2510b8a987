"""A plan that more sequences do not change: for runs that may be made longer later.

`PackingPlan.build` packs and shuffles all sequences together, so the plan of a longer run differs from its first
sequence on. Here they are planned in blocks of whole epochs of at least `MIN_BLOCK_SEQUENCES`, each with its own
seed, so that a shorter plan is the beginning of a longer one. Cost: a whole block is planned though a run may use the
beginning of it only, sequences left open at the end of a block are not filled, and documents of a weight below 1 are
sampled anew in each block. Weights that change along the run cannot be planned like this.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from brine.data.packing.plan import CHUNK_ARRAYS, PackingPlan

MIN_BLOCK_SEQUENCES = 1024  # fewest sequences of a block; fewer waste more at its end


def build_extendable_plan(corpus, *, num_sequences: int, seed: int = 0, **options) -> PackingPlan:
    """As `PackingPlan.build` with `num_sequences`; options: its others, without `epochs`. Raises ValueError alike."""
    epoch = PackingPlan.build(corpus, epochs=1, seed=seed, **options)
    epochs = -(-MIN_BLOCK_SEQUENCES // max(1, len(epoch)))
    blocks = [epoch if epochs == 1 else PackingPlan.build(corpus, epochs=epochs, seed=seed, **options)]
    while sum(map(len, blocks)) < num_sequences:
        digest = hashlib.sha256(f"piece {len(blocks)} of {seed}".encode()).digest()
        block_seed = int.from_bytes(digest[:4], "little") >> 1
        blocks.append(PackingPlan.build(corpus, epochs=epochs, seed=block_seed, **options))
    arrays = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in CHUNK_ARRAYS}
    before = np.cumsum([0, *(len(block.document) for block in blocks)])
    offset = [block.offset[:-1] + start for block, start in zip(blocks, before[:-1], strict=True)]
    joined = dataclasses.replace(blocks[0], **arrays, offset=np.concatenate([*offset, before[-1:]]))
    plan = joined.slice(0, num_sequences)
    info = {
        **blocks[0].info,
        "sequences": len(plan),
        "packing_efficiency": round(plan.packing_efficiency, 6),
        "epochs_begun": sum(block.info["epochs_begun"] for block in blocks),
    }
    return dataclasses.replace(plan, info=info)


def same_prefix(one: PackingPlan, other: PackingPlan, *, num_sequences: int) -> bool:
    """Are the first sequences of two plans the same, with what attention sees of them?"""
    if num_sequences > min(len(one), len(other)) or one.fingerprint != other.fingerprint:
        return False
    steps = {0, *(number for number, _ in (*one.lengths, *other.lengths) if number < num_sequences)}
    if any(one.segment_tokens(number) != other.segment_tokens(number) for number in steps):
        return False
    first, second = one.slice(0, num_sequences), other.slice(0, num_sequences)
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in (*CHUNK_ARRAYS, "offset"))
