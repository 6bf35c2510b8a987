"""A GPT-2-small-sized model on your own corpus, for one machine with eight GPUs: 128M parameters, 2.6B tokens.

    uv run brine plan base --gpus 8 --gpu h100
    uv run torchrun --nproc-per-node 8 train.py base --corpus.manifest PATH --runtime.dp-shard 8

Twelve layers of width 768, two of them global, sequences of 8,192 tokens, 524,288 tokens a step, 20 tokens for each
parameter. The schedule is warmup-stable-decay, so that a run can be extended (`--extend`). On fewer GPUs gradients are
accumulated; the result is the same up to rounding. The sizes and the schedule are the usual ones; the whole run has not
been done.
"""

from __future__ import annotations

import dataclasses

from brine.evals.config import EvalConfig, EvalTargets
from brine.model.config import ModelConfig
from brine.pipeline.recipe import MANIFEST_REQUIRED, CorpusConfig, PackingConfig, Recipe
from brine.training.config import RuntimeConfig, TrainConfig

SEQ_LEN = 8192


def base() -> Recipe:
    """A 128M-parameter model on --corpus.manifest, 8,192 tokens a sequence, for one machine with eight GPUs."""
    large = TrainConfig(
        model=ModelConfig(
            dim=768, num_layers=12, num_heads=12, num_kv_heads=4, head_dim=64, mlp_dim=2048, window=1024, global_every=6
        ),
        num_steps=5000,
        global_batch_size=64,
        micro_batch_size=8,
        learning_rate=1e-3,
        warmup_steps=200,
        schedule="wsd",
        z_loss=1e-4,
        loss_spike_sigma=6.0,
        grad_norm_spike_factor=10.0,
        checkpoint_every=250,
        log_every=10,
        validate_every=250,
        seed=2,
    )
    # a teacher, for --arms salt baseline
    small = dataclasses.replace(
        large,
        model=ModelConfig(
            dim=384, num_layers=6, num_heads=6, num_kv_heads=2, head_dim=64, mlp_dim=1024, window=1024, global_every=6
        ),
        num_steps=2500,
        learning_rate=2e-3,
        seed=1,
    )
    return Recipe(
        name="base",
        corpus=CorpusConfig(manifest=MANIFEST_REQUIRED, vocab_size=32768),
        packing=PackingConfig(seq_len=SEQ_LEN, image_budget=4096, audio_budget=2048, video_budget=4096),
        small=small,
        large=large,
        arms=("baseline",),
        evals=EvalConfig(
            seq_len=SEQ_LEN, targets=EvalTargets(image_gain=None, audio_gain=None, video_gain=None, image_cer=None)
        ),
        runtime=RuntimeConfig(dtype="bfloat16"),
    )
