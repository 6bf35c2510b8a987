"""The default run: all four kinds of material learned in a quarter of an hour on two cores.

A million parameters teach four million. Most of the material is level 1 (one line of code in a picture, one to three
spoken name parts, one typed line), since a model of this size learns to read and listen there and nowhere else in the
time; a little of levels 2 and 3 shows where it ends. Both large models see the same 3.4 million tokens in the same
rows. Every count is fixed, so the same machine makes the same weights.
"""

from __future__ import annotations

from data.config import EncodeConfig
from data.workbench import Counts, WorkbenchConfig
from evals.config import EvalConfig
from model.config import ModelConfig
from recipes.recipe import CorpusConfig, Recipe, RowsConfig
from salt.config import SaltConfig
from training.config import TrainConfig

STEPS = 420


def demo() -> Recipe:
    """All four kinds in 20 minutes on two cores: small model, large with SALT, large without, report."""
    held_out = Counts(
        text=24, screenshot=(160, 24, 8, 0), narration=(160, 24, 8, 4), recording=(96, 12, 4, 0), page=(6, 2, 0, 0)
    )
    workbench = WorkbenchConfig(
        train=Counts(
            text=70,
            screenshot=(26000, 700, 60, 0),
            narration=(5000, 300, 60, 40),
            recording=(3000, 100, 20, 0),
            page=(40, 10, 0, 0),
        ),
        validation=held_out,
        test=held_out,
    )
    small = TrainConfig(
        model=ModelConfig(dim=128, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=352, window=128),
        num_steps=240,
        rows_per_step=16,
        micro_rows=16,
        learning_rate=4e-3,
        warmup_steps=30,
        checkpoint_every=50,
        log_every=10,
        validate_every=80,
        seed=1,
    )
    large = TrainConfig(
        model=ModelConfig(dim=256, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=64, mlp_dim=704, window=128),
        num_steps=STEPS,
        rows_per_step=16,
        micro_rows=16,
        learning_rate=4e-3,
        warmup_steps=30,
        checkpoint_every=50,
        log_every=10,
        validate_every=70,
        seed=2,
    )
    return Recipe(
        name="demo",
        corpus=CorpusConfig(
            vocab_size=384, workbench=workbench, encode=EncodeConfig(max_image_tokens=384, max_video_tokens=384)
        ),
        rows=RowsConfig(row_tokens=512, image_budget=384, audio_budget=384, video_budget=384),
        small=small,
        large=large,
        salt=SaltConfig(),
        evals=EvalConfig(documents_per_cell=160, transcripts_per_cell=32, validation_per_cell=16, row_tokens=512),
    )
