"""References to media files, `<image>` placeholders in words, turns, and OBELICS' pages.

    <image>  <video>  <audio>                    the next of that kind that is listed beside the words
    <img>a.png</img>  <audio>a.wav</audio>       the file itself, as Qwen-VL and Qwen-Audio write it
    <|image_1|>  <image_pad>  <img_0>            those of other programs, which are not read

Words that wait for media and have none teach an answer about nothing, so they are refused. HTML and SVG have such tags
too: a closed tag, one in code or in words about markup does not wait for media, unless it is at an end or on a line. A
conversation becomes one text whose turns open with the role on a separate line (`<user>`), as ordinary text without
loss: the markers need no special tokens.
"""

import re
from collections.abc import Iterable

from brine.data.document import Audio, Document, DocumentError, Image, Part, Text, Video
from brine.data.files.addresses import check_relative
from brine.data.files.extensions import media_type_of
from brine.data.formats.lines.fields import FIELDS, base64_kind, is_media_path, media_of, path_of
from brine.data.formats.lines.provenance import names_media
from brine.data.formats.splits.rules import UNASSIGNED

MEDIA = {"image": Image, "video": Video, "audio": Audio}
_KEYS = (
    *("path", "url", "file", "image", "audio", "video", "image_url", "video_url", "audio_url", "source"),
    *("file_name", "filename", "content_url", "contentUrl", "src"),
)
LISTED = re.compile(r"<(image|video|audio)>")
_IN_WORDS = re.compile(r"<img>([^<>\n]{1,1000})</img>|<(image|video|audio)>([^<>\n]{1,1000})</\2>")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_OTHER = re.compile(
    r"<\|(?:image|img|video|audio|vision_start|speech)(?:[_ ]?(?:\d+|pad|start))?\|>"
    r"|<(?:image|img|video|audio|speech)[_ -]?(?:\d+|pad|token|here|placeholder)>",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"\b(?:html5?|tags?|elements?|xml|svg|markup|tokens?|placeholders?|css|javascript|dom|syntax|code)\b|</|/>", re.I
)
_ANY = "<(?:image|video|audio)>"
_ALONE = re.compile(rf"(?m)^[ \t]*{_ANY}[ \t]*$|\A\s*{_ANY}|{_ANY}\s*\Z")
_SHOWN = re.compile(
    r"\b(?:in|of|from|is|are|on|at|with|and|or|to|this|that|these|see|describe|caption|watch|transcribe|summari[sz]e"
    rf"|given|attached|following|here|image|picture|photo|video|audio|clip)\W{{0,3}}(?:the\s+|this\s+)?{_ANY}",
    re.IGNORECASE,
)
"""Words before a placeholder that speak of what it shows."""
_SHOWS = re.compile(rf"{_ANY}\s+(?:shows?|depicts?|contains?|looks?|says?|displays?|sounds?|illustrates?)\b")
_OUTER = re.compile(rf"(?m)^[^\w\n<]*{_ANY}|{_ANY}[^\w\n]*$")


def is_literal_placeholder(text: str) -> bool:
    """Whether placeholders are words ("How do I embed a <video>?"); true only of a row without fields about media."""
    found = LISTED.findall(text)
    is_once = bool(found) and len(found) == len(set(found))
    return is_once and not any(pattern.search(text) for pattern in (_OTHER, _SHOWN, _SHOWS, _OUTER))


def unfilled_placeholder(text: str) -> str:
    """The placeholder in words without media that waits for one; "" when there is none."""
    if "<" not in text:
        return ""
    text = _CODE.sub(" ", text) if "`" in text else text
    for found in LISTED.finditer(text):
        if f"</{found[1]}>" not in text and (_ALONE.search(text) or not _MARKUP.search(text)):
            return found[0]
    if found := _OTHER.search(text):
        return found[0]
    found = _IN_WORDS.search(text)
    # HTML does not close <img>
    return found[0][:100] if found and (found[1] or is_media_path(found[3])) and " " not in found[0] else ""


