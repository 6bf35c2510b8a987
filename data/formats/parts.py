"""What the chat formats share: references to media, `<image>` placeholders, and turns.

A conversation becomes one run of text. Each turn is opened by its role on a line of its own, as ordinary text that
is never a target:

    <user>
    What is this?                  read, not learned
    <assistant>
    A heron.                       learned

so only what assistants say is learned, and the end token after the last answer, unless marks say otherwise
(`data.formats.marks`). The markers are plain text: they need
no new special tokens, and a base model meets them like any other words.
"""

import re
from collections.abc import Iterable

from data.document import Audio, DocumentError, Image, Part, Text, Video, check_relative
from data.formats.fields import media_of

MEDIA = {"image": Image, "video": Video, "audio": Audio}
# PNG, JPEG, GIF, and RIFF as base64 begins
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/=\s]{40,}$")
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_KEYS = ("path", "url", "file", "image", "audio", "video", "image_url", "video_url", "audio_url", "source")


def typed(fields: dict, name: str, kind: type, *, where: str = "field", default=None):
    """A field of a JSON object, of the type asked for; `default` when it is absent or null.

    Raises DocumentError that names field and types.
    """
    value = fields.get(name)
    if value is None:
        if default is None:
            raise DocumentError(f"{where} {name!r} is missing")
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DocumentError(f"{where} {name!r} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def local_path(reference, *, where: str) -> str:
    """The path in a reference to a medium: a string, or an object with `path` or `url`.

    Raises DocumentError, with the remedy, for remote addresses and for media written into the text.
    """
    if isinstance(reference, dict):
        if reference.get("data") and not any(reference.get(key) for key in _KEYS):
            raise DocumentError(f"{where} holds its bytes in the text: store it as a file and give the path")
        reference = next((reference[key] for key in _KEYS if reference.get(key)), None)
        if isinstance(reference, dict):
            return local_path(reference, where=where)
    if not isinstance(reference, str) or not reference:
        raise DocumentError(f"{where} names no file (a path is wanted, not {type(reference).__name__})")
    if reference.startswith("data:") or _BASE64.match(reference):
        raise DocumentError(f"{where} holds its bytes in the text: store it as a file and give the path")
    if re.match(r"(https?|ftp|s3|gs|hf)://", reference):
        raise DocumentError(f"{where} is remote ({reference[:80]!r}): download it and give the path of the file")
    return check_relative(reference)


class MediaQueue:
    """Media listed beside a text, taken in order by the placeholders in it."""

    def __init__(self, listed: dict[str, list]):
        self.counts = {kind: len(references) for kind, references in listed.items()}
        self.rest = {kind: iter(references) for kind, references in listed.items()}
        self.wanted = dict.fromkeys(MEDIA, 0)

    @classmethod
    def of(cls, fields: dict) -> "MediaQueue":
        """From every field that names media (`data.formats.fields`)."""
        listed = {kind: [] for kind in MEDIA}
        for key, kind, reference in media_of(fields):
            if not kind:
                raise DocumentError(f"field {key!r} names a file with an ending of no picture, sound or film")
            listed[kind].append(reference)
        return cls(listed)

    def __bool__(self) -> bool:
        return any(self.counts.values())

    def take(self, kind: str, role: str | None) -> Part:
        """The next medium of a kind."""
        self.wanted[kind] += 1
        reference = next(self.rest[kind], None)
        if reference is None:
            raise DocumentError(f"there are more <{kind}> placeholders than media ({self.counts[kind]} listed)")
        return MEDIA[kind](local_path(reference, where=f"{kind} {self.wanted[kind]}"), role=role)

    def close(self) -> None:
        """DocumentError when media are left that no placeholder took."""
        for kind, count in self.counts.items():
            if self.wanted[kind] != count:
                raise DocumentError(f"{count} media listed as {kind}, but {self.wanted[kind]} <{kind}> placeholders")


def split_placeholders(text: str, queue: MediaQueue, *, role: str, learn: bool) -> list[Part]:
    """Text and media of a string with `<image>`, `<video>` and `<audio>` in it."""
    parts: list[Part] = []
    # with one group, every second piece is the name of a medium
    for place, piece in enumerate(_PLACEHOLDER.split(text)):
        if place % 2:
            parts.append(queue.take(piece, role))
        elif piece:
            parts.append(Text(piece, learn=learn, role=role))
    return parts


def join_turns(turns: Iterable[tuple[str, list[Part]]], marked: Iterable[str] = ()) -> tuple[Part, ...]:
    """Parts of a conversation, each turn behind its role's marker. Raises DocumentError when nothing is learned.

    marked: marks among the turns, which may be why.
    """
    parts: list[Part] = []
    for role, content in turns:
        parts.append(Text(f"{chr(10) if parts else ''}<{role}>\n", learn=False, role=role))
        parts += content
    if not any(isinstance(part, Text) and part.learn and part.text for part in parts):
        if marked:
            names = ", ".join(map(repr, marked))
            raise DocumentError(f"everything is marked as not to be learned ({names}): there is nothing to learn from")
        raise DocumentError("no assistant says anything: there is nothing to learn from")
    return tuple(parts)
