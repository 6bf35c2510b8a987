"""The report's samples: media, transcription and reference, with their differences marked.

Media are embedded as data URIs, so that the report is one file. Only files inside the run folder are read, only types
that browsers show without running anything (no SVG), and only up to a size; others are named. Small images are
enlarged without smoothing, because the model reads pixels.
"""

import base64
from pathlib import Path
from typing import Any

from brine.evals.report.tables import cell_name
from brine.evals.transcribe import align

MIME = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp",
    ".bmp": "image/bmp", ".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".oga": "audio/ogg",
    ".opus": "audio/ogg", ".mp3": "audio/mpeg", ".m4a": "audio/mp4", ".mp4": "video/mp4", ".m4v": "video/mp4",
    ".webm": "video/webm",
}  # fmt: skip
_LONGEST_ALIGNED = 2000
_TITLES = {"image": "Images, transcribed", "audio": "Audio, transcribed", "video": "Videos, transcribed"}


class ReportMediaEmbedder:
    """Embeds media files as data URIs until a number of bytes is spent."""

    def __init__(self, run: Path, *, max_sample_mib: float, max_report_mib: float):
        self.root = run.resolve()
        self.largest = max_sample_mib * 2**20
        self.left = max_report_mib * 2**20

    def embed(self, name: Any) -> tuple[str, str] | None:
        """(MIME type, data URI) of a file of the run folder; None where it is missing, outside, too large or of an
        unknown type, or the budget is spent."""
        if not isinstance(name, str) or "\0" in name:
            return None
        path = (self.root / name).resolve()
        mime = MIME.get(path.suffix.lower())
        # the folder of a stage may be a link
        stage = (self.root / Path(name).parts[0]).resolve() if Path(name).parts else self.root
        inside = path.is_relative_to(self.root) or (".." not in Path(name).parts and path.is_relative_to(stage))
        if mime is None or not inside or not path.is_file():
            return None
        size = path.stat().st_size
        if not 0 < size <= min(self.largest, self.left):
            return None
        self.left -= size
        return mime, f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def is_small_image(path: Path) -> bool:
    """Is this image so small that enlarging it shows its pixels?"""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.width <= 512 and image.height <= 512
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def highlight_differences(reference: str, hypothesis: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Both texts as (CSS class, part): "gone" and "wrong" where they differ, "" elsewhere and in very long texts."""
    if max(len(reference), len(hypothesis)) > _LONGEST_ALIGNED:
        return [("", reference)], [("", hypothesis)]
    parts = align(reference, hypothesis)
    left = [("" if operation == "same" else "gone", part) for operation, part, _ in parts if part]
    right = [("" if operation == "same" else "wrong", part) for operation, _, part in parts if part]
    return left, right


def _media(part: dict[str, Any], budget: ReportMediaEmbedder) -> dict[str, Any]:
    found = budget.embed(part.get("file"))
    if found is None:
        modality = part.get("type")
        modality = modality if modality in _TITLES else "file"
        return {"name": Path(str(part.get("file") or part.get("name") or modality)).name, "modality": modality}
    mime, uri = found
    kind = mime.split("/")[0]
    is_small = kind == "image" and is_small_image(budget.root / part["file"])
    return {"tag": "img" if kind == "image" else kind, "uri": uri, "is_small": is_small}


def _sample(sample: dict[str, Any], budget: ReportMediaEmbedder) -> dict[str, Any]:
    reference, hypothesis = str(sample.get("reference", "")), str(sample.get("hypothesis", ""))
    left, right = highlight_differences(reference, hypothesis)
    edits, badge = sample.get("edits"), ""
    if edits == 0:
        badge = "exactly right"
    elif isinstance(edits, int) and reference:
        badge = f"{edits} edit{'s' if edits != 1 else ''} in {len(reference)} characters"
    media = [_media(part, budget) for part in sample.get("media") or [] if isinstance(part, dict)]
    name, tone = cell_name(sample.get("kind", "document"), sample.get("level", 0)), "good" if edits == 0 else ""
    return {"media": media, "name": name, "badge": badge, "tone": tone, "reference": left, "hypothesis": right}


def samples_section(transcripts: list[dict[str, Any]], budget: ReportMediaEmbedder) -> dict[str, Any] | None:
    """All samples that have media, by modality, easy before hard; None without any."""
    shown = [sample for sample in transcripts if sample.get("media")]
    shown.sort(key=lambda sample: (sample.get("level") or 0, str(sample.get("kind"))))
    groups = {name: [sample for sample in shown if sample.get("modality") == name] for name in _TITLES}
    blocks = [
        {"title": _TITLES[name], "samples": [_sample(sample, budget) for sample in group]}
        for name, group in groups.items()
        if group
    ]
    return {"id": "samples", "blocks": blocks} if blocks else None
