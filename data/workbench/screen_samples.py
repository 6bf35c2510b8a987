"""Samples of user interfaces: what the panels hold, a question and its answer.

All words are names of one source file; the tree is the file's outline of classes and methods, and a console shows real
commands about the file with the output they have. What stands in which field, which box is ticked and which item is
highlighted is drawn. A held-out picture shows only identifiers that no file in train has, and prints no line of train,
so no answer is known beforehand. The stream ends when every file has been visited some times.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from data.workbench.frames import visits
from data.workbench.levels_screen import SCREEN, ScreenLevel
from data.workbench.lines import Bench
from data.workbench.questions import Asked, Balance
from data.workbench.samples import Sample, look_of
from data.workbench.screen import num_cells, read_out
from data.workbench.screen_questions import ask_panel

MAX_CELLS = 900
"""Characters times lines of a picture: in the largest font this still fits 1,024 patches."""
TRIES = 12
"""Names or lines tried for one command."""
CHECK_SHARE = 0.45
"""How many rows of a form are check boxes, from level 2 on."""
SIDES = ("Left panel. ", "Right panel. ")


def screens(bench: Bench, *, level: int, style: str, rng: random.Random) -> Iterator[Sample]:
    """Interfaces of the split with a question each, no question about the same panels twice."""
    bounds = SCREEN[level]
    balance = Balance()
    seen: set[str] = set()
    for index in visits(bench, rng=rng):
        source = _Source(bench, index, bounds, rng)
        kinds = [rng.choice(list(bounds.panels)) for _ in range(bounds.num_panels)]
        panels = [_PANELS[kind](source, level) for kind in kinds]
        if None in panels:
            continue
        for panel in panels:
            title = source.word() if bounds.frames and rng.random() < 0.5 else None
            panel["title"] = title or ""
        recipe = {"type": "image", "draw": "screen", "panels": panels, **look_of(level, style=style, rng=rng)}
        lines, chars = num_cells(recipe)
        asked = _ask(recipe, bounds, balance=balance, rng=rng) if lines * chars <= MAX_CELLS else None
        if asked is None:
            continue
        key = f"{panels} {asked.question}"
        if key not in seen:
            seen.add(key)
            yield Sample(recipe, asked.answer, file=index, question=asked.question)


def _ask(recipe: dict, bounds: ScreenLevel, *, balance: Balance, rng: random.Random) -> Asked | None:
    """The first task, in random order, that has an answer in one of the panels."""
    panels = recipe["panels"]
    several = len(panels) > 1
    for task in rng.sample(bounds.tasks, len(bounds.tasks)):
        if task == "texts":
            where = ", left panel first" if several else ""
            return Asked(f"Write all texts in reading order{where}.", read_out(recipe))
        for place in rng.sample(range(len(panels)), len(panels)):
            asked = ask_panel(panels[place], task, balance=balance, rng=rng)
            if asked is not None:
                return Asked(SIDES[place] + asked.question, asked.answer) if several else asked
    return None


@dataclass
class _Source:
    """What one file gives to panels: names, each used once, and commands. Draws with the stream's generator."""

    bench: Bench
    index: int
    bounds: ScreenLevel
    rng: random.Random

    def __post_init__(self) -> None:
        self.words = [name for name in self.bench.extracts[self.index].names if self.is_word(name)]
        self.rng.shuffle(self.words)

    def is_word(self, name: str) -> bool:
        """Whether a name may be shown: 3 to word_chars characters, ASCII, and new where train is known."""
        good = 3 <= len(name) <= self.bounds.word_chars and name.isascii() and name.strip("_") == name
        return good and not self.bench.known.has_name(name)

    def word(self) -> str | None:
        """A name that was not used yet; None when the file has no more."""
        return self.words.pop() if self.words else None

    def word_list(self, count: int) -> list[str] | None:
        """`count` such names, or None."""
        if len(self.words) < count:
            return None
        return [self.words.pop() for _ in range(count)]

    def rows_of(self, panel: str) -> int:
        """How many rows a panel of that kind shall have."""
        return self.rng.randint(*self.bounds.panels[panel])


def _form(source: _Source, level: int) -> dict | None:
    rng = source.rng
    count = source.rows_of("form")
    buttons = rng.choice((0, 1, 1, 2)) if level > 2 else 0
    words = source.word_list(2 * count + buttons)
    if words is None:
        return None
    numbers = list(source.bench.measures[source.index].file.values())
    rows: list[dict] = []
    for _ in range(count - bool(buttons)):
        if level > 1 and rng.random() < CHECK_SHARE:
            rows.append({"check": words.pop(), "ticked": rng.random() < 0.5})
        else:
            value = str(rng.choice(numbers)) if level > 1 and rng.random() < 0.2 else words.pop()
            rows.append({"field": words.pop(), "value": value})
    checks = [row for row in rows if "check" in row]
    if checks and rng.random() < 0.5:
        # exactly one ticked, which can be asked for
        only = rng.choice(checks)
        for row in checks:
            row["ticked"] = row is only
    if buttons:
        rows.append({"buttons": [words.pop() for _ in range(buttons)]})
    gap = rng.choice((1, 2)) if source.bounds.frames and len(rows) <= 6 else 1
    return {"panel": "form", "gap": gap, "rows": rows}


