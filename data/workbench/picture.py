"""Draws code: Pygments decides the colours, Pillow draws the characters, one at a time on a fixed grid.

DejaVu Sans Mono is shipped (fonts/, with its licence) and laid out by Pillow's basic engine, so a picture
does not depend on the system's fonts or on an installed shaper. Each character has a cell of whole pixels:
the film of the same code can then uncover it character by character.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.workbench.levels import PATCH

FONT_FILE = Path(__file__).parent / "fonts" / "DejaVuSansMono.ttf"


@dataclass(frozen=True)
class Drawing:
    """A drawn region. Character (row, column) has the cell at (left + column * advance, top + row * pitch)."""

    picture: Any
    """PIL image, RGB, sides in multiples of 16 pixels."""
    advance: int
    """Width of a character's cell in pixels."""
    pitch: int
    """Pixels from one line to the next."""
    background: tuple[int, int, int]
    """Colour of the empty picture."""


def draw_code(recipe: dict) -> Drawing:
    """The whole region of a recipe. Raises ValueError for a style Pygments lacks."""
    from PIL import Image, ImageDraw

    font, advance, height = font_of(recipe["size"])
    pitch = height + recipe["leading"]
    lines = recipe["lines"]
    colours, background = palette_of(recipe["style"])
    width = recipe["left"] + advance * max(len(line) for line in lines)
    picture = Image.new("RGB", (round_up(width), round_up(recipe["top"] + pitch * len(lines))), background)
    draw = ImageDraw.Draw(picture)
    row, column = 0, 0
    for token, value in _tokens(recipe["language"], "\n".join(lines)):
        colour = colours(token)
        for char in value:
            if char == "\n":
                row, column = row + 1, 0
                continue
            if char != " ":
                place = (recipe["left"] + column * advance, recipe["top"] + row * pitch)
                draw.text(place, char, fill=colour, font=font)
            column += 1
    return Drawing(picture, advance, pitch, background)


def render_image(recipe: dict) -> bytes:
    """The PNG file of an image recipe."""
    return png_of(draw_code(recipe).picture)


def png_of(picture: Any) -> bytes:
    """A PIL image as the bytes of a PNG file, without metadata. Raises ValueError unless its sides are in patches."""
    if picture.width % PATCH or picture.height % PATCH:
        raise ValueError(f"a picture of {picture.width} x {picture.height} pixels is not made of whole patches")
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


@lru_cache
def font_of(size: int):
    """(font, advance, line height) in whole pixels; the height is the font's ascent and descent."""
    from PIL import ImageFont

    font = ImageFont.truetype(str(FONT_FILE), size, layout_engine=ImageFont.Layout.BASIC)
    return font, round(font.getlength("m")), sum(font.getmetrics())


@lru_cache
def palette_of(name: str):
    """(token type -> "#rrggbb", background (r, g, b)) of a Pygments style."""
    from PIL import ImageColor
    from pygments.styles import get_style_by_name
    from pygments.util import ClassNotFound

    try:
        style = get_style_by_name(name)
    except ClassNotFound:
        raise ValueError(f"Pygments has no style {name!r}: choose one that `pygmentize -L styles` lists") from None
    background = ImageColor.getrgb(style.background_color)[:3]
    plain = "000000" if sum(background) > 384 else "e6e6e6"

    @lru_cache
    def colour(token) -> str:
        return f"#{style.style_for_token(token)['color'] or plain}"

    return colour, background


@lru_cache
def _lexer(language: str):
    from pygments.lexers import get_lexer_by_name

    return get_lexer_by_name(language, stripnl=False, ensurenl=False)


def _tokens(language: str, code: str):
    """(token type, text) pairs that join to the code exactly."""
    pairs = list(_lexer(language).get_tokens(code))
    if "".join(value for _token, value in pairs) == code:
        return pairs
    # a lexer that alters its text (some trim) may not alter the transcription
    return list(_lexer("text").get_tokens(code))


def round_up(pixels: int) -> int:
    """The next multiple of a patch's side."""
    return -(-pixels // PATCH) * PATCH
