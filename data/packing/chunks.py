"""Chunks of documents: a document that fits a packed sequence is one chunk, a longer one is split where it may be.

Most documents fit, as the index tells. A document with more tokens or media than a packed sequence takes is read and
split greedily into as few chunks as possible, each ending at one of `EncodedDocument.split_points` (outside media, and
so that every target is predicted once). A document with a part that fits no packed sequence, such as one large image,
is excluded; `long="drop"` excludes every long one. Reasons are kept for the first `MAX_REASONS`, counts for all.
"""

from dataclasses import dataclass, field

import numpy as np

from brine.data.document import MODALITIES

MAX_REASONS = 1000  # excluded documents whose reason is kept in full


@dataclass
class ChunkTable:
    """How the chosen documents fit packed sequences."""

    corpus: object
    usable: np.ndarray  # (u,) int32 documents that can be planned, ascending
    excluded: dict[int, str] = field(default_factory=dict)  # reasons, of the first `MAX_REASONS` excluded documents
    excluded_counts: dict[str, int] = field(default_factory=dict)  # number of excluded documents by kind of reason
    split: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(l,) documents that are split, ascending."""
    first: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))  # (l + 1,) first chunk of each
    chunks: np.ndarray = field(default_factory=lambda: np.zeros((0, 2 + len(MODALITIES)), dtype=np.int64))
    """(p, 5) start, stop and media of their chunks."""

    @property
    def num_excluded(self) -> int:
        return sum(self.excluded_counts.values())

    def exclude(self, document: int, what: str, reason: str) -> None:
        self.excluded_counts[what] = self.excluded_counts.get(what, 0) + 1
        if len(self.excluded) < MAX_REASONS:
            self.excluded[document] = reason

    def expand(self, document: np.ndarray, columns: list[str]):
        """Chunks of samples (v,): tokens (n,), media (n, columns), start, sample (n,); None where trivial."""
        num_media = self.corpus.num_media
        if not len(self.split):
            media = np.empty((len(document), len(columns)), dtype=np.int32)
            for column, name in enumerate(columns):
                media[:, column] = num_media[name][document]
            return self.corpus.num_tokens[document].astype(np.int32), media, None, None
        index = np.minimum(np.searchsorted(self.split, document), len(self.split) - 1)
        is_split = self.split[index] == document
        times = np.where(is_split, np.diff(self.first)[index], 1)
        sample = np.repeat(np.arange(len(document)), times)
        # the chunks of one sample follow one another
        within = np.arange(len(sample)) - np.repeat(np.cumsum(times) - times, times)
        is_split = is_split[sample]
        source = self.chunks[self.first[index[sample[is_split]]] + within[is_split]]
        whole = document[sample]
        start, tokens = np.zeros(len(sample), dtype=np.int32), self.corpus.num_tokens[whole].astype(np.int32)
        start[is_split], tokens[is_split] = source[:, 0], source[:, 1] - source[:, 0]
        media = np.empty((len(sample), len(columns)), dtype=np.int32)
        for column, name in enumerate(columns):
            media[:, column] = num_media[name][whole]
            media[is_split, column] = source[:, 2 + MODALITIES.index(name)]
        return tokens, media, start, sample


def find_chunks(corpus, chosen: np.ndarray, *, seq_len: int, budget: dict[str, int], long: str) -> ChunkTable:
    """Which of the chosen documents ((n,) bool) fit packed sequences, and how. long: "split" or "drop" long ones."""
    limits = np.array([budget[name] for name in MODALITIES])
    media = {name: corpus.num_media[name] for name in MODALITIES}
    fits = chosen & (corpus.num_tokens <= seq_len)
    for name in MODALITIES:
        fits &= media[name] <= budget[name]
    found, split, chunks = ChunkTable(corpus, np.zeros(0, dtype=np.int32)), [], []
    for number in np.flatnonzero(fits & (corpus.num_tokens < 1)).tolist():
        fits[number] = False
        found.exclude(number, "empty", "holds no token")
    for number in np.flatnonzero(chosen & ~fits & (corpus.num_tokens > 0)).tolist():
        if long == "drop":
            held = {name: int(column[number]) for name, column in media.items()}
            reason = f"{corpus.num_tokens[number]} tokens (media {held}) {_exceed(seq_len, limits)}"
            found.exclude(number, "longer than a sequence", f"{reason}; long documents are kept whole or excluded")
            continue
        parts = split_document(corpus.tokens(number), seq_len, limits)
        if isinstance(parts, str):
            found.exclude(number, "cannot be split", parts)
        else:
            split.append(number)
            chunks.append(parts)
    if split:
        found.split, found.first = np.array(split, dtype=np.int64), np.cumsum([0, *map(len, chunks)])
        found.chunks = np.concatenate(chunks)
        fits[found.split] = True
    found.usable = np.flatnonzero(fits).astype(np.int32)
    return found


def split_document(sequence, seq_len: int, limits: np.ndarray, *, allow_longer: bool = False) -> np.ndarray | str:
    """(p, 2 + modalities) int64 start, stop and media of chunks within the limits, or why there are none.

    limits: of patches by modality, (0,) for none. allow_longer: what cannot be split is a chunk beyond the limits.
    """
    total, split_points, chunks, cut = sequence.media_totals(), sequence.split_points(), [], 0
    # media counts never fall along a document, so the furthest point within every budget is a search, not a scan
    at_points = total[split_points]
    while cut < len(sequence):
        # a target needs the token before it in its packed sequence; split points leave text there, so it is repeated
        start = cut - 1 if cut and sequence.loss_mask[cut] else cut
        last = int(np.searchsorted(split_points, start + seq_len, side="right"))
        for column, limit in enumerate(limits):
            last = min(last, int(np.searchsorted(at_points[:, column], total[start, column] + limit, side="right")))
        first = int(np.searchsorted(split_points, cut, side="right"))
        if last <= first and not allow_longer:
            stop = int(split_points[first])
            media = dict(zip(MODALITIES, (total[stop] - total[start]).tolist(), strict=True))
            return f"tokens {cut}..{stop} cannot be split (media {media}) and {_exceed(seq_len, limits)}"
        stop = int(split_points[max(first, last - 1)])
        chunks.append((start, stop, *(total[stop] - total[start]).tolist()))
        cut = stop
    return np.array(chunks, dtype=np.int64)


def _exceed(seq_len: int, limits: np.ndarray) -> str:
    return f"exceed a sequence of {seq_len} tokens with {dict(zip(MODALITIES, limits.tolist(), strict=True))}"
