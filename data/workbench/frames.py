"""Which numbers a table or a chart shows: a frame is some rows of labels and numbers, from one file where it can be.

Labels and numbers are those of `numbers.py` and never made up. In a held-out split a row is refused when train has it:
a function, class, constant or file of that name with that very number, or, where the row is about a name, the name
itself. So no held-out number can be known from train; it must be read off the picture.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from data.workbench.lines import Bench
from data.workbench.numbers import Measures, line_numbers

ROUNDS = 64
"""How often a file may be visited; every file once before any again."""

LABEL = {"functions": "function", "classes": "class", "constants": "constant", "names": "name", "files": "file"}
"""subject -> header of the column with the labels."""


@dataclass(frozen=True)
class Frame:
    """Rows of a label and a number for each column. `caption` tells the numbers' source."""

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


def visits(bench: Bench, *, rng: random.Random) -> Iterator[int]:
    """Indices of the bench's files in random order, ROUNDS times over."""
    for _ in range(ROUNDS):
        order = list(range(len(bench.files)))
        rng.shuffle(order)
        yield from order


def facts_of(measures: Measures, *, path: str) -> Iterator[tuple[str, str, int]]:
    """(label, column, number) of everything that a frame about this file may show, names left out."""
    for item in (*measures.functions, *measures.classes):
        for column, number in item.numbers.items():
            yield item.name, column, number
    for name, number in measures.constants:
        yield name, "value", number
    for column, number in measures.file.items():
        yield path.rsplit("/", 1)[-1], column, number


def draw_frame(
    bench: Bench,
    index: int,
    *,
    subject: str,
    num_rows: tuple[int, int],
    num_columns: tuple[int, int],
    label_chars: int,
    digits: int,
    peak: int,
    rng: random.Random,
    only: tuple[str, ...] | None = None,
) -> Frame | None:
    """A frame about `subject` from file `index`, or None when the file has not as many rows or columns as that.

    num_columns: least and greatest number of columns beside the labels; `only` names them instead. Rows keep the order
    of the source, or are shuffled, by chance. Labels are distinct, printable ASCII, of at most label_chars; numbers
    have at most `digits` digits, and the greatest of a column is at least `peak`, since what is nearly always 0 or 1
    can be guessed.
    """
    rows = _rows(bench, index, subject, rng)
    columns = list(rows[0][1]) if rows else []
    if only is None and len(columns) >= num_columns[0]:
        chosen = rng.sample(range(len(columns)), min(len(columns), rng.randint(*num_columns)))
        only = tuple(columns[place] for place in sorted(chosen))
    names = only or ()
    if not names or not set(names) <= set(columns):
        return None
    allowed: dict[str, tuple[int, ...]] = {}
    for label, numbers in rows:
        values = tuple(numbers[name] for name in names if name in numbers)
        good = len(values) == len(names) and max(values) < 10**digits and _is_label(label, label_chars)
        if good and not _known(bench, subject, label, names, values):
            allowed.setdefault(label, values)
    if len(allowed) < num_rows[0]:
        return None
    picked = rng.sample(list(allowed), min(len(allowed), rng.randint(*num_rows)))
    if rng.random() < 0.5:
        places = {label: place for place, label in enumerate(allowed)}
        picked.sort(key=places.__getitem__)
    for place in range(len(names)):
        column = [allowed[label][place] for label in picked]
        if max(column) < peak or min(column) == max(column):
            return None
    where = bench.files[index].path if subject != "files" else bench.files[index].package or "this source"
    caption = f"{subject} of {where}"
    return Frame(index, caption, LABEL[subject], names, tuple((label, allowed[label]) for label in picked))


def line_frame(
    bench: Bench, index: int, *, num_rows: tuple[int, int], names: tuple[str, ...], rng: random.Random
) -> Frame | None:
    """A frame of consecutive lines of file `index`, labelled by their numbers. `names` are columns of `line_numbers`.

    None where the file has too few, where they are nearly all blank or empty of what is counted, or where train has
    each of them.
    """
    lines = bench.lines[index]
    count = rng.randint(*num_rows)
    if len(lines) <= count:
        return None
    start = rng.randrange(len(lines) - count)
    picked = [line.expandtabs(4).rstrip() for line in lines[start : start + count]]
    full = [line for line in picked if line]
    if 3 * len(full) < 2 * count or all(bench.known.has_line_of(line) for line in full):
        return None
    found = [line_numbers(line) for line in picked]
    if any(max(item[name] for item in found) < 4 for name in names):
        return None
    rows = tuple((str(start + 1 + row), tuple(item[name] for name in names)) for row, item in enumerate(found))
    return Frame(index, f"lines of {bench.files[index].path}", "line", names, rows)


def _is_label(label: str, most: int) -> bool:
    """Printable ASCII of 2 to `most` characters, none of which separates cells or answers."""
    return 2 <= len(label) <= most and label.isascii() and label.isprintable() and not set(label) & set("|, ")


def _rows(bench: Bench, index: int, subject: str, rng: random.Random) -> list[tuple[str, dict[str, int]]]:
    """(label, column -> number) of everything the subject has in the file, in the order of the source."""
    measures = bench.measures[index]
    if subject in ("functions", "classes"):
        return [(item.name, item.numbers) for item in getattr(measures, subject)]
    if subject == "constants":
        return [(name, {"value": number}) for name, number in measures.constants]
    if subject == "names":
        return _names(bench, index)
    package = bench.files[index].package
    others = [other for other, item in enumerate(bench.files) if item.package == package and other != index]
    beside = sorted([index, *rng.sample(others, min(len(others), 23))])
    numbers = bench.measures[index].file
    # a file in another language has fewer numbers: what both have can be compared
    common = [name for name in numbers if all(name in bench.measures[other].file for other in beside)]
    return [
        (bench.files[other].path.rsplit("/", 1)[-1], {name: bench.measures[other].file[name] for name in common})
        for other in beside
    ]


def _names(bench: Bench, index: int) -> list[tuple[str, dict[str, int]]]:
    """Names of the file with the number of lines that have them as a word, and the first and last of those.

    Not their length: a question names the name, and so would answer itself.
    """
    words, columns = bench.measures[index].words, ("lines", "first", "last")
    names = [name for name in bench.extracts[index].names if name in words]
    return [(name, dict(zip(columns, words[name], strict=True))) for name in names]


def _known(bench: Bench, subject: str, label: str, columns: tuple[str, ...], values: tuple[int, ...]) -> bool:
    if subject == "names":
        return bench.known.has_name(label)
    return any(bench.known.has_fact(label, name, number) for name, number in zip(columns, values, strict=True))
