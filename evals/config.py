"""Settings of evaluation, targets, and the paired bootstrap intervals that every result has.

Every count is per *cell*: the documents of one kind at one level, chosen by `seed` alone, so that two runs over one
corpus are evaluated on the same ones. Whole documents are resampled, both conditions together, and the statistic is a
ratio of sums. The interval is the percentile interval (Efron 1979), somewhat too narrow on a handful of documents; it
does not cover the randomness of training, nor that documents of one source file resemble each other.
"""

from dataclasses import dataclass, fields

import numpy as np

from brine.common.config_fields import check_values, operational
from brine.data.document import SPLITS


@dataclass(frozen=True)
class Interval:
    """A value with its interval; all three None without data, low and high None with a single document."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    num_documents: int = 0

    def to_dict(self, *, name: str = "value") -> dict[str, float | int | None]:
        """JSON form, the value under `name`."""
        return {name: self.value, "low": self.low, "high": self.high, "num_documents": self.num_documents}


def ratio_interval(
    numerator: np.ndarray, denominator: np.ndarray, *, num_resamples: int = 2000, confidence: float = 0.95,
    seed: int = 0, one_minus: bool = False,
) -> Interval:  # fmt: skip
    """sum(numerator) / sum(denominator), or 1 minus it, with its paired percentile interval over documents.

    numerator, denominator: (n,) float, paired; documents whose denominator is 0 are left out. Raises ValueError when
    the two differ in length.
    """
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if numerator.shape != denominator.shape or numerator.ndim != 1:
        raise ValueError(f"paired documents need equal lengths, not {numerator.shape} and {denominator.shape}")
    keep = denominator != 0
    numerator, denominator = numerator[keep], denominator[keep]
    count = len(numerator)
    if not count or not (np.isfinite(numerator).all() and np.isfinite(denominator).all()):
        return Interval()
    value = numerator.sum() / denominator.sum()
    value = float(1 - value if one_minus else value)
    if count == 1:
        return Interval(value, num_documents=1)
    # (resamples, n): how often each document is sampled
    counts = np.random.default_rng((seed, count)).multinomial(count, np.full(count, 1 / count), size=num_resamples)
    ratios = (counts @ numerator) / (counts @ denominator)
    ratios = 1 - ratios if one_minus else ratios
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return Interval(value, float(low), float(high), count)


@dataclass(frozen=True)
class EvalTargets:
    """Targets of a recipe; None for none. Raises ValueError outside [0, 1]."""

    image_gain: float | None = 0.4
    """Minimum media gain of images."""
    audio_gain: float | None = 0.1
    """Minimum media gain of audio."""
    video_gain: float | None = 0.1
    """Minimum media gain of video frames."""
    image_cer: float | None = 0.2
    """Maximum character error rate of level-1 images."""
    audio_cer: float | None = None
    """Maximum character error rate of level-1 narrations."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"targets.{field.name} = {value} must lie in [0, 1]; use none for no target")


@dataclass(frozen=True)
class EvalConfig:
    """How much is evaluated. Raises ValueError for counts that cannot work."""

    split: str = "test"
    """Held-out split of the final numbers; where it is empty, the other held-out split is used."""
    documents_per_cell: int = 64
    """Documents of each kind and level whose loss is measured."""
    transcripts_per_cell: int = 32
    """Documents of each kind and level that are transcribed greedily."""
    samples_per_cell: int = 2
    """Transcriptions of each kind and level that the report shows, with their media."""
    validation_per_cell: int = operational(16)
    """Documents of each kind and level of the validation split that are measured during training."""
    max_new_tokens: int = 320
    """Maximum tokens of a transcription; the reference is cut at the same length."""
    seq_len: int = 2048
    """Tokens of a packed sequence; longer documents are split over several."""
    batch_size: int = 4
    """Packed sequences of one forward pass."""
    decode_batch_size: int = 16
    """Documents that are transcribed together."""
    bootstrap_resamples: int = 2000
    """Resamples of every interval."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    seed: int = 0
    """Seed of document choice, mismatched media and bootstrap resamples."""
    max_sample_mib: float = 2.0
    """Largest media file embedded in the report; larger ones are listed only."""
    max_report_mib: float = operational(16.0)
    """Media embedded in the report in all."""
    targets: EvalTargets = EvalTargets()
    """Targets that the results are compared with."""

    def __post_init__(self):
        if self.split not in SPLITS or self.split == "train":
            raise ValueError(f"split = {self.split!r} is not held out: choose validation or test")
        counts = "documents_per_cell validation_per_cell max_new_tokens seq_len batch_size decode_batch_size"
        check_values(self, counts, lambda value: value >= 1, "be at least 1")
        optional = "transcripts_per_cell samples_per_cell max_sample_mib max_report_mib seed"
        check_values(self, optional, lambda value: value >= 0, "not be negative; 0 turns it off")
        if self.bootstrap_resamples < 100:
            raise ValueError(f"bootstrap_resamples = {self.bootstrap_resamples} is too few: use 100 or more")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence = {self.confidence} must lie in [0.5, 1)")

    def interval(self, numerator: np.ndarray, denominator: np.ndarray, *, one_minus: bool = False) -> Interval:
        """`ratio_interval` with this configuration's resamples, confidence and seed."""
        return ratio_interval(
            numerator, denominator, num_resamples=self.bootstrap_resamples, confidence=self.confidence, seed=self.seed,
            one_minus=one_minus,
        )  # fmt: skip
