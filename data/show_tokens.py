"""Tokens as lines of boxes with words in them, for pictures and pages that show a document.

A text token becomes its characters; what a fixed-width font cannot show (control characters, scripts without glyphs,
bytes that are no text) becomes an escape. A line ends after a line end of the text, so code keeps its shape. A medium
becomes three boxes, its opening token, its slots counted, and its closing token.
"""

import functools
from typing import NamedTuple

import numpy as np

from data.document import MODALITIES
from data.show import Medium, View, words_of
from data.tokenizer import SLOT_ID, SPECIALS

COLUMNS = 165
"""Characters in a line."""
LEARNED = {True: "#e3e5fb", False: "#eceef1"}
"""Colour of text that is a target, and that is not."""
_SHOWN = {"\n": "↵", "\t": "→", "\r": "\\r"}


class Box(NamedTuple):
    """One token, or the slots of one medium."""

    word: str
    modality: str
    learned: bool


def boxes_of(view: View, media: list[Medium], *, stop: int | None = None) -> list[tuple[int, Box]]:
    """(place of its first token, box) of the tokens before `stop`, media in one box of slots each."""
    boxes, place, sequence = [], 0, view.sequence
    stop = len(sequence) if stop is None else min(stop, len(sequence))
    for medium in [*media, None]:
        until = min(stop, medium.start if medium is not None else stop)
        words = words_of(view, place, until)
        for number, word in enumerate(words, start=place):
            special = sequence.token_ids[number] < len(SPECIALS)
            boxes.append((number, Box(f"⟨{word}⟩" if special else word, "text", bool(sequence.learn[number]))))
        if medium is None or medium.start >= stop:
            break
        slots = sequence.token_ids[medium.start + 1 : medium.stop - 1]
        counts = [(name, int(np.sum(slots == SLOT_ID[name]))) for name in MODALITIES]
        inner = " + ".join(f"{count:,} {name}" for name, count in counts if count)
        for number, word in (
            (medium.start, f"{medium.modality} open"),
            (medium.start + 1, inner),
            (medium.stop - 1, "close"),
        ):
            boxes.append((number, Box(f" {word} ", medium.modality, False)))
        place = medium.stop
    return boxes


def token_lines(view: View, media: list[Medium], *, max_lines: int) -> tuple[list[list[Box]], int]:
    """Lines of boxes at most COLUMNS wide, and how many tokens did not fit into `max_lines`."""
    lines: list[list[Box]] = [[]]
    room, after_end = COLUMNS, False
    # a line holds at least one character a token, and a line end may take a line
    for place, box in boxes_of(view, media, stop=max_lines * COLUMNS + sum(m.stop - m.start for m in media)):
        word = printable(box.word) or "·"
        if after_end and box.word.strip("\n"):
            room = 0
        while word:
            if len(word) > room and room < COLUMNS:
                if len(lines) == max_lines:
                    return lines, len(view.sequence) - place
                lines.append([])
                room = COLUMNS
            lines[-1].append(box._replace(word=word[:room]))
            word, room = word[room:], room - len(word[:room])
        # line ends that follow one another stay on one line, or empty lines would take half the picture
        after_end = box.modality == "text" and box.word.endswith("\n")
    return [line for line in lines if line], 0


def printable(text: str) -> str:
    """The text as characters that the font has, one column each."""
    glyphs = _glyphs()
    return "".join(
        _SHOWN.get(char) or (char if char == " " or (char.isprintable() and ord(char) in glyphs) else ascii(char)[1:-1])
        for char in text
    )


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points of the fixed-width font that comes with matplotlib."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    font = FT2Font(findfont(FontProperties(family="DejaVu Sans Mono")))
    # above this lie scripts whose marks combine or whose letters are wider than a column
    return frozenset(code for code in font.get_charmap() if code < 0x300 or 0x370 <= code < 0x590 or code >= 0x2000)
