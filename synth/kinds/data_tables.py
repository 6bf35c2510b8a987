"""Which numbers a table or a chart shows: rows of labels and numbers, from one file where possible.

Labels and numbers are those of `code_metrics.py` and never made up. In a held-out split a row is refused when train has
it: a function, class, constant or file of that name with that very number, or, where the row is about a name, the name
itself. So no held-out number can be known from train; it must be read off the image.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from brine.synth.kinds.levels import TableLevel
from brine.synth.sources.code_metrics import CodeMetrics, line_numbers
from brine.synth.sources.code_regions import SplitSampler

NUM_PASSES = 64
"""How often a file may be visited; every file once before any again."""
MAX_FILES = 24
"""Files of a package that are compared in one table."""

LABEL = {"functions": "function", "classes": "class", "constants": "constant", "names": "name", "files": "file"}
"""subject -> header of the column with the labels."""


@dataclass(frozen=True)
class DataTable:
    """Rows of a label and a number for each column. `caption` names the numbers' source, `file` is its index."""

    file: int
    caption: str
    label: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def labels(self) -> list[str]:
        return [label for label, _numbers in self.rows]

    def column(self, index: int) -> list[int]:
        """The numbers of column `index` (0 is the first after the labels), by row."""
        return [numbers[index] for _label, numbers in self.rows]

    @property
    def cells(self) -> list[list[str]]:
        """Header and rows as text."""
        return [[self.label, *self.columns], *([label, *map(str, numbers)] for label, numbers in self.rows)]


def file_order(sampler: SplitSampler, rng: random.Random) -> Iterator[int]:
    """Indices of the sampler's files in random order, NUM_PASSES times over."""
    for _ in range(NUM_PASSES):
        order = list(range(len(sampler.files)))
        rng.shuffle(order)
        yield from order


def numeric_facts(code_metrics: CodeMetrics, *, path: str) -> Iterator[tuple[str, str, int]]:
    """(label, column, number) of everything that a table about this file may show, names left out."""
    for item in (*code_metrics.functions, *code_metrics.classes):
        yield from ((item.name, column, number) for column, number in item.numbers.items())
    yield from ((name, "value", number) for name, number in code_metrics.constants)
    yield from ((path.rsplit("/", 1)[-1], column, number) for column, number in code_metrics.file.items())


def sample_table(
    sampler: SplitSampler,
    index: int,
    subject: str,
    bounds: TableLevel,
    rng: random.Random,
    *,
    only: tuple[str, ...] | None = None,
) -> DataTable | None:
    """A table about `subject` from file `index`, or None when the file has too few rows or columns; `only` names them.

    Rows keep the order of the source, or are shuffled, by chance. Labels are distinct and printable ASCII. The greatest
    of a column is at least `min_column_max`, since what is nearly always 0 or 1 can be guessed.
    """
    rows = _rows(sampler, index, subject, rng)
    columns = list(rows[0][1]) if rows else []
    least, most = (number - 1 for number in bounds.columns)
    if only is None and len(columns) >= least:
        chosen = rng.sample(range(len(columns)), min(len(columns), rng.randint(least, most)))
        only = tuple(columns[column_index] for column_index in sorted(chosen))
    if not only or not set(only) <= set(columns):
        return None
    train = sampler.train_content
    allowed: dict[str, tuple[int, ...]] = {}
    for label, numbers in rows:
        if label in allowed or not _is_label(label, bounds.label_chars) or not set(only) <= set(numbers):
            continue
        values = tuple(numbers[name] for name in only)
        facts = {(label, *fact) for fact in zip(only, values, strict=True)}
        known = label in train.names if subject == "names" else not facts.isdisjoint(train.facts)
        if max(values) < 10**bounds.digits and not known:
            allowed[label] = values
    if len(allowed) < bounds.rows[0]:
        return None
    picked = rng.sample(list(allowed), min(len(allowed), rng.randint(*bounds.rows)))
    if rng.random() < 0.5:
        picked.sort(key=list(allowed).index)
    for column in zip(*(allowed[label] for label in picked), strict=True):
        if max(column) < bounds.min_column_max or min(column) == max(column):
            return None
    where = sampler.files[index].path if subject != "files" else sampler.files[index].package or "this source"
    rows = tuple((label, allowed[label]) for label in picked)
    return DataTable(index, f"{subject} of {where}", LABEL[subject], only, rows)


def sample_line_table(
    sampler: SplitSampler, index: int, *, num_rows: tuple[int, int], names: tuple[str, ...], rng: random.Random
) -> DataTable | None:
    """A table of consecutive lines of file `index`, labelled by their numbers. `names` are columns of `line_numbers`.

    None where the file has too few, where they are nearly all blank or empty of what is counted, or where train has
    each of them.
    """
    lines = sampler.lines[index]
    count = rng.randint(*num_rows)
    if len(lines) <= count:
        return None
    start = rng.randrange(len(lines) - count)
    picked = [line.expandtabs(4).rstrip() for line in lines[start : start + count]]
    full = [line for line in picked if line]
    if 3 * len(full) < 2 * count or all(sampler.train_content.has_line_of(line) for line in full):
        return None
    found = [line_numbers(line) for line in picked]
    if any(max(item[name] for item in found) < 4 for name in names):
        return None
    rows = tuple((str(start + 1 + row), tuple(item[name] for name in names)) for row, item in enumerate(found))
    return DataTable(index, f"lines of {sampler.files[index].path}", "line", names, rows)


def _is_label(label: str, most: int) -> bool:
    """Printable ASCII of 2 to `most` characters, none of which separates cells or answers."""
    return 2 <= len(label) <= most and label.isascii() and label.isprintable() and not set(label) & set("|, ")


def _rows(sampler: SplitSampler, index: int, subject: str, rng: random.Random) -> list[tuple[str, dict[str, int]]]:
    """(label, column -> number) of everything the subject has in the file, in the order of the source."""
    metrics = sampler.code_metrics[index]
    if subject in ("functions", "classes"):
        return [(item.name, item.numbers) for item in getattr(metrics, subject)]
    if subject == "constants":
        return [(name, {"value": number}) for name, number in metrics.constants]
    if subject == "names":
        # lines that have the name as a word, not its length: a question names the name, and would answer itself
        columns, words = ("lines", "first", "last"), metrics.words
        names = (name for name in sampler.features[index].names if name in words)
        return [(name, dict(zip(columns, words[name], strict=True))) for name in names]
    package = sampler.files[index].package
    others = [other for other, item in enumerate(sampler.files) if item.package == package and other != index]
    beside = sorted([index, *rng.sample(others, min(len(others), MAX_FILES - 1))])
    numbers = {sampler.files[other].path: sampler.code_metrics[other].file for other in beside}
    # a file in another language has fewer numbers: what all have can be compared
    common = [name for name in metrics.file if all(name in found for found in numbers.values())]
    return [(path.rsplit("/", 1)[-1], {name: found[name] for name in common}) for path, found in numbers.items()]
