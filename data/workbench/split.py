"""Deals source files to train, validation and test, so that near-duplicates stay together.

A repository repeats itself: vendored copies, forks of a module, generated siblings. Split file by file,
such copies put the held-out text into train. So files are first clustered by the similarity of their token
shingles (MinHash with locality-sensitive hashing, Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
chapter 3), then whole clusters are dealt by their bytes. It is thirty lines here, because the package that
has them imports scipy, 1.5 s for each process. Single lines that two unlike files share are another matter:
see lines.py.
"""

from __future__ import annotations

import random
from collections import defaultdict

from data.workbench.config import SPLITS
from data.workbench.extract import Extract
from data.workbench.source import SourceFile

BAND = 2
"""Entries of a MinHash in one band."""


def cluster(extracts: list[Extract], *, threshold: float) -> list[list[int]]:
    """Groups of indices, transitively closed over pairs with equal tokens or Jaccard estimate >= threshold.

    In the order of each group's first index; most groups have one member.
    """
    import numpy as np

    parent = list(range(len(extracts)))

    def find(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(first: int, second: int) -> None:
        first, second = sorted((find(first), find(second)))
        parent[second] = first

    by_content: dict[str, int] = {}
    for index, item in enumerate(extracts):
        join(by_content.setdefault(item.content_hash, index), index)
    # two files with equal entries in some band are judged by all entries; with 32 bands of 2 a pair of
    # similarity 0.5 is overlooked once in ten thousand
    sketches = [np.asarray(item.minhash) for item in extracts]
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, item in enumerate(extracts):
        near: set[int] = set()
        for start in range(0, len(item.minhash), BAND):
            bucket = buckets[(start, *item.minhash[start : start + BAND])]
            near.update(bucket)
            bucket.append(index)
        for other in sorted(near):
            if find(other) != find(index) and float(np.mean(sketches[index] == sketches[other])) >= threshold:
                join(index, other)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(extracts)):
        groups[find(index)].append(index)
    return [groups[key] for key in sorted(groups)]


def deal(
    clusters: list[list[int]], *, files: list[SourceFile], validation_share: float, test_share: float, seed: int
) -> dict[str, list[int]]:
    """split -> indices of its files, ascending. A held-out split takes clusters, in an order drawn by the seed,
    until it has its share of the bytes; a cluster too large for that stays in train.

    With at least three clusters each split with a share above 0 gets one, the smallest if no other fits; with
    fewer, train goes first and held-out splits may be empty.
    """
    sizes = [sum(files[index].num_bytes for index in group) for group in clusters]
    total = sum(sizes)
    order = list(range(len(clusters)))
    random.Random(f"split/{seed}").shuffle(order)
    taken: dict[str, list[int]] = {split: [] for split in SPLITS}
    free = dict.fromkeys(order)
    for split, share in (("test", test_share), ("validation", validation_share)):
        target, held = share * total, 0
        for item in list(free):
            # at most a tenth over the target: one large file must not make the whole split
            if held < target and held + sizes[item] <= 1.1 * target:
                taken[split].append(item)
                held += sizes[item]
                del free[item]
        if share > 0 and not taken[split] and len(free) >= 2:
            smallest = min(free, key=lambda item: (sizes[item], item))
            taken[split].append(smallest)
            del free[smallest]
    taken["train"] = list(free)
    return {split: sorted(index for item in taken[split] for index in clusters[item]) for split in SPLITS}
