"""A Markdown page to parts: text, with its local media links in place as media.

`![words](path)` becomes a picture, sound or video part by the file's extension. A link of another sort (SVG, a remote
address) stays in the text exactly as it was written, and so does a link inside fenced code or a code span. Paths are
relative to the page and are rewritten relative to the manifest's folder; one that climbs out of it is an error.

A folder of pages written by many hands has links to pictures that were never there, and links from the root of a web
site (`/img/x.png`). With `is_there` those stay in the text too, so that one dead link does not cost a page.

This is a reader of links, not of Markdown: headings, tables and emphasis stay as they are, since their source is
what the model should learn to write.
"""

import posixpath
import re
from collections.abc import Callable
from urllib.parse import unquote

from data.document import DocumentError, Part, Text, check_relative
from data.endings import medium_of

# ![words](path "title"), the path bare or in <>; the bounds keep the search linear on hostile input
_LINK = re.compile(
    r"""!\[(?P<words>[^\[\]\n]{0,4000})\]\(\s{0,8}(?P<path><[^>\n]{1,1000}>|[^\s()]{1,1000})"""
    r"""(?:\s{1,8}(?:"[^"\n]{0,1000}"|'[^'\n]{0,1000}'))?\s{0,8}\)"""
)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_SPAN = re.compile(r"`[^`\n]{1,1000}`")


def markdown_parts(page: str, *, path: str, is_there: Callable[[str], bool] | None = None) -> tuple[Part, ...]:
    """Parts of a Markdown page that lies at `path` (relative to the manifest's folder).

    `is_there` tells whether a file exists at a path relative to that folder; without it every local link is believed.
    Raises DocumentError for a local media link that leaves the manifest's folder.
    """
    parts: list[Part] = []
    text: list[str] = []

    def flush():
        words = "".join(text)
        if words:
            parts.append(Text(words))
        text.clear()

    for stretch, is_code in _stretches(page):
        if is_code:
            text.append(stretch)
            continue
        spans = [match.span() for match in _SPAN.finditer(stretch)]
        end = 0
        for match in _LINK.finditer(stretch):
            in_span = any(start < match.start() < stop for start, stop in spans)
            part = None if in_span else _media(match["path"], path, is_there)
            if part is None:
                continue
            text.append(stretch[end : match.start()])
            flush()
            parts.append(part)
            end = match.end()
        text.append(stretch[end:])
    flush()
    return tuple(parts)


def _media(link: str, page: str, is_there: Callable[[str], bool] | None) -> Part | None:
    """The media part a link stands for, or None when it is remote, of another sort, or known to be dead."""
    link = unquote(link.strip("<>"))
    kind = medium_of(link)
    if kind is None or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", link):
        return None
    if link.startswith("/"):
        if is_there is not None:
            return None
        raise DocumentError(f"page {page!r} links to {link[:200]!r}, which is not relative to the page")
    target = check_relative(posixpath.normpath(posixpath.join(posixpath.dirname(page), link)))
    return kind(target) if is_there is None or is_there(target) else None


def _stretches(page: str):
    """(text, is fenced code) pairs that join to the page."""
    fence, run = None, []
    for line in page.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence is None and mark:
            yield "".join(run), False
            fence, run = mark[1], [line]
        elif fence is not None and mark and mark[1].startswith(fence) and not line.strip(" \t\r\n`~"):
            yield "".join([*run, line]), True
            fence, run = None, []
        else:
            run.append(line)
    yield "".join(run), fence is not None
