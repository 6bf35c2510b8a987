"""The report's samples: what the model was given, what it said, and what was true.

Media are carried inside the page as base64, so that one file can be mailed and opened anywhere. Only files inside the
run folder are read, only sorts that a browser shows without running anything (no SVG), and only up to a size: what is
left out is named instead. Small pictures are enlarged without smoothing, because what the model reads is pixels.

Differences are marked in both texts, by colour and by line: what the model missed in the truth, what it made up in its
own words.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from evals.text import align

MIME = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".mp3": "audio/mpeg",
    ".m4a": "audio/mp4",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
}
_LONGEST_ALIGNED = 2000
_NAMES = {"image": "Pictures, read", "audio": "Sound, heard", "video": "Recordings, watched"}
_NOUN = {"image": "picture", "audio": "sound", "video": "recording"}


class MediaBudget:
    """Embeds media files as data URIs until a number of bytes is spent."""

    def __init__(self, run: Path, *, max_sample_mib: float, max_report_mib: float):
        self.root = run.resolve()
        self.largest = max_sample_mib * 2**20
        self.left = max_report_mib * 2**20

    def embed(self, name: Any) -> tuple[str, str] | None:
        """(MIME type, data URI) of a file of the run folder; None where it is missing, outside, too large, of an
        unknown sort, or the budget is spent."""
        if not isinstance(name, str) or "\0" in name:
            return None
        path = (self.root / name).resolve()
        mime = MIME.get(path.suffix.lower())
        if mime is None or not path.is_relative_to(self.root) or not path.is_file():
            return None
        size = path.stat().st_size
        if not 0 < size <= min(self.largest, self.left):
            return None
        self.left -= size
        return mime, f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def is_small_picture(path: Path) -> bool:
    """Is this picture so small that enlarging it shows its pixels?"""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.width <= 512 and picture.height <= 512
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def marked(reference: str, hypothesis: str) -> tuple[str, str]:
    """HTML of both texts with what differs marked. Very long texts are left unmarked."""
    if max(len(reference), len(hypothesis)) > _LONGEST_ALIGNED:
        return escape(reference), escape(hypothesis)
    truth, said = [], []
    for operation, left, right in align(reference, hypothesis):
        if operation == "same":
            truth.append(escape(left))
            said.append(escape(right))
            continue
        if left:
            truth.append(f'<span class="gone">{escape(left)}</span>')
        if right:
            said.append(f'<span class="wrong">{escape(right)}</span>')
    return "".join(truth), "".join(said)


def medium_html(part: dict[str, Any], budget: MediaBudget) -> str:
    """A picture, a player, or a line that says what is not shown."""
    modality = str(part.get("type", ""))
    noun = _NOUN.get(modality, "medium")
    found = budget.embed(part.get("file"))
    if found is None:
        name = Path(str(part.get("file") or part.get("name") or noun)).name
        return f'<p class="none">{escape(name)}: this {noun} is not carried in the report.</p>'
    mime, uri = found
    if mime.startswith("image/"):
        small = ' class="pixels"' if is_small_picture(budget.root / part["file"]) else ""
        return f'<img{small} src="{uri}" alt="The picture that the model was given">'
    if mime.startswith("audio/"):
        return f'<audio controls preload="metadata" src="{uri}" aria-label="The sound the model was given"></audio>'
    return (
        f'<video controls loop playsinline preload="auto" src="{uri}" aria-label="The recording the model was given">'
        "</video>"
    )


def sample_html(sample: dict[str, Any], budget: MediaBudget) -> str:
    """One sample as an article."""
    reference, hypothesis = str(sample.get("reference", "")), str(sample.get("hypothesis", ""))
    truth, said = marked(reference, hypothesis)
    media = "".join(medium_html(part, budget) for part in sample.get("media") or [] if isinstance(part, dict))
    edits, length = sample.get("edits"), len(reference)
    if edits == 0:
        badge = '<span class="badge good">every character right</span>'
    elif isinstance(edits, int) and length:
        badge = f'<span class="badge">{edits} edit{"s" if edits != 1 else ""} on {length} characters</span>'
    else:
        badge = ""
    name = f"{sample.get('kind', 'document')}, level {sample.get('level', 0)}"
    nothing = '<span class="none">(nothing)</span>'
    return (
        f'<article class="sample"><div class="medium">{media}</div><div class="words">'
        f'<div class="meta"><span>{escape(name)}</span>{badge}</div>'
        f'<dl><div><dt>Truth</dt><dd><span class="said">{truth or nothing}</span></dd></div>'
        f'<div><dt>Model</dt><dd><span class="said">{said or nothing}</span></dd></div></dl></div></article>'
    )


def samples_section(transcripts: list[dict[str, Any]], budget: MediaBudget) -> str:
    """All samples that carry media, by modality; "" without any."""
    shown = [sample for sample in transcripts if sample.get("media")]
    if not shown:
        return ""
    blocks = []
    for modality, title in _NAMES.items():
        group = [sample for sample in shown if sample.get("modality") == modality]
        if group:
            # easy before hard
            group.sort(key=lambda sample: (sample.get("level") or 0, str(sample.get("kind"))))
            cards = "".join(sample_html(sample, budget) for sample in group)
            blocks.append(f'<h3>{title}</h3><div class="samples">{cards}</div>')
    return (
        '<section id="samples"><h2>Samples</h2><p class="about">Greedy transcriptions of held-out documents, drawn '
        "before anything was known of them.</p>"
        '<p class="key"><span class="said"><span class="gone">missed</span></span> stands in the truth and not in the '
        'model&rsquo;s words; <span class="said"><span class="wrong">wrong</span></span> the other way round.</p>'
        f"{''.join(blocks)}</section>"
    )
