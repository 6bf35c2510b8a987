"""What is measured, on how much, and what it is held against.

Evaluation is billed to nobody and still has to fit the wall clock of the line, so every count here is a bound per
*cell*: the documents of one kind at one level. A cell that holds fewer gives all it has. Which documents are taken
depends on `seed` alone, so that two runs over one corpus, and the two arms of one run, are measured on the same ones.

`Targets` are the numbers that a recipe sets out to reach. They are printed beside the results and decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from data.deciding import aside
from data.document import SPLITS


@dataclass(frozen=True)
class Targets:
    """Numbers to reach; None where the recipe promises nothing. Raises ValueError outside [0, 1]."""

    image_gain: float | None = 0.4
    """Least media gain of pictures."""
    audio_gain: float | None = 0.1
    """Least media gain of sound."""
    video_gain: float | None = 0.1
    """Least media gain of film frames."""
    image_cer: float | None = 0.2
    """Largest character error rate of level-1 pictures."""
    audio_cer: float | None = None
    """Largest character error rate of level-1 narrations."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"targets.{field.name} = {value} must lie in [0, 1]; use none for no target")


@dataclass(frozen=True)
class EvalConfig:
    """How much is measured. Raises ValueError, telling the remedy, for counts that cannot work."""

    split: str = "test"
    """Held-out split that the final numbers come from; where it is empty, the other held-out split is used."""
    documents_per_cell: int = 64
    """Documents of each kind and level whose loss is measured."""
    transcripts_per_cell: int = 32
    """Documents of each kind and level that are transcribed greedily."""
    samples_per_cell: int = 2
    """Transcriptions of each kind and level that the report shows, with their media."""
    validation_per_cell: int = aside(16)
    """Documents of each kind and level of the validation split that are measured during training."""
    max_new_tokens: int = 320
    """Tokens after which a transcription is cut off; the reference is cut at the same length."""
    row_tokens: int = 2048
    """Tokens of one row of the packed forward pass; longer documents are spread over several rows."""
    rows_per_batch: int = 4
    """Rows of one forward pass."""
    decode_batch: int = 16
    """Documents that are transcribed together."""
    bootstrap_resamples: int = 2000
    """Resamples behind every interval."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    seed: int = 0
    """Chooses documents, partners for "another document's medium", and bootstrap resamples."""
    max_sample_mib: float = 2.0
    """Largest media file that the report carries within itself; larger ones are named but not shown."""
    max_report_mib: float = aside(16.0)
    """Media that the report carries in all."""
    targets: Targets = Targets()
    """What the results are held against."""

    def __post_init__(self):
        if self.split not in SPLITS or self.split == "train":
            raise ValueError(f"split = {self.split!r} is not held out: choose validation or test")
        for name in ("documents_per_cell", "validation_per_cell", "max_new_tokens", "row_tokens", "rows_per_batch",
                     "decode_batch"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        for name in ("transcripts_per_cell", "samples_per_cell", "max_sample_mib", "max_report_mib", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative; 0 turns it off")
        if self.bootstrap_resamples < 100:
            raise ValueError(
                f"bootstrap_resamples = {self.bootstrap_resamples} gives no interval worth its name: use 100 or more"
            )
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence = {self.confidence} must lie in [0.5, 1)")
