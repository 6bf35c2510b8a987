"""Duplicates: documents that are equal, and documents whose words are nearly the same.

`ExactDuplicates` compares SHA-256 over tokens, positions and patches of documents that share all their lengths.
`NearDuplicates` estimates the Jaccard index of two texts' sets of shingles (runs of a few words) by MinHash
(`brine.data.filters.near`); at a threshold of 0.8 and 128 permutations a pair at the threshold is found in 19 cases of
20, with a standard error of 0.035. Words are runs of letters and digits without case, in scripts without spaces each
character; near documents hold the same sorts of media. Of a cluster one stays: the first of test, else of validation,
else of train, so a training document that repeats a held-out one is dropped. A short text inside a long one is not
found. Cost: a signature per document, over all workers, and a join in one process.
"""

import functools
import hashlib
import re
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from brine.data.corpus.store import CorruptDocumentError, EncodedCorpus
from brine.data.document import MODALITIES, SPLITS
from brine.data.filters.filter_context import FilterContext, FilterResult, empty_column, text_of
from brine.data.filters.near import cluster_signatures, ngram_hashes
from brine.data.tokenizer import SPECIAL_TOKENS

# kana, CJK, Thai, Lao and Khmer write no spaces between words
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_BATCH_SHINGLES = 8192  # shingles hashed at once: 8,192 x 128 permutations x 4 bytes are 4 MiB


@dataclass(frozen=True)
class ExactDuplicates:
    """Drop documents whose tokens and media equal those of another."""

    name: ClassVar[str] = "exact_duplicates"

    def apply(self, filter_context: FilterContext) -> FilterResult:
        """Column `duplicate_of`: the document that stays, -1 without one. An unreadable document is dropped as such."""
        corpus, inspected = filter_context.corpus, filter_context.select()
        lengths = [corpus.num_tokens, *(corpus.num_media[name] for name in MODALITIES)]
        table = np.stack([column[inspected] for column in lengths], axis=1)
        _, group, counts = np.unique(table, axis=0, return_inverse=True, return_counts=True)
        alike = inspected[counts[group.reshape(-1)] > 1]
        original = empty_column(corpus.num_documents, np.int64)
        reasons: dict[int, str] = {}
        seen: dict[bytes, list[int]] = {}
        for number, (digest, error) in filter_context.map(_content_hashes, alike, chunk_documents=16, needs_media=True):
            if error:
                reasons[number] = error
            else:
                seen.setdefault(digest, []).append(number)
        for numbers in seen.values():
            stays = min(numbers, key=_precedence(corpus))
            for number in numbers:
                if number != stays:
                    original[number] = stays
                    reasons[number] = f"equal to {_describe(corpus, stays)}"
        return FilterResult(inspected, reasons, {"duplicate_of": original})


@dataclass(frozen=True)
class NearDuplicates:
    """Drop documents whose words are nearly those of another. Raises ValueError for settings that cannot work."""

    threshold: float = 0.8
    """Minimum estimated Jaccard index of two documents' shingles that makes them near."""
    num_perm: int = 128
    """Permutations in a signature; the estimate's standard error is at most 1 / (2 sqrt(num_perm))."""
    shingle_length: int = 5
    """Words (or tokens) in a shingle."""
    unit: str = "word"
    """What a shingle is made of: "word" or "token"."""
    min_shingles: int = 30
    """Documents with fewer different shingles are not compared: captions repeat without being copies."""
    seed: int = 1
    """Seed of the permutations."""
    kinds: tuple[str, ...] | None = None
    """Kinds compared; None for all."""
    name: ClassVar[str] = "near_duplicates"

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise ValueError(f"NearDuplicates.threshold must lie in (0, 1], not {self.threshold}: 0.8 is usual")
        if not 16 <= self.num_perm <= 1024:
            raise ValueError(f"NearDuplicates.num_perm must lie in 16..1024, not {self.num_perm}: 128 is usual")
        if self.unit not in ("word", "token"):
            raise ValueError(f'NearDuplicates.unit must be "word" or "token", not {self.unit!r}')
        if self.shingle_length < 1 or self.min_shingles < 1:
            raise ValueError("NearDuplicates.shingle_length and min_shingles must be at least 1")

    def apply(self, filter_context: FilterContext) -> FilterResult:
        """Columns `near_duplicate_of` (the document that stays, -1 without) and `near_duplicate_jaccard` (with it)."""
        corpus, numbers, signatures = filter_context.corpus, [], []
        function = functools.partial(_signatures, filter_=self)
        for number, signature in filter_context.map(function, filter_context.select(kinds=self.kinds)):
            if signature is not None:
                numbers.append(number)
                signatures.append(signature)
        inspected = np.array(numbers, dtype=np.int64)
        original = empty_column(corpus.num_documents, np.int64)
        jaccard = empty_column(corpus.num_documents, np.float32)
        reasons: dict[int, str] = {}
        media = [tuple(corpus.num_media[name][number] > 0 for name in MODALITIES) for number in numbers]
        keys = [(values.tobytes(), held) for values, held in zip(signatures, media, strict=True)]
        for cluster in cluster_signatures(signatures, keys, threshold=self.threshold, groups=media):
            stays = min(cluster, key=lambda index: _precedence(corpus)(numbers[index]))
            for index in cluster:
                if index == stays:
                    continue
                number, alike = numbers[index], float((signatures[index] == signatures[stays]).mean())
                original[number], jaccard[number] = numbers[stays], alike
                chained = "" if alike >= self.threshold else " through others like both"
                reasons[number] = f"near {_describe(corpus, numbers[stays])}{chained}: estimated Jaccard {alike:.3f}"
        return FilterResult(inspected, reasons, {"near_duplicate_of": original, "near_duplicate_jaccard": jaccard})


