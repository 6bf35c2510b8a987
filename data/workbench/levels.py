"""What each level of difficulty allows, as tables: read here what a model is asked to learn.

Level 1 is for a tiny model. Its pictures hold two characters in every 16 x 16 patch: DejaVu Sans Mono at
size 13 advances 8 pixels a character and fits a line of 16, drawn without margins, so a glyph can stand in
only two places of a patch. Its speech has one voice and a vocabulary of 300 words. Each level above adds a
freedom: level 2 more lines and a dark style on the same grid of cells, level 3 other sizes, so that glyphs
straddle patches, level 4 margins, so that a line may begin at any pixel. Level 4 has regions of 12 lines, ten
voices and 8 seconds of film, and should leave work for a large model.
"""

from __future__ import annotations

from dataclasses import dataclass

FONT_SIZE = 13
LINE_HEIGHT = 16
PATCH = 16
"""Pictures and films have sides in multiples of this, so that no encoder with 16-pixel patches must resize them."""

FRAMES_PER_SECOND = 10
MAX_FILM_S = 8.0
SAMPLE_RATE = 16000

LIGHT = ("default", "friendly", "tango", "vs", "xcode", "solarized-light", "gruvbox-light")
DARK = ("monokai", "native", "dracula", "github-dark", "one-dark", "nord", "solarized-dark", "gruvbox-dark")


@dataclass(frozen=True)
class Look:
    """How code is drawn. `styles` are Pygments styles (() = the config's level1_style), sizes in points."""

    styles: tuple[str, ...]
    sizes: tuple[int, ...]
    margin: tuple[int, int]
    """Least and greatest margin in pixels, left and top each drawn on its own."""
    leading: tuple[int, int] = (1, 1)
    """Least and greatest pixels between lines, beyond the font's own height."""


@dataclass(frozen=True)
class Region:
    """Which code: a number of lines, and how many characters its longest line has."""

    lines: tuple[int, int]
    chars: tuple[int, int]
    blank_lines: bool = False
    """Whether lines in the middle may be empty."""


@dataclass(frozen=True)
class Voice:
    """How speech sounds: espeak-ng voices with variants, words a minute, pitch 0 to 99 (espeak's own scale)."""

    names: tuple[str, ...]
    rate: tuple[int, int]
    pitch: tuple[int, int]


@dataclass(frozen=True)
class Film:
    """A recording's length in seconds and how the code moves; `view` is the visible lines of a scrolling one."""

    seconds: tuple[float, float]
    modes: tuple[str, ...]
    view: tuple[int, int] = (1, 1)
    names: tuple[int, int] = (0, 0)
    """How many identifiers are narrated; (0, 0) is silent."""


PLAIN = Look(styles=(), sizes=(FONT_SIZE,), margin=(0, 0), leading=(-1, -1))
TWO = Look(styles=("default", "monokai"), sizes=(FONT_SIZE,), margin=(0, 0), leading=(-1, -1))
SIX = Look(styles=LIGHT[:3] + DARK[:3], sizes=(12, 13, 14, 16), margin=(0, 0), leading=(-1, 3))
ALL = Look(styles=LIGHT + DARK, sizes=(10, 11, 12, 13, 14, 15, 16, 17), margin=(0, 15), leading=(0, 4))

LOOKS = {1: PLAIN, 2: TWO, 3: SIX, 4: ALL}

SCREENSHOT = {
    1: Region(lines=(1, 1), chars=(12, 32)),
    2: Region(lines=(1, 3), chars=(8, 48)),
    3: Region(lines=(2, 6), chars=(8, 64), blank_lines=True),
    4: Region(lines=(3, 12), chars=(12, 80), blank_lines=True),
}

VOICES = {
    1: Voice(names=("en-us",), rate=(150, 150), pitch=(50, 50)),
    2: Voice(names=("en-us", "en", "en-us+f2", "en-us+m3"), rate=(140, 180), pitch=(50, 50)),
    3: Voice(
        names=("en-us", "en", "en-us+f2", "en-us+m3", "en+f4", "en-us+m7"),
        rate=(130, 200),
        pitch=(35, 65),
    ),
    4: Voice(
        names=(
            "en-us", "en", "en-us+f2", "en-us+m3", "en+f4", "en-us+m7", "en-gb-scotland", "en-gb-x-rp",
            "en-029", "en-us+f5",
        ),
        rate=(120, 230),
        pitch=(25, 80),
    ),
}  # fmt: skip

NARRATION = {1: "parts", 2: "identifier", 3: "signature", 4: "sentence"}
"""What is spoken at each level."""
NUM_SPOKEN_PARTS = ((1, 0.1), (2, 0.45), (3, 0.45))
"""How many parts a level-1 narration has, and how often."""

FILM_REGION = {
    1: Region(lines=(1, 1), chars=(12, 24)),
    2: Region(lines=(1, 1), chars=(12, 40)),
    3: Region(lines=(2, 5), chars=(12, 48)),
    4: Region(lines=(10, 24), chars=(16, 64), blank_lines=True),
}
FILM = {
    1: Film(seconds=(2.0, 3.0), modes=("type",)),
    2: Film(seconds=(2.5, 4.0), modes=("type",), names=(1, 4)),
    3: Film(seconds=(3.0, 5.0), modes=("type", "scroll"), view=(2, 3), names=(1, 4)),
    4: Film(seconds=(6.0, 7.5), modes=("scroll",), view=(4, 8), names=(2, 5)),
}
TYPED_BY = 0.6
"""The share of a film after which the last character stands."""