def _menu(source: _Source, level: int) -> dict | None:
    rng = source.rng
    count = source.rows_of("menu")
    names = rng.randint(2, 4) if level > 2 else 0
    words = source.word_list(count + names)
    if words is None:
        return None
    bar, items = words[:names], words[names:]
    opened = rng.randrange(names) if names else 0
    return {"panel": "menu", "bar": bar, "open": opened, "items": items, "lit": rng.randrange(count)}


def _tree(source: _Source, level: int) -> dict | None:
    """A part of the file's outline: classes, each with some of its methods, in the order of the file."""
    rng, measures = source.rng, source.bench.measures[source.index]
    most = source.rows_of("tree")
    methods: dict[str, list[str]] = {}
    for item in measures.functions:
        if source.is_word(item.name) and item.name not in methods.setdefault(item.inside, []):
            methods[item.inside].append(item.name)
    holders = [item.name for item in measures.classes if source.is_word(item.name)]
    holders = [name for name in dict.fromkeys(holders) if len(methods.get(name, ())) > 1]
    entries: list[list] = []
    for holder in rng.sample(holders, len(holders)):
        room = most - len(entries) - 1
        if room < 1:
            break
        inner = methods[holder][: rng.randint(1, min(5, room))]
        entries += [[0, holder], *([1, name] for name in inner)]
    if len(entries) < source.bounds.panels["tree"][0]:
        return None
    return {"panel": "tree", "entries": entries, "lit": rng.randrange(len(entries))}


def _terminal(source: _Source, level: int) -> dict | None:
    """Some commands about the file with what they print."""
    rng = source.rng
    count = source.rows_of("terminal")
    runs: list[list] = []
    # commands are drawn until enough have an output that may be shown
    for _ in range(8 * count):
        run = rng.choice((_count_lines, _count_matches, _find_match, _show_line))(source)
        if run is not None and run[0] not in [command for command, _output in runs]:
            runs.append(run)
        if len(runs) == count:
            prompt = rng.choice(source.bounds.prompts)
            return {"panel": "terminal", "prompt": prompt, "runs": runs, "cursor": rng.random() < 0.5}
    return None


def _run(source: _Source, command: str, line: str) -> list | None:
    """A command and the line it prints, or None where either cannot be shown or train has the line."""
    fits = len(command) <= source.bounds.chars and 1 <= len(line) <= source.bounds.chars
    plain = line.isascii() and line.isprintable() and line == line.strip() and any(map(str.isalnum, line))
    return [command, [line]] if fits and plain and not source.bench.known.has_line_of(line) else None


def _file_name(source: _Source) -> str:
    return source.bench.files[source.index].path.rsplit("/", 1)[-1]


def _count_lines(source: _Source) -> list | None:
    name, count = _file_name(source), source.bench.files[source.index].text.count("\n")
    known = source.bench.known.has_fact(name, "lines", count)
    return None if known else _run(source, f"wc -l {name}", f"{count} {name}")


def _count_matches(source: _Source) -> list | None:
    word = source.rng.choice(source.words) if source.words else None
    if word is None:
        return None
    count = sum(word in line for line in source.bench.lines[source.index])
    return _run(source, f"grep -c {word} {_file_name(source)}", str(count))


def _find_match(source: _Source) -> list | None:
    """The one line that holds a name, with its number, as grep prints it; a line that is not indented."""
    lines = source.bench.lines[source.index]
    for word in source.rng.sample(source.words, min(len(source.words), TRIES)):
        found = [row for row, line in enumerate(lines) if word in line]
        line = lines[found[0]] if len(found) == 1 else " "
        if line[:1].strip() and not source.bench.known.has_line_of(line):
            return _run(source, f"grep -n {word} {_file_name(source)}", f"{found[0] + 1}:{line}")
    return None


def _show_line(source: _Source) -> list | None:
    """One line by its number, as sed prints it."""
    lines = source.bench.lines[source.index]
    for row in source.rng.sample(range(len(lines)), min(len(lines), TRIES)):
        run = _run(source, f"sed -n {row + 1}p {_file_name(source)}", lines[row])
        if run is not None:
            return run
    return None


_PANELS = {"form": _form, "menu": _menu, "tree": _tree, "terminal": _terminal}
