"""Draws simple user interfaces with Pillow: forms, menus, consoles and trees, one panel or two side by side.

A panel is laid out in cells of a character's width and a line's height before anything is drawn (`lay_out`, plain
arithmetic), so planning knows where everything stands and what is read when, and at levels 1 and 2 all characters lie
on the grid of the patches. It is a sketch of an interface, not a toolkit's: boxes, bars, ticks and one highlight.
Colours are those of a Pygments style. A picture takes about 2 ms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from data.workbench.levels_screen import MAX_PIXELS
from data.workbench.picture import font_of, palette_of, png_of, round_up

BETWEEN = 2
"""Cells between two panels."""
INDENT = 2
"""Cells by which an entry of a tree stands further right than its parent."""


@dataclass(frozen=True)
class Box:
    """One thing in a panel: its kind, its place and width in cells, and the text in it.

    Kinds: "text", "prompt", "field", "empty" and "ticked" (check boxes), "button", "bar" (of a menu), "open" (the name
    of the menu that is open), "item", "lit" (a highlighted item or entry), "mark" (before an entry that holds others),
    "cursor", "title", "frame" (an outline), "sheet" (what a menu's items lie on).
    """

    kind: str
    row: int
    column: int
    width: int
    text: str = ""
    rows: int = 1


def render_screen(recipe: dict) -> bytes:
    """The PNG file of a screen recipe. Raises ValueError for a style Pygments lacks and a picture that is too large.

    The recipe has `panels` and a look: `style`, `size`, `left`, `top`, `leading`. A panel is
        {"panel": "form", "gap": 1, "rows": [{"field": label, "value": text} | {"check": label, "ticked": bool} |
                                            {"buttons": [text, ...]}]}
        {"panel": "menu", "bar": [name, ...], "open": index, "items": [text, ...], "lit": index}
        {"panel": "terminal", "prompt": text, "runs": [[command, [line, ...]], ...], "cursor": bool}
        {"panel": "tree", "entries": [[depth, text], ...], "lit": index}
    each with a "title", "" for a panel without frame and title bar. An empty "bar" leaves the menu's bar out.
    """
    return png_of(draw_screen(recipe))


def lay_out(panel: dict) -> list[Box]:
    """The boxes of one panel, its frame and title included, with the panel's top left corner at (0, 0)."""
    inner = {"form": _form, "menu": _menu, "terminal": _terminal, "tree": _tree}[panel["panel"]](panel)
    if not panel["title"]:
        return inner
    width = max(max(box.column + box.width for box in inner), len(panel["title"]))
    rows = max(box.row for box in inner) + 1
    frame = Box("frame", 0, 0, width + 2, rows=rows + 2)
    title = Box("title", 0, 0, width + 2, panel["title"])
    # the row below the title bar touches it; the last row has half a line of room
    return [frame, title, *(replace(box, row=box.row + 1, column=box.column + 1) for box in inner)]


def place(recipe: dict) -> list[list[Box]]:
    """The boxes of each panel where they stand in the whole picture."""
    placed, start = [], 0
    for panel in recipe["panels"]:
        boxes = lay_out(panel)
        placed.append([replace(box, column=box.column + start) for box in boxes])
        start += max(box.column + box.width for box in boxes) + BETWEEN
    return placed


def num_cells(recipe: dict) -> tuple[int, int]:
    """(lines, characters a line) of the whole picture, without its margins."""
    boxes = [box for panel in place(recipe) for box in panel]
    return max(box.row + box.rows for box in boxes), max(box.column + box.width for box in boxes)


def read_out(recipe: dict) -> str:
    """All texts in reading order: panel by panel, line by line, what stands in one line parted by spaces."""
    lines = []
    for boxes in place(recipe):
        rows: dict[int, list[Box]] = {}
        for box in boxes:
            if box.text and box.kind != "mark":
                rows.setdefault(box.row, []).append(box)
        for row in sorted(rows):
            lines.append(" ".join(box.text.strip() for box in sorted(rows[row], key=lambda box: box.column)))
    return "\n".join(lines)


def draw_screen(recipe: dict):
    """The PIL picture of a screen recipe, RGB."""
    from PIL import Image, ImageDraw

    _font, advance, height = font_of(recipe["size"])
    pitch = height + recipe["leading"]
    rows, columns = num_cells(recipe)
    _colour, background = palette_of(recipe["style"])
    # one pixel more than the cells, for the lower and right edges of boxes that end there, where there is a margin
    edge = 1 if recipe["left"] else 0
    width, tall = recipe["left"] + advance * columns + edge, recipe["top"] + pitch * rows + edge
    picture = Image.new("RGB", (round_up(width), round_up(tall)), background)
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"an interface of {rows} lines and {columns} characters does not fit {MAX_PIXELS} pixels")
    pen = _Pen(ImageDraw.Draw(picture), recipe, advance=advance, pitch=pitch)
    for panel in place(recipe):
        for box in panel:
            pen.draw_box(box)
    return picture


def _form(panel: dict) -> list[Box]:
    """Labels in one column, fields in the next, as wide as the longest; check boxes before their labels; buttons."""
    labels = [row["field"] for row in panel["rows"] if "field" in row]
    start = max((len(label) for label in labels), default=0) + 1
    start += start % 2
    width = max((len(row["value"]) for row in panel["rows"] if "field" in row), default=0) + 2
    boxes = []
    for place, item in enumerate(panel["rows"]):
        row = place * panel["gap"]
        if "field" in item:
            boxes.append(Box("text", row, 0, len(item["field"]), item["field"]))
            boxes.append(Box("field", row, start, width + width % 2, item["value"]))
        elif "check" in item:
            boxes.append(Box("ticked" if item["ticked"] else "empty", row, 0, 2))
            boxes.append(Box("text", row, 2, len(item["check"]), item["check"]))
        else:
            column = 0
            for text in item["buttons"]:
                boxes.append(Box("button", row, column, len(text) + 2, text))
                column += len(text) + 3
    return boxes


