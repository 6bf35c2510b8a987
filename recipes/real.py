"""Real recordings, images and pages from a manifest: spoken digits, sounds, handwriting, captions, illustrated books.

    uv run train.py real --corpus.manifest PATH       the documents are yours; without the option it stops and says so

One model without a teacher, in a quarter of an hour. The sources are tiny, so memorising limits it: the few classes
that can be learned from so little are seen tens of times, books and captions once or twice.
"""

from __future__ import annotations

import dataclasses

from brine.data.config import EncodeConfig
from brine.evals.config import EvalConfig, EvalTargets
from brine.model.config import ModelConfig
from brine.pipeline.recipe import MANIFEST_REQUIRED, CorpusConfig, PackingConfig, Recipe
from brine.recipes.demo import demo
from brine.training.config import TrainConfig


def real() -> Recipe:
    """Captioned media and Markdown pages from --corpus.manifest: one model, 15 minutes on two cores."""
    return dataclasses.replace(
        demo(),
        name="real",
        corpus=CorpusConfig(
            manifest=MANIFEST_REQUIRED,
            vocab_size=512,
            encode=EncodeConfig(max_image_tokens=128, max_video_tokens=512),
        ),
        packing=PackingConfig(
            seq_len=1024,
            image_budget=768,
            audio_budget=768,
            video_budget=512,
            # few-class sources many times, so that they weigh as much as the books do
            mixture=("kind:mnist=20", "kind:fsdd=20", "kind:esc10=10", "kind:nlvr=3", "kind:coco=3"),
        ),
        large=TrainConfig(
            model=ModelConfig(dim=192, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=48, mlp_dim=512, window=256),
            num_steps=500,
            global_batch_size=8,
            micro_batch_size=8,
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
            seq_len=1024,
            targets=EvalTargets(image_gain=None, audio_gain=None, video_gain=None, image_cer=None),
        ),
    )
