"""The corpus of `salt_share`, with a training of two steps: what its suite is made of."""

from __future__ import annotations

import dataclasses

from benchmarks.experiments.salt_share import recipe
from brine.pipeline.recipe import Recipe


def salt_share_corpus() -> Recipe:
    """The documents of `salt_share`."""
    base = recipe()
    large = dataclasses.replace(base.large, num_steps=2, warmup_steps=1, checkpoint_every=2)
    return dataclasses.replace(base, name="salt-share-corpus", large=large)
