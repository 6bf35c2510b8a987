"""Rows of 16,384 tokens on a CPU: whole packages of source code, read with more and more of them in sight.

It shows the settings of long rows where anyone can run them. Documents are packages of up to 24 KiB (some 15,000
tokens), among tutorial pages and nearly as many tokens of the demo's pictures, speech and films, 1.8 times each.
Attention sees 2,048 tokens of a document at first, 8,192 from 40 % of the steps on, all of it for the last quarter; the
rotary base of global layers is that of the full length from the beginning. Six layers, five local and one global, the
layout that `long_1m` has; blocks are computed again in the backward pass and MLPs run over 2,048 tokens at a time, so a
row of 16,384 needs no more memory than the demo's short ones. The guard is on.
"""

from __future__ import annotations

import dataclasses

from data.workbench import Counts
from evals.config import EvalConfig, Targets
from model.config import ModelConfig
from recipes.demo import demo
from recipes.recipe import Recipe, RowsConfig
from training.config import RuntimeConfig, TrainConfig

ROW_TOKENS = 16384


def long_cpu() -> Recipe:
    """Rows of 16,384 tokens on a CPU, with everything that long rows need switched on."""
    base = demo()
    held_out = Counts(
        text=24, package=12, screenshot=(60, 24, 0, 0), narration=(60, 24, 0, 0), recording=(40, 0, 0, 0),
        page=(8, 4, 0, 0),
    )  # fmt: skip
    workbench = dataclasses.replace(
        base.corpus.workbench,
        train=Counts(
            text=60, package=130, screenshot=(24000, 300, 0, 0), narration=(6000, 200, 0, 0), recording=(3000, 0, 0, 0),
            page=(120, 60, 0, 0),
        ),
        validation=held_out,
        test=held_out,
        package_kib=24,
    )  # fmt: skip
    return dataclasses.replace(
        base,
        name="long_cpu",
        corpus=dataclasses.replace(base.corpus, workbench=workbench),
        rows=RowsConfig(
            row_tokens=ROW_TOKENS,
            image_budget=12288,
            audio_budget=8192,
            video_budget=8192,
            length_schedule=("0:2048", "0.4:8192", f"0.75:{ROW_TOKENS}"),
        ),
        large=TrainConfig(
            model=ModelConfig(
                dim=256,
                num_layers=6,
                num_heads=4,
                num_kv_heads=2,
                head_dim=64,
                mlp_dim=704,
                window=256,
                global_every=6,
                rope_theta_global=4_000_000.0,
            ),
            num_steps=300,
            rows_per_step=1,
            micro_rows=1,
            learning_rate=3e-3,
            warmup_steps=20,
            spike_sigma=6.0,
            explosion_factor=10.0,
            checkpoint_every=20,
            log_every=4,
            validate_every=80,
            seed=2,
        ),
        arms=("baseline",),
        evals=EvalConfig(
            documents_per_cell=60,
            transcripts_per_cell=8,
            validation_per_cell=8,
            row_tokens=ROW_TOKENS,
            targets=Targets(image_gain=None, audio_gain=None, video_gain=None, image_cer=None),
        ),
        runtime=RuntimeConfig(checkpointing="full", mlp_tile=2048),
    )
