"""What the next round trains on: pools of documents in, sources out, with the share of pseudo targets capped.

Pools of people's words (base, feedback) are taken as they are. Of pools whose consent class is "pseudo" (pseudo-labels,
self-play) as many targets are taken as make up `pseudo_share` of all at most, counted in tokens times weights; they
are chosen together in the order of a hash, so that each pool keeps its part. Written into the folder of the round:

    FOLDER/NAME/pool.jsonl     the chosen entries of a pseudo pool, a manifest with its media
    FOLDER/round_data.json     pools, counts, share; written last

A weight is what it is in `packing.mixture`: how often a document is seen in the time in which one of weight 1 is seen
once. `before_round` leaves out what that round and later ones brought, for the arm that shows what new data are worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from brine.common.files import write_json
from brine.data.document import Document
from brine.data.formats.open import open_source
from brine.data.tokenizer import Tokenizer
from brine.salt.content import ContentHasher
from brine.salt.pseudo_label import target_text
from brine.salt.pseudo_pool import (
    PSEUDO_CONSENT,
    PseudoEntry,
    adopt_entries,
    in_hash_order,
    max_pseudo_targets,
    read_pool,
    write_pool,
)

ROUND_DATA_FILE = "round_data.json"


@dataclass(frozen=True)
class DataPool:
    """Documents of one origin. Raises ValueError for a name or weight that cannot be."""

    name: str
    """Such as base, feedback, pseudo, self-play; letters, digits, "-" and "_"."""
    path: Path
    """A manifest, or any source that `brine data check` reads; a pool's folder for words of a model."""
    consent: str = "own"
    """Consent class of the source; "pseudo" for words of a model."""
    weight: float = 1.0
    """How often its documents are seen."""
    sampling: float = 1.0
    """By which a mixture multiplies the weight in the mean over a training; it counts in the cap alone."""
    num_targets: int | None = None
    """Target tokens of its training documents, to save counting them; ignored for words of a model."""

    def __post_init__(self):
        if not self.name or not all(char.isalnum() or char in "-_" for char in self.name):
            raise ValueError(f"the pool's name {self.name!r} must be of letters, digits, - and _")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"the weight {self.weight} of the pool {self.name} must be positive: leave the pool out")
        if not (math.isfinite(self.sampling) and self.sampling >= 0):
            raise ValueError(f"the sampling {self.sampling} of the pool {self.name} must not be negative")

    @property
    def counted_weight(self) -> float:
        """What one of its targets counts in the cap."""
        return self.weight * self.sampling

    @property
    def is_pseudo(self) -> bool:
        """Whether its words are a model's."""
        return self.consent == PSEUDO_CONSENT


@dataclass(frozen=True)
class RoundSource:
    """A source of the next round's corpus, in the terms of `corpus.sources`, and how large it is."""

    name: str
    path: Path
    weight: float
    consent: str
    num_targets: int


def count_targets(path: str | Path, tokenizer: Tokenizer) -> int:
    """Target tokens of the training documents of a source, end tokens included."""
    total = 0
    for item in open_source(Path(path)).documents():
        if isinstance(item, Document) and item.split == "train" and (text := target_text(item)):
            total += len(tokenizer.encode(text)) + 1
    return total


def round_sources(
    pools: Sequence[DataPool],
    folder: str | Path,
    *,
    pseudo_share: float,
    tokenizer: Tokenizer,
    before_round: int | None = None,
    held_out: Set[str] = frozenset(),
) -> list[RoundSource]:
    """The sources of a round, in the order of the pools; pseudo pools of which nothing is chosen are left out.

    held_out: digests of held-out cases (`ContentHasher.identities`); no word of a model that shares one is taken.
    Raises ValueError for pools of one name, or a share outside [0, 1).
    """
    folder, names = Path(folder), [pool.name for pool in pools]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two pools are called {repeated[0]}: give each its own name")
    targets = {
        pool.name: count_targets(pool.path, tokenizer) if pool.num_targets is None else pool.num_targets
        for pool in pools if not pool.is_pseudo
    }  # fmt: skip
    real = math.fsum(pool.counted_weight * targets[pool.name] for pool in pools if not pool.is_pseudo)
    limit = max_pseudo_targets(real, pseudo_share)
    known = {pool.name: _usable(pool, before_round, held_out) for pool in pools if pool.is_pseudo}
    chosen = _choose(known, {pool.name: pool.counted_weight for pool in pools}, limit)
    sources, records = [], {}
    for pool in pools:
        path, record = Path(pool.path), {"consent": pool.consent, "weight": pool.weight, "sampling": pool.sampling}
        if pool.is_pseudo:
            entries, root = chosen[pool.name], path if path.is_dir() else path.parent
            targets[pool.name] = sum(entry.num_targets for entry in entries)
            record |= {"entries": len(known[pool.name]), "chosen": len(entries)}
            if entries:
                path = write_pool(folder / pool.name, adopt_entries(entries, root, folder / pool.name))
        records[pool.name] = record | {"num_targets": targets[pool.name]}
        if targets[pool.name] or not pool.is_pseudo:
            sources.append(RoundSource(pool.name, path, pool.weight, pool.consent, targets[pool.name]))
    pseudo = math.fsum(pool.counted_weight * targets[pool.name] for pool in pools if pool.is_pseudo)
    found = {
        "pools": records, "real_targets": real, "pseudo_targets": pseudo, "max_pseudo_targets": limit,
        "pseudo_share": pseudo_share, "share": pseudo / (pseudo + real) if pseudo else 0.0,
        "before_round": before_round,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ROUND_DATA_FILE, found)
    return sources


def _usable(pool: DataPool, before_round: int | None, held_out: Set[str]) -> list[PseudoEntry]:
    path = Path(pool.path)
    # media of a pool came in below a limit
    hasher = ContentHasher(path if path.is_dir() else path.parent, max_file_mib=math.inf)
    return [
        entry
        for entry in read_pool(path)
        if (before_round is None or entry.round < before_round) and not hasher.is_held_out(entry.document, held_out)
    ]


def _choose(
    known: dict[str, list[PseudoEntry]], weights: dict[str, float], limit: float
) -> dict[str, list[PseudoEntry]]:
    """Entries of all pools in one hash order, each that still fits."""
    pool_of = {id(entry): name for name, entries in known.items() for entry in entries}
    chosen: dict[str, list[PseudoEntry]] = {name: [] for name in known}
    used = 0.0
    everything: Iterable[PseudoEntry] = (entry for entries in known.values() for entry in entries)
    for entry in in_hash_order(everything):
        name = pool_of[id(entry)]
        if used + weights[name] * entry.num_targets <= limit:
            chosen[name].append(entry)
            used += weights[name] * entry.num_targets
    return chosen
