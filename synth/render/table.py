"""Draws a table with Pillow: a header, rows of a label and numbers, lines between them or none.

Characters stand on the grid of code_image.py; two cells part the columns, and a line between columns runs through their
middle. Colours are those a Pygments style gives to keywords (header), names and numbers. A table takes about 2 ms.
"""

from brine.synth.render.code_image import Canvas, png_of

COLUMN_GAP = 2
RULE_PIXELS = 4
"""Pixels between two rows with a line between them, so that it touches no underscore."""


def render(spec: dict) -> bytes:
    """The PNG file of a table spec. Raises ValueError for a style Pygments lacks and a table that is too large.

    The spec has `title` ("" for none), `header`, `rows`, `rules` ("none", "columns", "header" for a line below it,
    "grid"), `align` of the numbers ("left" or "right"), and `style`, `size`, `left`, `top`, `leading`.
    """
    from pygments.token import Token

    canvas, rules, columns = Canvas(spec), spec["rules"], _columns(spec)
    lines, chars = num_cells(spec)
    grid = rules == "grid"
    # pixel row of the top of each row, the header first, and at the end that below the last one
    tops = [spec["top"] + canvas.pitch * bool(spec["title"]) + RULE_PIXELS * grid]
    for row in range(len(spec["rows"]) + 1):
        tops.append(tops[-1] + canvas.pitch + RULE_PIXELS * (grid or (rules == "header" and row == 0)))
    canvas.start(canvas.x(chars), tops[-1], what=f"a table of {lines} lines and {chars} characters")
    # lines below a row in the space left for it, between columns in the middle of the gap
    colour, left, right = canvas.colour_of(Token.Comment), canvas.left, canvas.x(columns[-1][1] + grid) - 1
    for y in tops if grid else tops[1:2] if rules == "header" else ():
        canvas.pen.line([(left, y - 2), (right, y - 2)], fill=colour)
    edges = [canvas.x(start - 1) for start, _end in columns[1:]] if rules in ("grid", "columns") else []
    for x in [left, *edges, right] if grid else edges:
        canvas.pen.line([(x, tops[0] - 2 * grid), (x, tops[-1] - (2 if grid else 1))], fill=colour)
    canvas.write(0, spec["top"], spec["title"], canvas.colour_of(Token.Text))
    for row, cells in enumerate([spec["header"], *spec["rows"]]):
        for index, (cell, (start, end)) in enumerate(zip(cells, columns, strict=True)):
            kind = Token.Keyword if row == 0 else Token.Literal.Number if index else Token.Name
            column = end - len(cell) if index and spec["align"] == "right" else start
            canvas.write(column, tops[row], cell, canvas.colour_of(kind))
    return png_of(canvas.image)


def num_cells(spec: dict) -> tuple[int, int]:
    """(lines, characters a line) of the whole image, without its margins."""
    chars = _columns(spec)[-1][1] + (spec["rules"] == "grid")
    return len(spec["rows"]) + 1 + bool(spec["title"]), max(chars, len(spec["title"]))


def _columns(spec: dict) -> list[tuple[int, int]]:
    """(first cell, one after the last) of each column; widths are even, so that on the grid of level 1 each column
    begins with a patch."""
    spans = []
    start = 1 if spec["rules"] == "grid" else 0
    for column in zip(spec["header"], *spec["rows"], strict=True):
        width = max(map(len, column))
        spans.append((start, start + width + width % 2))
        start = spans[-1][1] + COLUMN_GAP
    return spans
