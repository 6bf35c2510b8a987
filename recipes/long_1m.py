"""Sequences of a million tokens: a 1B-parameter model, five local layers to a global one.

For GPUs; plan it first: `brine plan long_1m --gpus 1 --gpu h200`. The settings are what the planner finds for one
H200 in a machine of eight, and have not been run there. Give your corpus (`--corpus.manifest`): the
synthetic one is small. The rotary base of global layers grows with the length; the guard rolls back on spikes.
"""

from __future__ import annotations

import dataclasses

from brine.evals.config import EvalConfig
from brine.model.config import ModelConfig
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.recipes.demo import demo
from brine.training.config import RuntimeConfig, TrainConfig

SEQ_LEN = 2**20


def long_1m() -> Recipe:
    """A 1B-parameter model on sequences of 1,048,576 tokens, for one large GPU or many; not for a CPU."""
    base = demo()
    return dataclasses.replace(
        base,
        name="long_1m",
        corpus=CorpusConfig(vocab_size=32768, synth=base.corpus.synth),
        packing=PackingConfig(seq_len=SEQ_LEN, image_budget=131072, audio_budget=65536, video_budget=131072),
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
            global_batch_size=4,
            micro_batch_size=1,
            learning_rate=4e-4,
            warmup_steps=100,
            z_loss=1e-4,
            loss_spike_sigma=6.0,
            grad_norm_spike_factor=10.0,
            checkpoint_every=25,
            log_every=1,
            validate_every=200,
            seed=2,
        ),
        arms=("baseline",),
        evals=EvalConfig(seq_len=8192),
        runtime=RuntimeConfig(
            dtype="bfloat16", activation_checkpointing="offload", ac_group_size=5, mlp_tile_tokens=4096
        ),
    )
