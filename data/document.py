"""A document: an ordered list of parts, each text, image, audio or video.

Parts are the ecosystem's chat content parts (`{"type": "text", "text": ...}`, `{"type": "image", "image": path}`,
...), because every interleaved format in use converts to them without loss. A line of the native manifest:

    {"id": "a/b.py#3", "kind": "screenshot", "level": 1, "split": "train", "source": "cpython",
     "content": [{"type": "image", "image": "media/ab/x.png"}, {"type": "text", "text": "import os"}]}

`id` and `content` are required. `loss_mask` (text only, default true) says whether the text is a target; `use_audio`
(video only, default true) asks for the audio track; `role` is kept and not interpreted. Media paths are relative to the
manifest's folder (`brine.data.files.addresses`). No file is opened here.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from brine.common.files import replacing
from brine.data.files.addresses import DocumentError as DocumentError
from brine.data.files.addresses import check_relative
from brine.data.formats.splits.names import SPLITS as SPLITS
from brine.data.formats.splits.names import split_of_word

MODALITIES = ("image", "audio", "video")


@dataclass(frozen=True)
class Text:
    """A run of text; a target when `loss_mask`."""

    text: str
    loss_mask: bool = True
    role: str | None = None


@dataclass(frozen=True)
class Image:
    """An image file."""

    path: str
    role: str | None = None


@dataclass(frozen=True)
class Audio:
    """An audio file."""

    path: str
    role: str | None = None


@dataclass(frozen=True)
class Video:
    """A video file, with its audio track when `use_audio` and when it has one."""

    path: str
    use_audio: bool = True
    role: str | None = None


Part = Text | Image | Audio | Video
_RENAMED = {"learn": "loss_mask", "sound": "use_audio"}  # keys of earlier manifests
_FIELDS = ("id", "kind", "level", "split", "source")


@dataclass(frozen=True)
class Document:
    """One training document. Results are reported by `kind` and `level`; `source` is where it came from."""

    id: str
    parts: tuple[Part, ...]
    kind: str = "document"
    level: int = 0
    split: str = "train"
    source: str = ""

    def with_split(self, split: str) -> "Document":
        """The same document in another split; several times as fast as `dataclasses.replace`."""
        return Document(self.id, self.parts, self.kind, self.level, split, self.source)

    def to_json(self) -> dict:
        """The native JSON form; `parse_document` is its inverse."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return fields | {"content": [part_to_json(part) for part in self.parts]}


@dataclass(frozen=True)
class Quarantined:
    """A document that cannot be used: its id where known, the file at fault, and the reason."""

    id: str
    file: str
    reason: str
    line: int = 0

    def to_json(self) -> dict:
        """The form of one line of quarantine.jsonl."""
        return {"id": self.id, "file": self.file, "line": self.line, "reason": self.reason}


def part_to_json(part: Part) -> dict:
    """Content-part form of one part, without fields at their defaults."""
    name = modality_of(part)
    fields = {"type": name, name: part.text if name == "text" else part.path}
    for flag in ("loss_mask", "use_audio"):
        if not getattr(part, flag, True):
            fields[flag] = False
    return fields | ({"role": part.role} if part.role is not None else {})


def modality_of(part: Part) -> str:
    """ "image", "audio" or "video" of a media part, "text" of a text part."""
    return type(part).__name__.lower()


def media_paths(document: Document) -> list[str]:
    """Paths of a document's media parts, in order."""
    return [part.path for part in document.parts if not isinstance(part, Text)]


def parse_document(fields) -> Document:
    """A document from its JSON form. Raises DocumentError naming the field that is missing or of a wrong type."""
    if not isinstance(fields, dict):
        raise DocumentError(f"a document must be a JSON object, not {type(fields).__name__}")
    name, content = _field(fields, "id", str, None, "field"), _field(fields, "content", list, None, "field")
    if not name or not content:
        raise DocumentError(f"field {'content' if name else 'id'!r} is empty")
    level = _field(fields, "level", int, 0, "field")
    if not 0 <= level < 1000:
        raise DocumentError(f"field 'level' must lie in 0..999, not {level}")
    try:
        split = split_of_word(_field(fields, "split", str, "train", "field")) or "train"
    except ValueError as error:
        raise DocumentError(f"field 'split' {error}") from None
    parts = tuple(_parse_part(part, number) for number, part in enumerate(content))
    kind, source = _field(fields, "kind", str, "document", "field"), _field(fields, "source", str, "", "field")
    return Document(name, parts, kind, level, split, source)


def _parse_part(fields, number: int) -> Part:
    where = f"content part {number}: field"
    if not isinstance(fields, dict):
        raise DocumentError(f"content part {number} must be an object, not {type(fields).__name__}")
    fields = {_RENAMED.get(key, key): value for key, value in fields.items()}
    kind = _field(fields, "type", str, None, where)
    role = None if fields.get("role") is None else _field(fields, "role", str, None, where)
    if kind == "text":
        text = _field(fields, "text", str, None, where)
        # a lone surrogate, legal in JSON, has no UTF-8 form
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise DocumentError(f"content part {number}: text holds a lone surrogate, which is not Unicode text")
        return Text(text, loss_mask=_field(fields, "loss_mask", bool, True, where), role=role)
    if kind not in MODALITIES:
        raise DocumentError(f"content part {number}: type {kind[:40]!r} is none of text, image, audio, video")
    path = check_relative(_field(fields, kind, str, None, where))
    if kind == "video":
        return Video(path, use_audio=_field(fields, "use_audio", bool, True, where), role=role)
    return (Image if kind == "image" else Audio)(path, role=role)


def _field(fields: dict, name: str, kind: type, default, where: str):
    value = fields.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DocumentError(f"{where} {name!r} must be of type {kind.__name__}, not {type(value).__name__}")
    if kind is str and name != "text" and (len(value) > 1000 or not value.isprintable()):
        raise DocumentError(f"{where} {name!r} is over 1,000 characters or holds control characters")
    return value


def write_manifest(path: str | Path, documents) -> int:
    """Write documents as a native manifest, one JSON line each, atomically; returns how many."""
    count = 0
    with replacing(Path(path)) as file:
        for document in documents:
            file.write(json.dumps(document.to_json(), ensure_ascii=False) + "\n")
            count += 1
    return count
