"""One document of the files that share a name: media, words, and a JSON object that may say all that a line may.

    a.jpg  a.txt                                     a medium and its words
    a.jpg  a.json  {"caption": "a heron"}            the same; also "split", marks, "kind", "source"
    a.jpg  a.json  {"conversations": [...]}          a whole document, whose `<image>` is the medium beside it
    a.json  {"image": "images/a.jpg", "text": ...}   the medium is another file that the object names

Members of tars (`webdataset`) and files of folders (`media_folder`) are read so alike, by their addresses. Names in the
object are looked for beside it and then from the top. One that is nowhere is what the file was called elsewhere, where
a medium of its kind lies beside the object, and otherwise sets the document aside. In a whole document whose turns
have no placeholder, the media beside it stand before what the user says first, as captions follow their media.
"""

import copy
import dataclasses
import posixpath
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from data.document import Audio, Document, DocumentError, Image, Text, Video, parse_document
from data.formats.captioned import check_words, words_in
from data.formats.chat import PARTS_WITH_PATH
from data.formats.fields import CONVERSATIONS, folded, media_of, path_of, unpacked
from data.formats.lines import parse_object
from data.formats.manifest import checked, form_of, object_document
from data.formats.marks import object_switch
from data.formats.parts import MEDIA, local_path
from data.formats.roles import ROLES
from data.formats.splits import UNASSIGNED, split_in
from data.formats.stretches import check_whole

WHOLE = ("content-parts", "chat", "llava", "obelics")
"""Forms of an object that is a whole document."""
_ORDER = (Image, Audio, Video)
Find = Callable[[str], str | None]


def is_whole(fields: dict) -> bool:
    """Whether an object is a whole document, and no words for the media beside it."""
    return form_of(fields) in WHOLE


def note_text_beside(text: str, notes: Counter) -> None:
    """Count a text in a file of its own beside a whole document, which has words enough."""
    if text.strip():
        notes["note: a text beside a .json that is a whole document was not read"] += 1


def object_beside(content: str, text: str, notes: Counter) -> dict:
    """The object in a file beside media; none, with a note, where it is no object and `text` has the words.

    Raises DocumentError.
    """
    try:
        return unpacked(folded(parse_object(content.encode("utf-8", "surrogatepass"))))
    except DocumentError:
        if not text.strip():
            raise
        notes["note: a .json beside a text is no object and was not read"] += 1
        return {}


def paired(name: str, media: dict[str, type], text: str, *, source: str) -> Document:
    """A document of media (address -> Image, Audio or Video) and the words for them. Raises DocumentError."""
    kinds = set(media.values())
    kind = kinds.pop().__name__.lower() if len(kinds) == 1 else "mixed" if kinds else "text"
    parts = sorted((kind(path) for path, kind in media.items()), key=lambda part: _ORDER.index(type(part)))
    whole = Document(id=name, parts=(*parts, Text(text)), kind=kind, source=source[:200])
    parse_document(whole.to_json())
    return Document(whole.id, whole.parts, kind=kind, split=UNASSIGNED, source=whole.source)


def captioned_sample(
    name: str, media: dict[str, type], text: str, fields: dict, *, find: Find, source: str, notes: Counter
) -> Document:
    """A document of media and words, and of what the object beside them says. Raises DocumentError.

    text: words in a file of their own, which go before those of the object. find: a name in the object -> its address,
    None where it is nowhere.
    """
    if off := object_switch(fields, notes):
        raise DocumentError(f"field {off!r} says that nothing here is to be learned")
    key, words = ("text", text) if text.strip() else words_in(fields)
    if not words.strip():
        return paired(name, media, "", source=source)
    found = dict(media)
    for field, kind, reference in media_of(fields):
        path = local_path(reference, where=f"field {field!r}")
        address = find(path)
        kind = MEDIA[kind] if kind else None
        if address is None and kind not in media.values():
            raise DocumentError(f"field {field!r} names {path[:200]!r}, which is not there")
        if address is not None and address not in found:
            if kind is None:
                raise DocumentError(f"file {path[:200]!r} has an ending of no picture, sound or film")
            found[address] = kind
    # without a medium of its own a caption is none
    told = check_whole(fields, [kind(path) for path, kind in found.items()], notes)
    every = {"text": text} | fields if text.strip() else fields
    words = check_words(every, key, words, notes, any_read=bool(found), told=told)
    return checked(paired(name, found, words, source=source), fields, split_in(fields))


