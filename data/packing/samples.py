"""The stream of samples: documents in the order in which they are packed, by the weights of a `Mixture`.

Documents of equal weight are a group. A group is sampled in its own endless order, shuffled anew whenever all of
it has been sampled, so no document of a group comes a third time before all came twice. Constant weights give one epoch
after another, each with every group's samples in one shuffle. Weights that change divide the planned sequences into
`NUM_PHASES` equal phases, each with the mean weights there; a phase takes as many samples as fill its sequences, in
tokens or in the media budget that is reached first, and rounding is carried over. Every random choice is a hash of
counters (seed, document, number of the sample).
"""

import math
from collections.abc import Iterator

import numpy as np

from brine.data.packing.chunks import ChunkTable
from brine.data.packing.counter_rng import ORDER, SHUFFLE, shuffle_order, uniform
from brine.data.packing.mixture import Mixture, mean_weight

NUM_PHASES = 32  # phases of constant weights, where weights change along the run

Samples = tuple[np.ndarray, np.ndarray]
"""Documents and how often each was sampled before, both (v,) int32."""


class SampleStream:
    """Samples that are enough for the sequences or epochs asked for. Raises ValueError where no document is left."""

    def __init__(self, corpus, chunk_table: ChunkTable, mixture: Mixture, *, seq_len: int, budget: dict, seed: int):
        self.constant, self.seed = mixture.constant, seed
        # what a sequence holds of everything that is counted, and how much of each a document takes
        binding = [name for name, limit in budget.items() if 0 < limit < seq_len]
        self.limits = [seq_len, *(budget[name] for name in binding)]
        self.takes = [corpus.num_tokens, *(corpus.num_media[name] for name in binding)]
        groups = mixture.groups(corpus, chunk_table.usable)
        size = [len(found) * math.prod(max(w for _, w in schedule) for schedule in points) for found, points in groups]
        self.groups = [group for group, weight in zip(groups, size, strict=True) if weight]
        # a stream of next to nothing would not end
        if sum(size) < 1e-3:
            first = next(iter(chunk_table.excluded.values()), "the filters and weights asked for leave no document")
            raise ValueError(f"no document to plan ({chunk_table.num_excluded} excluded; the first: {first})")
        self.taken = [0] * len(self.groups)
        self._order: dict[int, tuple[int, np.ndarray]] = {}

    def take(self, *, num_sequences: int | None, epochs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
        """-> document, number of the sample and phase, (v,) int32 each, epochs begun. phase None: one only."""
        parts, used = [], [0] * len(self.limits)
        for document, number in self._epochs() if self.constant else self._phases(num_sequences, epochs):
            full = False
            if num_sequences is not None:
                stop, used = self._truncate_to_capacity(document, used, num_sequences)
                document, number = document[:stop], number[:stop]
                full = any(u >= num_sequences * limit for u, limit in zip(used, self.limits, strict=True))
            parts.append((document, number))
            if full or (num_sequences is None and len(parts) == (epochs if self.constant else NUM_PHASES)):
                break
        phase = None
        if len(parts) > 1:
            phase = np.repeat(np.arange(len(parts), dtype=np.int32), [len(document) for document, _ in parts])
        document, number = _joined(parts)
        if not len(document):
            raise ValueError("no document to plan: the weights leave no sample; plan more epochs or sequences")
        return document, number, phase, len(parts) if self.constant else int(number.max()) + 1

    def _epochs(self) -> Iterator[Samples]:
        size = [len(documents) * mean_weight(points, 0.0, 1.0) for documents, points in self.groups]
        # a group whose weight leaves it less than a sample an epoch begins at a random one
        shift = [uniform(self.seed, ORDER, np.array([group]), np.array([0]))[0] for group in range(len(size))]
        for epoch in range(2**31):
            yield self._mixed([int((epoch + 1) * n + u) - int(epoch * n + u) for n, u in zip(size, shift, strict=True)])

    def _phases(self, num_sequences: int | None, epochs: int) -> Iterator[Samples]:
        """Phases that fill the sequences by weights that change, then more like the last, without end."""
        # of a group the mean part of a sequence that a sample takes, in tokens and each media budget
        cost = np.array([
            [take[found].mean() / limit for take, limit in zip(self.takes, self.limits, strict=True)]
            for found, _ in self.groups
        ])  # fmt: skip
        size = [len(documents) for documents, _ in self.groups]
        whole = [n * mean_weight(points, 0.0, 1.0) for n, (_, points) in zip(size, self.groups, strict=True)]
        wanted = num_sequences or epochs * float(sum(n * c for n, c in zip(whole, cost, strict=True)).max())
        owed, used = np.zeros(len(self.groups)), np.zeros(len(self.limits))
        for phase in range(2**31):
            at = min(phase, NUM_PHASES - 1)
            weight = [mean_weight(points, at / NUM_PHASES, (at + 1) / NUM_PHASES) for _, points in self.groups]
            samples = np.array([w * n for w, n in zip(weight, size, strict=True)])
            a_unit = sum(v * c for v, c in zip(samples, cost, strict=True))
            if not a_unit.any():
                where = f"{at / NUM_PHASES:.3f} to {(at + 1) / NUM_PHASES:.3f}"
                raise ValueError(f"the mixture leaves no document at progress {where}: give something a weight there")
            # the budget that is reached first decides how much is taken
            until = wanted * (phase + 1) / NUM_PHASES
            need = min((until - u) / a for u, a in zip(used, a_unit, strict=True) if a > 0)
            owed += samples * max(0.0, need)
            due = np.floor(owed).astype(np.int64)
            owed -= due
            used += sum(d * c for d, c in zip(due, cost, strict=True))
            yield self._mixed(due.tolist())

    def _mixed(self, due: list[int]) -> Samples:
        parts = [self._next(group, count) for group, count in enumerate(due) if count]
        if not parts:
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
        document, number = _joined(parts)
        del parts
        order = shuffle_order(self.seed, SHUFFLE, document, number)
        return document[order], number[order]

    def _next(self, group: int, count: int) -> Samples:
        documents, parts = self.groups[group][0], []
        while count:
            cycle, first = divmod(self.taken[group], len(documents))
            take = min(count, len(documents) - first)
            # all of a cycle needs no order, since samples are mixed afterwards
            order = documents if take == len(documents) else self._cycle(group, cycle)[first : first + take]
            parts.append((order, np.full(take, cycle, dtype=np.int32)))
            self.taken[group] += take
            count -= take
        return _joined(parts)

    def _cycle(self, group: int, cycle: int) -> np.ndarray:
        if self._order.get(group, (-1,))[0] != cycle:
            documents = self.groups[group][0]
            number = np.full(len(documents), cycle, dtype=np.int32)
            documents = documents[shuffle_order(self.seed, ORDER, documents, number)]
            self._order[group] = cycle, documents
        return self._order[group][1]

    def _truncate_to_capacity(self, document: np.ndarray, used: list[int], num_sequences: int) -> tuple[int, list[int]]:
        """How many samples reach what the sequences hold, and what is used after them."""
        # no more is taken than fits: what is packed is truncated in the end, and must not be a choice
        totals = [np.cumsum(take[document], dtype=np.int64) for take in self.takes]
        stop = len(document)
        for total, limit, before in zip(totals, self.limits, used, strict=True):
            stop = min(stop, int(np.searchsorted(total, num_sequences * limit - before)) + 1)
        return stop, [u + (int(total[stop - 1]) if stop else 0) for u, total in zip(used, totals, strict=True)]


def _joined(parts: list[Samples]) -> Samples:
    if len(parts) == 1:
        return parts[0]
    return tuple(np.concatenate([part[column] for part in parts]) for column in (0, 1))
