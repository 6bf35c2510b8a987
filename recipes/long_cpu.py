"""Sequences of 16,384 tokens on a CPU: packages of source code, with everything that long sequences need switched on.

Attention sees 2,048 tokens of a document at first, 8,192 from 40 % of the steps on, all of it for the last quarter.
Blocks are recomputed and MLPs run over 2,048 tokens at a time, so memory is that of the demo. Six layers, five local
and one global, as in `long_1m`.
"""

from __future__ import annotations

import dataclasses

from brine.evals.config import EvalConfig, EvalTargets
from brine.model.config import ModelConfig
from brine.pipeline.recipe import PackingConfig, Recipe
from brine.recipes.demo import demo
from brine.synth import SynthCounts
from brine.training.config import RuntimeConfig, TrainConfig

SEQ_LEN = 16384


def long_cpu() -> Recipe:
    """Sequences of 16,384 tokens on a CPU, with everything that long sequences need switched on."""
    base = demo()
    held_out = SynthCounts(
        text=24, package=12, screenshot=(60, 24, 0, 0), narration=(60, 24, 0, 0), recording=(40, 0, 0, 0),
        page=(8, 4, 0, 0),
    )  # fmt: skip
    synth = dataclasses.replace(
        base.corpus.synth,
        train=SynthCounts(
            text=60, package=130, screenshot=(24000, 300, 0, 0), narration=(6000, 200, 0, 0), recording=(3000, 0, 0, 0),
            page=(120, 60, 0, 0),
        ),
        validation=held_out,
        test=held_out,
        package_text_kib=24,
    )  # fmt: skip
    return dataclasses.replace(
        base,
        name="long_cpu",
        corpus=dataclasses.replace(base.corpus, synth=synth),
        packing=PackingConfig(
            seq_len=SEQ_LEN,
            image_budget=12288,
            audio_budget=8192,
            video_budget=8192,
            length_schedule=("0:2048", "0.4:8192", f"0.75:{SEQ_LEN}"),
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
            global_batch_size=1,
            micro_batch_size=1,
            learning_rate=3e-3,
            warmup_steps=20,
            loss_spike_sigma=6.0,
            grad_norm_spike_factor=10.0,
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
            seq_len=SEQ_LEN,
            targets=EvalTargets(image_gain=None, audio_gain=None, video_gain=None, image_cer=None),
        ),
        runtime=RuntimeConfig(activation_checkpointing="full", mlp_tile_tokens=2048),
    )
