"""One medium and the words that belong to it, or words alone, as one JSON object.

    {"id", "kind", "path", "text", "split"}        the house form, below
    {"file_name": "x.png", "text": "a heron"}      Hugging Face's image and audio folders (metadata.jsonl)
    {"image" | "audio" | "video": path, "text"}    also image_path, wav ... (`data.formats.fields`), a table's columns
    {"text": "..."}                                words alone

The words are the first of `data.formats.fields.WORDS` that holds any (`text`, `caption`, ...; of a list its first
entry), or a `label` that is a word. Media come first and the words follow, as the target.

In the house form `kind` is image, speech, sound, audio, video, doc or text. A captioned document's own kind is taken
from its folder (`speech/fsdd/x.flac` is "fsdd"), so that sources are reported apart; where the top folder is not
named after the line's own kind, that kind is added (`docs/book/media/x.jpg` of kind "image" is "book-image"). `doc`
lines are Markdown pages whose picture links become parts, `text` lines are the file itself. A label "true" or "false"
is added to the caption: without it a picture with a false statement beside it would teach the falsehood. A line of
split `decode` (a file for decoder tests) is passed over, or read as `test` and without words on request.
"""

import os
from collections import Counter
from pathlib import Path

from data.document import (
    Audio,
    Document,
    DocumentError,
    Image,
    Part,
    Text,
    Video,
    check_relative,
    parse_document,
    resolve_media,
)
from data.formats.fields import SURE, WORDS, asked_in_pairs, check_caption, check_stretch, check_unread, media_of
from data.formats.parts import MEDIA, local_path
from data.formats.roles import ROLES
from data.formats.source import note_text
from data.formats.splits import UNASSIGNED, split_in
from data.markdown import markdown_parts
from data.text import decode_text

_KINDS = {"image": Image, "speech": Audio, "sound": Audio, "audio": Audio, "video": Video}


def captioned_document(
    fields: dict, *, root: Path, max_file_mib: float, include_decode: bool = False
) -> Document | None:
    """A document from a line of the house form, or None when the line is not meant for training.

    Raises DocumentError naming what is wrong.
    """
    for name in ("id", "kind", "path"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            wrong = "is missing or empty" if fields.get(name) in (None, "") else "must be of type str"
            raise DocumentError(f"field {name!r} {wrong} (a line needs 'content', or 'kind' and 'path')")
    kind, path = fields["kind"], check_relative(fields["path"])
    is_decode = fields.get("split") == "decode"
    if is_decode and not include_decode:
        return None
    split = "test" if is_decode else split_in(fields) or "train"
    text = fields.get("text", "")
    if not isinstance(text, str):
        raise DocumentError(f"field 'text' must be of type str, not {type(text).__name__}")
    if fields.get("label") in ("true", "false"):
        text = f"{text} {fields['label']}"
    if kind == "doc":
        parts = markdown_parts(read_text(root, path, max_file_mib), path=path)
    elif kind == "text":
        parts = (Text(read_text(root, path, max_file_mib)),)
    elif kind in _KINDS:
        if not text and not is_decode:
            raise DocumentError("field 'text' is empty: a medium needs words to be learnt from")
        parts = (_KINDS[kind](path), Text(text)) if text else (_KINDS[kind](path),)
    else:
        raise DocumentError(f"field 'kind' is {kind[:40]!r}, none of doc, text, {', '.join(_KINDS)}")
    document = Document(
        id=fields["id"],
        parts=parts,
        kind=_folder_kind(path, kind),
        split=split,
        source=str(fields.get("source", "")).split("@")[0][:200],
    )
    # through the native form once, so that both forms pass the same checks
    return parse_document(document.to_json())


def check_turn(fields: dict) -> None:
    """DocumentError for one turn of a conversation, which is no document of its own."""
    role = fields.get("role")
    if isinstance(role, str) and role.strip().lower() in ROLES:
        raise DocumentError(
            f"field 'role' says that this is one turn of a conversation ({role[:40]!r}): write its turns as 'messages'"
        )


def plain_document(fields: dict, *, root: Path, name: str, notes: Counter) -> Document:
    """A document from media and words named by their fields; `name` is its id. Raises DocumentError."""
    key, words = words_in(fields, notes)
    check_turn(fields)
    parts: list[Part] = []
    for field, kind, reference in media_of(fields, root):
        path = local_path(reference, where=f"field {field!r}")
        if not kind:
            raise DocumentError(f"file {path[:200]!r} has an ending of no picture, sound or film")
        parts.append(MEDIA[kind](path))
    check_unread(fields, set(), notes, any_read=bool(parts), words=(key, words))
    check_stretch(fields, parts, notes)
    if not parts:
        check_caption(fields, key, words)
    if not words:
        pairs = asked_in_pairs(fields)
        raise DocumentError(f"no words to learn from: none of the fields {', '.join(WORDS)} holds any{pairs}")
    if not parts and (empty := next((key for key in fields if key in SURE and fields[key] in (None, "", [])), "")):
        notes[f"note: field {empty!r} holds no medium: the words were read alone"] += 1
    kinds = {type(part).__name__.lower() for part in parts}
    kind = "text" if not kinds else kinds.pop() if len(kinds) == 1 else "mixed"
    return Document(id=name, parts=(*parts, Text(words)), kind=kind, split=UNASSIGNED)


def words_of(fields: dict, notes: Counter | None = None) -> str:
    """The caption, transcript or text among the fields; empty when there is none. DocumentError for a wrong type."""
    return words_in(fields, notes)[1]


def words_in(fields: dict, notes: Counter | None = None) -> tuple[str, str]:
    """(field, words) of the caption, transcript or text among the fields. DocumentError for a wrong type."""
    for key in WORDS:
        value = fields.get(key)
        if isinstance(value, list) and value:
            if len(value) > 1 and notes is not None:
                notes[f"note: of several entries of field {key!r} the first was read"] += 1
            value = value[0]
        if value is None or value == []:
            continue
        if not isinstance(value, str):
            raise DocumentError(f"field {key!r} must be of type str, not {type(value).__name__}")
        if value.strip():
            if notes is not None:
                _note_other_words(fields, key, value, notes)
            return key, value
    label = fields.get("label")
    return ("label", label) if isinstance(label, str) else ("", "")


def _note_other_words(fields: dict, read: str, words: str, notes: Counter) -> None:
    for key in WORDS:
        value = fields.get(key)
        if key != read and isinstance(value, str) and value.strip() and value != words:
            notes[f"note: fields {read!r} and {key!r} both hold words, of which the first was read"] += 1


def read_text(root: Path, path: str, max_file_mib: float) -> str:
    """A text file below `root` (resolved), its line ends made "\\n". Raises DocumentError, as for other encodings."""
    note_text(path)
    content = resolve_media(root, path, max_file_mib=max_file_mib).read_bytes()
    return decode_text(content, f"file {path!r}")


def _folder_kind(path: str, kind: str) -> str:
    folders = os.path.normpath(path).split(os.sep)[:-1]
    if not folders:
        return kind
    name = folders[1] if len(folders) > 1 else folders[0]
    return name if folders[0] == kind else f"{name}-{kind}"
