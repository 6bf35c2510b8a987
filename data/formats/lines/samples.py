"""One document of the files that share a name: media, words, and a JSON object that may say all that a line may.

    a.jpg  a.json  {"caption": "a heron"}            as with a.txt; also "split", loss masks, "kind", "source"
    a.jpg  a.json  {"conversations": [...]}          a whole document, whose `<image>` is the image beside it
    a.json  {"image": "images/a.jpg", "text": ...}   the object names the image

Names in the object are looked for beside it and then from the top. A missing one stands for a file of its kind beside
the object (its name before packing), and is refused without one.
"""

import copy
import dataclasses
import posixpath
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from brine.data.document import Audio, Document, DocumentError, Image, Text, Video, parse_document
from brine.data.formats.folders.captioned import caption_in, check_prompt_text
from brine.data.formats.lines.chat import PARTS_WITH_PATH
from brine.data.formats.lines.fields import CONVERSATIONS, folded, json_decoded_fields, media_of, path_of
from brine.data.formats.lines.lines import parse_object
from brine.data.formats.lines.loss_masks import ROLES, sample_loss_off_key
from brine.data.formats.lines.parts import MEDIA, local_path
from brine.data.formats.lines.time_spans import check_not_clipped
from brine.data.formats.manifest import checked, detect_record_format, object_document
from brine.data.formats.splits.rules import UNASSIGNED, split_in

_ORDER = (Image, Audio, Video)
Find = Callable[[str], str | None]


def is_complete_record(fields: dict) -> bool:
    """Whether an object is a whole document, not a caption of the media beside it."""
    return detect_record_format(fields) not in (None, "captioned")


def note_ignored_caption(text: str, notes: Counter) -> None:
    """Count a text in a separate file beside a whole document."""
    if text.strip():
        notes["note: a text beside a .json that is a whole document was not read"] += 1


def sidecar_object(content: str, text: str, notes: Counter) -> dict:
    """The object in a file beside media; {} and a note for a file that is none, beside a text; else DocumentError."""
    try:
        return json_decoded_fields(folded(parse_object(content)))
    except DocumentError:
        if not text.strip():
            raise
        notes["note: a .json beside a text is not an object and was not read"] += 1
        return {}


def caption_pair(name: str, media: dict[str, type], text: str, *, source: str) -> Document:
    """A document of media (address -> Image, Audio or Video) and their caption. Raises DocumentError."""
    names = {kind.__name__.lower() for kind in media.values()}
    kind = names.pop() if len(names) == 1 else "mixed" if names else "text"
    parts = sorted((each(path) for path, each in media.items()), key=lambda part: _ORDER.index(type(part)))
    document = Document(name, (*parts, Text(text)), kind=kind, source=source[:200])
    parse_document(document.to_json())
    return dataclasses.replace(document, split=UNASSIGNED)


def captioned_sample(
    name: str, media: dict[str, type], text: str, fields: dict, *, find: Find, source: str, notes: Counter
) -> Document:
    """A document of media and words. text: words in a file, put first. find: name -> address. Raises DocumentError."""
    if off := sample_loss_off_key(fields, notes):
        raise DocumentError(f"field {off!r} masks the whole sample from the loss")
    key, words = ("text", text) if text.strip() else caption_in(fields)
    if not words.strip():
        return caption_pair(name, media, "", source=source)
    found = dict(media)
    for field, kind, reference in media_of(fields):
        path = local_path(reference, where=f"field {field!r}")
        address, kind = find(path), MEDIA.get(kind)
        if address is None and kind not in media.values():
            raise DocumentError(f"field {field!r} names {path[:200]!r}, which is not there")
        if address is not None and address not in found:
            if kind is None:
                raise DocumentError(f"file {path[:200]!r} has an extension of no image, audio or video")
            found[address] = kind
    spans = check_not_clipped(fields, [kind(path) for path, kind in found.items()], notes)
    every = {"text": text} | fields if text.strip() else fields
    words = check_prompt_text(every, key, words, notes, any_read=bool(found), told=spans)
    return checked(caption_pair(name, found, words, source=source), fields, split_in(fields))


