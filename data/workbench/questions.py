"""Questions about numbers that are shown, each with the one answer that is right.

A task that has no clear answer for the numbers at hand (two rows tie for the most, a bar ends midway between two ticks)
asks nothing and returns None, and the caller tries another. Answers that could be guessed without looking (rises or
falls, the first series or the second) are dealt evenly by `Balance`, how many rows exceed a bound by drawing the answer
first. Wording is terse and always the same: what is to be learned is the look at the picture.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data.workbench.frames import Frame

CLEAR = 1 / 12
"""Of the axis: two values of a chart nearer to each other than this are not asked to be told apart."""
MIDWAY = 0.15
"""Of a step: values nearer than this to the middle between two ticks are not asked for."""


@dataclass(frozen=True)
class Asked:
    """A question and its answer."""

    question: str
    answer: str


class Balance:
    """Deals the answers of one stream evenly: of what is possible, what was given least is given next."""

    def __init__(self) -> None:
        self.given: Counter[str] = Counter()

    def pick(self, options: Sequence[str], *, rng: random.Random) -> str:
        """One of the options, drawn among those that were given least; counts it as given."""
        least = min(self.given[option] for option in options)
        chosen = rng.choice([option for option in options if self.given[option] == least])
        self.given[chosen] += 1
        return chosen


def ask_table(frame: Frame, task: str, *, rng: random.Random) -> Asked | None:
    """A question of the kind `task` about a table; None where its numbers leave the answer open."""
    if task in ("markdown", "csv"):
        name = {"markdown": "Markdown", "csv": "CSV"}[task]
        return Asked(f"Write the table as {name}.", as_markdown(frame) if task == "markdown" else as_csv(frame))
    place = rng.randrange(len(frame.columns))
    column, values = frame.columns[place], frame.column(place)
    if task in ("most", "fewest"):
        return _extreme(frame, column, values, task, gap=0)
    if task == "cell":
        row = rng.randrange(len(values))
        return Asked(f"{column} of {frame.labels[row]}?", str(values[row]))
    if task == "holder":
        row = rng.randrange(len(values))
        clear = values.count(values[row]) == 1
        return Asked(f"Which {frame.label} has {column} {values[row]}?", frame.labels[row]) if clear else None
    if task == "total":
        return Asked(f"Sum of the column {column}?", str(sum(values)))
    if task in ("sum", "difference"):
        one, other = rng.sample(range(len(values)), 2)
        if values[one] < values[other]:
            one, other = other, one
        first, second = frame.labels[one], frame.labels[other]
        if task == "sum":
            return Asked(f"{column} of {first} and {second} together?", str(values[one] + values[other]))
        return Asked(f"{column} of {first} less that of {second}?", str(values[one] - values[other]))
    order = sorted(range(len(values)), key=lambda row: (-values[row], row))
    ranked = [values[row] for row in order]
    if task == "over":
        # the count is drawn first, so that every count is as likely
        count = rng.randrange(1, len(values))
        clear = ranked[count - 1] > ranked[count]
        return Asked(f"How many have {column} over {ranked[count]}?", str(count)) if clear else None
    if task == "top":
        if len(set(ranked[:4])) < 4:
            return None
        names = ", ".join(frame.labels[row] for row in order[:3])
        return Asked(f"The three largest by {column}, largest first?", names)
    raise ValueError(f"no task of a table is called {task!r}")


def ask_chart(
    frame: Frame, task: str, *, axes: Sequence[Sequence[int]], chart: str, balance: Balance, rng: random.Random
) -> Asked | None:
    """A question about a chart of the frame; None where its picture leaves the answer open.

    axes: the ticks that each column is drawn along, evenly spaced from 0, the same list for both where two series share
    an axis.
    """
    place = rng.randrange(len(frame.columns))
    column, values, ticks = frame.columns[place], frame.column(place), axes[place]
    if task in ("most", "fewest"):
        return _extreme(frame, column, values, task, gap=CLEAR * ticks[-1])
    if task == "value":
        return _value(frame, column, values, step=ticks[1], rng=rng)
    if task == "trend" and chart == "line":
        return _trend(frame, column, values, gap=CLEAR * ticks[-1], balance=balance, rng=rng)
    if task == "larger" and chart != "scatter":
        return _larger(frame, gap=CLEAR * ticks[-1], balance=balance, rng=rng)
    return None


def as_markdown(frame: Frame) -> str:
    """The table as GitHub's Markdown, without a line end at the end."""
    rows = [[frame.label, *frame.columns], ["---"] * (1 + len(frame.columns))]
    rows += [[label, *map(str, numbers)] for label, numbers in frame.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_csv(frame: Frame) -> str:
    """The table as comma-separated values with a header; no cell holds a comma or a quote."""
    rows = [[frame.label, *frame.columns], *([label, *map(str, numbers)] for label, numbers in frame.rows)]
    return "\n".join(",".join(row) for row in rows)


def _named(frame: Frame, row: int) -> str:
    """How a question names a row: "close", but "line 12"."""
    return f"line {frame.labels[row]}" if frame.label == "line" else frame.labels[row]


def _extreme(frame: Frame, column: str, values: list[int], task: str, *, gap: float) -> Asked | None:
    ranked = sorted(values, reverse=task == "most")
    if abs(ranked[0] - ranked[1]) <= gap:
        return None
    word = "largest" if task == "most" else "smallest"
    return Asked(f"Which {frame.label} is {word} by {column}?", frame.labels[values.index(ranked[0])])


def _value(frame: Frame, column: str, values: list[int], *, step: int, rng: random.Random) -> Asked | None:
    row = rng.randrange(len(values))
    below, over = divmod(values[row], step)
    if abs(over / step - 0.5) < MIDWAY:
        return None
    nearest = (below + (2 * over > step)) * step
    return Asked(f"{column} of {_named(frame, row)}{'' if step == 1 else f', to the nearest {step}'}?", str(nearest))


def _trend(
    frame: Frame, column: str, values: list[int], *, gap: float, balance: Balance, rng: random.Random
) -> Asked | None:
    found: dict[str, list[tuple[int, int]]] = {}
    for first in range(len(values)):
        for last in range(first + 1, len(values)):
            change = values[last] - values[first]
            if change == 0 or abs(change) > gap:
                word = "flat" if change == 0 else "rises" if change > 0 else "falls"
                found.setdefault(word, []).append((first, last))
    if not {"rises", "falls"} <= set(found):
        return None
    answer = balance.pick(sorted(found), rng=rng)
    first, last = rng.choice(found[answer])
    where = f"from line {frame.labels[first]} to {frame.labels[last]}"
    return Asked(f"{column} {where}: rises, falls or flat?", answer)


def _larger(frame: Frame, *, gap: float, balance: Balance, rng: random.Random) -> Asked | None:
    """Which of two series is larger at a label; None unless each is somewhere, or one look would do for all labels."""
    names = frame.columns[:2]
    found: dict[str, list[int]] = {}
    for row, (one, other) in enumerate(zip(frame.column(0), frame.column(1), strict=True)):
        if abs(one - other) > gap:
            # balanced by pair: "calls" must not be the answer more often than "names" where these two are compared
            found.setdefault(" over ".join(names if one > other else names[::-1]), []).append(row)
    if len(found) < 2:
        return None
    order = balance.pick(sorted(found), rng=rng)
    row = rng.choice(found[order])
    question = f"Which is larger at {_named(frame, row)}, {names[0]} or {names[1]}?"
    return Asked(question, order.split(" over ")[0])
