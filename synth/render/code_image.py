"""Draws code: Pygments decides the colours, Pillow draws the characters, one at a time on a fixed grid.

DejaVu Sans Mono is shipped (fonts/, with its licence) and laid out by Pillow's basic engine, so an image does not
depend on the system. Each character has a cell of whole pixels: a video of the code can uncover it character by
character. `Canvas` is the grid that tables and interfaces are drawn on too.
"""

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from brine.synth.kinds.levels import MAX_PIXELS, PATCH

FONT_FILE = Path(__file__).parent / "fonts" / "DejaVuSansMono.ttf"

Colour = str | tuple[int, ...]


class Canvas:
    """An RGB image of cells, sides in multiples of 16 pixels: cell (row, column) is at (left + column * advance, top +
    row * pitch), in pixels. Raises ValueError for a style Pygments lacks."""

    def __init__(self, spec: dict) -> None:
        self.left, self.top = spec["left"], spec["top"]
        self.font, self.advance, height = font_of(spec["size"])
        self.pitch = height + spec["leading"]
        self.colour_of, self.background = palette_of(spec["style"])

    def start(self, width: int, height: int, *, what: str = "") -> ImageDraw.ImageDraw:
        """An empty image of at least these pixels. Raises ValueError where `what` is given and has too many pixels."""
        self.image = Image.new("RGB", (round_up(width), round_up(height)), self.background)
        if what and self.image.width * self.image.height > MAX_PIXELS:
            raise ValueError(f"{what} does not fit {MAX_PIXELS} pixels")
        self.pen = ImageDraw.Draw(self.image)
        return self.pen

    def x(self, column: int) -> int:
        return self.left + column * self.advance

    def y(self, row: int) -> int:
        return self.top + row * self.pitch

    def write(self, column: int, y: int, text: str, colour: Colour) -> None:
        """A text from a cell on, its top at pixel row y."""
        for x, char in enumerate(text, start=column):
            if char != " ":
                self.pen.text((self.x(x), y), char, fill=colour, font=self.font)


def draw_code(spec: dict) -> Canvas:
    """The lines of a spec. Raises ValueError for a style Pygments lacks."""
    canvas, lines = Canvas(spec), spec["lines"]
    canvas.start(canvas.x(max(map(len, lines))), canvas.y(len(lines)))
    row, column = 0, 0
    for token, value in _tokens(spec["language"], "\n".join(lines)):
        for number, text in enumerate(value.split("\n")):
            if number:
                row, column = row + 1, 0
            canvas.write(column, canvas.y(row), text, canvas.colour_of(token))
            column += len(text)
    return canvas


def render(spec: dict) -> bytes:
    """The PNG file of a code spec."""
    return png_of(draw_code(spec).image)


def png_of(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file, without metadata. Raises ValueError unless its sides are in patches."""
    if image.width % PATCH or image.height % PATCH:
        raise ValueError(f"an image of {image.width} x {image.height} pixels is not made of whole patches")
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


@lru_cache
def font_of(size: int):
    """(font, advance, line height) in whole pixels; the height is the font's ascent and descent."""
    font = ImageFont.truetype(str(FONT_FILE), size, layout_engine=ImageFont.Layout.BASIC)
    return font, round(font.getlength("m")), sum(font.getmetrics())


@lru_cache
def palette_of(name: str):
    """(token type -> "#rrggbb", background (r, g, b)) of a Pygments style."""
    from pygments.styles import get_style_by_name
    from pygments.util import ClassNotFound

    try:
        style = get_style_by_name(name)
    except ClassNotFound:
        raise ValueError(f"Pygments has no style {name!r}: choose one that `pygmentize -L styles` lists") from None
    background = ImageColor.getrgb(style.background_color)[:3]
    plain = "000000" if sum(background) > 384 else "e6e6e6"
    return lru_cache(lambda token: f"#{style.style_for_token(token)['color'] or plain}"), background


@lru_cache
def _lexer(language: str):
    from pygments.lexers import get_lexer_by_name

    return get_lexer_by_name(language, stripnl=False, ensurenl=False)


def _tokens(language: str, code: str):
    """(token type, text) pairs that join to the code exactly."""
    pairs = list(_lexer(language).get_tokens(code))
    # a lexer that alters its text (some trim) may not alter the transcription
    return pairs if "".join(value for _token, value in pairs) == code else list(_lexer("text").get_tokens(code))


def round_up(pixels: int) -> int:
    """The next multiple of a patch's side."""
    return -(-pixels // PATCH) * PATCH
