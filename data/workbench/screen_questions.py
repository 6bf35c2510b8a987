"""Questions about a user interface: what stands where, what is highlighted, ticked, open, typed.

Each task is worded once and answered from the panel's own description, never from its picture. A task that does not
apply to a panel, or has no single answer there (two buttons, no tick), returns None, and the caller tries another. Yes
and no are dealt evenly (`questions.Balance`).
"""

from __future__ import annotations

import random

from data.workbench.questions import Asked, Balance


def ask_panel(panel: dict, task: str, *, balance: Balance, rng: random.Random) -> Asked | None:
    """A question of the kind `task` about a panel (see screen.render_screen for its form); None where it has none."""
    if task == "title":
        return Asked("What is the title?", panel["title"]) if panel["title"] else None
    if task in ("below", "above"):
        return _beside(panel, task, rng=rng)
    kind = panel["panel"]
    if kind == "form":
        return _ask_form(panel, task, balance=balance, rng=rng)
    if kind == "terminal":
        return _ask_terminal(panel, task, rng=rng)
    if kind == "menu":
        if task == "open" and panel["bar"]:
            return Asked("Which menu is open?", panel["bar"][panel["open"]])
        return Asked("Which item is highlighted?", panel["items"][panel["lit"]]) if task == "lit" else None
    if task == "parent":
        return _parent(panel["entries"], rng=rng)
    return Asked("Which entry is highlighted?", panel["entries"][panel["lit"]][1]) if task == "lit" else None


def column_of(panel: dict) -> list[str]:
    """What stands one below the other at the left of a panel: labels, items, entries. A console has no such column."""
    if panel["panel"] == "form":
        return [row.get("field", row.get("check")) for row in panel["rows"] if "buttons" not in row]
    if panel["panel"] == "menu":
        return list(panel["items"])
    return [text for _depth, text in panel["entries"]] if panel["panel"] == "tree" else []


def _beside(panel: dict, task: str, *, rng: random.Random) -> Asked | None:
    column = column_of(panel)
    if len(column) < 2:
        return None
    upper = rng.randrange(len(column) - 1)
    known, wanted = (upper, upper + 1) if task == "below" else (upper + 1, upper)
    if column.count(column[known]) > 1:
        return None
    return Asked(f"What is directly {task} {column[known]}?", column[wanted])


def _ask_form(panel: dict, task: str, *, balance: Balance, rng: random.Random) -> Asked | None:
    fields = [row for row in panel["rows"] if "field" in row]
    checks = [row for row in panel["rows"] if "check" in row]
    ticked = [row["check"] for row in checks if row["ticked"]]
    if task == "value" and fields:
        row = rng.choice(fields)
        return Asked(f"What is in the field {row['field']}?", row["value"])
    if task == "left" and fields:
        row = rng.choice(fields)
        clear = sum(other["value"] == row["value"] for other in fields) == 1
        return Asked(f"What is left of {row['value']}?", row["field"]) if clear else None
    if task == "ticked" and len(ticked) == 1 < len(checks):
        return Asked("Which box is ticked?", ticked[0])
    if task == "all_ticked" and 0 < len(ticked) < len(checks):
        return Asked("Which boxes are ticked?", ", ".join(ticked))
    if task == "is_ticked" and 0 < len(ticked) < len(checks):
        answer = balance.pick(("yes", "no"), rng=rng)
        row = rng.choice([row for row in checks if row["ticked"] == (answer == "yes")])
        return Asked(f"Is {row['check']} ticked?", answer)
    buttons = [text for row in panel["rows"] for text in row.get("buttons", ())]
    if task == "button" and len(buttons) == 1:
        return Asked("What is on the button?", buttons[0])
    return None


def _ask_terminal(panel: dict, task: str, *, rng: random.Random) -> Asked | None:
    if task == "last":
        return Asked("Which command was typed last?", panel["runs"][-1][0])
    if task == "output":
        commands = [command for command, _output in panel["runs"]]
        clear = [(command, out[0]) for command, out in panel["runs"] if len(out) == 1 and commands.count(command) == 1]
        if clear:
            command, line = rng.choice(clear)
            return Asked(f"What did `{command}` print?", line)
    return None


def _parent(entries: list, *, rng: random.Random) -> Asked | None:
    """In what an entry lies: the last entry above it that stands further left."""
    inner = [row for row, (depth, _text) in enumerate(entries) if depth > 0]
    if not inner:
        return None
    row = rng.choice(inner)
    depth, text = entries[row]
    if sum(other == text for _depth, other in entries) > 1:
        return None
    holder = next(above for above in range(row - 1, -1, -1) if entries[above][0] < depth)
    return Asked(f"In what does {text} lie?", entries[holder][1])
