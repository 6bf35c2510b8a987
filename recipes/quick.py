"""The first minutes: the whole pipeline in under three minutes on two cores, all four modalities, level 1 alone.

Very small models see 0.4 to 0.6 million tokens. That is enough to use what an image shows (the report gives the media
gain with its interval), and for little else: use `demo` for conclusions.
"""

from __future__ import annotations

from brine.data.config import EncodeConfig
from brine.evals.config import EvalConfig, EvalTargets
from brine.model.config import ModelConfig
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.salt.config import SaltConfig
from brine.synth import SynthConfig, SynthCounts
from brine.training.config import TrainConfig


def quick() -> Recipe:
    """All stages in three minutes on two cores, all four modalities: the first thing to run."""
    held_out = SynthCounts(
        text=8, screenshot=(48, 0, 0, 0), narration=(16, 0, 0, 0), recording=(12, 0, 0, 0), page=(2, 0, 0, 0)
    )
    train = SynthCounts(
        text=30, screenshot=(3000, 0, 0, 0), narration=(300, 0, 0, 0), recording=(200, 0, 0, 0), page=(6, 0, 0, 0)
    )
    synth = SynthConfig(train=train, validation=held_out, test=held_out, max_files=200)
    model = ModelConfig(dim=96, num_layers=2, num_heads=3, num_kv_heads=1, head_dim=32, mlp_dim=256, window=128)
    small = TrainConfig(
        model=model, num_steps=100, global_batch_size=16, micro_batch_size=16, learning_rate=6e-3, warmup_steps=10,
        checkpoint_every=50, validate_every=0, seed=1,
    )  # fmt: skip
    large = TrainConfig(
        model=ModelConfig(dim=128, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=352, window=128),
        num_steps=140, global_batch_size=16, micro_batch_size=16, learning_rate=6e-3, warmup_steps=10,
        checkpoint_every=70, validate_every=0, seed=2,
    )  # fmt: skip
    return Recipe(
        name="quick",
        corpus=CorpusConfig(
            vocab_size=320, synth=synth, encode=EncodeConfig(max_image_tokens=192, max_video_tokens=192)
        ),
        packing=PackingConfig(seq_len=256, image_budget=192, audio_budget=192, video_budget=192),
        small=small,
        large=large,
        salt=SaltConfig(),
        evals=EvalConfig(
            documents_per_cell=48,
            transcripts_per_cell=8,
            validation_per_cell=4,
            seq_len=256,
            targets=EvalTargets(image_gain=0.02, audio_gain=None, video_gain=None, image_cer=None),
        ),
    )
