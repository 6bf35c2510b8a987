"""Assigns source files to train, validation and test, so that near-duplicates stay together.

A repository repeats itself: vendored copies, forks of a module, generated siblings. Split file by file, such copies put
the held-out text into train. So files are first clustered by the similarity of their token shingles
(`brine.data.filters.near`), then whole clusters are assigned by their bytes. Single lines that two unlike files share
are another matter: see code_regions.py.
"""

import random

from brine.data.files.source_files import SourceFile
from brine.data.filters.near import cluster_signatures
from brine.synth.config import SPLITS
from brine.synth.sources.features import SourceFeatures

BANDS = (32, 2)
"""Bands of a MinHash and entries in each: a pair of similarity 0.5 is overlooked once in ten thousand."""


def cluster_near_duplicates(features: list[SourceFeatures], *, threshold: float) -> list[list[int]]:
    """Groups of indices, transitively closed over pairs with equal tokens or Jaccard estimate >= threshold.

    In the order of each group's first index; most groups have one member.
    """
    signatures = [item.minhash for item in features]
    return cluster_signatures(signatures, [item.content_hash for item in features], threshold=threshold, bands=BANDS)


def split_clusters(
    clusters: list[list[int]], *, files: list[SourceFile], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[int]]:
    """split -> indices of its files, ascending. A held-out split takes clusters, in an order drawn by the seed,
    until it has its fraction of the bytes; a cluster too large for that stays in train.

    With at least three clusters each split with a fraction above 0 gets one, the smallest if no other fits; with
    fewer, train goes first and held-out splits may be empty.
    """
    sizes = [sum(files[index].num_bytes for index in group) for group in clusters]
    free = list(range(len(clusters)))
    random.Random(f"split/{seed}").shuffle(free)
    taken: dict[str, list[int]] = {split: [] for split in SPLITS}
    for split, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        target, held = fraction * sum(sizes), 0
        for item in free:
            # at most a tenth over the target: one large file must not make the whole split
            if held < target and held + sizes[item] <= 1.1 * target:
                taken[split].append(item)
                held += sizes[item]
        if fraction > 0 and not taken[split] and len(free) >= 2:
            taken[split] = [min(free, key=lambda item: (sizes[item], item))]
        chosen = set(taken[split])
        free = [item for item in free if item not in chosen]
    taken["train"] = free
    return {split: sorted(index for item in taken[split] for index in clusters[item]) for split in SPLITS}
