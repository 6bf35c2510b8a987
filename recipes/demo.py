"""Default recipe: all four modalities in a quarter of an hour on two cores.

A model of 1M parameters teaches one of 4M. Most of the data is level 1, since a model of this size learns to read
and listen there and nowhere else in the time. Both large models see the same 3.4M tokens in the same order.
"""

from __future__ import annotations

from brine.data.config import EncodeConfig
from brine.evals.config import EvalConfig
from brine.model.config import ModelConfig
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.salt.config import SaltConfig
from brine.synth import SynthConfig, SynthCounts
from brine.training.config import TrainConfig

STEPS = 420


def demo() -> Recipe:
    """All four modalities in 20 minutes on two cores: small model, large with SALT, large without, report."""
    held_out = SynthCounts(
        text=24, screenshot=(160, 24, 8, 0), narration=(160, 24, 8, 4), recording=(96, 12, 4, 0), page=(6, 2, 0, 0)
    )
    synth = SynthConfig(
        train=SynthCounts(
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
        global_batch_size=16,
        micro_batch_size=16,
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
        global_batch_size=16,
        micro_batch_size=16,
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
            vocab_size=384, synth=synth, encode=EncodeConfig(max_image_tokens=384, max_video_tokens=384)
        ),
        packing=PackingConfig(seq_len=512, image_budget=384, audio_budget=384, video_budget=384),
        small=small,
        large=large,
        salt=SaltConfig(),
        evals=EvalConfig(documents_per_cell=160, transcripts_per_cell=32, validation_per_cell=16, seq_len=512),
    )
