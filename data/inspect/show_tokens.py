"""Tokens as lines of boxes with words in them, for images and pages that show a document.

A text token becomes its characters, or an escape for what a fixed-width font cannot show. A line ends after a line end
of the text. Media become three boxes: the opening token, the media tokens counted, and the closing token.
"""

import functools
from typing import NamedTuple

import numpy as np

from brine.data.document import MODALITIES
from brine.data.inspect.show import DocumentView, MediaRange, token_texts
from brine.data.tokenizer import MEDIA_TOKEN_ID, SPECIAL_TOKENS

COLUMNS = 165  # characters in a line
TRAINED_ROLES = {True: "#e3e5fb", False: "#eceef1"}
"""Colour of text that is a target, and that is not."""
_SHOWN = {"\n": "↵", "\t": "→", "\r": "\\r"}


class TokenBox(NamedTuple):
    """One token, or the media tokens of one image, audio or video."""

    word: str
    modality: str
    is_target: bool


def token_boxes(view: DocumentView, media: list[MediaRange], *, stop: int | None = None) -> list[tuple[int, TokenBox]]:
    """(index of its first token, box) of the tokens before `stop`."""
    boxes, index, sequence = [], 0, view.sequence
    stop = len(sequence) if stop is None else min(stop, len(sequence))
    for media_range in [*media, None]:
        until = min(stop, media_range.start if media_range is not None else stop)
        words = token_texts(view, index, until)
        for number, word in enumerate(words, start=index):
            special = sequence.token_ids[number] < len(SPECIAL_TOKENS)
            boxes.append((number, TokenBox(f"⟨{word}⟩" if special else word, "text", bool(sequence.loss_mask[number]))))
        if media_range is None or media_range.start >= stop:
            break
        media_positions = sequence.token_ids[media_range.start + 1 : media_range.stop - 1]
        counts = [(name, int(np.sum(media_positions == MEDIA_TOKEN_ID[name]))) for name in MODALITIES]
        inner = " + ".join(f"{count:,} {name}" for name, count in counts if count)
        for number, word in (
            (media_range.start, f"{media_range.modality} open"),
            (media_range.start + 1, inner),
            (media_range.stop - 1, "close"),
        ):
            boxes.append((number, TokenBox(f" {word} ", media_range.modality, False)))
        index = media_range.stop
    return boxes


def token_lines(view: DocumentView, media: list[MediaRange], *, max_lines: int) -> tuple[list[list[TokenBox]], int]:
    """Lines of boxes at most COLUMNS wide, and how many tokens did not fit into `max_lines`."""
    lines: list[list[TokenBox]] = [[]]
    free, after_end = COLUMNS, False
    # a line holds at least one character a token, and a line end may take a line
    for index, box in token_boxes(view, media, stop=max_lines * COLUMNS + sum(m.stop - m.start for m in media)):
        word = printable(box.word) or "·"
        if after_end and box.word.strip("\n"):
            free = 0
        while word:
            if len(word) > free and free < COLUMNS:
                if len(lines) == max_lines:
                    return lines, len(view.sequence) - index
                lines.append([])
                free = COLUMNS
            lines[-1].append(box._replace(word=word[:free]))
            word, free = word[free:], free - len(word[:free])
        # line ends that follow one another stay on one line, or empty lines would take half the image
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
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    font = FT2Font(findfont(FontProperties(family="DejaVu Sans Mono")))
    # above this lie scripts whose marks combine or whose letters are wider than a column
    return frozenset(code for code in font.get_charmap() if code < 0x300 or 0x370 <= code < 0x590 or code >= 0x2000)
