"""A small retrieval model: keys and values in text, images, speech and video, at 2,048 tokens.

1M parameters, four layers, trained on documents of facts and questions (`synth/needles/needle.py`), evaluated by
`brine needle runs/needle` up to lengths it never saw. What made it learn (LOG.md has the numbers; single pilots):
documents of at most 64 tokens first, text alone, since with two or three needles in context retrieval begins within
100 steps; then the other modalities in such short documents; then longer documents, with shorter ones staying. Chosen
and not compared: heads of width 48, a window of 32, global layers without positions (`rope_theta_global`), a
byte-level tokenizer without merges. Only answers are targets. One model, no SALT.
"""

from __future__ import annotations

from brine.data.config import EncodeConfig
from brine.evals.config import EvalConfig, EvalTargets
from brine.model.config import ModelConfig
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.synth import SynthConfig, SynthCounts
from brine.synth.needles.needle import LEVEL_TOKENS, NEEDLE_MODALITIES
from brine.training.config import TrainConfig

STEPS = 1500
SEQ_LEN = 2048
DOCUMENT_COUNTS = {
    "text": (3000, 700, 250, 220),
    "image": (5000, 800, 280, 240),
    "audio": (3500, 700, 250, 220),
    "video": (2500, 400, 140, 120),
    "chain": (3500, 700, 250, 220),
}
"""Documents of each modality and level (lengths up to 64, 256, 1,024, 2,048 tokens)."""
CURRICULUM = (
    (0.00, 0.06, (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 0.0)),
    (0.07, 0.16, (1.0, 0.0, 0.0, 0.0), (0.2, 0.35, 0.25, 0.2, 0.0)),
    (0.17, 0.30, (0.7, 0.3, 0.0, 0.0), (0.15, 0.25, 0.2, 0.2, 0.2)),
    (0.31, 0.45, (0.25, 0.4, 0.35, 0.0), (0.18, 0.24, 0.2, 0.16, 0.22)),
    (0.46, 1.00, (0.1, 0.15, 0.25, 0.5), (0.2, 0.24, 0.2, 0.14, 0.22)),
)
"""The curriculum: from and to which progress, the tokens' shares of the four levels, and those of the modalities."""


def curriculum() -> tuple[str, ...]:
    """Schedules for `packing.mixture`: the weight of each kind and level that gives it its share of the tokens."""
    entries = []
    for index, modality in enumerate(NEEDLE_MODALITIES):
        for level, count in enumerate(DOCUMENT_COUNTS[modality], start=1):
            # lengths are sampled from half of the longest on
            tokens = count * 0.75 * LEVEL_TOKENS[level]
            weights = [
                (at, 2e5 * levels[level - 1] * modalities[index] / tokens)
                for start, stop, levels, modalities in CURRICULUM
                for at in (start, stop)
            ]
            points = ",".join(f"{at:g}:{weight:.4g}" for at, weight in weights)
            entries.append(f"kind:needle_{modality}/{level}={points}")
    return tuple(entries)


def needle() -> Recipe:
    """Needles in text, images, audio and video at 2,048 tokens, in 30 to 62 minutes on one core."""
    held_out = SynthCounts(**{f"needle_{name}": (8, 8, 4, 4) for name in NEEDLE_MODALITIES})
    return Recipe(
        name="needle",
        corpus=CorpusConfig(
            vocab_size=267,
            synth=SynthConfig(
                train=SynthCounts(**{f"needle_{name}": counts for name, counts in DOCUMENT_COUNTS.items()}),
                validation=held_out,
                test=held_out,
            ),
            encode=EncodeConfig(max_image_tokens=64, max_video_tokens=512, tubelet_frames=1),
        ),
        packing=PackingConfig(
            seq_len=SEQ_LEN,
            image_budget=320,
            audio_budget=1408,
            video_budget=1024,
            blank_fraction=0.0,
            mixture=curriculum(),
        ),
        large=TrainConfig(
            model=ModelConfig(
                dim=128, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=48, mlp_dim=352, window=32, global_every=2,
                rope_theta_global=1e300,
            ),
            num_steps=STEPS,
            global_batch_size=2,
            micro_batch_size=2,
            learning_rate=4e-3,
            warmup_steps=30,
            checkpoint_every=100,
            log_every=20,
            validate_every=500,
            seed=2,
        ),
        arms=("baseline",),
        evals=EvalConfig(
            documents_per_cell=8,
            transcripts_per_cell=0,
            validation_per_cell=4,
            seq_len=SEQ_LEN,
            targets=EvalTargets(image_gain=None, audio_gain=None, video_gain=None, image_cer=None),
        ),
    )  # fmt: skip
