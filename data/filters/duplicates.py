"""Duplicates: documents that are equal, and documents whose words are nearly the same.

`ExactDuplicates` compares SHA-256 over tokens, positions and patches, so equal pictures in files of different names are
equal, and a picture of other proportions is not. Only documents that share all their lengths are read.

`NearDuplicates` follows Broder (1997): the similarity of two texts is the Jaccard index of their sets of shingles (runs
of a few words), estimated by MinHash signatures; those likely to be similar are found by locality-sensitive hashing,
both by the library `datasketch`. A pair counts when its whole signatures agree to `threshold`; pairs are joined into
clusters (union-find), and one document of each stays. The hashing is tuned to miss little rather than to propose
little, since every proposal is verified: at a threshold of 0.8 and 128 permutations a pair at the threshold is found
in 19 cases of 20. The estimate's standard error there is 0.035.

One document stays, and held-out ones go first: test, then validation, then train, and within a split the first in
corpus order. So a training document that repeats a held-out one is the one dropped, wherever it stands.

Words are runs of letters and digits without case, in scripts that write no spaces each character; `unit="token"` takes
the corpus's own tokens instead, spaces and punctuation included. Media are not compared, but documents are near only
when they hold the same sorts of media, so a narration is no duplicate of a page. What this does not do: find a short
text inside a long one. Clusters are transitive, so the two ends of a long chain may differ more than the threshold.

Cost: signatures take about 0.4 ms a document of 300 words and are spread over workers; joining takes 0.1 ms a document
in one process, and 6 KB of memory (its signature and its places in the index). A cluster costs the square of its size,
copies of one text aside.
"""

import functools
import hashlib
import re
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.document import MODALITIES, SPLITS
from data.filters.pool import Pool, Verdict, empty_column, text_of
from data.store import CorruptDocument, EncodedCorpus
from data.tokenizer import SPECIALS

# kana, CJK, Thai, Lao and Khmer write no spaces between words
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_MISS_WEIGHT = 0.95
"""How much more a missed pair costs than a proposal in vain, as `datasketch` weighs them (the two add up to 1)."""
_BATCH_SHINGLES = 8192
"""Shingles hashed at once: 8,192 x 128 permutations x 4 bytes are 4 MiB."""


@dataclass(frozen=True)
class ExactDuplicates:
    """Drop documents whose tokens and media equal those of another; see above for which one stays."""

    name: ClassVar[str] = "exact_duplicates"

    def judge(self, pool: Pool) -> Verdict:
        """Column `duplicate_of`: the document that stays, -1 without one. An unreadable document is dropped as such."""
        corpus, judged = pool.corpus, pool.of()
        lengths = [corpus.num_tokens, *(corpus.num_media[name] for name in MODALITIES)]
        table = np.stack([column[judged] for column in lengths], axis=1)
        _, group, counts = np.unique(table, axis=0, return_inverse=True, return_counts=True)
        alike = judged[counts[group.reshape(-1)] > 1]
        original = empty_column(corpus.num_documents, np.int64)
        reasons: dict[int, str] = {}
        seen: dict[bytes, list[int]] = {}
        for number, (digest, error) in pool.map(_content_hashes, alike, chunk_documents=16, reads_media=True):
            if error:
                reasons[number] = error
            else:
                seen.setdefault(digest, []).append(number)
        for numbers in seen.values():
            stays = min(numbers, key=_precedence(corpus))
            for number in numbers:
                if number != stays:
                    original[number] = stays
                    reasons[number] = f"equal to {_called(corpus, stays)}"
        return Verdict(judged, reasons, {"duplicate_of": original})


@dataclass(frozen=True)
class NearDuplicates:
    """Drop documents whose words are nearly those of another. Raises ValueError for settings that cannot work."""

    threshold: float = 0.8
    """Least estimated Jaccard index of two documents' shingles that makes them near."""
    num_perm: int = 128
    """Permutations in a signature; the estimate's standard error is at most 1 / (2 sqrt(num_perm))."""
    shingle_length: int = 5
    """Words (or tokens) in a shingle."""
    unit: str = "word"
    """What a shingle is made of: "word" or "token"."""
    min_shingles: int = 30
    """Documents with fewer different shingles are not judged: captions repeat without being copies."""
    seed: int = 1
    """Of the permutations."""
    kinds: tuple[str, ...] | None = None
    """Kinds judged; None for all."""
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

    def judge(self, pool: Pool) -> Verdict:
        """Columns `near_duplicate_of` (the document that stays, -1 without) and `near_duplicate_jaccard` (with it)."""
        corpus, numbers, signatures = pool.corpus, [], []
        function = functools.partial(_signatures, rule=self)
        for number, signature in pool.map(function, pool.of(kinds=self.kinds)):
            if signature is not None:
                numbers.append(number)
                signatures.append(signature)
        judged = np.array(numbers, dtype=np.int64)
        values = np.stack(signatures) if signatures else np.zeros((0, self.num_perm), np.uint32)
        original = empty_column(corpus.num_documents, np.int64)
        jaccard = empty_column(corpus.num_documents, np.float32)
        reasons: dict[int, str] = {}
        for cluster in self._clusters(values, _sorts_of_media(corpus, judged)):
            stays = min(cluster, key=lambda place: _precedence(corpus)(numbers[place]))
            for place in cluster:
                if place == stays:
                    continue
                number, alike = numbers[place], float((values[place] == values[stays]).mean())
                original[number], jaccard[number] = numbers[stays], alike
                chained = "" if alike >= self.threshold else " through others like both"
                reasons[number] = f"near {_called(corpus, numbers[stays])}{chained}: estimated Jaccard {alike:.3f}"
        return Verdict(judged, reasons, {"near_duplicate_of": original, "near_duplicate_jaccard": jaccard})

    def _clusters(self, values: np.ndarray, media: np.ndarray) -> list[list[int]]:
        """Places of (j, num_perm) signatures that are near, in clusters of two and more, each ascending."""
        from datasketch import MinHashLSH

        weights = (1 - _MISS_WEIGHT, _MISS_WEIGHT)
        index = MinHashLSH(threshold=self.threshold, num_perm=self.num_perm, weights=weights)
        parent = list(range(len(values)))
        first_of: dict[bytes, int] = {}
        for place in range(len(values)):
            # copies of one text have one signature: entered once, a thousand of them cost no more than one
            key = values[place].tobytes() + media[place].tobytes()
            if (first := first_of.setdefault(key, place)) != place:
                _join(parent, place, first)
                continue
            sketch = _minhash(self.seed, self.num_perm, values[place])
            found = np.array(sorted(index.query(sketch)), dtype=np.int64)
            near = (values[found] == values[place]).mean(axis=1) >= self.threshold
            for other in found[near & (media[found] == media[place])]:
                _join(parent, place, int(other))
            index.insert(place, sketch, check_duplication=False)
        clusters: dict[int, list[int]] = {}
        for place in range(len(values)):
            clusters.setdefault(_root(parent, place), []).append(place)
        return [cluster for cluster in clusters.values() if len(cluster) > 1]


