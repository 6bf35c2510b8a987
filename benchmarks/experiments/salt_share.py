"""For how long should the small model help? Soft labels in none, 0.3 or 0.7 of the large model's steps.

    uv run train.py benchmarks/experiments/salt_share_corpus.py --runs RUNS
    uv run brine suite make salt-share RUNS/salt-share-corpus --root RUNS/suites --per-cell 96
    uv run brine experiments run benchmarks/experiments/salt_share.py --runs RUNS --workers 2

The recipe `quick` with twice the steps and more held-out documents; the teacher's own training is billed to the two
settings with SALT.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from brine.experiments.experiment import Budget, Experiment, Listed, Seeds
from brine.pipeline.recipe import Recipe
from brine.recipes.quick import quick
from brine.synth import SynthCounts
from brine.training.config import RuntimeConfig


def recipe() -> Recipe:
    """`quick` with 280 steps, uncompiled, and 0.4k held-out documents a split."""
    base = quick()
    held_out = SynthCounts(
        text=24, screenshot=(240, 0, 0, 0), narration=(96, 0, 0, 0), recording=(64, 0, 0, 0), page=(4, 0, 0, 0)
    )
    synth = dataclasses.replace(base.corpus.synth, validation=held_out, test=held_out)
    large = dataclasses.replace(base.large, num_steps=280, checkpoint_every=140)
    return dataclasses.replace(
        base,
        name="salt-share",
        corpus=dataclasses.replace(base.corpus, synth=synth),
        large=large,
        arms=("baseline",),
        evals=dataclasses.replace(base.evals, transcripts_per_cell=0),
        runtime=RuntimeConfig(compile=False, device="cpu"),
    )


def salt_share() -> Experiment:
    """Three settings, three screening seeds, three confirmation seeds of the winner."""
    return Experiment(
        question="For how long should the small model's soft labels help, at equal steps of the large model?",
        expects="bits per byte fall by 0.01 to 0.05 with soft labels in 0.3 of the steps, less or not at all with 0.7",
        base=recipe(),
        axes=Listed([
            {"arms": ("baseline",)},
            {"arms": ("salt",), "salt.kd_fraction": 0.3},
            {"arms": ("salt",), "salt.kd_fraction": 0.7},
        ]),
        seeds=Seeds(screen=(0, 1, 2), confirm=(100, 101, 102)),
        budget=Budget(),
        suite=str(Path(os.environ.get("SALT_SHARE_SUITE", "runs/suites/salt-share@1"))),
    )  # fmt: skip
