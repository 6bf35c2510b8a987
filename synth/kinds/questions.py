"""Questions about numbers that are shown, each with the one answer that is right.

A task that has no clear answer for the numbers at hand (two rows tie for the most, a bar ends midway between two ticks)
returns None, and the caller tries another. Answers that could be guessed without looking (rises or falls, the first
series or the second) are balanced by `AnswerBalancer`, how many rows exceed a bound by drawing the answer first. The
wording is terse and always the same: the task to learn is reading the image.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from brine.synth.kinds.data_tables import DataTable

MIN_GAP = 1 / 12
"""Of the axis: two values of a chart nearer to each other than this are not compared."""
MIDWAY_MARGIN = 0.15
"""Of a step: values nearer than this to the middle between two ticks are not asked for."""

QuestionAnswer = tuple[str, str]


class AnswerBalancer:
    """Balances the answers of one stream: the least used of the possible answers comes next."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pick(self, options: Sequence[str], *, rng: random.Random) -> str:
        """One of the options, drawn among the least used; counts it as used."""
        least = min(self.counts[option] for option in options)
        chosen = rng.choice([option for option in options if self.counts[option] == least])
        self.counts[chosen] += 1
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
    if task == "cell":
        row = rng.randrange(len(values))
        return f"{column} of {labels[row]}?", str(values[row])
    if task == "holder":
        row = rng.randrange(len(values))
        clear = values.count(values[row]) == 1
        return (f"Which {table.label} has {column} {values[row]}?", labels[row]) if clear else None
    if task == "total":
        return f"Sum of the column {column}?", str(sum(values))
    if task in ("sum", "difference"):
        one, other = rng.sample(range(len(values)), 2)
        if values[one] < values[other]:
            one, other = other, one
        if task == "sum":
            return f"{column} of {labels[one]} and {labels[other]} together?", str(values[one] + values[other])
        return f"{column} of {labels[one]} less that of {labels[other]}?", str(values[one] - values[other])
    order = sorted(range(len(values)), key=lambda row: -values[row])
    ranked = [values[row] for row in order]
    if task == "over":
        # the count is drawn first, so that every count is as likely
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
    gap = MIN_GAP * ticks[-1]
    if task in ("most", "fewest"):
        return _extreme(table, column, values, task, gap=gap)
    if task == "value":
        return _value(table, column, values, step=ticks[1], rng=rng)
    if task == "trend" and spec["chart"] == "line":
        return _trend(table, column, values, gap=gap, balance=balance, rng=rng)
    if task == "larger" and spec["chart"] != "scatter":
        return _larger(table, gap=gap, balance=balance, rng=rng)
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


def _value(table: DataTable, column: str, values: list[int], *, step: int, rng: random.Random) -> QuestionAnswer | None:
    row = rng.randrange(len(values))
    below, over = divmod(values[row], step)
    if abs(over / step - 0.5) < MIDWAY_MARGIN:
        return None
    nearest = "" if step == 1 else f", to the nearest {step}"
    return f"{column} of {_name_of(table, row)}{nearest}?", str((below + (2 * over > step)) * step)


def _trend(
    table: DataTable, column: str, values: list[int], *, gap: float, balance: AnswerBalancer, rng: random.Random
) -> QuestionAnswer | None:
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for first in range(len(values)):
        for last in range(first + 1, len(values)):
            change = values[last] - values[first]
            if change == 0 or abs(change) > gap:
                found["flat" if change == 0 else "rises" if change > 0 else "falls"].append((first, last))
    if not {"rises", "falls"} <= set(found):
        return None
    answer = balance.pick(sorted(found), rng=rng)
    first, last = rng.choice(found[answer])
    return f"{column} from line {table.labels[first]} to {table.labels[last]}: rises, falls or flat?", answer


def _larger(table: DataTable, *, gap: float, balance: AnswerBalancer, rng: random.Random) -> QuestionAnswer | None:
    """Which of two series is larger at a label; None unless each is larger somewhere."""
    names = table.columns[:2]
    found: dict[str, list[int]] = defaultdict(list)
    for row, (one, other) in enumerate(zip(table.column(0), table.column(1), strict=True)):
        if abs(one - other) > gap:
            # balanced by pair: "calls" must not be the answer more often than "names" where these two are compared
            found[" over ".join(names if one > other else names[::-1])].append(row)
    if len(found) < 2:
        return None
    order = balance.pick(sorted(found), rng=rng)
    row = rng.choice(found[order])
    return f"Which is larger at {_name_of(table, row)}, {names[0]} or {names[1]}?", order.split(" over ")[0]
