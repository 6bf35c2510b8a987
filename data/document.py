"""What a document is: an ordered list of parts, each text, picture, sound or film.

Parts are the ecosystem's chat content parts (`{"type": "text", "text": ...}`, `{"type": "image", "image": path}`,
...), because every interleaved format in use converts to them without loss. A line of the native manifest is one
document:

    {"id": "a/b.py#3", "kind": "screenshot", "level": 1, "split": "train", "source": "cpython",
     "content": [{"type": "image", "image": "media/ab/x.png"}, {"type": "text", "text": "import os"}]}

`id` and `content` are required. `learn` (text only, default true) says whether the text is a target; `role` is
kept and not interpreted; `sound` (video only, default true) asks for the sound track. Media paths are relative to
the manifest's folder; `shard.tar::name.png` is a member of a tar there and `file.parquet::12/image` a cell of a table
(see `data.archive`); a container without such an ending has it added in addresses, `shard#.tar::name.png`.
`parse_document` trusts nothing: every wrong type is named. Whether a path really stays in its folder is decided by
`resolve_media` when the file is about to be opened, since only then do links count.
"""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from data.archive_beside import archive_beside
from data.links import linked_store, stays_within, why_dangling
from data.pointers import MAX_BYTES, pointer_in, why_missing
from data.split_names import SPLITS as SPLITS
from data.split_names import split_of_word

MODALITIES = ("image", "audio", "video")
CONTAINERS = (".tar", ".parquet", ".arrow")
"""Endings of files whose insides can be addressed, as `container::inside`."""
_TAG = "#"


class DocumentError(ValueError):
    """A document that cannot be used; the message says which field or file, and why."""


@dataclass(frozen=True)
class Text:
    """A run of text; a target when `learn`."""

    text: str
    learn: bool = True
    role: str | None = None


@dataclass(frozen=True)
class Image:
    """A picture file."""

    path: str
    role: str | None = None


@dataclass(frozen=True)
class Audio:
    """A sound file."""

    path: str
    role: str | None = None


@dataclass(frozen=True)
class Video:
    """A video file, with its sound track when `sound` and when it has one."""

    path: str
    sound: bool = True
    role: str | None = None


Part = Text | Image | Audio | Video
_MEDIA = {"image": Image, "audio": Audio, "video": Video}


@dataclass(frozen=True)
class Document:
    """One training document. `kind` and `level` are what results are reported by; `source` is where it came from."""

    id: str
    parts: tuple[Part, ...]
    kind: str = "document"
    level: int = 0
    split: str = "train"
    source: str = ""

    def in_split(self, split: str) -> "Document":
        """The same document in another split; `dataclasses.replace` takes several times as long, for every line."""
        return Document(self.id, self.parts, self.kind, self.level, split, self.source)

    def to_json(self) -> dict:
        """The native JSON form; `parse_document` is its inverse."""
        return {
            "id": self.id,
            "kind": self.kind,
            "level": self.level,
            "split": self.split,
            "source": self.source,
            "content": [part_to_json(part) for part in self.parts],
        }


@dataclass(frozen=True)
class Quarantined:
    """A document that was set aside: its id where known, the file at fault, and the reason."""

    id: str
    file: str
    reason: str
    line: int = 0

    def to_json(self) -> dict:
        """The form of one line of quarantine.jsonl."""
        return {"id": self.id, "file": self.file, "line": self.line, "reason": self.reason}


def part_to_json(part: Part) -> dict:
    """Content-part form of one part; fields at their defaults are left out."""
    if isinstance(part, Text):
        fields = {"type": "text", "text": part.text} | ({} if part.learn else {"learn": False})
    else:
        name = modality_of(part)
        fields = {"type": name, name: part.path}
        if isinstance(part, Video) and not part.sound:
            fields["sound"] = False
    return fields | ({"role": part.role} if part.role is not None else {})


def modality_of(part: Part) -> str:
    """ "image", "audio" or "video" of a media part, "text" of a text part."""
    return type(part).__name__.lower()


def _field(fields: dict, name: str, kind: type, default, where: str):
    value = fields.get(name, default)
    good = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not good:
        raise DocumentError(f"{where} {name!r} must be of type {kind.__name__}, not {type(value).__name__}")
    if kind is str and name != "text" and (len(value) > 1000 or not value.isprintable()):
        raise DocumentError(f"{where} {name!r} is over 1,000 characters or holds control characters")
    return value


def _parse_part(fields, number: int) -> Part:
    where = f"content part {number}: field"
    if not isinstance(fields, dict):
        raise DocumentError(f"content part {number} must be an object, not {type(fields).__name__}")
    kind = _field(fields, "type", str, None, where)
    role = None if fields.get("role") is None else _field(fields, "role", str, None, where)
    if kind == "text":
        text = _field(fields, "text", str, None, where)
        # a lone surrogate, legal in JSON, has no UTF-8 form and so no bytes to learn
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise DocumentError(f"content part {number}: text holds a lone surrogate, which is not Unicode text")
        return Text(text, learn=_field(fields, "learn", bool, True, where), role=role)
    if kind not in _MEDIA:
        raise DocumentError(f"content part {number}: type {kind[:40]!r} is none of text, image, audio, video")
    path = check_relative(_field(fields, kind, str, None, where))
    if kind == "video":
        return Video(path, sound=_field(fields, "sound", bool, True, where), role=role)
    return _MEDIA[kind](path, role=role)


