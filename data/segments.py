"""Stretches: documents that fit a row as they are, longer ones at places where they may be cut.

Most documents fit and cost no thought: one stretch from 0 to their length, known from the index. A document that has
more tokens than a row, or more media than a row's budget, is read, and spread over as few stretches as a greedy walk
finds, each ending at a cut of `Sequence.cuts` (outside media, and so that every target is predicted once). Where what
lies between two cuts exceeds a row, such as one large picture, the document is left out; where long documents are to
be kept whole, all of them are. Reasons are kept for the first `MAX_REASONS`, counts for all.
"""

from dataclasses import dataclass, field

import numpy as np

from data.document import MODALITIES
from data.tokenizer import CLOSE_ID, SLOT_ID

MAX_REASONS = 1000
"""Documents left out whose reason is kept in full."""


@dataclass
class Stretches:
    """A stream of visits as stretches; None stands for what needs no array."""

    tokens: np.ndarray
    """(n,) int32."""
    media: np.ndarray
    """(n, columns) int32 patches."""
    columns: list[str]
    """Modalities that `media` has."""
    start: np.ndarray | None = None
    """(n,) int32 first token; None: all begin at 0."""
    visit: np.ndarray | None = None
    """(n,) int64 index of the visit that a stretch belongs to; None: each is one."""


@dataclass
class Segments:
    """How the chosen documents fit rows."""

    corpus: object
    """The corpus."""
    usable: np.ndarray
    """(u,) int32 documents that can be planned, ascending."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Reasons, of the first `MAX_REASONS` documents left out."""
    left_out_counts: dict[str, int] = field(default_factory=dict)
    """How many were left out, by what they are."""
    long: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(l,) documents that are cut, ascending."""
    first: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    """(l + 1,) first stretch of each."""
    pieces: np.ndarray = field(default_factory=lambda: np.zeros((0, 2 + len(MODALITIES)), dtype=np.int64))
    """(p, 5) start, stop and media of their stretches."""

    @property
    def num_left_out(self) -> int:
        """Documents left out."""
        return sum(self.left_out_counts.values())

    def leave_out(self, document: int, what: str, reason: str) -> None:
        """Count a document that cannot be planned."""
        self.left_out_counts[what] = self.left_out_counts.get(what, 0) + 1
        if len(self.left_out) < MAX_REASONS:
            self.left_out[document] = reason

    def expand(self, document: np.ndarray, *, columns: list[str]) -> Stretches:
        """The stretches of a stream of visits, with the media that are asked for."""
        if not len(self.long):
            media = np.empty((len(document), len(columns)), dtype=np.int32)
            for column, name in enumerate(columns):
                media[:, column] = self.corpus.num_media[name][document]
            return Stretches(self.corpus.num_tokens[document].astype(np.int32), media, columns)
        place = np.minimum(np.searchsorted(self.long, document), len(self.long) - 1)
        cut = self.long[place] == document
        times = np.where(cut, np.diff(self.first)[place], 1)
        visit = np.repeat(np.arange(len(document)), times)
        # of a visit that is cut, the stretches follow one another
        within = np.arange(len(visit)) - np.repeat(np.cumsum(times) - times, times)
        cut = cut[visit]
        source = self.pieces[self.first[place[visit[cut]]] + within[cut]]
        whole = document[visit]
        start, tokens = np.zeros(len(visit), dtype=np.int32), self.corpus.num_tokens[whole].astype(np.int32)
        start[cut], tokens[cut] = source[:, 0], source[:, 1] - source[:, 0]
        media = np.empty((len(visit), len(columns)), dtype=np.int32)
        for column, name in enumerate(columns):
            media[:, column] = self.corpus.num_media[name][whole]
            media[cut, column] = source[:, 2 + MODALITIES.index(name)]
        return Stretches(tokens, media, columns, start, visit)


def find_segments(corpus, chosen: np.ndarray, *, row_tokens: int, budget: dict[str, int], long: str) -> Segments:
    """Which of the chosen documents ((n,) bool) fit rows, and how. long: "split" or "drop" those that do not."""
    fits = chosen & (corpus.num_tokens <= row_tokens)
    for name in MODALITIES:
        fits &= corpus.num_media[name] <= budget[name]
    limits = np.array([budget[name] for name in MODALITIES])
    found, pieces = Segments(corpus, np.zeros(0, dtype=np.int32)), []
    for number in np.flatnonzero(fits & (corpus.num_tokens < 1)).tolist():
        fits[number] = False
        found.leave_out(number, "empty", "holds no token")
    too_long = np.flatnonzero(chosen & ~fits & (corpus.num_tokens > 0)).tolist()
    cut = []
    for number in too_long:
        if long == "drop":
            media = {name: int(corpus.num_media[name][number]) for name in MODALITIES}
            reason = f"{corpus.num_tokens[number]} tokens (media {media}) {_exceed(row_tokens, limits)}"
            found.leave_out(number, "longer than a row", f"{reason}; long documents are kept whole or left out")
            continue
        parts = split_document(corpus.tokens(number), row_tokens, limits)
        if isinstance(parts, str):
            found.leave_out(number, "cannot be cut", parts)
        else:
            cut.append(number)
            pieces.append(parts)
    if cut:
        found.long = np.array(cut, dtype=np.int64)
        found.first = np.cumsum([0, *map(len, pieces)])
        found.pieces = np.concatenate(pieces)
        fits[found.long] = True
    found.usable = np.flatnonzero(fits).astype(np.int32)
    return found


def split_document(sequence, row_tokens: int, limits: np.ndarray) -> np.ndarray | str:
    """(p, 2 + modalities) int64 start, stop and media of stretches within the limits, or why there are none."""
    total = np.zeros((len(sequence) + 1, len(MODALITIES)), dtype=np.int64)
    for column, name in enumerate(MODALITIES):
        np.cumsum(sequence.token_ids == SLOT_ID[name], out=total[1:, column])
    closes = np.isin(sequence.token_ids, list(CLOSE_ID.values()))
    cuts, pieces, cut = sequence.cuts(), [], 0
    # media counts never fall along a document, so the furthest cut within every budget is a search, not a scan
    at_cuts = total[cuts]
    while cut < len(sequence):
        # a target needs the token before it in its row; where that is text it is repeated
        start = cut - 1 if cut and sequence.learn[cut] and not closes[cut - 1] else cut
        last = int(np.searchsorted(cuts, start + row_tokens, side="right"))
        for column, limit in enumerate(limits):
            last = min(last, int(np.searchsorted(at_cuts[:, column], total[start, column] + limit, side="right")))
        first = int(np.searchsorted(cuts, cut, side="right"))
        if last <= first:
            following = int(cuts[first])
            media = dict(zip(MODALITIES, (total[following] - total[start]).tolist(), strict=True))
            return f"tokens {cut}..{following} cannot be cut (media {media}) and {_exceed(row_tokens, limits)}"
        stop = int(cuts[last - 1])
        pieces.append((start, stop, *(total[stop] - total[start]).tolist()))
        cut = stop
    return np.array(pieces, dtype=np.int64)


def _exceed(row_tokens: int, limits: np.ndarray) -> str:
    return f"exceed a row of {row_tokens} tokens with {dict(zip(MODALITIES, limits.tolist(), strict=True))}"