def inline_media(text: str) -> list[tuple[str, str, str]]:
    """(words, kind and path of the media file behind them); kind and path are "" behind the last; [] without media."""
    found_media, start = [], 0
    code = [found.span() for found in _CODE.finditer(text)] if "`" in text else []
    for found in _IN_WORDS.finditer(text) if "</" in text else ():
        path = (found[1] or found[3]).strip()
        if is_media_path(path) and not any(begin <= found.start() < end for begin, end in code):
            kind = media_type_of(path)
            found_media.append(
                (text[start : found.start()], kind.__name__.lower() if kind else found[2] or "image", path)
            )
            start = found.end()
    return [*found_media, (text[start:], "", "")] if found_media else []


def local_path(reference, *, where: str) -> str:
    """The path in a reference, a string or an object with `path` or `url`. DocumentError for remote or inline media."""
    if isinstance(reference, dict):
        named = next((reference[key] for key in _KEYS if reference.get(key)), None)
        if reference.get("data") and not named:
            raise DocumentError(f"{where} holds its bytes in the text: store it as a file and give the path")
        reference = named
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
    """Media beside a text, taken in order by its placeholders, or by index. DocumentError where they do not agree."""

    def __init__(self, fields: dict):
        found = [] if FIELDS.keys().isdisjoint(fields) else media_of(fields)
        if key := next((key for key, kind, _ in found if not kind), None):
            raise DocumentError(f"field {key!r} names a file with an extension of no image, audio or video")
        self.fields = tuple(key for key, _, _ in found)  # fields that the media are from
        self.listed = {kind: [each for _, of_kind, each in found if of_kind == kind] for kind in MEDIA}
        self.keys = {kind: [key for key, of_kind, _ in found if of_kind == kind] for kind in MEDIA}
        self.counts = {kind: len(references) for kind, references in self.listed.items()}
        self.num_values = {key: len(fields[key]) for key in self.fields if isinstance(fields[key], list)}
        self.paths = [path_of(each) for kind in ("audio", "video") for each in self.listed[kind]]
        """Those of audio and video."""
        self.num_taken = dict.fromkeys(MEDIA, 0)
        self.chosen: dict[str, set[int]] = {kind: set() for kind in MEDIA}
        """Kind -> the indices of media that were taken by index."""
        self.placeholder_alias: dict[str, str] = {}
        """{"image": "video"} where `<image>` stands for a video, as LLaVA writes it."""
        self.has_no_media_fields = FIELDS.keys().isdisjoint(fields) and not any(
            isinstance(key, str) and names_media(key) for key in fields
        )
        self.unmatched_placeholder = ""  # a placeholder in words for which no media are listed

    def __bool__(self) -> bool:
        return any(self.counts.values())

    def match(self, contents: list) -> None:
        """Look at all contents (words, or lists of parts): do `<image>` placeholders stand for the only videos?"""
        num_videos = self.counts["video"]
        if not num_videos or num_videos != sum(self.counts.values()):
            return
        found = [kind for words in contents if isinstance(words, str) for kind in LISTED.findall(words)]
        parts = [part for words in contents if isinstance(words, list) for part in words if isinstance(part, dict)]
        found += [part["type"] for part in parts if part.get("type") in ("image", "video", "audio")]
        if found == ["image"] * num_videos:
            self.placeholder_alias = {"image": "video"}

    def check_words(self, text: str) -> None:
        """Remember a placeholder in words beside which no media are listed."""
        if not self and "<" in text and not (self.has_no_media_fields and is_literal_placeholder(text)):
            self.unmatched_placeholder = self.unmatched_placeholder or unfilled_placeholder(text)

    def take(self, kind: str, role: str | None) -> Part:
        kind = self.placeholder_alias.get(kind, kind)
        index, count = self.num_taken[kind], self.counts[kind]
        self.num_taken[kind] += 1
        if index >= count:
            others = "".join(f", and {n} as {other}" for other, n in self.counts.items() if n and other != kind)
            raise DocumentError(f"there are more <{kind}> placeholders than media ({count} listed{others})")
        return MEDIA[kind](local_path(self.listed[kind][index], where=f"{kind} {index + 1}"), role=role)

    def at(self, kind: str, index: int, role: str | None) -> Part:
        """The one of a kind at an index; it may be taken again."""
        kind = self.placeholder_alias.get(kind, kind)
        keys = list(dict.fromkeys(self.keys[kind]))
        if len(keys) > 1 or (keys and self.num_values.get(keys[0], self.counts[kind]) != self.counts[kind]):
            names = ", ".join(map(repr, keys[:5]))
            raise DocumentError(f"an index into several fields ({names}) is ambiguous: list all in one field '{kind}s'")
        if not 0 <= index < self.counts[kind]:
            raise DocumentError(f"index {index} is out of range: {self.counts[kind]} listed as {kind}, from index 0 on")
        self.chosen[kind].add(index)
        return MEDIA[kind](local_path(self.listed[kind][index], where=f"{kind} of index {index}"), role=role)

    def num_unused(self) -> int:
        """How many media are listed and not taken, of kinds that are taken by index."""
        return sum(count - len(self.chosen[kind]) for kind, count in self.counts.items() if self.chosen[kind])

    def before(self, parts: list[Part], role: str | None) -> list[Part]:
        """The parts with the media before them when no placeholder took one."""
        if not any(self.num_taken.values()) and not any(self.chosen.values()):
            parts = [self.take(kind, role) for kind, count in self.counts.items() for _ in range(count)] + parts
        self.close()
        return parts

    def close(self) -> None:
        """Check that every one was taken, or that some were taken by index."""
        for kind, count in self.counts.items():
            if self.chosen[kind] and self.num_taken[kind]:
                raise DocumentError(f"some {kind} parts have an index and some have none: give one to each")
            if not self.chosen[kind] and self.num_taken[kind] != count:
                raise DocumentError(f"{count} media listed as {kind}, but {self.num_taken[kind]} <{kind}> placeholders")


