"""Samples of user interfaces: what the panels hold, a question and its answer.

All words are names of one source file; the tree is the file's outline, and a terminal shows real commands about the
file with the output they have. What stands in which field, which box is ticked and which item is highlighted is
sampled. A held-out image shows only identifiers that no file in train has, and prints no line of train. Each task is
worded once and answered from the panel's description; one that has no single answer there (two buttons, no tick)
returns None.
"""

import random

from brine.synth.kinds.data_tables import AnswerBalancer, QuestionAnswer
from brine.synth.kinds.figures import Drawn, distinct
from brine.synth.kinds.levels import MAX_CELLS, SCREEN, ScreenLevel
from brine.synth.kinds.samples import SynthSample, render_style
from brine.synth.render.screen import all_text, num_cells
from brine.synth.sources.code_regions import SplitSampler

TRIES = 12
"""Names or lines tried for one command."""
CHECK_FRACTION = 0.45
"""How many rows of a form are check boxes, from level 2 on."""
SIDES = ("Left panel. ", "Right panel. ")


@distinct
def screens(sampler: SplitSampler, index: int, level: int, balance: AnswerBalancer, rng: random.Random) -> Drawn:
    """An interface about file `index` with a question; None where it has too few names."""
    bounds = SCREEN[level]
    content = _PanelContent(sampler, index, level, rng)
    kinds = [rng.choice(list(bounds.panels)) for _ in range(bounds.num_panels)]
    panels = [getattr(content, kind)() for kind in kinds]
    if None in panels:
        return None
    for panel in panels:
        titled = bounds.bordered and rng.random() < 0.5
        panel["title"] = content.words.pop() if titled and content.words else ""
    spec = {"type": "image", "renderer": "screen", "panels": panels, **render_style(sampler, level, rng)}
    lines, chars = num_cells(spec)
    qa = _ask(spec, bounds, balance, rng) if lines * chars <= MAX_CELLS else None
    return None if qa is None else (f"{panels} {qa[0]}", SynthSample(spec, qa[1], index, qa[0]))