def parse_document(fields) -> Document:
    """A document from its JSON form. Raises DocumentError naming the field that is missing or of a wrong type."""
    if not isinstance(fields, dict):
        raise DocumentError(f"a document must be a JSON object, not {type(fields).__name__}")
    name = _field(fields, "id", str, None, "field")
    if not name:
        raise DocumentError("field 'id' is empty")
    content = _field(fields, "content", list, None, "field")
    if not content:
        raise DocumentError("field 'content' is an empty list")
    level = _field(fields, "level", int, 0, "field")
    if not 0 <= level < 1000:
        raise DocumentError(f"field 'level' must lie in 0..999, not {level}")
    try:
        split = split_of_word(_field(fields, "split", str, "train", "field")) or "train"
    except ValueError as error:
        raise DocumentError(f"field 'split' {error}") from None
    return Document(
        id=name,
        parts=tuple(_parse_part(part, number) for number, part in enumerate(content)),
        kind=_field(fields, "kind", str, "document", "field"),
        level=level,
        split=split,
        source=_field(fields, "source", str, "", "field"),
    )


def split_address(path: str) -> tuple[str, str] | None:
    """(container, inside) of a path such as `shard.tar::a.png`; None for the path of a plain file."""
    place = path.find("::")
    # the name of a container may have colons of its own
    while place >= 0 and not path[:place].lower().endswith(CONTAINERS):
        place = path.find("::", place + 1)
    return (path[:place], path[place + 2 :]) if place >= 0 else None


def tagged(name: str, ending: str) -> str:
    """The name that a container goes by in addresses: its own where it ends with `ending`, else with `#.tar` behind it.

    So a file's kind stands in its address whatever the file is called, and names such as `std::vector.png` stay plain.
    """
    return name if name.lower().endswith(ending) and not name.lower().endswith(_TAG + ending) else name + _TAG + ending


def untagged(name: str) -> str:
    """The file's own path behind the name of a container in an address."""
    ending = next((ending for ending in CONTAINERS if name.lower().endswith(_TAG + ending)), None)
    return name[: -len(_TAG + ending)] if ending else name


def check_relative(path: str) -> str:
    """The path itself when it is relative and climbs nowhere by its spelling; DocumentError otherwise.

    Both halves of an address into a container are held to this.
    """
    if not path or "\0" in path:
        raise DocumentError("a media path is empty or holds a NUL byte")
    for half in split_address(path) or (path,):
        if not half:
            raise DocumentError(f"path {path[:200]!r} names nothing inside its container")
        if os.path.isabs(half) or half.startswith(("~", "data:")) or "://" in half[:16]:
            raise DocumentError(f"path {path[:200]!r} is not relative to the manifest's folder")
        if os.path.normpath(half).split(os.sep)[0] == os.pardir:
            raise DocumentError(f"path {path[:200]!r} leaves the manifest's folder")
    return path


def resolve_media(root: Path, path: str, *, max_file_mib: float) -> Path:
    """The real file behind a manifest path: inside `root` after following links (or in the store that such a folder
    is a view of, `data.links`), regular, and of bearable size.

    `root` must be resolved already. The file is looked at by stat only, never opened, so that a pipe or a device
    cannot block, except that of a regular one below 1 KiB the beginning is read, since it may be what stands for a file
    that was not fetched (`data.pointers`). Raises DocumentError with the reason.
    """
    check_relative(path)
    try:
        real = Path(os.path.realpath(root / path, strict=True))
        status = os.stat(real)
    except FileNotFoundError:
        why = why_dangling(root / path)
        what = f"is a link: {why}" if why else why_missing(root / path)
        slashes = ", with its backslashes: write '/' between folders" if "\\" in path else ""
        what = what or f"does not exist{slashes or archive_beside(root, path)}"
        raise DocumentError(f"file {path!r} {what}") from None
    except OSError as error:
        raise DocumentError(f"file {path!r} cannot be reached: {error.strerror}") from None
    if not stays_within(root, real):
        raise DocumentError(
            f"file {path!r} is a link out of the manifest's folder: {linked_store(root) or 'copy it here'}"
        )
    if not stat.S_ISREG(status.st_mode):
        raise DocumentError(f"file {path!r} is not a regular file")
    if status.st_size == 0:
        raise DocumentError(f"file {path!r} is empty (0 bytes)")
    if status.st_size < MAX_BYTES:
        _refuse_pointer(real, path)
    if status.st_size > max_file_mib * 2**20:
        raise DocumentError(f"file {path!r} has {status.st_size / 2**20:.0f} MiB, over max_file_mib={max_file_mib:g}")
    return real


def _refuse_pointer(real: Path, path: str) -> None:
    try:
        what = pointer_in(real)
    except OSError as error:
        raise DocumentError(f"file {path!r} cannot be read ({error.strerror})") from None
    if what:
        raise DocumentError(f"file {path!r} {what}")


def write_manifest(path: str | Path, documents) -> int:
    """Write documents as a native manifest, one JSON line each; returns how many. Atomic: complete or absent."""
    path, count = Path(path), 0
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(document.to_json(), ensure_ascii=False) + "\n")
            count += 1
    os.replace(partial, path)
    return count
