"""Draws simple user interfaces with Pillow: forms, menus, terminals and trees, one panel or two side by side.

A panel is laid out in cells of a character's width and a line's height before anything is drawn, so planning knows what
stands where, and at levels 1 and 2 all characters lie on the grid of the patches. It is a sketch of an interface:
boxes, bars, ticks and one highlight, in the colours of a Pygments style. An image takes about 2 ms.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

from PIL import ImageColor

from brine.synth.render.code_image import Canvas, png_of

PANEL_GAP = 2
INDENT = 2
SHADES = {"field": 0.12, "sheet": 0.12, "bar": 0.2, "title": 0.2}
"""Kind of widget -> how far its background is moved towards the ink."""


@dataclass(frozen=True)
class Widget:
    """One thing in a panel: its kind, its position and width in cells, and the text in it.

    "empty" and "ticked" are check boxes, "open" is the name of the open menu, "mark" stands before an entry that holds
    others, "frame" is an outline, "sheet" what a menu's items lie on.
    """

    kind: str
    row: int
    column: int
    width: int
    text: str = ""
    rows: int = 1


def render(spec: dict) -> bytes:
    """The PNG file of a screen spec. Raises ValueError for a style Pygments lacks and an image that is too large.

    The spec has `panels` and `style`, `size`, `left`, `top`, `leading`. A panel is
        {"panel": "form", "gap": 1, "rows": [{"field": label, "value": text} | {"check": label, "ticked": bool} |
                                            {"buttons": [text, ...]}]}
        {"panel": "menu", "bar": [name, ...], "open": index, "items": [text, ...], "highlighted": index}
        {"panel": "terminal", "prompt": text, "runs": [[command, [line, ...]], ...], "cursor": bool}
        {"panel": "tree", "entries": [[depth, text], ...], "highlighted": index}
    each with a "title", "" for a panel without frame and title bar. An empty "bar" leaves the menu's bar out.
    """
    painter = _WidgetPainter(spec)
    for widget in (widget for widgets in layout_screen(spec) for widget in widgets):
        painter.draw(widget)
    return png_of(painter.image)


def layout_screen(spec: dict) -> list[list[Widget]]:
    """The widgets of each panel, its frame and title included, where they stand in the whole image."""
    layouts, placed, start = {"form": _form, "menu": _menu, "terminal": _terminal, "tree": _tree}, [], 0
    for panel in spec["panels"]:
        widgets, title = layouts[panel["panel"]](panel), panel["title"]
        if title:
            width = max(len(title), *(widget.column + widget.width for widget in widgets)) + 2
            frame = Widget("frame", 0, 0, width, rows=max(widget.row for widget in widgets) + 3)
            # the row below the title bar touches it; the last row has half a line of space
            inner = (replace(widget, row=widget.row + 1, column=widget.column + 1) for widget in widgets)
            widgets = [frame, Widget("title", 0, 0, width, title), *inner]
        placed.append([replace(widget, column=widget.column + start) for widget in widgets])
        start = max(widget.column + widget.width for widget in placed[-1]) + PANEL_GAP
    return placed


def num_cells(spec: dict) -> tuple[int, int]:
    """(lines, characters a line) of the whole image, without its margins."""
    widgets = [widget for panel in layout_screen(spec) for widget in panel]
    return max(widget.row + widget.rows for widget in widgets), max(widget.column + widget.width for widget in widgets)


def all_text(spec: dict) -> str:
    """All texts in reading order: panel by panel, line by line, what stands in one line parted by spaces."""
    lines = []
    for widgets in layout_screen(spec):
        rows: dict[int, list[str]] = defaultdict(list)
        for widget in sorted(widgets, key=lambda widget: (widget.row, widget.column)):
            if widget.text and widget.kind != "mark":
                rows[widget.row].append(widget.text.strip())
        lines += map(" ".join, rows.values())
    return "\n".join(lines)


def _form(panel: dict) -> list[Widget]:
    """Labels in one column, fields in the next, as wide as the longest; check boxes before their labels; buttons."""
    fields = [row for row in panel["rows"] if "field" in row]
    start = max((len(row["field"]) for row in fields), default=0) + 1
    start += start % 2
    width = max((len(row["value"]) for row in fields), default=0) + 2
    widgets = []
    for index, item in enumerate(panel["rows"]):
        row, column = index * panel["gap"], 0
        if "field" in item:
            widgets.append(Widget("text", row, 0, len(item["field"]), item["field"]))
            widgets.append(Widget("field", row, start, width + width % 2, item["value"]))
        elif "check" in item:
            widgets.append(Widget("ticked" if item["ticked"] else "empty", row, 0, 2))
            widgets.append(Widget("text", row, 2, len(item["check"]), item["check"]))
        for text in item.get("buttons", ()):
            widgets.append(Widget("button", row, column, len(text) + 2, text))
            column += len(text) + 3
    return widgets


def _menu(panel: dict) -> list[Widget]:
    widgets, column, first = [], 0, 0
    width = max(map(len, panel["items"])) + 2
    for index, name in enumerate(panel["bar"]):
        if index == panel["open"]:
            first = column
        widgets.append(Widget("open" if index == panel["open"] else "text", 0, column + 1, len(name), name))
        column += len(name) + 2
    top = 1 if panel["bar"] else 0
    if top:
        widgets.insert(0, Widget("bar", 0, 0, max(column, first + width)))
    widgets.append(Widget("sheet", top, first, width, rows=len(panel["items"])))
    for row, text in enumerate(panel["items"]):
        kind = "highlighted" if row == panel["highlighted"] else "item"
        widgets.append(Widget(kind, top + row, first, width, text))
    return widgets


def _terminal(panel: dict) -> list[Widget]:
    widgets, row, prompt = [], 0, panel["prompt"]
    for command, output in panel["runs"]:
        widgets.append(Widget("prompt", row, 0, len(prompt), prompt))
        widgets.append(Widget("text", row, len(prompt), len(command), command))
        widgets += [Widget("text", below, 0, len(line), line) for below, line in enumerate(output, start=row + 1)]
        row += 1 + len(output)
    if panel["cursor"]:
        widgets.append(Widget("prompt", row, 0, len(prompt), prompt))
        widgets.append(Widget("cursor", row, len(prompt), 1))
    return widgets


def _tree(panel: dict) -> list[Widget]:
    entries = panel["entries"]
    widgets = [Widget("item", 0, 0, max(INDENT * depth + len(text) for depth, text in entries) + 3)]
    for row, (depth, text) in enumerate(entries):
        # the highlight covers the text and a cell on either side
        kind = "highlighted" if row == panel["highlighted"] else "item"
        widgets.append(Widget(kind, row, INDENT * depth + 1, len(text) + 2, text))
        if row + 1 < len(entries) and entries[row + 1][0] > depth:
            widgets.append(Widget("mark", row, INDENT * depth, 1, "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"))
    return widgets


class _WidgetPainter(Canvas):
    def __init__(self, spec: dict) -> None:
        from pygments.token import Token

        super().__init__(spec)
        self.ink, self.accent, self.rule = (
            ImageColor.getrgb(self.colour_of(kind))[:3] for kind in (Token.Text, Token.Keyword, Token.Comment)
        )
        rows, columns = num_cells(spec)
        # one pixel more than the cells, for the lower and right edges of boxes that end there, where there is a margin
        edge = 1 if spec["left"] else 0
        what = f"an interface of {rows} lines and {columns} characters"
        self.start(self.x(columns) + edge, self.y(rows) + edge, what=what)

    def draw(self, widget: Widget) -> None:
        kind, (x, y) = widget.kind, (self.x(widget.column), self.y(widget.row))
        right, bottom = x + widget.width * self.advance - 1, y + widget.rows * self.pitch - 1
        ink, inset = self.ink, 0 if kind in ("text", "prompt", "mark", "open", "cursor") else 1
        if kind == "prompt":
            ink = self.accent
        elif kind == "frame":
            self.pen.rectangle((x, y, right, bottom), outline=self.rule)
        elif kind in SHADES:
            self.pen.rectangle((x, y, right, bottom), fill=self._shade(SHADES[kind]))
        elif kind in ("empty", "ticked"):
            self._check_box(x, y, ticked=kind == "ticked")
        elif kind == "button":
            self.pen.rounded_rectangle((x, y, right, bottom), 4, fill=self._shade(0.25))
        elif kind in ("highlighted", "open", "cursor"):
            ink = self.background
            self.pen.rectangle((x, y, right, bottom), fill=self.ink if kind == "cursor" else self.accent)
        if kind == "field":
            # no line above and below: it would hide the underscores of names
            for edge in (x, right):
                self.pen.line((edge, y, edge, bottom), fill=self.rule)
        self.write(widget.column + inset, y, widget.text, ink)

    def _check_box(self, x: int, y: int, *, ticked: bool) -> None:
        """A square in two cells, with two strokes in it where it is ticked."""
        side = min(2 * self.advance, self.pitch) - 5
        y += (self.pitch - side) // 2
        self.pen.rectangle((x, y, x + side, y + side), outline=self.ink)
        if ticked:
            inside = [(x + 2, y + side // 2), (x + side // 2 - 1, y + side - 3), (x + side - 2, y + 2)]
            self.pen.line(inside, fill=self.ink, width=2)

    def _shade(self, fraction: float) -> tuple[int, ...]:
        pairs = zip(self.background, self.ink, strict=True)
        return tuple(round(back + fraction * (front - back)) for back, front in pairs)
