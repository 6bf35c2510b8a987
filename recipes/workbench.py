"""The long run on the workbench corpus: every kind at every level, in at most three hours on two cores.

The demo's shape made larger where it matters: all four levels, rows that hold a whole page, six layers with two global
ones among them (reading several lines takes a look across the picture and one back into the text), and four times the
tokens. More than half of the pictures' tokens are levels 2 and up. At least eight held-out documents stand in each
cell, so that every level has an interval; gains over all levels weigh the cells as the training mix does. One large
model, with SALT: what SALT itself is worth is asked in the demo, and `--arms salt baseline` asks it here, for half the
time again. Run it in the background; it saves every fifty steps.
"""

from __future__ import annotations

import dataclasses

from data.config import EncodeConfig
from data.workbench import Counts, WorkbenchConfig
from evals.config import EvalConfig, Targets
from model.config import ModelConfig
from recipes.demo import demo
from recipes.recipe import CorpusConfig, Recipe, RowsConfig

STEPS = 1150


def workbench() -> Recipe:
    """All kinds at all four levels, for three hours on two cores."""
    held_out = Counts(
        text=48, package=1, screenshot=(160, 80, 12, 8), narration=(160, 80, 24, 8), recording=(96, 40, 8, 8),
        page=(8, 8, 8, 8),
    )  # fmt: skip
    base = demo()
    shared = {"warmup_steps": 60, "rows_per_step": 8, "micro_rows": 8, "checkpoint_every": 50, "validate_every": 150}
    return dataclasses.replace(
        base,
        name="workbench",
        corpus=CorpusConfig(
            vocab_size=512,
            workbench=WorkbenchConfig(
                train=Counts(
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
        rows=RowsConfig(row_tokens=1536, image_budget=1280, audio_budget=1024, video_budget=1280),
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
            row_tokens=1536,
            targets=Targets(image_gain=0.6, audio_gain=0.3, video_gain=0.3, image_cer=0.2, audio_cer=0.4),
        ),
    )
