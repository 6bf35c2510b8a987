"""Interfaces: answers worked out again from the recipe, consoles that tell the truth, characters where they belong."""

import re
from collections import Counter

import pytest

from brine.synth.kinds.levels import SCREEN
from tests.synth.planned_corpus import LEVELS, image_of, plain, token_texts


def solve_screen(question: str, panel: dict) -> str:
    rows = panel.get("rows", [])
    ticks = {row["check"]: row["ticked"] for row in rows if "check" in row}
    column = panel.get("items") or [text for _depth, text in panel.get("entries", [])]
    column = column or [row.get("field") or row["check"] for row in rows if "buttons" not in row]
    if match := re.fullmatch(r"What is directly (below|above) (.+)\?", question):
        assert column.count(match[2]) == 1
        return column[column.index(match[2]) + (1 if match[1] == "below" else -1)]
    if match := re.fullmatch(r"What is in the field (.+)\?", question):
        return next(row["value"] for row in rows if row.get("field") == match[1])
    if match := re.fullmatch(r"What is left of (.+)\?", question):
        (label,) = [row["field"] for row in rows if row.get("value") == match[1]]
        return label
    if match := re.fullmatch(r"Is (.+) ticked\?", question):
        return "yes" if ticks[match[1]] else "no"
    if match := re.fullmatch(r"In what does (.+) lie\?", question):
        entries = panel["entries"]
        row = [text for _depth, text in entries].index(match[1])
        return [text for depth, text in entries[:row] if depth == 0][-1]
    if match := re.fullmatch(r"What did `(.+)` print\?", question):
        return "\n".join({command: tuple(out) for command, out in panel["runs"]}[match[1]])
    answers = {
        "Which box is ticked?": lambda: next(label for label, ticked in ticks.items() if ticked),
        "Which boxes are ticked?": lambda: ", ".join(label for label, ticked in ticks.items() if ticked),
        "What is on the button?": lambda: next(row["buttons"][0] for row in rows if "buttons" in row),
        "Which item is highlighted?": lambda: panel["items"][panel["highlighted"]],
        "Which entry is highlighted?": lambda: panel["entries"][panel["highlighted"]][1],
        "Which menu is open?": lambda: panel["bar"][panel["open"]],
        "Which command was typed last?": lambda: panel["runs"][-1][0],
        "What is the title?": lambda: panel["title"],
    }
    return answers[question]()


@pytest.mark.parametrize("level", LEVELS)
def test_screen_answers_are_right(planned, level):
    for spec, question, answer, _item in planned.of("screen", level):
        panels = spec["panels"]
        if question.startswith("Write all texts"):
            expected = Counter(part for panel in panels for text in token_texts(panel) for part in text.split())
            prompts = [panel["prompt"].split() for panel in panels if panel["panel"] == "terminal"]
            assert not expected - Counter(answer.split())
            assert set(Counter(answer.split()) - expected) <= {part for prompt in prompts for part in prompt}
            continue
        panel = panels[0]
        if len(panels) > 1:
            side, question = question.split(". ", 1)
            panel = panels[["Left panel", "Right panel"].index(side)]
        assert answer == solve_screen(question, panel), question


def test_screen_texts_are_read_left_panel_first(planned):
    seen = 0
    for spec, question, answer, _item in planned.of("screen", 4):
        if question == "Write all texts in reading order, left panel first.":
            left = spec["panels"][0]
            expected = " ".join(token_texts(left)).split()
            if left["panel"] == "terminal":
                expected += left["prompt"].split() * (len(left["runs"]) + left["cursor"])
            assert Counter(answer.split()[: len(expected)]) == Counter(expected)
            if left["panel"] in ("menu", "tree"):
                assert answer.split()[: len(expected)] == expected
            seen += 1
    assert seen


@pytest.mark.parametrize("level", LEVELS)
def test_screen_keeps_its_levels_bounds(planned, level):
    bounds = SCREEN[level]
    kinds = set()
    for spec, _question, _answer, _item in planned.of("screen", level):
        assert len(spec["panels"]) == bounds.num_panels
        for panel in spec["panels"]:
            kinds.add(panel["panel"])
            rows = panel.get("rows") or panel.get("items") or panel.get("entries") or panel["runs"]
            low, high = bounds.panels[panel["panel"]]
            assert low <= len(rows) <= high
            if panel["panel"] != "terminal":
                assert max(map(len, token_texts(panel))) <= bounds.word_chars
    assert kinds == set(bounds.panels)


def test_screen_of_level_1_stands_on_the_patch_grid(planned):
    """Every character of a field, label or item is drawn in its cell, dark on light or, highlighted, light on dark."""
    for spec, _question, _answer, _item in planned.of("screen", 1)[:30]:
        (panel,) = spec["panels"]
        image = image_of(spec).mean(axis=2)
        assert image.shape[0] == 16 * (2 if panel["panel"] == "form" else 3)
        for row, widget in enumerate(panel.get("rows") or panel["items"]):
            if panel["panel"] == "form":
                start = max(len(item["field"]) for item in panel["rows"]) + 1
                texts = [(0, widget["field"]), (start + start % 2 + 1, widget["value"])]
            else:
                texts = [(1, widget)]
            for column, text in texts:
                for place, char in enumerate(text):
                    x = 8 * (column + place)
                    cell = image[16 * row : 16 * row + 16, x : x + 8]
                    highlighted = panel["panel"] == "menu" and row == panel["highlighted"]
                    ink = cell / 255 > 1 - 110 / 255 if highlighted else cell / cell.max() < 110 / 255
                    assert (ink != plain(char)).sum() <= 1, (text, char)


def test_console_prints_what_the_command_prints(planned):
    seen = Counter()
    for spec, _question, _answer, item in planned.of("screen"):
        text = planned.text[item["source"]]
        for panel in spec["panels"]:
            for command, output in panel.get("runs", []):
                name, *words = command.split()
                lines = text.removesuffix("\n").split("\n")
                if name == "wc":
                    expected = [f"{len(lines)} {words[-1]}"]
                elif name == "sed":
                    expected = [lines[int(words[1].removesuffix("p")) - 1]]
                else:
                    found = [f"{row}:{line}" for row, line in enumerate(lines, 1) if words[1] in line]
                    expected = [str(len(found))] if words[0] == "-c" else found
                assert output == expected
                seen[" ".join([name, *words[:1]])] += 1
    assert set(seen) == {"wc -l", "sed -n", "grep -c", "grep -n"}
