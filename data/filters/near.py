"""Near duplicates among MinHash signatures, by locality-sensitive hashing (datasketch) and a check of every pair found.

A pair is near when its whole signatures agree to the threshold (Broder 1997); clusters are the connected components, so
the two ends of a long chain may differ more. Copies (equal keys) are entered once: a thousand cost no more than one.
Memory: about 6 KB per item. The filter `NearDuplicates` and the split of source files of `brine.synth` share this.
"""

from collections.abc import Hashable, Sequence

import numpy as np

MISS_WEIGHT = 0.95
"""How much more a missed pair costs than a pair found in vain, as datasketch weighs them (the two add up to 1)."""


def cluster_signatures(
    signatures: Sequence[np.ndarray],
    keys: Sequence[Hashable],
    *,
    threshold: float,
    groups: Sequence[Hashable] | None = None,
    bands: tuple[int, int] | None = None,
) -> list[list[int]]:
    """Indices of near items, each cluster ascending, in the order of their first index; most have one member.

    signatures: (k,) integers each, or empty for an item without near ones. keys: items of equal keys are copies.
    groups: items of different groups are not near. bands: (number, entries) of the hashing, chosen for the threshold
    unless given.
    """
    if not len(keys):
        return []
    from datasketch import LeanMinHash, MinHashLSH
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = max(map(len, signatures), default=0)
    index = None
    if size:
        weights = (1 - MISS_WEIGHT, MISS_WEIGHT)
        index = MinHashLSH(threshold=threshold, num_perm=size, weights=weights, params=bands)
    first: dict[Hashable, int] = {}
    pairs = []
    for item, (signature, key) in enumerate(zip(signatures, keys, strict=True)):
        if (original := first.setdefault(key, item)) != item:
            pairs.append((item, original))
        elif len(signature):
            # the index reads the values alone, whatever their scheme
            sketch = LeanMinHash(seed=1, hashvalues=signature, scheme="legacy")
            for other in index.query(sketch):
                same_group = groups is None or groups[item] == groups[other]
                if same_group and np.mean(np.asarray(signature) == signatures[other]) >= threshold:
                    pairs.append((item, other))
            index.insert(item, sketch, check_duplication=False)
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(keys), len(keys)))
    label = connected_components(graph, directed=False)[1]
    clusters: dict[int, list[int]] = {}
    for item, number in enumerate(label.tolist()):
        clusters.setdefault(number, []).append(item)
    return list(clusters.values())


def ngram_hashes(units: np.ndarray, length: int) -> np.ndarray:
    """(r,) uint64 hash of every run of `length` units; units (u,) uint64."""
    count = max(0, len(units) - length + 1)
    value = np.zeros(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(length):
            value = (value ^ units[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
            value ^= value >> np.uint64(29)
    return value
