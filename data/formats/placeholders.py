"""Places of media in words: `<image>` and its like, where there is a medium for them and where there is none.

    <image>  <video>  <audio>                    the next medium of that kind that is listed beside the words
    <img>a.png</img>  <audio>a.wav</audio>       the medium itself, as Qwen-VL and Qwen-Audio write it
    <|image_1|>  <image_pad>  <img_0>            those of other programs, which are not read

Words that wait for a medium and have none teach an answer about nothing, so they are set aside (`waiting`). Web pages
and programs have such tags too: `<video>` and `<audio>` are HTML, `<image>` is SVG. A tag with its closing one, in
quotes of code, or in words about markup is none that waits, unless it begins or ends the words or has its own line.
"""

import re

from data.endings import medium_of
from data.formats.fields import is_medium

LISTED = re.compile(r"<(image|video|audio)>")
_IN_WORDS = re.compile(r"<img>([^<>\n]{1,1000})</img>|<(image|video|audio)>([^<>\n]{1,1000})</\2>")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_OTHER = re.compile(
    r"<\|(?:image|img|video|audio|vision_start|speech)(?:[_ ]?(?:\d+|pad|start))?\|>"
    r"|<(?:image|img|video|audio|speech)[_ -]?(?:\d+|pad|token|here|placeholder)>",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"\b(?:html5?|tags?|elements?|xml|svg|markup|tokens?|placeholders?|css|javascript|dom|syntax|code)\b|</|/>", re.I
)
_ALONE = re.compile(
    r"(?m)^[ \t]*<(image|video|audio)>[ \t]*$|\A\s*<(?:image|video|audio)>|<(?:image|video|audio)>\s*\Z"
)


_SHOWN = re.compile(
    r"\b(?:in|of|from|is|are|on|at|with|and|or|to|this|that|these|see|describe|caption|watch|transcribe|summari[sz]e"
    r"|given|attached|following|here|image|picture|photo|video|audio|clip)\W{0,3}(?:the\s+|this\s+)?<(?:image|video|audio)>",
    re.IGNORECASE,
)
"""Words before a placeholder that speak of what it shows."""
_SHOWS = re.compile(
    r"<(?:image|video|audio)>\s+(?:shows?|depicts?|contains?|looks?|says?|displays?|sounds?|illustrates?)\b"
)


def is_mentioned(text: str) -> bool:
    """Whether placeholders in words are words themselves: each comes once, inside a line, and nothing is shown by it.

    ("How do I embed a <video> in a page?"). True only of a row where no field is about a medium.
    """
    found = LISTED.findall(text)
    if not found or len(found) != len(set(found)) or _OTHER.search(text) or _SHOWN.search(text):
        return False
    if _SHOWS.search(text):
        return False
    return not re.search(r"(?m)^[^\w\n<]*<(?:image|video|audio)>|<(?:image|video|audio)>[^\w\n]*$", text)


def waiting(text: str) -> str:
    """The placeholder in words without a medium that waits for one; "" when there is none."""
    if "<" not in text:
        return ""
    if "`" in text:
        text = _CODE.sub(" ", text)
    for found in LISTED.finditer(text):
        if f"</{found[1]}>" in text:
            continue
        if _ALONE.search(text) or not _MARKUP.search(text):
            return found[0]
    if found := _OTHER.search(text):
        return found[0]
    found = _IN_WORDS.search(text)
    # whoever closes <img> writes no HTML
    return found[0][:100] if found and (found[1] or is_medium(found[3])) and " " not in found[0] else ""


def written_out(text: str) -> list[tuple[str, str]]:
    """(words, kind and path of the medium behind them) of words with media in them; [] when there are none.

    The kind is "" behind the last words, and for a file of an ending that is not known.
    """
    if "</" not in text:
        return []
    pieces, start = [], 0
    code = [found.span() for found in _CODE.finditer(text)] if "`" in text else []
    for found in _IN_WORDS.finditer(text):
        path = (found[1] or found[3]).strip()
        if any(begin <= found.start() < end for begin, end in code) or not is_medium(path):
            continue
        kind = medium_of(path)
        kind = kind.__name__.lower() if kind else found[2] or "image"
        pieces.append((text[start : found.start()], f"{kind}:{path}"))
        start = found.end()
    return [*pieces, (text[start:], "")] if pieces else []
