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
from data.formats.fields import FIELDS, base64_kind, media_of, path_of
from data.formats.placeholders import LISTED, is_mentioned, waiting, written_out
from data.formats.provenance import names_medium

MEDIA = {"image": Image, "video": Video, "audio": Audio}
_KEYS = (
    *("path", "url", "file", "image", "audio", "video", "image_url", "video_url", "audio_url", "source"),
    *("file_name", "filename", "content_url", "contentUrl", "src"),
)


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
    if reference.startswith("data:") or base64_kind(reference) or (len(reference) > 1000 and " " not in reference):
        raise DocumentError(f"{where} holds its bytes in the text: store it as a file and give the path")
    if re.match(r"(https?|ftp|s3|gs|hf)://", reference):
        raise DocumentError(f"{where} is remote ({reference[:80]!r}): download it and give the path of the file")
    return check_relative(reference)


class MediaQueue:
    """Media listed beside a text, taken in order by the placeholders in it, or each by its place in the list."""

    def __init__(self, listed: dict[str, list], fields: tuple[str, ...] = ()):
        self.fields = fields
        """Fields that the media are from."""
        self.counts = {kind: len(references) for kind, references in listed.items()}
        self.has_any = any(self.counts.values())
        self.paths = [path_of(each) for kind in ("audio", "video") for each in listed.get(kind, ())]
        """Those of sounds and films."""
        self.listed = listed
        self.rest = {kind: iter(references) for kind, references in listed.items()}
        self.wanted = dict.fromkeys(MEDIA, 0)
        self.chosen: dict[str, set[int]] = {kind: set() for kind in MEDIA}
        """Kind -> the places of media that were taken by these."""
        self.unsure: dict[str, list[str]] = {}
        """Kind -> the fields that its media are from, where they are no one list."""
        self.stands_for: dict[str, str] = {}
        """Kind of a placeholder -> that of the media which it stands for."""
        self.is_bare = False
        """Whether no field beside the words is about a medium."""
        self.orphan = ""
        """A placeholder in words for which no medium is listed."""

    @classmethod
    def of(cls, fields: dict) -> "MediaQueue":
        """From every field that names media (`data.formats.fields`)."""
        listed = {kind: [] for kind in MEDIA}
        if FIELDS.keys().isdisjoint(fields):
            queue = cls(listed)
            queue.is_bare = not any(isinstance(key, str) and names_medium(key) for key in fields)
            return queue
        found = media_of(fields)
        for key, kind, reference in found:
            if not kind:
                raise DocumentError(f"field {key!r} names a file with an ending of no picture, sound or film")
            listed[kind].append(reference)
        queue = cls(listed, tuple(key for key, _, _ in found))
        for kind in MEDIA:
            keys = [key for key, of_kind, _ in found if of_kind == kind]
            is_whole = not keys or not isinstance(fields[keys[0]], list) or len(fields[keys[0]]) == len(keys)
            if len(set(keys)) > 1 or not is_whole:
                queue.unsure[kind] = list(dict.fromkeys(keys))
        return queue

    def __bool__(self) -> bool:
        return self.has_any

    def match(self, said: list) -> None:
        """Look at all that is said: where there are only films, as many `<image>` stand for them, as LLaVA writes it.

        said: words, or lists of content parts.
        """
        films = self.counts["video"]
        if not films or films != sum(self.counts.values()):
            return
        found = [kind for words in said if isinstance(words, str) for kind in LISTED.findall(words)]
        parts = [part for words in said if isinstance(words, list) for part in words if isinstance(part, dict)]
        found += [part["type"] for part in parts if part.get("type") in ("image", "video", "audio")]
        if found == ["image"] * films:
            self.stands_for = {"image": "video"}

    def take(self, kind: str, role: str | None) -> Part:
        """The next medium of a kind."""
        kind = self.stands_for.get(kind, kind)
        self.wanted[kind] += 1
        reference = next(self.rest[kind], None)
        if reference is None:
            others = "".join(
                f", and {count} as {other}" for other, count in self.counts.items() if count and other != kind
            )
            raise DocumentError(f"there are more <{kind}> placeholders than media ({self.counts[kind]} listed{others})")
        return MEDIA[kind](local_path(reference, where=f"{kind} {self.wanted[kind]}"), role=role)

    def at(self, kind: str, place: int, role: str | None) -> Part:
        """The medium of a kind at a place in the list of them; it may be taken again."""
        kind = self.stands_for.get(kind, kind)
        if kind in self.unsure:
            names = ", ".join(map(repr, self.unsure[kind][:5]))
            raise DocumentError(
                f"an index does not say which medium of {names} is meant: list all in one field '{kind}s'"
            )
        if not 0 <= place < self.counts[kind]:
            raise DocumentError(
                f"index {place} is that of no medium: {self.counts[kind]} listed as {kind}, from index 0 on"
            )
        self.chosen[kind].add(place)
        return MEDIA[kind](local_path(self.listed[kind][place], where=f"{kind} of index {place}"), role=role)

    def num_unused(self) -> int:
        """How many media are listed and not taken, where others are taken by their places."""
        return sum(count - len(self.chosen[kind]) for kind, count in self.counts.items() if self.chosen[kind])

    def before(self, parts: list[Part], role: str | None) -> list[Part]:
        """The parts with the media before them when no placeholder took one. Raises DocumentError, as `close` does."""
        if not any(self.wanted.values()) and not any(self.chosen.values()):
            parts = [self.take(kind, role) for kind, count in self.counts.items() for _ in range(count)] + parts
        self.close()
        return parts

    def close(self) -> None:
        """DocumentError when media are left that no placeholder took, where none is taken by its place."""
        for kind, count in self.counts.items():
            if self.chosen[kind] and self.wanted[kind]:
                raise DocumentError(
                    f"some {kind} parts or placeholders have an index and some have none: give one to each"
                )
            if not self.chosen[kind] and self.wanted[kind] != count:
                raise DocumentError(f"{count} media listed as {kind}, but {self.wanted[kind]} <{kind}> placeholders")


def split_placeholders(text: str, queue: MediaQueue, *, role: str, learn: bool) -> list[Part]:
    """Text and media of a string with `<image>`, `<video>` and `<audio>` in it, or media written out."""
    parts: list[Part] = []
    if not queue:
        for words, medium in written_out(text) if "</" in text else ():
            parts += [Text(words, learn=learn, role=role)] if words else []
            kind, _, path = medium.partition(":")
            parts += [MEDIA[kind](local_path(path, where=f"<{kind}>"), role=role)] if kind else []
        if parts:
            return parts
        if "<" in text and not (queue.is_bare and is_mentioned(text)):
            queue.orphan = queue.orphan or waiting(text)
        return [Text(text, learn=learn, role=role)] if text else []
    # with one group, every second piece is the name of a medium
    for place, piece in enumerate(LISTED.split(text)):
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
