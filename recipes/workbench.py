"""The long run on the workbench corpus: every kind at every level, in at most three hours on two cores.

The demo's shape made larger where it matters: all four levels, rows that hold a whole page, six layers with one global
among them, and five times the tokens. Run it in the background; it saves every hundred steps.
"""

from __future__ import annotations

import dataclasses

from data.config import EncodeConfig
from data.workbench import Counts, WorkbenchConfig
from evals.config import EvalConfig, Targets
from model.config import ModelConfig
from recipes.demo import demo
from recipes.recipe import CorpusConfig, Recipe, RowsConfig

STEPS = 1200


def workbench() -> Recipe:
    """All kinds at all four levels, for three hours on two cores."""
    held_out = Counts(
        text=64,
        package=2,
        screenshot=(128, 64, 64, 48),
        narration=(128, 64, 64, 48),
        recording=(96, 48, 48, 32),
        page=(16, 8, 8, 8),
    )
    base = demo()
    shared = {"num_steps": STEPS, "warmup_steps": 60, "checkpoint_every": 100, "validate_every": 200, "log_every": 20}
    return dataclasses.replace(
        base,
        name="workbench",
        corpus=CorpusConfig(
            vocab_size=512,
            workbench=WorkbenchConfig(
                train=Counts(
                    text=1500,
                    package=20,
                    screenshot=(40000, 6000, 2000, 800),
                    narration=(20000, 6000, 3000, 1500),
                    recording=(10000, 2000, 800, 300),
                    page=(400, 200, 100, 60),
                ),
                validation=held_out,
                test=held_out,
            ),
            encode=EncodeConfig(max_image_tokens=768, max_video_tokens=1024),
        ),
        rows=RowsConfig(row_tokens=1536, image_budget=1280, audio_budget=1024, video_budget=1280),
        small=dataclasses.replace(
            base.small,
            model=ModelConfig(dim=160, num_layers=4, num_heads=5, num_kv_heads=5, head_dim=32, mlp_dim=432, window=192),
            rows_per_step=8,
            micro_rows=8,
            **shared,
        ),
        large=dataclasses.replace(
            base.large,
            model=ModelConfig(dim=288, num_layers=6, num_heads=6, num_kv_heads=2, head_dim=48, mlp_dim=768, window=192),
            rows_per_step=8,
            micro_rows=8,
            **shared,
        ),
        evals=EvalConfig(
            documents_per_cell=128,
            transcripts_per_cell=64,
            validation_per_cell=16,
            row_tokens=1536,
            targets=Targets(image_gain=0.6, audio_gain=0.3, video_gain=0.3, image_cer=0.2, audio_cer=0.4),
        ),
    )
