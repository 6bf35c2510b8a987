"""Media tokens in words: `<image>` and its like, with media for them and without.

    <image>  <video>  <audio>                    the next of that kind that is listed beside the words
    <img>a.png</img>  <audio>a.wav</audio>       the file itself, as Qwen-VL and Qwen-Audio write it
    <|image_1|>  <image_pad>  <img_0>            those of other programs, which are not read

Words that wait for media and have none teach an answer about nothing, so they are refused. HTML and SVG have such tags
too: a closed tag, one in code or in words about markup does not wait for media, unless it is at an end or on a line.
"""

import re

from brine.data.files.extensions import media_type_of
from brine.data.formats.lines.fields import is_media_path

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
_ANY = "<(?:image|video|audio)>"
_ALONE = re.compile(rf"(?m)^[ \t]*{_ANY}[ \t]*$|\A\s*{_ANY}|{_ANY}\s*\Z")
_SHOWN = re.compile(
    r"\b(?:in|of|from|is|are|on|at|with|and|or|to|this|that|these|see|describe|caption|watch|transcribe|summari[sz]e"
    rf"|given|attached|following|here|image|picture|photo|video|audio|clip)\W{{0,3}}(?:the\s+|this\s+)?{_ANY}",
    re.IGNORECASE,
)
"""Words before a placeholder that speak of what it shows."""
_SHOWS = re.compile(rf"{_ANY}\s+(?:shows?|depicts?|contains?|looks?|says?|displays?|sounds?|illustrates?)\b")
_OUTER = re.compile(rf"(?m)^[^\w\n<]*{_ANY}|{_ANY}[^\w\n]*$")


def is_literal_placeholder(text: str) -> bool:
    """Whether placeholders are words ("How do I embed a <video> in a page?"): each once, in a line, shown by nothing.

    True only of a row where no field is about media.
    """
    found = LISTED.findall(text)
    is_once = bool(found) and len(found) == len(set(found))
    return is_once and not any(pattern.search(text) for pattern in (_OTHER, _SHOWN, _SHOWS, _OUTER))


def unfilled_placeholder(text: str) -> str:
    """The placeholder in words without media that waits for one; "" when there is none."""
    if "<" not in text:
        return ""
    text = _CODE.sub(" ", text) if "`" in text else text
    for found in LISTED.finditer(text):
        if f"</{found[1]}>" not in text and (_ALONE.search(text) or not _MARKUP.search(text)):
            return found[0]
    if found := _OTHER.search(text):
        return found[0]
    found = _IN_WORDS.search(text)
    # HTML does not close <img>
    return found[0][:100] if found and (found[1] or is_media_path(found[3])) and " " not in found[0] else ""


def inline_media(text: str) -> list[tuple[str, str, str]]:
    """(words, kind and path of the media file behind them); kind and path are "" behind the last; [] without media."""
    found_media, start = [], 0
    code = [found.span() for found in _CODE.finditer(text)] if "`" in text else []
    for found in _IN_WORDS.finditer(text) if "</" in text else ():
        path = (found[1] or found[3]).strip()
        if is_media_path(path) and not any(begin <= found.start() < end for begin, end in code):
            kind = media_type_of(path)
            found_media.append(
                (text[start : found.start()], kind.__name__.lower() if kind else found[2] or "image", path)
            )
            start = found.end()
    return [*found_media, (text[start:], "", "")] if found_media else []
