"""The long run on the synthetic corpus: every kind at every level, in about an hour and a half on two cores.

Sequences that hold a whole page, six layers with two global ones, four times the demo's tokens, more than half of the
images' tokens at level 2 and up. At least eight held-out documents in each cell, so that every level has an interval.
One large model, with SALT; `--arms salt baseline` adds the comparison for half the time again.
"""

from __future__ import annotations

import dataclasses

from brine.data.config import EncodeConfig
from brine.evals.config import EvalConfig, EvalTargets
from brine.model.config import ModelConfig
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.recipes.demo import demo
from brine.synth import SynthConfig, SynthCounts

STEPS = 1150


def synth() -> Recipe:
    """All kinds at all four levels, in about an hour and a half on two cores."""
    held_out = SynthCounts(
        text=48, package=1, screenshot=(160, 80, 12, 8), narration=(160, 80, 24, 8), recording=(96, 40, 8, 8),
        page=(8, 8, 8, 8),
    )  # fmt: skip
    base = demo()
    shared = {
        "warmup_steps": 60,
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "checkpoint_every": 50,
        "validate_every": 150,
    }
    return dataclasses.replace(
        base,
        name="synth",
        corpus=CorpusConfig(
            vocab_size=512,
            synth=SynthConfig(
                train=SynthCounts(
                    text=450,
                    package=5,
                    screenshot=(60000, 24000, 2500, 400),
                    narration=(16000, 8000, 2400, 600),
                    recording=(10000, 3500, 500, 120),
                    page=(400, 150, 40, 20),
                ),
                validation=held_out,
                test=held_out,
            ),
            encode=EncodeConfig(max_image_tokens=768, max_video_tokens=1024),
        ),
        packing=PackingConfig(seq_len=1536, image_budget=1280, audio_budget=1024, video_budget=1280),
        small=dataclasses.replace(
            base.small,
            model=ModelConfig(
                dim=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=352, window=192, global_every=2
            ),
            num_steps=600,
            **shared,
        ),
        large=dataclasses.replace(
            base.large,
            model=ModelConfig(
                dim=256, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=64, mlp_dim=704, window=192, global_every=3
            ),
            num_steps=STEPS,
            learning_rate=3e-3,
            **shared,
        ),
        arms=("salt",),
        evals=EvalConfig(
            documents_per_cell=160,
            transcripts_per_cell=48,
            validation_per_cell=12,
            seq_len=1536,
            targets=EvalTargets(image_gain=0.6, audio_gain=0.3, video_gain=0.3, image_cer=0.2, audio_cer=0.4),
        ),
    )