def _menu(panel: dict) -> list[Box]:
    """The bar with the names of menus, and below the open one its items."""
    boxes, column, first = [], 0, 0
    width = max(map(len, panel["items"])) + 2
    for index, name in enumerate(panel["bar"]):
        if index == panel["open"]:
            first = column
        boxes.append(Box("open" if index == panel["open"] else "text", 0, column + 1, len(name), name))
        column += len(name) + 2
    if panel["bar"]:
        boxes.insert(0, Box("bar", 0, 0, max(column, first + width)))
    top = 1 if panel["bar"] else 0
    boxes.append(Box("sheet", top, first, width, rows=len(panel["items"])))
    for index, text in enumerate(panel["items"]):
        boxes.append(Box("lit" if index == panel["lit"] else "item", top + index, first, width, text))
    return boxes


def _terminal(panel: dict) -> list[Box]:
    boxes, row, prompt = [], 0, panel["prompt"]
    for command, output in panel["runs"]:
        boxes.append(Box("prompt", row, 0, len(prompt), prompt))
        boxes.append(Box("text", row, len(prompt), len(command), command))
        boxes += [Box("text", row + 1 + place, 0, len(line), line) for place, line in enumerate(output)]
        row += 1 + len(output)
    if panel["cursor"]:
        boxes.append(Box("prompt", row, 0, len(prompt), prompt))
        boxes.append(Box("cursor", row, len(prompt), 1))
    return boxes


def _tree(panel: dict) -> list[Box]:
    entries = panel["entries"]
    width = max(INDENT * depth + len(text) for depth, text in entries) + 3
    boxes = []
    for row, (depth, text) in enumerate(entries):
        holds = row + 1 < len(entries) and entries[row + 1][0] > depth
        # the highlight covers the text and a cell on either side
        boxes.append(Box("lit" if row == panel["lit"] else "item", row, INDENT * depth + 1, len(text) + 2, text))
        if holds:
            boxes.append(Box("mark", row, INDENT * depth, 1, "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"))
    return [Box("item", 0, 0, width), *boxes]


class _Pen:
    """Draws boxes in the colours of the recipe's style."""

    def __init__(self, draw, recipe: dict, *, advance: int, pitch: int) -> None:
        from PIL import ImageColor
        from pygments.token import Token

        colour_of, self.background = palette_of(recipe["style"])
        self.ink, self.accent, self.line = (
            ImageColor.getrgb(colour_of(kind))[:3] for kind in (Token.Text, Token.Keyword, Token.Comment)
        )
        self.drawing, self.recipe, self.advance, self.pitch = draw, recipe, advance, pitch
        self.font = font_of(recipe["size"])[0]

    def draw_box(self, box: Box) -> None:
        x, y = self.recipe["left"] + box.column * self.advance, self.recipe["top"] + box.row * self.pitch
        right, bottom = x + box.width * self.advance - 1, y + box.rows * self.pitch - 1
        ink, inset = self.ink, 1
        if box.kind in ("text", "prompt", "mark"):
            ink, inset = self.accent if box.kind == "prompt" else self.ink, 0
        elif box.kind == "frame":
            self.drawing.rectangle((x, y, right, bottom), outline=self.line)
        elif box.kind == "field":
            # no line above and below: it would hide the underscores of names
            self.drawing.rectangle((x, y, right, bottom), fill=self._shade(0.12))
            for edge in (x, right):
                self.drawing.line((edge, y, edge, bottom), fill=self.line)
        elif box.kind in ("empty", "ticked"):
            self._check_box(x, y, ticked=box.kind == "ticked")
        elif box.kind == "button":
            self.drawing.rounded_rectangle((x, y, right, bottom), 4, fill=self._shade(0.25))
        elif box.kind in ("bar", "title", "sheet"):
            self.drawing.rectangle((x, y, right, bottom), fill=self._shade(0.12 if box.kind == "sheet" else 0.2))
        elif box.kind in ("lit", "open", "cursor"):
            ink, inset = self.background, int(box.kind == "lit")
            self.drawing.rectangle((x, y, right, bottom), fill=self.ink if box.kind == "cursor" else self.accent)
        for index, char in enumerate(box.text):
            self.drawing.text((x + (inset + index) * self.advance, y), char, fill=ink, font=self.font)

    def _check_box(self, x: int, y: int, *, ticked: bool) -> None:
        """A square in two cells, with two strokes in it where it is ticked."""
        side = min(2 * self.advance, self.pitch) - 5
        y += (self.pitch - side) // 2
        self.drawing.rectangle((x, y, x + side, y + side), outline=self.ink)
        if ticked:
            inside = [(x + 2, y + side // 2), (x + side // 2 - 1, y + side - 3), (x + side - 2, y + 2)]
            self.drawing.line(inside, fill=self.ink, width=2)

    def _shade(self, share: float) -> tuple[int, int, int]:
        """The background moved by a share towards the ink."""
        pairs = zip(self.background, self.ink, strict=True)
        return tuple(round(back + share * (front - back)) for back, front in pairs)
