"""A small model that finds things: keys and values in text, pictures, sounds and films, at 2,048 tokens.

A million parameters, four layers, learnt from documents full of facts and questions
(`data/workbench/needle_documents.py`), measured afterwards by `python -m evals.needle runs/needle` at 2,048 tokens
and at lengths that it never saw.

What made it learn (LOG.md has the numbers; single pilots, one seed):
- Documents of at most 64 tokens first, text alone. With two or three needles in sight half of the guesses are right and
  the way from there is downhill: looking up begins within 100 steps. With documents of 256 tokens, or with all
  modalities from the start, the loss stayed at that of a guessed digit for as long as was waited.
- Then pictures, sounds and films in such short documents: once the key is found, only reading is left to learn.
- Then longer documents, to 2,048 tokens; shorter ones never leave.
Chosen and not compared: heads of width 48 (queries and keys are normed, so a narrow head can hardly put its weight on
one key of thousands), a window of 32 for local layers, and global layers without positions (`rope_theta_global` so
large that only one frequency of each head still turns), so that no distance is new at sixteen times the length.

A byte-level tokenizer without merges, so that keys are always three tokens, whatever the source holds. Only answers are
targets: the model learns no language. One model, no SALT.
"""

from __future__ import annotations

from data.config import EncodeConfig
from data.workbench import Counts, WorkbenchConfig
from data.workbench.needle import MODALITIES
from data.workbench.needle_documents import LEVEL_TOKENS
from evals.config import EvalConfig, Targets
from model.config import ModelConfig
from recipes.recipe import CorpusConfig, Recipe, RowsConfig
from training.config import TrainConfig

STEPS = 1500
ROW_TOKENS = 2048
COUNTS = {
    "text": (3000, 700, 250, 220),
    "image": (5000, 800, 280, 240),
    "audio": (3500, 700, 250, 220),
    "video": (2500, 400, 140, 120),
    "chain": (3500, 700, 250, 220),
}
"""Documents of each modality and level (lengths up to 64, 256, 1,024, 2,048 tokens)."""
STAGES = (
    (0.00, 0.06, (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 0.0)),
    (0.07, 0.16, (1.0, 0.0, 0.0, 0.0), (0.2, 0.35, 0.25, 0.2, 0.0)),
    (0.17, 0.30, (0.7, 0.3, 0.0, 0.0), (0.15, 0.25, 0.2, 0.2, 0.2)),
    (0.31, 0.45, (0.25, 0.4, 0.35, 0.0), (0.18, 0.24, 0.2, 0.16, 0.22)),
    (0.46, 1.00, (0.1, 0.15, 0.25, 0.5), (0.2, 0.24, 0.2, 0.14, 0.22)),
)
"""The curriculum: from and to which progress, the tokens' shares of the four levels, and those of the modalities."""


def curriculum() -> tuple[str, ...]:
    """Schedules for `rows.mixture`: the weight of each kind and level that gives it its share of the tokens."""
    entries = []
    for place, modality in enumerate(MODALITIES):
        for level, count in enumerate(COUNTS[modality], start=1):
            # lengths are drawn from half of the longest on
            tokens = count * 0.75 * LEVEL_TOKENS[level]
            weights = [
                (at, 2e5 * levels[level - 1] * modalities[place] / tokens)
                for start, stop, levels, modalities in STAGES
                for at in (start, stop)
            ]
            points = ",".join(f"{at:g}:{weight:.4g}" for at, weight in weights)
            entries.append(f"kind:needle_{modality}/{level}={points}")
    return tuple(entries)


def needle() -> Recipe:
    """Finding text, drawn, spoken and filmed values at 2,048 tokens, in about half an hour on two cores."""
    held_out = Counts(**{f"needle_{name}": (8, 8, 4, 4) for name in MODALITIES})
    return Recipe(
        name="needle",
        corpus=CorpusConfig(
            vocab_size=267,
            workbench=WorkbenchConfig(
                train=Counts(**{f"needle_{name}": counts for name, counts in COUNTS.items()}),
                validation=held_out,
                test=held_out,
            ),
            encode=EncodeConfig(max_image_tokens=64, max_video_tokens=512, tubelet_frames=1),
        ),
        rows=RowsConfig(
            row_tokens=ROW_TOKENS,
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
            rows_per_step=2,
            micro_rows=2,
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
            row_tokens=ROW_TOKENS,
            targets=Targets(image_gain=None, audio_gain=None, video_gain=None, image_cer=None),
        ),
    )  # fmt: skip
