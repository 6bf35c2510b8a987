"""Paired bootstrap intervals of ratios of sums, over documents.

Losses of one document under two conditions are strongly correlated, and documents differ much in length. So whole
documents are resampled, both conditions together, and the statistic is a ratio of sums (each target token counts
once). The interval is the percentile interval (Efron 1979); on a handful of documents it is somewhat too narrow.
It does not cover the randomness of training, nor that documents of one source file resemble each other.

n documents, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A value with its interval; all three None where there was nothing to measure."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    num_documents: int = 0

    def to_dict(self, *, name: str = "value") -> dict[str, float | int | None]:
        """JSON form, the value under `name`."""
        return {name: self.value, "low": self.low, "high": self.high, "num_documents": self.num_documents}


def resample_counts(num_documents: int, *, num_resamples: int, seed: int) -> np.ndarray:
    """(R, n) int64: how often each document is drawn in each resample; each resample adds up to n."""
    generator = np.random.default_rng((seed, num_documents))
    return generator.multinomial(num_documents, np.full(num_documents, 1 / num_documents), size=num_resamples)


def ratio_interval(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    one_minus: bool = False,
) -> Interval:
    """sum(numerator) / sum(denominator), or 1 minus it, with its paired percentile interval over documents.

    numerator, denominator: (n,) float, paired. Documents whose denominator is 0 are left out. Raises ValueError when
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
    counts = resample_counts(count, num_resamples=num_resamples, seed=seed)
    ratios = (counts @ numerator) / (counts @ denominator)
    ratios = 1 - ratios if one_minus else ratios
    value = numerator.sum() / denominator.sum()
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return Interval(float(1 - value if one_minus else value), float(low), float(high), count)
