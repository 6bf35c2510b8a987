"""Which candidates become cases: in each cell and part those of the lowest rank, a keyed hash of the content.

A part depends on the content alone, so a case never moves between parts. With a fixed number of cases a new document
takes the place of another only where its rank is lower; of the cases that a suite had, a remade one keeps all that are
still among the lowest. With the ranks of a suite that is there (`--like`), every candidate at or below the highest rank
of its cell is chosen: then no new document displaces any, and the cells grow in proportion to the documents. Both
are unbiased samples, since a rank says nothing about what a model can do.

A candidate that cannot be decoded is passed by, also because of its content alone. Documents are decoded in processes
that can be killed, with default settings: media that other settings refuse are named when a model is measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from brine.data.config import EncodeConfig
from brine.data.inspect.check import byte_tokenizer
from brine.data.media.pool import DecodePool
from brine.evals.suites.case import rank_of_id, transcription_in
from brine.evals.suites.making.candidates import Candidate, CandidateCases, iter_cells

CellName = tuple[str, int, str]
"""(kind, level, part)."""


@dataclass(frozen=True)
class CellChoice:
    """A cell's part. chosen: by ascending rank; num_candidates: among how many; below: the highest chosen rank where
    others are above it, None where every usable candidate was chosen."""

    name: CellName
    chosen: tuple[Candidate, ...]
    num_candidates: int
    below: str | None

    def to_json(self) -> dict:
        """An entry of `cells` in suite.json."""
        kind, level, part = self.name
        counts = {"cases": len(self.chosen), "candidates": self.num_candidates, "below": self.below}
        return {"kind": kind, "level": level, "part": part, **counts}


def choose_candidates(
    found: CandidateCases, *, per_cell: int, seed: int, max_tokens: int, workers: int,
    like: Mapping[CellName, str | None] | None = None,
) -> list[CellChoice]:  # fmt: skip
    """The choice for every cell and part, in order. CandidateCases that cannot be decoded, or take over `max_tokens` as
    bytes and default patches, are counted in `found.skipped`.

    like: highest ranks by cell (None: all), for cells that an earlier suite had; the others get `per_cell`.
    """
    cells = [_Cell(name, candidates, seed, per_cell, like or {}) for name, candidates in iter_cells(found)]
    while pending := [candidate for cell in cells for candidate in cell.next_candidates()]:
        refused = _refused(pending, max_tokens=max_tokens, workers=workers)
        for reason in refused.values():
            found.skipped[reason] += 1
        for cell in cells:
            cell.accept(refused)
    return [choice for cell in cells if (choice := cell.choice()).chosen]


class _Cell:
    """A cell's part while it is filled."""

    def __init__(
        self, name: CellName, candidates: Sequence[Candidate], seed: int, per_cell: int,
        like: Mapping[CellName, str | None],
    ):  # fmt: skip
        self.name, self.rank = name, {each.case.id: rank_of_id(each.case.id, seed) for each in candidates}
        self.waiting = sorted(candidates, key=lambda each: self.rank[each.case.id])
        self.num_candidates, self.limit = len(candidates), per_cell
        self.below = None
        if name in like:
            self.limit, self.below = len(candidates), like[name]
            if self.below is not None:
                self.waiting = [each for each in self.waiting if self.rank[each.case.id] <= self.below]
        self.chosen: list[Candidate] = []
        self.asked: list[Candidate] = []

    def next_candidates(self) -> list[Candidate]:
        """Those to decode next."""
        count = self.limit - len(self.chosen)
        self.asked, self.waiting = self.waiting[:count], self.waiting[count:]
        return self.asked

    def accept(self, refused: Mapping[str, str]) -> None:
        """Take those that were asked for and not refused."""
        self.chosen += [each for each in self.asked if each.case.id not in refused]

    def choice(self) -> CellChoice:
        if self.below is None and self.waiting and self.chosen:
            self.below = self.rank[self.chosen[-1].case.id]
        return CellChoice(self.name, tuple(self.chosen), self.num_candidates, self.below)


def _refused(candidates: Sequence[Candidate], *, max_tokens: int, workers: int) -> dict[str, str]:
    """Content id -> why a candidate cannot be a case."""
    refused = {}
    for group in _by_source(candidates):
        config, root = EncodeConfig(), group[0].source.root
        with DecodePool(root=root, tokenizer=byte_tokenizer(), config=config, num_servers=workers) as pool:
            # each under its content id, since ids of sources may repeat
            documents = [replace(each.document, id=each.case.id) for each in group]
            for result in pool.encode(documents):
                if result.encoded is None:
                    refused[result.document.id] = "media that cannot be decoded"
                elif len(result.encoded) > max_tokens:
                    refused[result.document.id] = f"over {max_tokens:,} tokens"
    return refused


def _by_source(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    groups: dict[int, list[Candidate]] = {}
    for each in candidates:
        groups.setdefault(id(each.source), []).append(each)
    yield from groups.values()


def with_transcriptions(choice: CellChoice, *, most: int, max_level: int, max_reference_chars: int) -> list[Candidate]:
    """A cell's candidates; the `most` of lowest rank that have a short reference become transcription cases."""
    made, left = [], most if choice.name[1] <= max_level else 0
    for candidate in choice.chosen:
        task = transcription_in(candidate.case.parts) if left else None
        if task is not None and len(task.reference) <= max_reference_chars:
            candidate, left = replace(candidate, case=replace(candidate.case, transcription=task)), left - 1
        made.append(candidate)
    return made
