"""Mixture and curriculum: which documents come how often, and when, as a function of progress along the planned rows.

    Mixture({"kind:page": [(0.0, 0.5), (0.5, 2.0)], "kind:screenshot/1": 2, "source:wikitext*": 0.1})

A weight is the number of visits in the time in which a document of weight 1 is visited once. It is a number, or points
(progress, weight) with straight lines between them and level ends; progress is row / planned rows. A document has the
weight of its kind (kind/level before kind) times that of its source (the longest pattern that matches); what is not
named weighs 1. Documents of equal weights are a group. A group is visited in an endless order of its own, shuffled anew
each time all were visited, so within a group no document is visited a third time before all were visited twice, and
the count of visits of each document is known.

Constant weights: the stream of visits is one epoch after another, each with every group's visits in one shuffle.
Weights that change: the planned rows are cut into `NUM_SEGMENTS` equal parts, each with the weights' mean there; a part
takes as many visits as fill its rows, in tokens or in the media budget that is reached first, so the mixture within a
part is constant, and rounding is carried on. Every random choice is a hash of counters (seed, document, number of the
visit): no generator's state, the same on every machine and under every version of numpy.

What this does not do: choose weights, or look at losses; and weights are of documents, not of tokens, so a kind of
long documents has more of the tokens. `realised` says what came out.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from data.counters import ORDER, SHUFFLE, shuffled, unit
from data.document import MODALITIES
from data.tokenizer import SLOT_ID

NUM_SEGMENTS = 32
"""Parts of the planned rows with constant weights, where weights change."""
MOST = 4096
"""Largest weight."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mixture:
    """Weights by kind, kind/level and source. Raises ValueError for a key or weight that cannot be meant."""

    weights: Mapping[str, float | Iterable[tuple[float, float]]] | tuple[tuple[str, Points], ...] = ()
    """"kind:NAME", "kind:NAME/LEVEL" or "source:PATTERN" (with * and ?) to a weight, or to points (progress, weight);
    kept as a tuple of (key, points)."""

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

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "Mixture":
        """From lines such as "source:wikitext*=0.1" and "kind:page=0:0.5,0.5:2" (points as progress:weight)."""
        weights = []
        for entry in entries:
            key, equals, value = str(entry).rpartition("=")
            try:
                if not equals:
                    raise ValueError
                points = [tuple(map(float, point.split(":"))) for point in value.split(",")]
                if any(len(point) > 2 for point in points) or (len(points[0]) == 1 < len(points)):
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f'mixture: {entry!r} must read KEY=WEIGHT or KEY=PROGRESS:WEIGHT,..., as "kind:page=0:0.5,0.5:2"'
                ) from None
            weights.append((key, points[0][0] if len(points[0]) == 1 else points))
        return cls(tuple(weights))

    @classmethod
    def of_kinds(cls, kind_weights: Mapping) -> "Mixture":
        """From constant weights by "kind", "kind/level" or (kind, level)."""
        names = [("/".join(map(str, key)) if isinstance(key, tuple) else str(key)) for key in kind_weights]
        for name, value in zip(names, kind_weights.values(), strict=True):
            if not 0 <= value <= MOST:
                raise ValueError(f"kind_weights[{name!r}] must lie in 0..{MOST}, not {value}")
        return cls(tuple((f"kind:{name}", value) for name, value in zip(names, kind_weights.values(), strict=True)))

    def __add__(self, other: "Mixture") -> "Mixture":
        return Mixture((*self.weights, *other.weights))

    @property
    def constant(self) -> bool:
        """Does no weight change along the rows?"""
        return all(len({weight for _, weight in points}) == 1 for _, points in self.weights)

    def to_dict(self) -> dict[str, list[list[float]]]:
        """Plain JSON: points by key."""
        return {key: [list(point) for point in points] for key, points in self.weights}

    def groups(self, corpus, documents: np.ndarray) -> list[tuple[np.ndarray, tuple[Points, ...]]]:
        """Documents of equal weight, ascending, with the points whose product is their weight.

        Raises ValueError for a kind that the corpus does not have and a pattern that matches no source of it.
        """
        if not self.weights:
            return [(documents, ())]
        label = np.zeros(len(documents), dtype=np.int64)
        # the narrower entry wins whatever the order given: kind/level comes after kind
        kinds = sorted((key for key, _ in self.weights if key.startswith("kind:")), key=lambda key: key.count("/"))
        for number, key in enumerate(kinds, start=1):
            kind, _, level = key.removeprefix("kind:").partition("/")
            if kind not in corpus.kinds or (level and not level.isdigit()):
                raise ValueError(f"mixture: {key!r} is no kind, nor kind/level; kinds: {', '.join(corpus.kinds)}")
            chosen = corpus.kind[documents] == corpus.kinds.index(kind)
            label[chosen & (corpus.level[documents] == int(level)) if level else chosen] = number
        sources = [key for key, _ in self.weights if key.startswith("source:")]
        if sources:
            label = label * (len(sources) + 1) + self._pattern_of(corpus, sources)[corpus.source[documents]]
        points = dict(self.weights)
        found = []
        for value in np.flatnonzero(np.bincount(label)).tolist():
            kind, source = divmod(value, len(sources) + 1)
            named = ([kinds[kind - 1]] if kind else []) + ([sources[source - 1]] if source else [])
            found.append((documents[label == value], tuple(points[key] for key in named)))
        return found

    @staticmethod
    def _pattern_of(corpus, keys: list[str]) -> np.ndarray:
        """(sources,) number of the longest pattern that matches each source, from 1; 0: none."""
        patterns = [key.removeprefix("source:") for key in keys]
        for pattern in patterns:
            if not any(fnmatchcase(source, pattern) for source in corpus.sources):
                few = ", ".join(corpus.sources[:8]) + (", ..." if len(corpus.sources) > 8 else "")
                raise ValueError(f"mixture: no source matches {pattern!r}; sources: {few}")
        by_length = sorted(range(len(patterns)), key=lambda number: (-len(patterns[number]), number))
        table = [next((n + 1 for n in by_length if fnmatchcase(source, patterns[n])), 0) for source in corpus.sources]
        return np.array(table, dtype=np.int64)