def record_sample(
    name: str, media: dict[str, type], fields: dict, *, find: Find, max_file_mib: float, notes: Counter
) -> Document:
    """A document that the object writes out, with the media beside it for the placeholders that name none."""
    given, added = _with_media({"id": name} | fields, media)
    document = object_document(given, root=Path(), name=name, max_file_mib=max_file_mib, notes=notes)
    beside = {kind: [path for path, each in media.items() if each is kind] for kind in _ORDER}
    named = [part for part in document.parts if not isinstance(part, Text)]
    paths = {part.path: part.path if part.path in added else find(part.path) for part in named}
    missing = Counter(type(part) for part in named if paths[part.path] is None)
    # kind -> the names of media that the object lists beside its turns
    listed: dict[type, list[str]] = {}
    for _, kind, reference in media_of(given):
        if kind:
            listed.setdefault(MEDIA[kind], []).append(path_of(reference))
    parts, used = [], Counter()
    for part in document.parts:
        kind = type(part)
        if kind is not Text:
            path, there, names = paths[part.path], beside[kind], listed.get(kind, [])
            # the files' names before they were packed: as many as there are beside it
            if path is None and part.path in names and len(set(names)) == len(names) == len(there):
                # an index may name them in another order than that of the list
                path = there[names.index(part.path)]
            elif path is None and missing[kind] == len(there):
                path = there[used[kind]]
            elif path is None:
                raise DocumentError(f"the document names {part.path[:200]!r}, which is not there")
            part = dataclasses.replace(part, path=path)
        used[kind] += 1
        parts.append(part)
    split = document.split if split_in(fields) else UNASSIGNED
    return dataclasses.replace(document, parts=tuple(parts), split=split)


def _with_media(fields: dict, media: dict[str, type]) -> tuple[dict, set[str]]:
    key = next((key for key in CONVERSATIONS if isinstance(fields.get(key), list)), None)
    if not media or key is None or detect_record_format(fields) not in ("chat", "llava") or media_of(fields):
        return fields, set()
    fields = copy.deepcopy(fields)
    turns = [turn for turn in fields[key] if isinstance(turn, dict)]
    contents = [turn.get("content", turn.get("value")) for turn in turns]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    if any(part.get(name) is not None for part in parts for name in PARTS_WITH_PATH):
        return fields, set()
    kinds = [kind.__name__.lower() for kind in media.values()]
    for path, kind in zip(media, kinds, strict=True):
        fields.setdefault(f"{kind}s", []).append(path)
    words = " ".join(content for content in contents if isinstance(content, str))
    waits = any(f"<{kind}>" in words for kind in MEDIA) or any(part.get("type") in MEDIA for part in parts)
    # questions and answers in pairs get their media by their reader
    for turn in turns if not waits else ():
        speaker = turn.get("role", turn.get("from"))
        field = "content" if "content" in turn else "value"
        if not isinstance(speaker, str) or ROLES.get(speaker.strip().lower()) != "user":
            continue
        if isinstance(turn.get(field), str):
            turn[field] = "".join(f"<{kind}>" for kind in kinds) + "\n" + turn[field]
            break
        if isinstance(turn.get(field), list):
            turn[field] = [*({"type": kind} for kind in kinds), *turn[field]]
            break
    return fields, set(media)


def named_in(folder: str, has: Callable[[str], bool]) -> Find:
    """`find` for an object in `folder` ("" for the top): what is there by `has`, beside the object or from the top."""

    def find(path: str) -> str | None:
        names = (posixpath.normpath(posixpath.join(folder, path)), posixpath.normpath(path))
        return next((name for name in names if not name.startswith("../") and has(name)), None)

    return find