def split_placeholders(text: str, queue: MediaQueue, *, role: str, loss_mask: bool) -> list[Part]:
    """Text and media of a string with `<image>`, `<video>` and `<audio>` in it, or media written out."""
    parts: list[Part] = []
    if queue:
        # with one group, every second string is the kind of a placeholder
        for index, found in enumerate(LISTED.split(text)):
            parts.append(queue.take(found, role) if index % 2 else Text(found, loss_mask=loss_mask, role=role))
    elif inline := inline_media(text):
        for words, kind, path in inline:
            parts.append(Text(words, loss_mask=loss_mask, role=role))
            parts += [MEDIA[kind](local_path(path, where=f"<{kind}>"), role=role)] if kind else []
    else:
        queue.check_words(text)
        parts = [Text(text, loss_mask=loss_mask, role=role)]
    return [part for part in parts if not isinstance(part, Text) or part.text]


def join_turns(turns: Iterable[tuple[str, list[Part]]], marked: Iterable[str] = ()) -> tuple[Part, ...]:
    """Parts of a conversation, each turn behind its role's marker. DocumentError, with `marked`, when none has loss."""
    parts: list[Part] = []
    for role, content in turns:
        parts += [Text(f"{chr(10) if parts else ''}<{role}>\n", loss_mask=False, role=role), *content]
    if not any(isinstance(part, Text) and part.loss_mask and part.text for part in parts):
        names = ", ".join(map(repr, marked))
        why = f"all text is masked from the loss ({names})" if names else "no assistant says anything"
        raise DocumentError(f"{why}: there is nothing to learn from")
    return tuple(parts)


def obelics_document(fields: dict, *, name: str) -> Document:
    """A document of OBELICS' lists, `{"texts": ["a", null], "images": [null, "1.jpg"]}`. Raises DocumentError."""
    texts, images = fields.get("texts"), fields.get("images")
    for key, value in (("texts", texts), ("images", images)):
        if not isinstance(value, list):
            raise DocumentError(f"field {key!r} must be of type list, not {type(value).__name__}")
    if len(texts) != len(images):
        raise DocumentError(f"'texts' has length {len(texts)} and 'images' {len(images)}: they must be parallel")
    parts: list[Part] = []
    for number, (text, image) in enumerate(zip(texts, images, strict=True)):
        if image is not None:
            parts.append(Image(local_path(image, where=f"image {number}")))
        if text is None or text == "":
            continue
        if not isinstance(text, str):
            raise DocumentError(f"text {number} must be a string or null, not {type(text).__name__}")
        if parts and isinstance(parts[-1], Text):
            parts.append(Text("\n\n"))
        parts.append(Text(text))
    if not any(isinstance(part, Text) for part in parts):
        raise DocumentError("the page has no text: there is nothing to learn from")
    return Document(id=name, parts=tuple(parts), kind="page", split=UNASSIGNED)