def whole_sample(
    name: str, media: dict[str, type], fields: dict, *, find: Find, max_file_mib: float, notes: Counter
) -> Document:
    """A document that the object writes out, with the media beside it for the placeholders that name none."""
    given, beside = _with_media({"id": name} | fields, media)
    document = object_document(given, root=Path(), name=name, max_file_mib=max_file_mib, notes=notes)
    left = {kind: [path for path, each in media.items() if each is kind] for kind in _ORDER}
    named = [part for part in document.parts if not isinstance(part, Text)]
    lost = Counter(type(part) for part in named if part.path not in beside and find(part.path) is None)
    listed = _names_listed(given, named)
    parts = []
    for part in document.parts:
        if not isinstance(part, Text):
            path = part.path if part.path in beside else find(part.path)
            # what the files were called before they were packed: as many as there are beside it
            names, there = listed.get(type(part), []), left[type(part)]
            if path is None and part.path in names and len(names) == len(there):
                # an index may mean them in another order than that of the list
                path = there[names.index(part.path)]
            elif path is None and lost[type(part)] == len(left[type(part)]):
                path = left[type(part)][sum(type(part) is type(other) for other in parts)]
            elif path is None:
                raise DocumentError(f"the document names {part.path[:200]!r}, which is not there")
            part = dataclasses.replace(part, path=path)
        parts.append(part)
    split = document.split if split_in(fields) else UNASSIGNED
    return dataclasses.replace(document, parts=tuple(parts), split=split)


def _names_listed(fields: dict, named: list) -> dict[type, list[str]]:
    """Kind -> the names of media that an object lists beside its turns, where parts of it take theirs from there."""
    found: dict[type, list[str]] = {}
    taken = {(type(part), part.path) for part in named}
    for _, kind, reference in media_of(fields):
        if kind:
            found.setdefault(MEDIA[kind], []).append(path_of(reference))
    return {
        kind: names
        for kind, names in found.items()
        if len(set(names)) == len(names) and any((kind, name) in taken for name in names)
    }


def _with_media(fields: dict, media: dict[str, type]) -> tuple[dict, set[str]]:
    """(the object with the media beside it listed where it names none, those addresses)."""
    key = next((key for key in CONVERSATIONS if isinstance(fields.get(key), list)), None)
    if not media or key is None or form_of(fields) not in ("chat", "llava") or media_of(fields):
        return fields, set()
    turns = [turn for turn in fields[key] if isinstance(turn, dict)]
    contents = [turn.get("content", turn.get("value")) for turn in turns]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    if any(PARTS_WITH_PATH & {key for key, value in part.items() if value is not None} for part in parts):
        return fields, set()
    fields = copy.deepcopy(fields)
    for path, kind in media.items():
        fields.setdefault(f"{kind.__name__.lower()}s", []).append(path)
    said = " ".join(content for content in contents if isinstance(content, str))
    waits = any(f"<{kind}>" in said for kind in MEDIA) or any(part.get("type") in MEDIA for part in parts)
    # questions and answers in pairs get their media by their own reader
    if not waits and any("role" in turn or "from" in turn for turn in turns):
        _before_first_question(fields[key], media)
    return fields, set(media)


def _before_first_question(turns: list, media: dict[str, type]) -> None:
    kinds = [kind.__name__.lower() for kind in media.values()]
    for turn in turns:
        speaker = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or ROLES.get(speaker.strip().lower()) != "user":
            continue
        field = "content" if "content" in turn else "value"
        if isinstance(turn.get(field), str):
            turn[field] = "".join(f"<{kind}>" for kind in kinds) + "\n" + turn[field]
            return
        if isinstance(turn.get(field), list):
            turn[field] = [*({"type": kind} for kind in kinds), *turn[field]]
            return


def named_in(folder: str, has: Callable[[str], bool]) -> Find:
    """`find` for an object in `folder` ("" for the top): what is there by `has`, beside the object or from the top."""

    def find(path: str) -> str | None:
        beside = posixpath.normpath(posixpath.join(folder, path))
        top = posixpath.normpath(path)
        return next((name for name in (beside, top) if not name.startswith("../") and has(name)), None)

    return find