class _PanelContent:
    """Panels about one file: names, each used once, and commands. Samples with the stream's generator."""

    def __init__(self, sampler: SplitSampler, index: int, level: int, rng: random.Random) -> None:
        self.level, self.rng, self.train, self.bounds = level, rng, sampler.train_content, SCREEN[level]
        self.source, self.lines, self.metrics = sampler.files[index], sampler.lines[index], sampler.code_metrics[index]
        self.file_name = self.source.path.rsplit("/", 1)[-1]
        self.words = [name for name in sampler.features[index].names if self.is_word(name)]
        rng.shuffle(self.words)

    def is_word(self, name: str) -> bool:
        """Whether a name may be shown: 3 to word_chars characters, ASCII, and not in train where that is known."""
        good = 3 <= len(name) <= self.bounds.word_chars and name.isascii() and name.strip("_") == name
        return good and name not in self.train.names

    def word_list(self, count: int) -> list[str] | None:
        """`count` such names, or None."""
        return [self.words.pop() for _ in range(count)] if len(self.words) >= count else None

    def form(self) -> dict | None:
        """Fields and check boxes, at higher levels buttons."""
        rng = self.rng
        count = rng.randint(*self.bounds.panels["form"])
        buttons = rng.choice((0, 1, 1, 2)) if self.level > 2 else 0
        words = self.word_list(2 * count + buttons)
        if words is None:
            return None
        numbers = list(self.metrics.file.values())
        rows: list[dict] = []
        for _ in range(count - bool(buttons)):
            if self.level > 1 and rng.random() < CHECK_FRACTION:
                rows.append({"check": words.pop(), "ticked": rng.random() < 0.5})
            else:
                value = str(rng.choice(numbers)) if self.level > 1 and rng.random() < 0.2 else words.pop()
                rows.append({"field": words.pop(), "value": value})
        checks = [row for row in rows if "check" in row]
        if checks and rng.random() < 0.5:
            # exactly one ticked, which can be asked for
            only = rng.choice(checks)
            for row in checks:
                row["ticked"] = row is only
        if buttons:
            rows.append({"buttons": [words.pop() for _ in range(buttons)]})
        gap = rng.choice((1, 2)) if self.bounds.bordered and len(rows) <= 6 else 1
        return {"panel": "form", "gap": gap, "rows": rows}

    def menu(self) -> dict | None:
        """The items of a menu, at higher levels below a bar with the names of menus."""
        rng = self.rng
        count = rng.randint(*self.bounds.panels["menu"])
        names = rng.randint(2, 4) if self.level > 2 else 0
        words = self.word_list(count + names)
        if words is None:
            return None
        opened = rng.randrange(names) if names else 0
        items = {"items": words[names:], "highlighted": rng.randrange(count)}
        return {"panel": "menu", "bar": words[:names], "open": opened, **items}

    def tree(self) -> dict | None:
        """A part of the file's outline: classes, each with some of its methods, in the order of the file."""
        rng, (least, most) = self.rng, self.bounds.panels["tree"]
        most = rng.randint(least, most)
        methods: dict[str, list[str]] = {}
        for item in self.metrics.functions:
            if self.is_word(item.name) and item.name not in methods.setdefault(item.parent, []):
                methods[item.parent].append(item.name)
        parents = dict.fromkeys(item.name for item in self.metrics.classes if self.is_word(item.name))
        parents = [name for name in parents if len(methods.get(name, ())) > 1]
        entries: list[list] = []
        for parent in rng.sample(parents, len(parents)):
            free = most - len(entries) - 1
            if free < 1:
                break
            inner = methods[parent][: rng.randint(1, min(5, free))]
            entries += [[0, parent], *([1, name] for name in inner)]
        if len(entries) < least:
            return None
        return {"panel": "tree", "entries": entries, "highlighted": rng.randrange(len(entries))}

    def terminal(self) -> dict | None:
        """Some commands about the file with what they print."""
        rng = self.rng
        count = rng.randint(*self.bounds.panels["terminal"])
        runs: dict[str, list[str]] = {}
        # commands are sampled until enough have an output that may be shown
        for _ in range(8 * count):
            run = rng.choice((self._count_lines, self._count_matches, self._find_match, self._show_line))()
            if run is not None:
                runs.setdefault(run[0], [run[1]])
            if len(runs) == count:
                listed = [[command, output] for command, output in runs.items()]
                prompt = rng.choice(self.bounds.prompts)
                return {"panel": "terminal", "prompt": prompt, "runs": listed, "cursor": rng.random() < 0.5}
        return None

    def _run(self, command: str, line: str) -> tuple[str, str] | None:
        """A command and the line it prints, or None where either cannot be shown or train has the line."""
        fits = len(command) <= self.bounds.chars and 1 <= len(line) <= self.bounds.chars
        plain = line.isascii() and line.isprintable() and line == line.strip() and any(map(str.isalnum, line))
        return (command, line) if fits and plain and not self.train.has_line_of(line) else None

    def _count_lines(self) -> tuple[str, str] | None:
        count = self.source.text.count("\n")
        known = (self.file_name, "lines", count) in self.train.facts
        return None if known else self._run(f"wc -l {self.file_name}", f"{count} {self.file_name}")

    def _count_matches(self) -> tuple[str, str] | None:
        if not self.words:
            return None
        word = self.rng.choice(self.words)
        return self._run(f"grep -c {word} {self.file_name}", str(sum(word in line for line in self.lines)))

    def _find_match(self) -> tuple[str, str] | None:
        """The one line that holds a name, with its number, as grep prints it; a line that is not indented."""
        for word in self.rng.sample(self.words, min(len(self.words), TRIES)):
            found = [row for row, line in enumerate(self.lines) if word in line]
            line = self.lines[found[0]] if len(found) == 1 else " "
            if line[:1].strip() and not self.train.has_line_of(line):
                return self._run(f"grep -n {word} {self.file_name}", f"{found[0] + 1}:{line}")
        return None

    def _show_line(self) -> tuple[str, str] | None:
        rows = self.rng.sample(range(len(self.lines)), min(len(self.lines), TRIES))
        runs = (self._run(f"sed -n {row + 1}p {self.file_name}", self.lines[row]) for row in rows)
        return next((run for run in runs if run is not None), None)