def _precedence(corpus: EncodedCorpus):
    return lambda number: (-int(corpus.split[number]), number)


def _describe(corpus: EncodedCorpus, number: int) -> str:
    return f"{corpus.ids[number]!r} ({SPLITS[corpus.split[number]]})"


def _content_hashes(corpus: EncodedCorpus, numbers: list[int]) -> list[tuple[bytes, str]]:
    """(SHA-256, "") of each document, or (b"", reason)."""
    with_media = [n for n in numbers if any(corpus.num_media[name][n] for name in MODALITIES)]
    sequences = corpus.encoded_documents(with_media) if with_media else {}
    found = []
    for number in numbers:
        sequence = sequences[number] if number in sequences else corpus.tokens(number)
        if isinstance(sequence, CorruptDocumentError):
            found.append((b"", f"cannot be read: {sequence}"))
            continue
        digest = hashlib.sha256()
        for name in ("token_ids", "position", *MODALITIES):
            array = np.ascontiguousarray(getattr(sequence, name))
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.tobytes())
        found.append((digest.digest(), ""))
    return found


def _signatures(corpus: EncodedCorpus, numbers: list[int], *, filter_: NearDuplicates) -> list[np.ndarray | None]:
    """(num_perm,) uint32 MinHash signature of each document, or None where its text is too short."""
    found = []
    for number in numbers:
        if filter_.unit == "token":
            ids = corpus.tokens(number).token_ids
            units = ids[ids >= len(SPECIAL_TOKENS)].astype(np.uint64)
        else:
            units = _words(text_of(corpus.document(number)))
        shingles = shingle_hashes(units, filter_.shingle_length)
        found.append(signature(shingles, filter_) if len(shingles) >= filter_.min_shingles else None)
    return found


def _words(text: str) -> np.ndarray:
    """(w,) uint64 checksum of each word of a text, without case."""
    known: dict[str, int] = {}
    words = _WORD.findall(text.casefold())
    return np.array([known.get(w) or known.setdefault(w, zlib.crc32(w.encode())) for w in words], dtype=np.uint64)


def shingle_hashes(units: np.ndarray, length: int) -> np.ndarray:
    """(s,) uint32 different hashes of all runs of `length` units, ascending; units (u,) uint64."""
    return np.unique((ngram_hashes(units, length) >> np.uint64(32)).astype(np.uint32))


def signature(shingles: np.ndarray, filter_: NearDuplicates) -> np.ndarray:
    """(num_perm,) uint32 MinHash of shingle hashes (s,) uint32."""
    from datasketch import MinHash

    permutations = _permutations(filter_.seed, filter_.num_perm)
    # shingles are hashed already
    options = {"seed": filter_.seed, "hashfunc": int, "scheme": "affine32", "permutations": permutations}
    sketch = MinHash(num_perm=filter_.num_perm, **options)
    for first in range(0, len(shingles), _BATCH_SHINGLES):
        sketch.update_batch(shingles[first : first + _BATCH_SHINGLES].tolist())
    return sketch.hashvalues


@functools.lru_cache(maxsize=4)
def _permutations(seed: int, num_perm: int) -> np.ndarray:
    from datasketch import MinHash

    return MinHash(num_perm=num_perm, seed=seed, scheme="affine32").permutations
