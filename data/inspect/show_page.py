"""A `DocumentView` as one HTML file: the image of `brine.data.inspect.show_image` and, below it, every token.

Each token is a box whose tooltip gives its index, id and position. The file opens offline. All text is escaped, and the
page's own policy allows no script and nothing from outside.
"""

import base64
import tempfile
from html import escape
from pathlib import Path

from brine.common.files import write_text
from brine.common.tables import sanitize
from brine.data.inspect.check_plot import COLOURS
from brine.data.inspect.show import DocumentView, media_ranges
from brine.data.inspect.show_image import write_image
from brine.data.inspect.show_tokens import TRAINED_ROLES, token_boxes

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = f"""
body {{ margin: 1.5rem; font: 15px/1.6 system-ui, sans-serif; color: #1f2937; background: white }}
img {{ max-width: 100%; height: auto }}
p.tokens {{ font: 14px/1.75 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap }}
p.tokens {{ overflow-wrap: anywhere }}
p.tokens span {{ border-right: 1px solid white; background: {TRAINED_ROLES[False]} }}
p.tokens .is_target {{ background: {TRAINED_ROLES[True]}; border-bottom: 2px solid #4f46e5 }}
""" + "".join(f"p.tokens .{name} {{ background: {colour}44 }}\n" for name, colour in COLOURS.items() if name != "text")


def write_page(view: DocumentView, path: str | Path) -> Path:
    """Write a view as HTML, whole or not at all; returns the path. Raises ValueError when it cannot be written."""
    path = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        image = base64.b64encode(write_image(view, Path(folder) / "view.png").read_bytes()).decode()
    title = escape(sanitize(view.document.id))
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title><style>{_STYLE}</style></head><body>
<img alt="tokens, media, positions and mask of {title}" src="data:image/png;base64,{image}">
<h2>All tokens</h2>
<p class="tokens">{_tokens(view)}</p>
</body></html>
"""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page.encode(errors="backslashreplace").decode())
    except OSError as error:
        raise ValueError(f"page {path} cannot be written ({error.strerror})") from None
    return path


def _tokens(view: DocumentView) -> str:
    sequence, spans = view.sequence, []
    for index, box in token_boxes(view, media_ranges(view)):
        t, h, w = sequence.position[index]
        tip = f"token {index}, id {int(sequence.token_ids[index])}, t {t:g} h {h:g} w {w:g}"
        name = "is_target" if box.is_target else box.modality
        word = escape("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in box.word)) or "·"
        spans.append(f'<span class="{name}" title="{tip}">{word.replace(chr(10), "↵" + chr(10))}</span>')
    return "".join(spans)