def _ask(spec: dict, bounds: ScreenLevel, balance: AnswerBalancer, rng: random.Random) -> QuestionAnswer | None:
    """The first task, in random order, that has an answer in one of the panels."""
    panels = spec["panels"]
    several = len(panels) > 1
    for task in rng.sample(bounds.tasks, len(bounds.tasks)):
        if task == "texts":
            where = ", left panel first" if several else ""
            return f"Write all texts in reading order{where}.", all_text(spec)
        for panel_index in rng.sample(range(len(panels)), len(panels)):
            qa = _ask_panel(panels[panel_index], task, balance, rng)
            if qa is not None:
                return (SIDES[panel_index] + qa[0], qa[1]) if several else qa
    return None


def _ask_panel(panel: dict, task: str, balance: AnswerBalancer, rng: random.Random) -> QuestionAnswer | None:
    """A question of the kind `task` about a panel (see render/screen.py for its form); None where it has none."""
    kind, column = panel["panel"], _left_column(panel)
    if task == "title":
        return ("What is the title?", panel["title"]) if panel["title"] else None
    if task in ("below", "above"):
        if len(column) < 2:
            return None
        upper = rng.randrange(len(column) - 1)
        known, wanted = column[upper : upper + 2] if task == "below" else column[upper : upper + 2][::-1]
        return (f"What is directly {task} {known}?", wanted) if column.count(known) == 1 else None
    if kind == "form":
        return _ask_form(panel["rows"], task, balance, rng)
    if kind == "terminal":
        if task == "last":
            return "Which command was typed last?", panel["runs"][-1][0]
        command, output = rng.choice(panel["runs"]) if task == "output" else (None, [])
        return (f"What did `{command}` print?", output[0]) if command else None
    if task == "highlighted":
        return f"Which {'item' if kind == 'menu' else 'entry'} is highlighted?", column[panel["highlighted"]]
    if kind == "menu":
        return ("Which menu is open?", panel["bar"][panel["open"]]) if task == "open" and panel["bar"] else None
    inner = [row for row, (depth, _text) in enumerate(panel["entries"]) if depth > 0]
    if task != "parent" or not inner:
        return None
    row = rng.choice(inner)
    depth, text = panel["entries"][row]
    # the last entry above that stands further left
    parent = next(above for above in reversed(panel["entries"][:row]) if above[0] < depth)
    return (f"In what does {text} lie?", parent[1]) if column.count(text) == 1 else None


def _left_column(panel: dict) -> list[str]:
    """The texts one below the other at the left of a panel: labels, items, entries. A terminal has no such column."""
    if panel["panel"] == "form":
        return [row.get("field", row.get("check")) for row in panel["rows"] if "buttons" not in row]
    return panel.get("items") or [text for _depth, text in panel.get("entries", ())]


def _ask_form(rows: list[dict], task: str, balance: AnswerBalancer, rng: random.Random) -> QuestionAnswer | None:
    fields = [row for row in rows if "field" in row]
    checks = [row for row in rows if "check" in row]
    ticked = [row["check"] for row in checks if row["ticked"]]
    buttons = [text for row in rows for text in row.get("buttons", ())]
    if task in ("value", "left") and fields:
        row = rng.choice(fields)
        if task == "value":
            return f"What is in the field {row['field']}?", row["value"]
        clear = sum(other["value"] == row["value"] for other in fields) == 1
        return (f"What is left of {row['value']}?", row["field"]) if clear else None
    if task == "ticked" and len(ticked) == 1 < len(checks):
        return "Which box is ticked?", ticked[0]
    if task == "all_ticked" and 0 < len(ticked) < len(checks):
        return "Which boxes are ticked?", ", ".join(ticked)
    if task == "is_ticked" and 0 < len(ticked) < len(checks):
        answer = balance.pick(("yes", "no"), rng=rng)
        row = rng.choice([row for row in checks if row["ticked"] == (answer == "yes")])
        return f"Is {row['check']} ticked?", answer
    return ("What is on the button?", buttons[0]) if task == "button" and len(buttons) == 1 else None
