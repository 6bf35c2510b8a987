"""Any score as a filter: bounds on it, or the highest or lowest share of the documents or their tokens.

    Threshold("text_compression", low=0.2)                      a column that an earlier round has left
    Threshold("loss", values=losses, keep_share=0.9, end="lowest")      an array, kept as a column of this round
    Threshold("salt", values=scatter(n, scores.document, scores.score), keep_share=0.5, by_tokens=True, per_kind=True)

The last is SALT's selection: the documents that an early small model finds hardest (see `salt.select`), until a share
of each kind's tokens is reached. It keeps what `Scores.choose(keep=0.5, num_tokens=..., kind=...)` keeps: of equal
scores the lower document counts as higher, and a score of -inf is never kept.

Documents without a score (NaN, or -1 in a whole-number column) are not judged. Nothing is read from the corpus but its
index, so ten million documents take seconds.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.filters.pool import Pool, RoundError, Verdict, check_splits


@dataclass(frozen=True, eq=False)
class Threshold:
    """Keep documents by a score. Raises ValueError where the fields contradict each other."""

    column: str
    """Name of the score: a column of an earlier round, or what `values` will be called."""
    values: np.ndarray | None = None
    """(n,) score of every document of the corpus, NaN for none; None takes the column."""
    low: float | None = None
    """Least score kept."""
    high: float | None = None
    """Greatest score kept."""
    keep_share: float | None = None
    """Share of the judged documents to keep, in (0, 1], instead of bounds."""
    end: str = "highest"
    """Which end `keep_share` keeps: "highest" or "lowest"."""
    per_kind: bool = False
    """Take the share within each kind, so that no kind is crowded out."""
    by_tokens: bool = False
    """The share is of tokens and not of documents."""
    kinds: tuple[str, ...] | None = None
    """Kinds judged; None for all."""
    splits: tuple[str, ...] = ("train",)
    """Splits judged."""
    prefix: ClassVar[str] = "threshold"

    def __post_init__(self):
        check_splits("Threshold", self.splits)
        bounds = self.low is not None or self.high is not None
        if bounds == (self.keep_share is not None):
            raise ValueError("Threshold needs either bounds (low, high) or keep_share, and not both")
        if None not in (self.low, self.high) and not self.low <= self.high:
            raise ValueError(f"Threshold.low = {self.low} is above high = {self.high}: nothing would be kept")
        if self.keep_share is not None and not 0 < self.keep_share <= 1:
            raise ValueError(f"Threshold.keep_share = {self.keep_share} must lie in (0, 1]")
        if self.end not in ("highest", "lowest"):
            raise ValueError(f'Threshold.end must be "highest" or "lowest", not {self.end!r}')

    @property
    def name(self) -> str:
        """Of the round."""
        return f"{self.prefix}_{self.column}"

    def judge(self, pool: Pool) -> Verdict:
        """The values given become a column. Raises RoundError for a column that does not exist or another length."""
        score, columns = self._scores(pool)
        judged = pool.of(splits=self.splits, kinds=self.kinds)
        judged = judged[~np.isnan(score[judged])]
        if self.keep_share is None:
            reasons = self._outside(score, judged)
        else:
            reasons = {}
            group = pool.corpus.kind[judged] if self.per_kind else np.zeros(len(judged), np.int64)
            for value in np.unique(group):
                reasons |= self._beyond(score, judged[group == value], pool)
        return Verdict(judged, reasons, columns)

    def _scores(self, pool: Pool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(n,) float64 scores, NaN for none, and the column to be written."""
        if self.values is None:
            column = pool.column(self.column)
            missing = column == -1 if column.dtype == np.int64 else np.isnan(column)
            return np.where(missing, np.nan, column.astype(np.float64)), {}
        values = np.asarray(self.values)
        if values.shape != (pool.corpus.num_documents,) or values.dtype.kind not in "fiu":
            raise RoundError(
                f"Threshold.values must hold a number for each of {pool.corpus.num_documents} documents (NaN for "
                f"none), not shape {values.shape} of {values.dtype}: see data.filters.scores.scatter"
            )
        return values.astype(np.float64), {self.column: values.astype(np.float32)}

    def _outside(self, score: np.ndarray, judged: np.ndarray) -> dict[int, str]:
        reasons = {}
        for number in judged.tolist():
            value = score[number]
            if self.low is not None and value < self.low:
                reasons[number] = f"{self.column} of {value:.6g} is below {self.low:g}"
            elif self.high is not None and value > self.high:
                reasons[number] = f"{self.column} of {value:.6g} is above {self.high:g}"
        return reasons

    def _beyond(self, score: np.ndarray, group: np.ndarray, pool: Pool) -> dict[int, str]:
        """Of one group, what is not among the best until the share is reached."""
        best_first = -score[group] if self.end == "highest" else score[group]
        order = np.lexsort((group, best_first))
        weight = pool.corpus.num_tokens[group] if self.by_tokens else np.ones(len(group), np.int64)
        before = np.cumsum(weight[order]) - weight[order]
        # an infinity of the wrong sign says that there is nothing to learn
        kept = (before < self.keep_share * weight.sum()) & (best_first[order] < np.inf)
        worst = score[group[order[kept]]][-1] if kept.any() else np.nan
        what = f"the {self.end} {self.keep_share:.1%} of {'tokens' if self.by_tokens else 'documents'}"
        what += f" of kind {pool.corpus.kinds[pool.corpus.kind[group[0]]]!r}" if self.per_kind else ""
        return {
            number: f"{self.column} of {score[number]:.6g} is not among {what} (which end at {worst:.6g})"
            for number in group[order[~kept]].tolist()
        }


def scatter(num_documents: int, document: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(n,) float64 scores of a whole corpus, NaN but where `score` (d,) is given for `document` (d,) int64."""
    values = np.full(num_documents, np.nan)
    values[np.asarray(document, dtype=np.int64)] = score
    return values
