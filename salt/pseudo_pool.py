"""Pools of documents whose words a model gave: they accumulate over rounds, and their share of the targets is capped.

A pool is a native manifest whose lines also say where the words come from, which readers of manifests pass over:

    {..., "consent": "pseudo", "pseudo": {"key", "num_targets", "confidence", "origin", "round"}}

Data accumulate, since training on the last round's output alone collapses and accumulating does not (2404.01413). A
document has one label: a later one replaces it only where its confidence is higher. What is chosen below a cap is
chosen in the order of a hash of the content, so that the choice is the same on every machine and grows with the cap.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from brine.common.files import replacing
from brine.data.document import Document, DocumentError, parse_document
from brine.salt.content import ContentHasher, hash_order

PSEUDO_CONSENT = "pseudo"
"""Consent class of words that a model gave."""
POOL_FILE = "pool.jsonl"


@dataclass(frozen=True)
class PseudoEntry:
    """A document with words of a model. Raises ValueError for one that is held out or numbers that cannot be."""

    document: Document
    key: str
    """Digest of what was labelled: of the prompt for a pseudo-label, of the whole document for self-play."""
    num_targets: int
    """Tokens of the words, end token included."""
    confidence: float
    """Mean log-probability of the words, nats per token."""
    origin: str
    """SHA-256 of the weights of the model."""
    round: int

    def __post_init__(self):
        if self.document.split != "train":
            raise ValueError(
                f"{self.document.id} is of the split {self.document.split}: words of a model are for training alone"
            )
        if not self.confidence <= 0 or self.num_targets < 1 or self.round < 0:
            raise ValueError(
                f"{self.document.id}: confidence {self.confidence}, {self.num_targets} targets, round {self.round}: "
                "give a log-probability of at most 0, at least 1 target, a round of at least 0"
            )

    def to_json(self) -> dict:
        """One line of a pool."""
        said = {name: getattr(self, name) for name in ("key", "num_targets", "confidence", "origin", "round")}
        return self.document.to_json() | {"consent": PSEUDO_CONSENT, "pseudo": said}


def read_pool(path: str | Path) -> list[PseudoEntry]:
    """Entries of a pool (a file, or a folder with `pool.jsonl`) in file order. ValueError naming file and line."""
    path = Path(path) / POOL_FILE if Path(path).is_dir() else Path(path)
    entries = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    fields = json.loads(line)
                    entries.append(PseudoEntry(parse_document(fields), **_said(fields)))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(
                        f"{path}, line {number}, is not an entry of a pool ({error}): write it again"
                    ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a pool of pseudo-labels") from None
    return entries


def _said(fields: dict) -> dict:
    said = fields["pseudo"]
    if fields["consent"] != PSEUDO_CONSENT or not isinstance(said, dict):
        raise DocumentError(f"its consent class is not {PSEUDO_CONSENT!r}")
    kinds = {"key": str, "num_targets": int, "confidence": float, "origin": str, "round": int}
    for name, kind in kinds.items():
        if not isinstance(said[name], (int, float) if kind is float else kind) or isinstance(said[name], bool):
            raise DocumentError(f"field {name!r} must be of type {kind.__name__}")
    return {name: kind(said[name]) for name, kind in kinds.items()}


def write_pool(folder: str | Path, entries: Iterable[PseudoEntry], *, name: str = POOL_FILE) -> Path:
    """Writes entries, in the order of their keys, whole or not at all; ids that come twice get a part of their key."""
    path, seen = Path(folder) / name, set()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for entry in sorted(entries, key=lambda entry: entry.key):
            if entry.document.id in seen:
                named = dataclasses.replace(entry.document, id=f"{entry.document.id}-{entry.key[:16]}")
                entry = dataclasses.replace(entry, document=named)
            seen.add(entry.document.id)
            file.write(json.dumps(entry.to_json(), ensure_ascii=False) + "\n")
    return path


def accumulate(earlier: Iterable[PseudoEntry], new: Iterable[PseudoEntry]) -> list[PseudoEntry]:
    """One entry for each key, by key: the earlier one, unless a new one has a higher confidence."""
    found: dict[str, PseudoEntry] = {}
    for entry in (*earlier, *new):
        if entry.key not in found or entry.confidence > found[entry.key].confidence:
            found[entry.key] = entry
    return [found[key] for key in sorted(found)]


def max_pseudo_targets(real_targets: float, pseudo_share: float) -> int:
    """The most pseudo targets beside `real_targets` others, so that they are at most `pseudo_share` of all.

    Raises ValueError for a share outside [0, 1).
    """
    if not 0 <= pseudo_share < 1:
        raise ValueError(f"pseudo_share = {pseudo_share} must lie in [0, 1): some targets must be words of people")
    limit = math.floor(pseudo_share / (1 - pseudo_share) * real_targets)
    # floating point may round the limit up by one
    return limit - (limit > 0 and limit > pseudo_share * (limit + real_targets) * (1 + 1e-12))


def choose_within(entries: Iterable[PseudoEntry], max_targets: float, *, weight: float = 1.0) -> list[PseudoEntry]:
    """Entries with at most `max_targets` targets times `weight` in sum: in hash order, each that still fits."""
    chosen, used = [], 0.0
    for entry in in_hash_order(entries):
        if used + weight * entry.num_targets <= max_targets:
            chosen.append(entry)
            used += weight * entry.num_targets
    return chosen


def in_hash_order(entries: Iterable[PseudoEntry]) -> list[PseudoEntry]:
    """Entries in the order in which they are chosen."""
    return sorted(entries, key=lambda entry: (hash_order(entry.key, "pool"), entry.key))


def adopt_entries(entries: Iterable[PseudoEntry], root: Path, folder: Path) -> Iterator[PseudoEntry]:
    """The same entries, their media, whatever their size, linked from the folder of their manifest into another."""
    hasher = ContentHasher(root, max_file_mib=math.inf)
    for entry in entries:
        yield dataclasses.replace(entry, document=hasher.adopt(entry.document, folder))
