"""Any score as a filter: bounds on it, or the highest or lowest fraction of the documents or their tokens.

    ScoreThreshold("text_compression", low=0.2)                      a column that an earlier pass has left
    ScoreThreshold("loss", values=losses, keep_fraction=0.9, keep_end="lowest")      an array, kept as a column
    ScoreThreshold("salt", values=scatter(n, scores.document, scores.score), keep_fraction=0.5, by_tokens=True,
                   per_kind=True)

The last is SALT's selection (`brine.salt.selection`): the documents that an early small model finds hardest, until a
fraction of each kind's tokens is reached; of equal scores the lower document counts as higher, and -inf is never kept.
Documents without a score (NaN, or -1 in a whole-number column) are not inspected. Only the corpus's index is read.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from brine.data.filters.filter_context import FilterContext, FilterError, FilterResult, check_splits


@dataclass(frozen=True, eq=False)
class ScoreThreshold:
    """Keep documents by a score. Raises ValueError where the fields contradict each other."""

    column: str
    """Name of the score: a column of an earlier pass, or what `values` will be called."""
    values: np.ndarray | None = None
    """(n,) score of every document of the corpus, NaN for none; None takes the column."""
    low: float | None = None
    """Minimum score kept."""
    high: float | None = None
    """Greatest score kept."""
    keep_fraction: float | None = None
    """Fraction of the inspected documents to keep, in (0, 1], instead of bounds."""
    keep_end: str = "highest"
    """Which end `keep_fraction` keeps: "highest" or "lowest"."""
    per_kind: bool = False
    """Take the fraction within each kind, so that no kind is crowded out."""
    by_tokens: bool = False
    """The fraction is of tokens and not of documents."""
    kinds: tuple[str, ...] | None = None
    """Kinds inspected; None for all."""
    splits: tuple[str, ...] = ("train",)
    """Splits inspected."""
    prefix: ClassVar[str] = "threshold"

    def __post_init__(self):
        check_splits("ScoreThreshold", self.splits)
        bounds = self.low is not None or self.high is not None
        if bounds == (self.keep_fraction is not None):
            raise ValueError("Threshold needs either bounds (low, high) or keep_fraction, and not both")
        if None not in (self.low, self.high) and not self.low <= self.high:
            raise ValueError(f"ScoreThreshold.low = {self.low} is above high = {self.high}: nothing would be kept")
        if self.keep_fraction is not None and not 0 < self.keep_fraction <= 1:
            raise ValueError(f"ScoreThreshold.keep_fraction = {self.keep_fraction} must lie in (0, 1]")
        if self.keep_end not in ("highest", "lowest"):
            raise ValueError(f'ScoreThreshold.keep_end must be "highest" or "lowest", not {self.keep_end!r}')

    @property
    def name(self) -> str:
        """Of the filter pass."""
        return f"{self.prefix}_{self.column}"

    def apply(self, filter_context: FilterContext) -> FilterResult:
        """The values given become a column. Raises FilterError for a column that does not exist or another length."""
        score, columns = self._scores(filter_context)
        inspected = filter_context.select(splits=self.splits, kinds=self.kinds)
        inspected = inspected[~np.isnan(score[inspected])]
        if self.keep_fraction is None:
            reasons = self._outside(score, inspected)
        else:
            reasons = {}
            group = filter_context.corpus.kind[inspected] if self.per_kind else np.zeros(len(inspected), np.int64)
            for value in np.unique(group):
                reasons |= self._beyond(score, inspected[group == value], filter_context)
        return FilterResult(inspected, reasons, columns)

    def _scores(self, filter_context: FilterContext) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(n,) float64 scores, NaN for none, and the column to be written."""
        if self.values is None:
            column = filter_context.column(self.column)
            missing = column == -1 if column.dtype == np.int64 else np.isnan(column)
            return np.where(missing, np.nan, column.astype(np.float64)), {}
        values, count = np.asarray(self.values), filter_context.corpus.num_documents
        if values.shape != (count,) or values.dtype.kind not in "fiu":
            raise FilterError(
                f"ScoreThreshold.values must hold a number for each of {count} documents (NaN for none), not shape "
                f"{values.shape} of {values.dtype}: see brine.data.filters.threshold.scatter"
            )
        return values.astype(np.float64), {self.column: values.astype(np.float32)}

    def _outside(self, score: np.ndarray, inspected: np.ndarray) -> dict[int, str]:
        reasons = {}
        for number in inspected.tolist():
            value = score[number]
            if self.low is not None and value < self.low:
                reasons[number] = f"{self.column} of {value:.6g} is below {self.low:g}"
            elif self.high is not None and value > self.high:
                reasons[number] = f"{self.column} of {value:.6g} is above {self.high:g}"
        return reasons

    def _beyond(self, score: np.ndarray, group: np.ndarray, filter_context: FilterContext) -> dict[int, str]:
        corpus = filter_context.corpus
        best_first = -score[group] if self.keep_end == "highest" else score[group]
        order = np.lexsort((group, best_first))
        weight = corpus.num_tokens[group] if self.by_tokens else np.ones(len(group), np.int64)
        before = np.cumsum(weight[order]) - weight[order]
        # an infinity of the wrong sign says that there is nothing to learn
        kept = (before < self.keep_fraction * weight.sum()) & (best_first[order] < np.inf)
        worst = score[group[order[kept]]][-1] if kept.any() else np.nan
        what = f"the {self.keep_end} {self.keep_fraction:.1%} of {'tokens' if self.by_tokens else 'documents'}"
        what += f" of kind {corpus.kinds[corpus.kind[group[0]]]!r}" if self.per_kind else ""
        return {
            number: f"{self.column} of {score[number]:.6g} is not among {what} (which end at {worst:.6g})"
            for number in group[order[~kept]].tolist()
        }


def scatter(num_documents: int, document: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(n,) float64 scores of a whole corpus, NaN but where `score` (d,) is given for `document` (d,) int64."""
    values = np.full(num_documents, np.nan)
    values[np.asarray(document, dtype=np.int64)] = score
    return values
