"""One medium and the words that belong to it, or words alone, as one JSON object.

    {"id", "kind", "path", "text", "split"}        the house form, below
    {"file_name": "x.png", "text": "a heron"}      Hugging Face's image and audio folders (metadata.jsonl)
    {"image" | "audio" | "video": path, "text"}    also image_path, wav ... (`data.formats.fields`), a table's columns
    {"text": "..."}                                words alone

The words are the first of `data.formats.fields.WORDS` that holds any (`text`, `caption`, ...; of a list its first
entry), or a `label` that is a word. Media come first and the words follow, as the target. A verdict beside them
(`"label": "False"`) is added, as in the house form.

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
    modality_of,
    parse_document,
    resolve_media,
)
from data.formats.fields import WORDS, asked_in_pairs, check_caption, media_of, note_nothing, path_of
from data.formats.marks import UNWANTED, is_unwanted
from data.formats.parts import MEDIA, MediaQueue, local_path, split_placeholders
from data.formats.placeholders import LISTED, waiting
from data.formats.provenance import DOCUMENT_WORDS, is_of_repository, is_text_row, is_web_page
from data.formats.roles import ROLES
from data.formats.source import note_text
from data.formats.splits import UNASSIGNED, split_in
from data.formats.stretches import check_whole
from data.formats.unread import check_unread
from data.markdown import markdown_parts
from data.text import decode_text

_WORDS = frozenset(WORDS)
_HOUSE = frozenset(("id", "kind", "path", "text", "split", "source"))
_VERDICTS = ("label", "gold_label", "verdict", "truth", "is_true", "is_correct", "correct", "entailment", "veracity")
"""Fields that may say whether the words are true of the medium."""
_TRUTHS = frozenset(("true", "false", "correct", "incorrect", "entailment", "contradiction", "refuted"))
# as a label these are those of moods and commands too
_TRUTHS_BY_NAME = _TRUTHS | {"neutral", "supported", "wrong", "right"}
_KINDS = {"image": Image, "speech": Audio, "sound": Audio, "audio": Audio, "video": Video}


def captioned_document(
    fields: dict, *, root: Path, max_file_mib: float, include_decode: bool = False, notes: Counter | None = None
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
    said, judged = with_verdict(text, fields)
    if kind == "doc":
        parts = markdown_parts(read_text(root, path, max_file_mib), path=path)
    elif kind == "text":
        parts = (Text(read_text(root, path, max_file_mib)),)
    elif kind in _KINDS:
        if not said and not is_decode:
            raise DocumentError("field 'text' is empty: a medium needs words to be learnt from")
        parts = (_KINDS[kind](path), Text(said)) if said else (_KINDS[kind](path),)
    else:
        raise DocumentError(f"field 'kind' is {kind[:40]!r}, none of doc, text, {', '.join(_KINDS)}")
    if notes is not None:
        # its files are cut, and a start tells where from
        check_unread(fields, _HOUSE | {judged}, notes, any_read=True, words=("text", text), by_name=False)
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


def plain_document(fields: dict, *, root: Path, name: str, notes: Counter, beside: dict | None = None) -> Document:
    """A document from media and words named by their fields; `name` is its id. Raises DocumentError.

    beside: further fields, which are not read.
    """
    key, words = words_in(fields)
    check_turn(fields)
    parts: list[Part] = []
    every = fields | beside if beside else fields
    for field, kind, reference in media_of(fields, root):
        if "://" in path_of(reference)[:12] and is_web_page(every, field, key, words):
            continue
        path = local_path(reference, where=f"field {field!r}")
        if not kind:
            raise DocumentError(f"file {path[:200]!r} has an ending of no picture, sound or film")
        parts.append(MEDIA[kind](path))
    if key in ("", "label") and (pairs := asked_in_pairs(every)):
        raise DocumentError(f"no words to learn from: none of the fields {', '.join(WORDS)} holds any{pairs}")
    told = check_whole(every, parts, notes)
    text = check_words(every, key, words, notes, any_read=bool(parts), told=told)
    if not words:
        raise DocumentError(f"no words to learn from: none of the fields {', '.join(WORDS)} holds any")
    if not parts and (empty := note_nothing(fields, notes)) and key not in DOCUMENT_WORDS:
        raise DocumentError(
            f"field {empty!r} holds no medium, and a {key} is no text of its own: give the path of its file, or call "
            "words that stand alone 'text'"
        )
    if not parts:
        return Document(id=name, parts=(Text(text),), kind="text", split=UNASSIGNED)
    placed = interleaved(parts, text)
    return Document(id=name, parts=placed, kind=_kind_of(placed), split=UNASSIGNED)


def check_words(
    fields: dict, key: str, words: str, notes: Counter, *, any_read: bool, told: set[str] = frozenset()
) -> str:
    """The words of `key` as they are learned, after a look at all other fields but those in `told`.

    Raises DocumentError.
    A verdict beside a caption is added to it, and words that wait for a medium without one are set aside.
    """
    _note_other_words(fields, key, words, notes)
    text, judged = with_verdict(words, fields) if any_read and key != "label" else (words, "")
    read = _WORDS if key in _WORDS and not judged else _WORDS | {key, judged}
    if not read >= fields.keys():
        check_unread(fields, read | told, notes, any_read=any_read, words=(key, words))
        if not any_read:
            check_caption(fields, key, words)
    if not any_read and "<" in words and (found := waiting(words)):
        is_program = key == "code" or is_of_repository(fields)
        # a placeholder at the very start or alone on its line makes no long text a page
        begins = words.lstrip().startswith(found)
        if not is_program and not is_text_row(fields, "", key, "" if begins else words):
            raise DocumentError(f"there are more {found} placeholders than media (0 listed)")
    return text


def with_verdict(text: str, fields: dict) -> tuple[str, str]:
    """(the words with what a field says of their truth behind them, that field); ("...", "") where none does."""
    for key in _VERDICTS:
        if key in fields:
            value = fields[key]
            if isinstance(value, bool):
                value = "true" if value else "false"
            truths = _TRUTHS if key == "label" else _TRUTHS_BY_NAME
            if isinstance(value, str) and value.strip().casefold() in truths:
                return f"{text} {value.strip().casefold()}", key
    for key in UNWANTED[1:]:
        if is_unwanted(fields.get(key)):
            raise DocumentError(f"field {key!r} says that the words are bad ones: there is nothing to learn from")
    return text, ""


def interleaved(parts: list[Part], words: str) -> tuple[Part, ...]:
    """Media and the words behind them, or each medium at its placeholder where there is one for each."""
    found = LISTED.findall(words) if parts and "<" in words else []
    kinds = [modality_of(part) for part in parts]
    queue = MediaQueue({kind: [part.path for part in parts if modality_of(part) == kind] for kind in MEDIA})
    queue.match([words])
    if not found or sorted(queue.stands_for.get(kind, kind) for kind in found) != sorted(kinds):
        return (*parts, Text(words))
    return tuple(split_placeholders(words, queue, role=None, learn=True))


def _kind_of(parts: tuple[Part, ...]) -> str:
    kinds = {modality_of(part) for part in parts} - {"text"}
    return "text" if not kinds else kinds.pop() if len(kinds) == 1 else "mixed"


def words_of(fields: dict) -> str:
    """The caption, transcript or text among the fields; empty when there is none. DocumentError for a wrong type."""
    return words_in(fields)[1]


def words_in(fields: dict) -> tuple[str, str]:
    """(field, words) of the caption, transcript or text among the fields. DocumentError for a wrong type."""
    for key in WORDS:
        value = fields.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if value is None or value == []:
            continue
        if not isinstance(value, str):
            raise DocumentError(f"field {key!r} must be of type str, not {type(value).__name__}")
        if value.strip():
            return key, value
    label = fields.get("label")
    return ("label", label) if isinstance(label, str) else ("", "")


def _note_other_words(fields: dict, read: str, words: str, notes: Counter) -> None:
    if isinstance(fields.get(read), list) and len(fields[read]) > 1:
        notes[f"note: of several entries of field {read!r} the first was read"] += 1
    others = _WORDS & fields.keys()
    if len(others) < 2:
        return
    others = others - {read}
    for key in WORDS:
        value = fields.get(key) if key in others else None
        value = value[0] if isinstance(value, list) and value else value
        if value not in (None, "", [], words) and not (isinstance(value, str) and not value.strip()):
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
