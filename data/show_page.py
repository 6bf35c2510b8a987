"""A `View` as one HTML file: the picture of `data.show_pictures` and, below it, every token to be searched and copied.

Each token is a box whose tooltip gives its number, id and place. The file opens offline and needs nothing beside it.
All text is escaped, and the page's own policy allows no script and nothing from outside: what a document says stays
text.
"""

import base64
import os
import tempfile
from html import escape
from pathlib import Path

from data.check_plot import COLOURS
from data.show import View, media_of
from data.show_pictures import write_picture
from data.show_tokens import LEARNED, boxes_of
from data.tables import safe

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = f"""
body {{ margin: 1.5rem; font: 15px/1.6 system-ui, sans-serif; color: #1f2937; background: white }}
img {{ max-width: 100%; height: auto }}
p.tokens {{ font: 14px/1.75 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap }}
p.tokens {{ overflow-wrap: anywhere }}
p.tokens span {{ border-right: 1px solid white; background: {LEARNED[False]} }}
p.tokens .learned {{ background: {LEARNED[True]}; border-bottom: 2px solid #4f46e5 }}
""" + "".join(f"p.tokens .{name} {{ background: {colour}44 }}\n" for name, colour in COLOURS.items() if name != "text")


def write_page(view: View, path: str | Path) -> Path:
    """Write a view as HTML, whole or not at all; returns the path. Raises ValueError when it cannot be written."""
    path = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        picture = base64.b64encode(write_picture(view, Path(folder) / "view.png").read_bytes()).decode()
    title = escape(safe(view.document.id))
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title><style>{_STYLE}</style></head><body>
<img alt="tokens, media, places and mask of {title}" src="data:image/png;base64,{picture}">
<h2>All tokens</h2>
<p class="tokens">{_tokens(view)}</p>
</body></html>
"""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(f"page {path} cannot be written ({error.strerror})") from None
    return path


def _tokens(view: View) -> str:
    sequence, spans = view.sequence, []
    for place, box in boxes_of(view, media_of(view)):
        t, h, w = sequence.position[place]
        tip = f"token {place}, id {int(sequence.token_ids[place])}, t {t:g} h {h:g} w {w:g}"
        name = "learned" if box.learned else box.modality
        word = escape("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in box.word)) or "·"
        spans.append(f'<span class="{name}" title="{tip}">{word.replace(chr(10), "↵" + chr(10))}</span>')
    return "".join(spans)
