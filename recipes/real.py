"""Real recordings, pictures and pages from a manifest: spoken digits, sounds, handwriting, captions, illustrated books.

One model, no teacher: this recipe shows that the line trains on anything with a manifest, in a quarter of an hour. The
sources are tiny (150 sounds of five seconds, 1,250 spoken digits), so what limits it is memorising, not time: the few
classes that can be learned from so little are passed over some tens of times, books and captions once or twice.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data.config import EncodeConfig
from evals.config import EvalConfig, Targets
from model.config import ModelConfig
from recipes.demo import demo
from recipes.recipe import CorpusConfig, Recipe, RowsConfig
from training.config import TrainConfig


def real() -> Recipe:
    """Captioned media and Markdown pages from --corpus.manifest: one model, 15 minutes on two cores."""
    return dataclasses.replace(
        demo(),
        name="real",
        corpus=CorpusConfig(
            manifest=Path("../shared/real/manifest.jsonl"),
            vocab_size=512,
            encode=EncodeConfig(max_image_tokens=128, max_video_tokens=512),
        ),
        rows=RowsConfig(
            row_tokens=1024,
            image_budget=768,
            audio_budget=768,
            video_budget=512,
            # few-class sources many times, so that they weigh as much as the books do
            kind_weights=(("mnist", 20.0), ("fsdd", 20.0), ("esc10", 10.0), ("nlvr", 3.0), ("coco", 3.0)),
        ),
        large=TrainConfig(
            model=ModelConfig(dim=192, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=48, mlp_dim=512, window=256),
            num_steps=500,
            rows_per_step=8,
            micro_rows=8,
            learning_rate=2e-3,
            weight_decay=0.3,
            warmup_steps=40,
            checkpoint_every=50,
            log_every=10,
            validate_every=100,
            seed=2,
        ),
        arms=("baseline",),
        evals=EvalConfig(
            documents_per_cell=400,
            transcripts_per_cell=24,
            validation_per_cell=24,
            row_tokens=1024,
            targets=Targets(image_gain=None, audio_gain=None, video_gain=None, image_cer=None),
        ),
    )