def _points(key: str, value) -> Points:
    """Validated points of a schedule; a number is one point."""
    try:
        points = ((0.0, float(value)),) if np.isscalar(value) else tuple((float(p), float(w)) for p, w in value)
    except (TypeError, ValueError):
        raise ValueError(f"mixture[{key!r}] must be a number or points (progress, weight), not {value!r}") from None
    progress = [p for p, _ in points]
    if not points or not all(0 <= p <= 1 for p in progress) or sorted(set(progress)) != progress:
        raise ValueError(f"mixture[{key!r}]: progress must ascend within 0..1, not {progress}")
    for _, weight in points:
        if not 0 <= weight <= MOST:
            raise ValueError(f"mixture[{key!r}] must lie in 0..{MOST}, not {weight}")
    return points


def _weight(points: tuple[Points, ...], first: float, last: float) -> float:
    """Mean of the product of schedules over a stretch of progress."""
    at = first + (last - first) * (np.arange(16) + 0.5) / 16
    product = np.ones(16)
    for schedule in points:
        product = product * np.interp(at, *np.array(schedule).T)
    return float(product.mean())


class Visits:
    """The stream of visits: documents in the order in which they are to be packed, with the number of the visit."""

    def __init__(self, groups: list[tuple[np.ndarray, tuple[Points, ...]]], *, seed: int, shuffle: bool):
        self.groups, self.seed, self.shuffle = groups, seed, shuffle
        self.taken = [0] * len(groups)
        self._order: dict[int, tuple[int, np.ndarray]] = {}

    def epochs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch after another, without end: documents and numbers of visits, both (v,) int32."""
        size = [len(documents) * _weight(points, 0.0, 1.0) for documents, points in self.groups]
        # a group whose weight leaves it less than a visit an epoch begins at a random one
        shift = [unit(self.seed, ORDER, np.array([group]), np.array([0]))[0] for group in range(len(size))]
        for epoch in range(2**31):
            due = [int((epoch + 1) * n + u) - int(epoch * n + u) for n, u in zip(size, shift, strict=True)]
            yield self._mixed(due)

    def rows_of_an_epoch(self, cost: list[np.ndarray]) -> float:
        """Rows that one visit of each document fills by its mean weight; cost as in `segments`."""
        size = [len(documents) * _weight(points, 0.0, 1.0) for documents, points in self.groups]
        return float(sum(n * c for n, c in zip(size, cost, strict=True)).max())

    def segments(self, cost: list[np.ndarray], rows: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Segments that fill `rows` rows by weights that change, then more like the last, without end.

        cost: per group the mean share of a row that a visit takes, in tokens and each media budget, (1 + M,).
        """
        owed, used = np.zeros(len(self.groups)), np.zeros(len(cost[0]))
        for segment in range(2**31):
            at = min(segment, NUM_SEGMENTS - 1)
            weight = [_weight(points, at / NUM_SEGMENTS, (at + 1) / NUM_SEGMENTS) for _, points in self.groups]
            visits = np.array([w * len(documents) for w, (documents, _) in zip(weight, self.groups, strict=True)])
            wanted = rows * (segment + 1) / NUM_SEGMENTS
            a_unit = sum(v * c for v, c in zip(visits, cost, strict=True))
            if not a_unit.any():
                where = f"{at / NUM_SEGMENTS:.3f} to {(at + 1) / NUM_SEGMENTS:.3f}"
                raise ValueError(f"the mixture leaves no document at progress {where}: give something a weight there")
            # the budget that is reached first decides how much is taken
            need = min((wanted - u) / a for u, a in zip(used, a_unit, strict=True) if a > 0)
            owed += visits * max(0.0, need)
            due = np.floor(owed).astype(np.int64)
            owed -= due
            used += sum(d * c for d, c in zip(due, cost, strict=True))
            yield self._mixed(due.tolist())

    def _mixed(self, due: list[int]) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._take(group, count) for group, count in enumerate(due) if count]
        if not parts:
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
        document, number = (np.concatenate([part[column] for part in parts]) for column in (0, 1))
        del parts
        order = shuffled(self.seed, SHUFFLE, document, number) if self.shuffle else np.lexsort((number, document))
        return document[order], number[order]

    def _take(self, group: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `count` visits of a group's endless order."""
        documents, parts = self.groups[group][0], []
        while count:
            cycle, first = divmod(self.taken[group], len(documents))
            take = min(count, len(documents) - first)
            # all of a cycle needs no order of its own, since visits are mixed afterwards
            order = documents if take == len(documents) else self._cycle(group, cycle)[first : first + take]
            parts.append((order, np.full(take, cycle, dtype=np.int32)))
            self.taken[group] += take
            count -= take
        return tuple(np.concatenate([part[column] for part in parts]) for column in (0, 1))

    def _cycle(self, group: int, cycle: int) -> np.ndarray:
        if self._order.get(group, (-1,))[0] != cycle:
            documents = self.groups[group][0]
            order = np.arange(len(documents))
            if self.shuffle:
                order = shuffled(self.seed, ORDER, documents, np.full(len(documents), cycle, dtype=np.int32))
            self._order[group] = cycle, documents[order]
        return self._order[group][1]


class Stream:
    """Visits enough for the rows or epochs asked for."""

    def __init__(self, corpus, segments, mixture: Mixture, *, row_tokens: int, budget: dict, seed: int, shuffle: bool):
        self.mixture = mixture
        # what a row holds of everything that is counted, and how much of each a document takes
        self.limits = [row_tokens, *[limit for limit in budget.values() if 0 < limit < row_tokens]]
        self.takes = [corpus.num_tokens]
        self.takes += [corpus.num_media[each] for each, limit in budget.items() if 0 < limit < row_tokens]
        groups = mixture.groups(corpus, segments.usable)
        size = [len(found) * math.prod(max(w for _, w in schedule) for schedule in points) for found, points in groups]
        self.groups = [group for group, weight in zip(groups, size, strict=True) if weight]
        # a stream of next to nothing would not end
        if sum(size) < 1e-3:
            first = next(iter(segments.left_out.values()), "the filters and weights asked for leave no document")
            raise ValueError(f"no document to plan ({segments.num_left_out} left out; the first: {first})")
        self.visits = Visits(self.groups, seed=seed, shuffle=shuffle)

    def take(self, *, num_rows: int | None, epochs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
        """-> document, number of the visit and phase, all (v,) int32, and the epochs begun.

        Phases are epochs or segments, ascending; None where there is one only.
        """
        constant = self.mixture.constant
        parts, used = [], [0] * len(self.limits)
        for document, number in self.visits.epochs() if constant else self._segments(num_rows, epochs):
            full = False
            if num_rows is not None:
                stop, used = self._room(document, used, num_rows)
                document, number = document[:stop], number[:stop]
                full = any(u >= num_rows * limit for u, limit in zip(used, self.limits, strict=True))
            parts.append((document, number))
            if full or (num_rows is None and len(parts) == (epochs if constant else NUM_SEGMENTS)):
                break
        phase = None
        if len(parts) > 1:
            phase = np.repeat(np.arange(len(parts), dtype=np.int32), [len(document) for document, _ in parts])
        columns = (
            parts[0] if len(parts) == 1 else [np.concatenate([part[column] for part in parts]) for column in (0, 1)]
        )
        if not len(columns[0]):
            raise ValueError("no document to plan: the weights leave less than one visit; plan more epochs or rows")
        return *columns, phase, len(parts) if constant else int(columns[1].max()) + 1

    def _segments(self, num_rows: int | None, epochs: int):
        cost = [
            np.array([take[found].mean() / limit for take, limit in zip(self.takes, self.limits, strict=True)])
            for found, _ in self.groups
        ]
        rows = num_rows or epochs * self.visits.rows_of_an_epoch(cost)
        return self.visits.segments(cost, rows)

    def _room(self, document: np.ndarray, used: list[int], num_rows: int) -> tuple[int, list[int]]:
        """Visits up to and with the one that reaches what the rows hold, and what is used after them."""
        # no more is taken up than there is room for: what is packed is cut off in the end, and must not be a choice
        totals = [np.cumsum(take[document], dtype=np.int64) for take in self.takes]
        stop = len(document)
        for total, limit, before in zip(totals, self.limits, used, strict=True):
            stop = min(stop, int(np.searchsorted(total, num_rows * limit - before)) + 1)
        return stop, [u + (int(total[stop - 1]) if stop else 0) for u, total in zip(used, totals, strict=True)]


def realised(plan, corpus, num_bins: int = 10) -> dict:
    """Shares of tokens, padding left out, in `num_bins` equal stretches of a plan's rows; see `Plan.mixture`."""
    if plan.fingerprint != corpus.fingerprint:
        raise ValueError("this row plan was made for another corpus (or another encoding): build the plan again")
    edges = np.linspace(0, len(plan), max(1, min(num_bins, len(plan))) + 1).round().astype(np.int64)
    at = np.searchsorted(plan.offset[edges[1:]], np.arange(len(plan.document)), side="right")
    length = (plan.stop - plan.start).astype(np.float64)
    total = np.maximum(np.bincount(at, length, minlength=len(edges) - 1), 1)

    def shares(names: list[str], which: np.ndarray) -> dict[str, list[float]]:
        table = np.bincount(which * len(total) + at, length, minlength=len(names) * len(total))
        return dict(zip(names, (table.reshape(len(names), -1) / total).round(6).tolist(), strict=True))

    media = media_of_entries(plan, corpus)
    modality = {name: np.bincount(at, media[:, column], len(total)) for column, name in enumerate(MODALITIES)}
    modality = {"text": total - sum(modality.values()), **modality}
    return {
        "rows": edges.tolist(),
        "kind": shares(corpus.kinds, corpus.kind[plan.document].astype(np.int64)),
        "source": shares(corpus.sources, corpus.source[plan.document].astype(np.int64)),
        "modality": {name: (tokens / total).round(6).tolist() for name, tokens in modality.items()},
    }


def media_of_entries(plan, corpus) -> np.ndarray:
    """(E, 3) int64 patches of each modality in every entry; documents that were split are read for where theirs lie."""
    media = np.stack([corpus.num_media[name][plan.document] for name in MODALITIES], axis=1).astype(np.int64)
    part = np.flatnonzero(plan.stop - plan.start < corpus.num_tokens[plan.document])
    part = part[media[part].any(axis=1)]
    for number in np.unique(plan.document[part]).tolist():
        ids = corpus.tokens(number).token_ids
        entries = part[plan.document[part] == number]
        for column, name in enumerate(MODALITIES):
            slots = np.flatnonzero(ids == SLOT_ID[name])
            ends = [np.searchsorted(slots, bound[entries]) for bound in (plan.start, plan.stop)]
            media[entries, column] = ends[1] - ends[0]
    return media
