"""Draws a table with Pillow: a header, rows of a label and numbers, lines between them or none.

Characters stand on the grid of picture.py, one cell of whole pixels each, so that at levels 1 and 2 every one lies in
one of two places of a patch; two cells part the columns, and a line between columns runs through their middle. Colours
are those a Pygments style gives to keywords (header), names and numbers. A table takes about 2 ms.
"""

from __future__ import annotations

from data.workbench.levels_screen import MAX_PIXELS
from data.workbench.picture import font_of, palette_of, png_of, round_up

GAP = 2
"""Cells between two columns."""
RULE = 4
"""Pixels between two rows with a line between them, so that it touches no underscore."""


def render_table(recipe: dict) -> bytes:
    """The PNG file of a table recipe. Raises ValueError for a style Pygments lacks and a table that is too large.

    The recipe has `title` ("" for none), `header` and `rows` (equally many strings each), `rules` ("none", "columns"
    for lines between columns, "header" for one below the header, "grid"), `align` of the numbers ("left" or "right"),
    and a look: `style`, `size`, `left`, `top`, `leading`.
    """
    return png_of(draw_table(recipe))


def column_widths(recipe: dict) -> list[int]:
    """Cells of each column without the gap, even, so that on the grid of level 1 each column begins with a patch."""
    columns = zip(recipe["header"], *recipe["rows"], strict=True)
    return [width + width % 2 for width in (max(map(len, column)) for column in columns)]


def num_cells(recipe: dict) -> tuple[int, int]:
    """(lines, characters a line) of the whole picture, without its margins."""
    widths = column_widths(recipe)
    chars = sum(widths) + GAP * (len(widths) - 1) + (2 if recipe["rules"] == "grid" else 0)
    return len(recipe["rows"]) + 1 + bool(recipe["title"]), max(chars, len(recipe["title"]))


def draw_table(recipe: dict):
    """The PIL picture of a table recipe, RGB."""
    from PIL import Image, ImageDraw
    from pygments.token import Token

    font, advance, height = font_of(recipe["size"])
    pitch = height + recipe["leading"]
    colour_of, background = palette_of(recipe["style"])
    lines, chars = num_cells(recipe)
    tops = _row_tops(recipe, pitch=pitch)
    width = round_up(recipe["left"] + advance * chars)
    picture = Image.new("RGB", (width, round_up(tops[-1])), background)
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"a table of {lines} lines and {chars} characters does not fit {MAX_PIXELS} pixels")
    draw = ImageDraw.Draw(picture)
    _draw_rules(draw, recipe, advance=advance, tops=tops, colour=colour_of(Token.Comment))

    def write(column: int, y: int, text: str, colour: str) -> None:
        for index, char in enumerate(text):
            draw.text((recipe["left"] + (column + index) * advance, y), char, fill=colour, font=font)

    if recipe["title"]:
        write(0, recipe["top"], recipe["title"], colour_of(Token.Text))
    kinds = [Token.Name, *[Token.Literal.Number] * (len(recipe["header"]) - 1)]
    for row, cells in enumerate([recipe["header"], *recipe["rows"]]):
        for place, (cell, (start, end)) in enumerate(zip(cells, _columns(recipe), strict=True)):
            kind = Token.Keyword if row == 0 else kinds[place]
            column = end - len(cell) if place and recipe["align"] == "right" else start
            write(column, tops[row], cell, colour_of(kind))
    return picture


def _columns(recipe: dict) -> list[tuple[int, int]]:
    """(first cell, one after the last) of each column."""
    spans = []
    start = 1 if recipe["rules"] == "grid" else 0
    for width in column_widths(recipe):
        spans.append((start, start + width))
        start += width + GAP
    return spans


def _row_tops(recipe: dict, *, pitch: int) -> list[int]:
    """Pixel row of the top of each row, the header first, and at the end that below the last one."""
    y = recipe["top"] + (pitch if recipe["title"] else 0) + (RULE if recipe["rules"] == "grid" else 0)
    tops = [y]
    for row in range(len(recipe["rows"]) + 1):
        ruled = recipe["rules"] == "grid" or (recipe["rules"] == "header" and row == 0)
        y += pitch + (RULE if ruled else 0)
        tops.append(y)
    return tops


def _draw_rules(draw, recipe: dict, *, advance: int, tops: list[int], colour: str) -> None:
    """The lines: below a row in the room left for it, between columns in the middle of the gap."""
    spans, left, rules = _columns(recipe), recipe["left"], recipe["rules"]
    grid = rules == "grid"
    first, last = tops[0] - (2 if grid else 0), tops[-1] - (2 if grid else 1)
    right = left + (spans[-1][1] + grid) * advance - 1
    for y in tops if grid else tops[1:2] if rules == "header" else ():
        draw.line([(left, y - 2), (right, y - 2)], fill=colour)
    edges = [left + (start - 1) * advance for start, _end in spans[1:]] if rules in ("grid", "columns") else []
    for x in [left, *edges, right] if grid else edges:
        draw.line([(x, first), (x, last)], fill=colour)