def _precedence(corpus: EncodedCorpus):
    """Sorting key of a document: the smallest of a cluster stays."""
    return lambda number: (-int(corpus.split[number]), number)


def _called(corpus: EncodedCorpus, number: int) -> str:
    return f"{corpus.ids[number]!r} ({SPLITS[corpus.split[number]]})"


def _sorts_of_media(corpus: EncodedCorpus, numbers: np.ndarray) -> np.ndarray:
    """(j,) int64 with a bit for each modality that a document holds."""
    bits = [(corpus.num_media[name][numbers] > 0).astype(np.int64) << place for place, name in enumerate(MODALITIES)]
    return np.sum(bits, axis=0, dtype=np.int64)


def _root(parent: list[int], place: int) -> int:
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = parent[place]
    return place


def _join(parent: list[int], left: int, right: int) -> None:
    left, right = _root(parent, left), _root(parent, right)
    parent[max(left, right)] = min(left, right)


def _content_hashes(corpus: EncodedCorpus, numbers: list[int]) -> list[tuple[bytes, str]]:
    """(SHA-256, "") of each document, or (b"", reason)."""
    with_media = [n for n in numbers if any(corpus.num_media[name][n] for name in MODALITIES)]
    sequences = corpus.sequences(with_media) if with_media else {}
    found = []
    for number in numbers:
        sequence = sequences[number] if number in sequences else corpus.tokens(number)
        if isinstance(sequence, CorruptDocument):
            found.append((b"", f"cannot be read: {sequence}"))
            continue
        digest = hashlib.sha256()
        for name in ("token_ids", "position", *MODALITIES):
            array = np.ascontiguousarray(getattr(sequence, name))
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.tobytes())
        found.append((digest.digest(), ""))
    return found


def _signatures(corpus: EncodedCorpus, numbers: list[int], *, rule: NearDuplicates) -> list[np.ndarray | None]:
    """(num_perm,) uint32 MinHash signature of each document, or None where its text is too short to judge."""
    found = []
    for number in numbers:
        if rule.unit == "token":
            ids = corpus.tokens(number).token_ids
            units = ids[ids >= len(SPECIALS)].astype(np.uint64)
        else:
            units = _words(text_of(corpus.document(number)))
        shingles = shingle_hashes(units, rule.shingle_length)
        found.append(signature(shingles, rule) if len(shingles) >= rule.min_shingles else None)
    return found


def _words(text: str) -> np.ndarray:
    """(w,) uint64 checksum of each word of a text, without case."""
    known: dict[str, int] = {}
    words = _WORD.findall(text.casefold())
    return np.array([known.get(w) or known.setdefault(w, zlib.crc32(w.encode())) for w in words], dtype=np.uint64)


def shingle_hashes(units: np.ndarray, length: int) -> np.ndarray:
    """(s,) uint32 different hashes of all runs of `length` units, ascending; units (u,) uint64."""
    count = max(0, len(units) - length + 1)
    value = np.zeros(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(length):
            value = (value ^ units[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
            value ^= value >> np.uint64(29)
    return np.unique((value >> np.uint64(32)).astype(np.uint32))


def signature(shingles: np.ndarray, rule: NearDuplicates) -> np.ndarray:
    """(num_perm,) uint32 MinHash of shingle hashes (s,) uint32."""
    sketch = _minhash(rule.seed, rule.num_perm, None)
    for first in range(0, len(shingles), _BATCH_SHINGLES):
        sketch.update_batch(shingles[first : first + _BATCH_SHINGLES].tolist())
    return sketch.hashvalues


@functools.lru_cache(maxsize=4)
def _permutations(seed: int, num_perm: int) -> np.ndarray:
    from datasketch import MinHash

    return MinHash(num_perm=num_perm, seed=seed, scheme="affine32").permutations


def _minhash(seed: int, num_perm: int, values: np.ndarray | None):
    """A `datasketch.MinHash` of values (num_perm,) uint32, empty for None; shingles are hashed already."""
    from datasketch import MinHash

    permutations = _permutations(seed, num_perm)
    options = {"num_perm": num_perm, "seed": seed, "hashfunc": int, "permutations": permutations, "scheme": "affine32"}
    return MinHash(hashvalues=values, **options)
