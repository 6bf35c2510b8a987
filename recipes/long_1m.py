"""A million tokens to a row: a model of a thousand million parameters, five local layers to a global one.

For GPUs; on paper first: `python -m training.planner long_1m --gpus 1 --gpu h200`. The settings below are what the
planner finds for one H200 in a machine of eight, and they have not been run there (`python -m benchmarks.train_gpu` is
to do it). Rows of 1,048,576 tokens are mostly one long document or repository each; the workbench corpus is small for
that, so give a corpus of your own (`--corpus.manifest`).

The rotary base of global layers is raised with the length (2 pi times the base bounds the longest wavelength), local
layers keep theirs. The guard rolls back on a spike of the loss or an explosion of the gradient.
"""

from __future__ import annotations

import dataclasses

from evals.config import EvalConfig
from model.config import ModelConfig
from recipes.demo import demo
from recipes.recipe import CorpusConfig, Recipe, RowsConfig
from training.config import RuntimeConfig, TrainConfig

ROW_TOKENS = 2**20


def long_1m() -> Recipe:
    """A 1B model on rows of 1,048,576 tokens, for one large GPU or many; not for a CPU."""
    base = demo()
    return dataclasses.replace(
        base,
        name="long_1m",
        corpus=CorpusConfig(vocab_size=32768, workbench=base.corpus.workbench),
        rows=RowsConfig(row_tokens=ROW_TOKENS, image_budget=131072, audio_budget=65536, video_budget=131072),
        large=TrainConfig(
            model=ModelConfig(
                dim=1536,
                num_layers=30,
                num_heads=12,
                num_kv_heads=4,
                head_dim=128,
                mlp_dim=5120,
                window=1024,
                global_every=6,
                rope_theta_global=50_000_000.0,
            ),
            num_steps=2000,
            rows_per_step=4,
            micro_rows=1,
            learning_rate=4e-4,
            warmup_steps=100,
            z_loss=1e-4,
            spike_sigma=6.0,
            explosion_factor=10.0,
            checkpoint_every=25,
            log_every=1,
            validate_every=200,
            seed=2,
        ),
        arms=("baseline",),
        evals=EvalConfig(row_tokens=8192),
        runtime=RuntimeConfig(dtype="bfloat16", checkpointing="offload", checkpoint_layers=5, mlp_tile=4096),
    )
