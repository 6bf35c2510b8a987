"""Mixture and curriculum: how often a document is sampled, and when, by progress along the planned sequences.

    Mixture({"kind:page": [(0.0, 0.5), (0.5, 2.0)], "kind:screenshot/1": 2, "source:wikitext*": 0.1})

A weight is the number of samples in the time in which a document of weight 1 is sampled once: a number, or points
(progress, weight) that are interpolated linearly and constant beyond the ends. A document has the weight of its kind
(kind/level before kind) times that of its source (the longest pattern that matches); what is not named weighs 1.
Weights are of documents, not of tokens, so a kind of long documents has more of the tokens. In a corpus that joins
several sources (`corpus.sources`) each one's own weight is a third factor, and its name alone, "source:NAME", matches
all of its documents, whatever source they had before.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from brine.data.corpus.consent import corpus_source_names

MAX_WEIGHT = 4096

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mixture:
    """Weights by kind, kind/level and source. Raises ValueError for a wrong key or weight."""

    weights: Mapping[str, float | Iterable[tuple[float, float]]] | tuple[tuple[str, Points], ...] = ()
    """"kind:NAME", "kind:NAME/LEVEL" or "source:PATTERN" (with * and ?) to a weight, or to points (progress, weight);
    kept as a tuple of (key, points)."""
    joined: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    """Weight of each source of a corpus that joins several, by its name; kept as a tuple of those that are not 1."""

    def __post_init__(self):
        given = self.weights.items() if isinstance(self.weights, Mapping) else self.weights
        entries = tuple((str(key), _points(str(key), value)) for key, value in given)
        keys = [key for key, _ in entries]
        for key in keys:
            if not key.startswith(("kind:", "source:")) or key.endswith(":"):
                raise ValueError(f"mixture: {key!r} must be kind:NAME, kind:NAME/LEVEL or source:PATTERN")
            if keys.count(key) > 1:
                raise ValueError(f"mixture: {key!r} is given twice: give all its points in one entry")
        object.__setattr__(self, "weights", entries)
        joined = self.joined.items() if isinstance(self.joined, Mapping) else self.joined
        joined = tuple((str(name), float(weight)) for name, weight in joined if weight != 1)
        for name, weight in joined:
            _points(f"corpus:{name}", weight)
        object.__setattr__(self, "joined", joined)

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "Mixture":
        """From entries such as "source:wikitext*=0.1" and "kind:page=0:0.5,0.5:2" (points as progress:weight)."""
        weights = []
        for entry in entries:
            key, equals, value = str(entry).rpartition("=")
            try:
                points = [tuple(map(float, point.split(":"))) for point in value.split(",")]
                if not equals or any(len(point) > 2 for point in points) or (len(points[0]) == 1 < len(points)):
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f'mixture: {entry!r} must read KEY=WEIGHT or KEY=PROGRESS:WEIGHT,..., as "kind:page=0:0.5,0.5:2"'
                ) from None
            weights.append((key, points[0][0] if len(points[0]) == 1 else points))
        return cls(tuple(weights))

    @property
    def constant(self) -> bool:
        return all(len({weight for _, weight in points}) == 1 for _, points in self.weights)

    def for_kinds(self, known: Iterable[str]) -> "Mixture":
        """The same without the weights of kinds that are not `known`, such as a recipe's for another corpus."""
        named = {key: key.removeprefix("kind:").partition("/")[0] for key, _ in self.weights if key.startswith("kind:")}
        kept = tuple((key, points) for key, points in self.weights if named.get(key) in (None, *known))
        return Mixture(kept, self.joined)

    def to_dict(self) -> dict[str, list[list[float]]]:
        """Plain JSON: points by key; of joined sources "corpus:NAME"."""
        points = {key: [list(point) for point in points] for key, points in self.weights}
        return points | {f"corpus:{name}": [[0.0, weight]] for name, weight in self.joined}

    def groups(self, corpus, documents: np.ndarray) -> list[tuple[np.ndarray, tuple[Points, ...]]]:
        """Documents of equal weight, ascending, with its factors' points. ValueError for an unknown kind or source."""
        if not self.weights and not self.joined:
            return [(documents, ())]
        label = np.zeros(len(documents), dtype=np.int64)
        # the narrower entry wins whatever the order given: kind/level comes after kind
        kinds = sorted((key for key, _ in self.weights if key.startswith("kind:")), key=lambda key: key.count("/"))
        for number, key in enumerate(kinds, start=1):
            kind, _, level = key.removeprefix("kind:").partition("/")
            if kind not in corpus.kinds or (level and not level.isdigit()):
                raise ValueError(f"mixture: {key!r} is not a kind or kind/level; kinds: {', '.join(corpus.kinds)}")
            chosen = corpus.kind[documents] == corpus.kinds.index(kind)
            label[chosen & (corpus.level[documents] == int(level)) if level else chosen] = number
        sources = [key for key, _ in self.weights if key.startswith("source:")]
        if sources:
            label = label * (len(sources) + 1) + _pattern_of(corpus, sources)[corpus.source[documents]]
        order = {name: number for number, (name, _) in enumerate(self.joined, start=1)}
        if order:
            table = np.array([order.get(name, 0) for name in corpus_source_names(corpus)], dtype=np.int64)
            label = label * (len(order) + 1) + table[corpus.source[documents]]
        points = dict(self.weights)
        found = []
        for value in np.flatnonzero(np.bincount(label)).tolist():
            rest, joined = divmod(value, len(order) + 1)
            kind, source = divmod(rest, len(sources) + 1)
            named = ([kinds[kind - 1]] if kind else []) + ([sources[source - 1]] if source else [])
            factors = tuple(points[key] for key in named)
            factors += (((0.0, self.joined[joined - 1][1]),),) if joined else ()
            found.append((documents[label == value], factors))
        return found


