"""A Markdown page to parts: `![words](path)` becomes an image, audio or video part by the file's extension.

Any other link (SVG, a remote address, one inside code, of a file that is not there, or from the root of a web site)
stays in the text as it was written. Paths are made relative to the manifest's folder. Headings and tables stay as they
are: their source is the target.
"""

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from brine.data.document import Document, DocumentError, Part, Text, check_relative, parse_document
from brine.data.files.extensions import media_type_of
from brine.data.formats.splits.rules import UNASSIGNED

PAGES = (".md", ".markdown")
# ![words](path "title"), the path bare or in <>; the bounds keep the search linear on hostile input
_LINK = re.compile(
    r"""!\[(?P<words>[^\[\]\n]{0,4000})\]\(\s{0,8}(?P<path><[^>\n]{1,1000}>|[^\s()]{1,1000})"""
    r"""(?:\s{1,8}(?:"[^"\n]{0,1000}"|'[^'\n]{0,1000}'))?\s{0,8}\)"""
)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_SPAN = re.compile(r"`[^`\n]{1,1000}`")


def markdown_parts(page: str, *, path: str, is_there: Callable[[str], bool] | None = None) -> tuple[Part, ...]:
    """Parts of a Markdown page that is at `path` (relative to the manifest's folder).

    is_there: whether a file exists below that folder; links to others stay text. Without it every local link is
    believed, and one that leaves the folder raises DocumentError.
    """
    parts: list[Part] = []
    text: list[str] = []

    def flush() -> None:
        parts.extend([Text("".join(text))] if any(text) else [])
        text.clear()

    for run, is_code in _code_spans(page):
        spans, end = [match.span() for match in _SPAN.finditer(run)], 0
        for match in () if is_code else _LINK.finditer(run):
            in_span = any(start < match.start() < stop for start, stop in spans)
            if not in_span and (part := _media(match["path"], path, is_there)) is not None:
                text.append(run[end : match.start()])
                flush()
                parts.append(part)
                end = match.end()
        text.append(run[end:])
    flush()
    return tuple(parts)


def _media(link: str, page: str, is_there: Callable[[str], bool] | None) -> Part | None:
    """The media part a link stands for, or None when it is remote, of another sort, or known to be dead."""
    link = unquote(link.strip("<>"))
    kind = media_type_of(link)
    if kind is None or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", link):
        return None
    if link.startswith("/"):
        if is_there is not None:
            return None
        raise DocumentError(f"page {page!r} links to {link[:200]!r}, which is not relative to the page")
    target = check_relative(posixpath.normpath(posixpath.join(posixpath.dirname(page), link)))
    return kind(target) if is_there is None or is_there(target) else None


def _code_spans(page: str):
    run: list[str] = []
    fence = ""
    for line in page.splitlines(keepends=True):
        mark = _FENCE.match(line)
        closes = fence and mark and mark[1].startswith(fence) and not line.strip(" \t\r\n`~")
        if mark and not fence:
            yield "".join(run), False
            fence, run = mark[1], [line]
        elif closes:
            yield "".join([*run, line]), True
            fence, run = "", []
        else:
            run.append(line)
    yield "".join(run), bool(fence)


def page_document(root: Path, path: str, page: str, *, kind: str, opening: str = "") -> Document:
    """The document of one page, its text opened by `opening`. Raises DocumentError."""
    parts = markdown_parts(page, path=path, is_there=lambda target: os.path.lexists(root / target))
    if opening:
        first = parts[0].text if parts and isinstance(parts[0], Text) else ""
        parts = (Text(opening + first), *(parts[1:] if first else parts))
    if not any(isinstance(part, Text) and part.text.strip() for part in parts):
        raise DocumentError(f"page {path!r} has no text")
    whole = Document(id=path, parts=parts, kind=kind, source=root.name[:200])
    return parse_document(whole.to_json()).with_split(UNASSIGNED)
