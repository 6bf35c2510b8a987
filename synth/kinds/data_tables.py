"""Numbers that a table or a chart shows, from one file where possible, and questions with the one right answer.

Labels and numbers are those of `code_metrics.py`. In a held-out split a row is refused when train has it: a function,
class, constant or file of that name with that very number, or, where the row is about a name, the name itself. So no
held-out number can be known from train. A task that has no clear answer for the numbers at hand (two tie for the most,
a bar ends midway between two ticks) returns None, and the caller tries another. Answers that could be guessed without
looking are balanced. The wording is terse and always the same: the task to learn is reading the image.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from brine.synth.kinds.levels import TableLevel
from brine.synth.sources.code_metrics import CodeMetrics, line_numbers
from brine.synth.sources.code_regions import SplitSampler

NUM_PASSES = 64
"""How often a file may be visited; every file once before any again."""
MAX_FILES = 24

MIN_GAP = 1 / 12
"""Of the axis: two values of a chart nearer to each other than this are not compared."""
MIDWAY_MARGIN = 0.15
"""Of a step: values nearer than this to the middle between two ticks are not asked for."""

QuestionAnswer = tuple[str, str]

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
    sampler: SplitSampler, index: int, subject: str, bounds: TableLevel, rng: random.Random, *,
    only: tuple[str, ...] | None = None,
) -> DataTable | None:  # fmt: skip
    """A table about `subject` from file `index`, or None when the file has too few rows or columns; `only` names them.

    Rows keep the order of the source, or are shuffled, by chance. Labels are distinct.
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
        # printable ASCII without what separates cells or answers
        plain = label.isascii() and label.isprintable() and not set(label) & set("|, ")
        if label in allowed or not plain or not 2 <= len(label) <= bounds.label_chars or not set(only) <= set(numbers):
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
    """A table of consecutive lines of file `index`, labelled by their numbers; `names` are columns of `line_numbers`.

    None where there are too few, nearly all are blank or without what is counted, or train has them all.
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


class AnswerBalancer(Counter[str]):
    """Balances the answers of one stream."""

    def pick(self, options: Sequence[str], *, rng: random.Random) -> str:
        """One of the options, sampled among the least used; counts it as used."""
        least = min(self[option] for option in options)
        chosen = rng.choice([option for option in options if self[option] == least])
        self[chosen] += 1
        return chosen


def ask_table(table: DataTable, task: str, rng: random.Random) -> QuestionAnswer | None:
    """A question of the kind `task` about a table; None where its numbers leave the answer open."""
    if task == "markdown":
        rows = [table.cells[0], ["---"] * len(table.cells[0]), *table.cells[1:]]
        return "Write the table as Markdown.", "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if task == "csv":
        # no cell holds a comma or a quote
        return "Write the table as CSV.", "\n".join(map(",".join, table.cells))
    index = rng.randrange(len(table.columns))
    column, values, labels = table.columns[index], table.column(index), table.labels
    if task in ("most", "fewest"):
        return _extreme(table, column, values, task, gap=0)
    if task in ("cell", "holder"):
        row = rng.randrange(len(values))
        if task == "cell":
            return f"{column} of {labels[row]}?", str(values[row])
        clear = values.count(values[row]) == 1
        return (f"Which {table.label} has {column} {values[row]}?", labels[row]) if clear else None
    if task == "total":
        return f"Sum of the column {column}?", str(sum(values))
    if task in ("sum", "difference"):
        one, other = sorted(rng.sample(range(len(values)), 2), key=lambda row: -values[row])
        if task == "sum":
            return f"{column} of {labels[one]} and {labels[other]} together?", str(values[one] + values[other])
        return f"{column} of {labels[one]} less that of {labels[other]}?", str(values[one] - values[other])
    order = sorted(range(len(values)), key=lambda row: -values[row])
    ranked = [values[row] for row in order]
    if task == "over":
        # the count is sampled first, so that every count is as likely
        count = rng.randrange(1, len(values))
        clear = ranked[count - 1] > ranked[count]
        return (f"How many have {column} over {ranked[count]}?", str(count)) if clear else None
    if task == "top":
        clear = len(set(ranked[:4])) == 4
        names = ", ".join(labels[row] for row in order[:3])
        return (f"The three largest by {column}, largest first?", names) if clear else None
    raise ValueError(f"no task of a table is called {task!r}")


def ask_chart(
    table: DataTable, task: str, spec: dict, balance: AnswerBalancer, rng: random.Random
) -> QuestionAnswer | None:
    """A question about the chart that `spec` draws of the table; None where its image leaves the answer open."""
    index = rng.randrange(len(table.columns))
    column, values, ticks = table.columns[index], table.column(index), spec["axes"][index]
    gap, step = MIN_GAP * ticks[-1], ticks[1]
    if task in ("most", "fewest"):
        return _extreme(table, column, values, task, gap=gap)
    if task == "value":
        row = rng.randrange(len(values))
        below, over = divmod(values[row], step)
        if abs(over / step - 0.5) < MIDWAY_MARGIN:
            return None
        nearest = "" if step == 1 else f", to the nearest {step}"
        return f"{column} of {_name_of(table, row)}{nearest}?", str((below + (2 * over > step)) * step)
    found: dict[str, list] = defaultdict(list)
    if task == "trend" and spec["chart"] == "line":
        for first, last in combinations(range(len(values)), 2):
            change = values[last] - values[first]
            if change == 0 or abs(change) > gap:
                found["flat" if change == 0 else "rises" if change > 0 else "falls"].append((first, last))
        if not {"rises", "falls"} <= set(found):
            return None
        answer = balance.pick(sorted(found), rng=rng)
        first, last = rng.choice(found[answer])
        return f"{column} from line {table.labels[first]} to {table.labels[last]}: rises, falls or flat?", answer
    if task == "larger" and spec["chart"] != "scatter":
        names = table.columns[:2]
        for row, (one, other) in enumerate(zip(table.column(0), table.column(1), strict=True)):
            if abs(one - other) > gap:
                # balanced by pair: "calls" must not be the answer more often than "names" where these are compared
                found[" over ".join(names if one > other else names[::-1])].append(row)
        # each must be larger somewhere
        if len(found) == 2:
            order = balance.pick(sorted(found), rng=rng)
            name = _name_of(table, rng.choice(found[order]))
            return f"Which is larger at {name}, {names[0]} or {names[1]}?", order.split(" over ")[0]
    return None


def _name_of(table: DataTable, row: int) -> str:
    """How a question names a row: "close", but "line 12"."""
    return f"line {table.labels[row]}" if table.label == "line" else table.labels[row]


def _extreme(table: DataTable, column: str, values: list[int], task: str, *, gap: float) -> QuestionAnswer | None:
    ranked = sorted(values, reverse=task == "most")
    if abs(ranked[0] - ranked[1]) <= gap:
        return None
    word = "largest" if task == "most" else "smallest"
    return f"Which {table.label} is {word} by {column}?", table.labels[values.index(ranked[0])]