def _pattern_of(corpus, keys: list[str]) -> np.ndarray:
    """(sources,) number of the longest pattern that matches each source, from 1; 0 for none."""
    patterns = [key.removeprefix("source:") for key in keys]
    joined = dict(zip(corpus.sources, corpus_source_names(corpus), strict=True))

    def matches(source: str, pattern: str) -> bool:
        return joined[source] == pattern != "" or fnmatchcase(source, pattern)

    for pattern in patterns:
        if not any(matches(source, pattern) for source in corpus.sources):
            few = ", ".join(corpus.sources[:8]) + (", ..." if len(corpus.sources) > 8 else "")
            raise ValueError(f"mixture: no source matches {pattern!r}; sources: {few}")
    by_length = sorted(range(len(patterns)), key=lambda number: (-len(patterns[number]), number))
    table = [next((n + 1 for n in by_length if matches(source, patterns[n])), 0) for source in corpus.sources]
    return np.array(table, dtype=np.int64)


def _points(key: str, value) -> Points:
    try:
        points = ((0.0, float(value)),) if np.isscalar(value) else tuple((float(p), float(w)) for p, w in value)
    except (TypeError, ValueError):
        raise ValueError(f"mixture[{key!r}] must be a number or points (progress, weight), not {value!r}") from None
    progress = [p for p, _ in points]
    if not points or not all(0 <= p <= 1 for p in progress) or sorted(set(progress)) != progress:
        raise ValueError(f"mixture[{key!r}]: progress must ascend within 0..1, not {progress}")
    for _, weight in points:
        if not 0 <= weight <= MAX_WEIGHT:
            raise ValueError(f"mixture[{key!r}] must lie in 0..{MAX_WEIGHT}, not {weight}")
    return points


def mean_weight(points: tuple[Points, ...], first: float, last: float) -> float:
    """Mean of the product of schedules over a range of progress."""
    at = first + (last - first) * (np.arange(16) + 0.5) / 16
    product = np.ones(16)
    for schedule in points:
        product = product * np.interp(at, *np.array(schedule).T)
    return float(product.mean())
