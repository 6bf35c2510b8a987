"""What a filter is given and what it answers.

A filter is a frozen dataclass whose fields are its configuration, with a `name` and `apply(filter_context) ->
FilterResult`. It looks at some of the documents that earlier passes have kept (`select`), usually with a function of a
corpus and a few document numbers (`map`), and names those to drop, each with a reason. `map` spreads chunks of
documents over spawned processes and gives the answers in the order of the documents whatever the number of processes.
A corpus that decodes has its own servers, so media are then read from this process. A worker that dies ends the
pass with an error; it leaves no trace.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from brine.common.formatting import progress_bar
from brine.data.corpus.store import DecodingCorpus, EncodedCorpus
from brine.data.document import SPLITS, Document, Text


class FilterError(ValueError):
    """A filter pass that cannot be added, read or undone; the message names it and the remedy."""


@dataclass(frozen=True)
class FilterResult:
    """What a filter found in a corpus of n documents."""

    inspected: np.ndarray
    """(j,) int64 documents looked at, ascending."""
    reasons: dict[int, str]
    """Documents to drop, each with the reason and its numbers."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Scores by name, (n,) float32 (NaN where not inspected) or int64 (-1 where not inspected)."""


class Filter(Protocol):
    """A frozen dataclass; its fields are the configuration."""

    name: ClassVar[str]

    def apply(self, filter_context: "FilterContext") -> FilterResult:
        """Inspect documents and say which to drop."""


@dataclass(frozen=True)
class FilterContext:
    """The documents kept so far, and the means to read them."""

    corpus: EncodedCorpus
    """The encoded corpus, of n documents."""
    documents: np.ndarray
    """(m,) int64 documents kept by all earlier passes, ascending."""
    column: Callable[[str], np.ndarray]
    """Name to the (n,) column of an earlier pass."""
    num_workers: int = 1
    """Processes that `map` uses; 1 is this one alone."""
    progress: bool = False
    """Show a bar."""

    def select(self, *, splits: tuple[str, ...] = SPLITS, kinds: tuple[str, ...] | None = None) -> np.ndarray:
        """(j,) int64 documents that belong to `splits` and `kinds` (None: all), ascending."""
        corpus, chosen = self.corpus, self.documents
        chosen = chosen[np.isin(corpus.split[chosen], [SPLITS.index(split) for split in splits])]
        if kinds is not None:
            if unknown := sorted(set(kinds) - set(corpus.kinds)):
                raise FilterError(f"unknown kind {unknown[0]!r}; the corpus has {', '.join(corpus.kinds)}")
            chosen = chosen[np.isin(corpus.kind[chosen], [corpus.kinds.index(kind) for kind in kinds])]
        return chosen

    def map(
        self,
        function: Callable[[EncodedCorpus, list[int]], list],
        documents: np.ndarray,
        *,
        chunk_documents: int = 64,
        needs_media: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """(document, answer) of each, in order, by an importable function(corpus, chunk).

        FilterError if a worker dies.
        """
        chunks = [documents[i : i + chunk_documents].tolist() for i in range(0, len(documents), chunk_documents)]
        here = self.num_workers == 1 or len(chunks) < 2 or (needs_media and isinstance(self.corpus, DecodingCorpus))
        answers = (function(self.corpus, chunk) for chunk in chunks) if here else self._spread(function, chunks)
        name = f"filter (x {chunk_documents} documents)"
        answers = progress_bar(answers, total=len(chunks), desc=name, unit="chunk", quiet=not self.progress)
        for chunk, found in zip(chunks, answers, strict=True):
            yield from zip(chunk, found, strict=True)

    def _spread(self, function, chunks: list[list[int]]) -> Iterator[list]:
        workers = ProcessPoolExecutor(
            min(self.num_workers, len(chunks)),
            # a fork would copy the locks of threads that libraries have started
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_open,
            initargs=(self.corpus,),
        )
        try:
            yield from workers.map(_call, [function] * len(chunks), chunks)
        except BrokenProcessPool:
            raise FilterError(
                "a worker of the filter died, perhaps out of memory: run it again with fewer workers, from a "
                'script guarded by `if __name__ == "__main__":`'
            ) from None
        finally:
            workers.shutdown(cancel_futures=True)


_opened: EncodedCorpus | None = None


def _open(corpus: EncodedCorpus) -> None:
    global _opened
    _opened = corpus


def _call(function, chunk: list[int]) -> list:
    return function(_opened, chunk)


def check_splits(filter_: str, splits: tuple[str, ...]) -> None:
    """ValueError, with the remedy, for splits that do not exist."""
    if isinstance(splits, str) or not splits or set(splits) - set(SPLITS):
        raise ValueError(f"{filter_}.splits must be a tuple of some of {', '.join(SPLITS)}, not {splits!r}")


def text_of(document: Document) -> str:
    """The text parts of a document, a line break between them."""
    return "\n".join(part.text for part in document.parts if isinstance(part, Text))


def empty_column(num_documents: int, dtype: type) -> np.ndarray:
    """(n,) column in which no document is inspected yet: NaN for float32, -1 for int64."""
    return np.full(num_documents, np.nan if dtype == np.float32 else -1, dtype)
