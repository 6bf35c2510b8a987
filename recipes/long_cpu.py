"""Rows of 16,384 tokens on a CPU: the demo's material and shape, packed into rows thirty-two times as long.

It shows the long-row settings where anyone can run them: blocks are computed again in the backward pass, MLPs run over
2,048 tokens at a time, and the rotary base of global layers is raised with the length. The guard is on. Six layers,
five local and one global, the layout that `long_1m` has.
"""

from __future__ import annotations

import dataclasses

from evals.config import EvalConfig
from model.config import ModelConfig
from recipes.demo import demo
from recipes.recipe import Recipe, RowsConfig
from training.config import RuntimeConfig, TrainConfig

ROW_TOKENS = 16384


def long_cpu() -> Recipe:
    """Rows of 16,384 tokens on a CPU, with everything that long rows need switched on."""
    base = demo()
    return dataclasses.replace(
        base,
        name="long_cpu",
        rows=RowsConfig(row_tokens=ROW_TOKENS, image_budget=12288, audio_budget=8192, video_budget=12288),
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
            num_steps=120,
            rows_per_step=2,
            micro_rows=1,
            learning_rate=3e-3,
            warmup_steps=15,
            spike_sigma=6.0,
            explosion_factor=10.0,
            checkpoint_every=20,
            log_every=2,
            validate_every=40,
            seed=2,
        ),
        arms=("baseline",),
        evals=EvalConfig(documents_per_cell=80, transcripts_per_cell=16, validation_per_cell=8, row_tokens=2048),
        runtime=RuntimeConfig(checkpointing="full", mlp_tile=2048),
    )
