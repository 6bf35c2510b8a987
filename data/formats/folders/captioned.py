"""One media file and the text that belongs to it, or text alone, as one JSON object.

    {"id", "kind", "path", "text", "split"}        a media record
    {"file_name": "x.png", "text": "a heron"}      Hugging Face's image and audio folders (metadata.jsonl)
    {"image" | "audio" | "video": path, "text"}    also image_path, wav ... (`lines.fields`), and columns of a table

The text is the first of `lines.fields.WORDS` that holds any, or a `label` that is a word. Media come first, unless the
text has a placeholder for each. A truth label ("True", "refuted") is added to the text, which may be false.
In a media record `kind` is image, speech, sound, audio, video, doc (a Markdown page) or text (the file itself); the
document's kind comes from its folder. Records of split `decode` (files for decoder tests) are skipped by default.
"""

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from brine.data.document import Document, DocumentError, Part, Text, check_relative, modality_of, parse_document
from brine.data.formats.folders.markdown import markdown_parts
from brine.data.formats.lines.fields import WORDS, check_caption, media_of, note_nothing, path_of, prompt_pair_hint
from brine.data.formats.lines.loss_masks import NEGATIVE_LABEL_KEYS, ROLES, is_negative_label
from brine.data.formats.lines.parts import (
    LISTED,
    MEDIA,
    MediaQueue,
    local_path,
    split_placeholders,
    unfilled_placeholder,
)
from brine.data.formats.lines.provenance import DOCUMENT_WORDS, is_of_repository, is_text_row, is_web_page
from brine.data.formats.lines.time_spans import check_not_clipped
from brine.data.formats.notes.unread_fields import check_unread_fields
from brine.data.formats.source import read_text
from brine.data.formats.splits.names import word_set
from brine.data.formats.splits.rules import UNASSIGNED, split_in

_WORDS = frozenset(WORDS)
_MEDIA_RECORD_KEYS = frozenset(("id", "kind", "path", "text", "split", "source"))
# fields that may say whether the words are true of the media
_TRUTH_LABEL_KEYS = (
    *("label", "gold_label", "verdict", "truth", "is_true", "is_correct", "correct"),
    *("entailment", "veracity"),
)
_TRUTHS = word_set("true false correct incorrect entailment contradiction refuted")
# as a label these are those of moods and commands too
_TRUTHS_BY_NAME = _TRUTHS | {"neutral", "supported", "wrong", "right"}
_KINDS = MEDIA | {"speech": MEDIA["audio"], "sound": MEDIA["audio"]}


def captioned_document(
    fields: dict, *, root: Path, max_file_mib: float, include_decode: bool = False, notes: Counter
) -> Document | None:
    """A document from a media record, or None for one that is not for training. Raises DocumentError."""
    for name in ("id", "kind", "path"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            wrong = "is missing or empty" if fields.get(name) in (None, "") else "must be of type str"
            raise DocumentError(f"field {name!r} {wrong} (a line needs 'content', or 'kind' and 'path')")
    kind, path, text = fields["kind"], check_relative(fields["path"]), fields.get("text", "")
    is_decode = fields.get("split") == "decode"
    if is_decode and not include_decode:
        return None
    split = "test" if is_decode else split_in(fields) or "train"
    if not isinstance(text, str):
        raise DocumentError(f"field 'text' must be of type str, not {type(text).__name__}")
    caption, truth_key = with_truth_label(text, fields)
    if kind in ("doc", "text"):
        content = read_text(root, path, max_file_mib)
        parts = markdown_parts(content, path=path) if kind == "doc" else (Text(content),)
    elif kind not in _KINDS:
        raise DocumentError(f"field 'kind' is {kind[:40]!r}, none of doc, text, {', '.join(_KINDS)}")
    elif not caption and not is_decode:
        raise DocumentError("field 'text' is empty: media need text to train on")
    else:
        parts = (_KINDS[kind](path), *([Text(caption)] if caption else []))
    # its files are cut, and a start tells where from
    known = _MEDIA_RECORD_KEYS | {truth_key}
    check_unread_fields(fields, known, notes, any_read=True, words=("text", text), by_name=False)
    # the document's kind comes from its folder
    folders = os.path.normpath(path).split(os.sep)[:-1]
    name = (folders or [kind])[:2][-1]
    kind = name if not folders or folders[0] == kind else f"{name}-{kind}"
    source = str(fields.get("source", "")).split("@")[0][:200]
    return parse_document(Document(fields["id"], tuple(parts), kind, split=split, source=source).to_json())


def reject_single_turn(fields: dict) -> None:
    """DocumentError for a single turn of a conversation, which is not a document."""
    role = fields.get("role")
    if isinstance(role, str) and role.strip().lower() in ROLES:
        raise DocumentError(
            f"field 'role' says that this is one turn of a conversation ({role[:40]!r}): write its turns as 'messages'"
        )


def flat_record_document(fields: dict, *, root: Path, name: str, notes: Counter) -> Document:
    """A document from media and text named by their fields; `name` is its id."""
    key, words = caption_in(fields)
    reject_single_turn(fields)
    parts: list[Part] = []
    for field, kind, reference in media_of(fields, root):
        if "://" in path_of(reference)[:12] and is_web_page(fields, field, key, words):
            continue
        path = local_path(reference, where=f"field {field!r}")
        if not kind:
            raise DocumentError(f"file {path[:200]!r} has no extension of an image, audio or video file")
        parts.append(MEDIA[kind](path))
    pairs = prompt_pair_hint(fields) if key in ("", "label") else ""
    no_text = f"no text to train on: none of the fields {', '.join(WORDS)} holds any{pairs}"
    if pairs:
        raise DocumentError(no_text)
    told = check_not_clipped(fields, parts, notes)
    text = check_prompt_text(fields, key, words, notes, any_read=bool(parts), told=told)
    if not words:
        raise DocumentError(no_text)
    if not parts and (empty := note_nothing(fields, notes)) and key not in DOCUMENT_WORDS:
        raise DocumentError(
            f"field {empty!r} holds no media, and a {key} alone is not a text to train on: give the path of its file, "
            "or rename the field to 'text'"
        )
    if not parts:
        return Document(id=name, parts=(Text(text),), kind="text", split=UNASSIGNED)
    kinds = set(map(modality_of, parts))
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    return Document(id=name, parts=_interleaved(parts, text), kind=kind, split=UNASSIGNED)


def check_prompt_text(
    fields: dict, key: str, words: str, notes: Counter, *, any_read: bool, told: Collection[str] = ()
) -> str:
    """The target text of field `key`, with a truth label. DocumentError for text that needs unread media."""
    _note_other_words(fields, key, words, notes)
    text, truth_key = with_truth_label(words, fields) if any_read and key != "label" else (words, "")
    read = _WORDS | {key, truth_key}
    if not read >= fields.keys():
        check_unread_fields(fields, read.union(told), notes, any_read=any_read, words=(key, words))
        if not any_read:
            check_caption(fields, key, words)
    if not any_read and "<" in words and (found := unfilled_placeholder(words)):
        is_program = key == "code" or is_of_repository(fields)
        # a placeholder at the very start or alone on its line makes no long text a page
        begins = words.lstrip().startswith(found)
        if not is_program and not is_text_row(fields, "", key, "" if begins else words):
            raise DocumentError(f"there are more {found} placeholders than media (0 listed)")
    return text


def with_truth_label(text: str, fields: dict) -> tuple[str, str]:
    """(text with its truth label appended, the label's field); (text, "") where there is none."""
    for key in (key for key in _TRUTH_LABEL_KEYS if key in fields):
        label = fields[key]
        label = str(label).casefold().strip() if isinstance(label, str | bool) else ""
        if label in (_TRUTHS if key == "label" else _TRUTHS_BY_NAME):
            return f"{text} {label}", key
    for key in NEGATIVE_LABEL_KEYS[1:]:
        if is_negative_label(fields.get(key)):
            raise DocumentError(
                f"field {key!r} says that the text is a negative example: there is no target to train on"
            )
    return text, ""


def _interleaved(parts: list[Part], words: str) -> tuple[Part, ...]:
    found = LISTED.findall(words) if parts and "<" in words else []
    kinds = [modality_of(part) for part in parts]
    queue = MediaQueue({kind: [part.path for part in parts if modality_of(part) == kind] for kind in MEDIA})
    queue.match([words])
    if not found or sorted(queue.placeholder_alias.get(kind, kind) for kind in found) != sorted(kinds):
        return (*parts, Text(words))
    return tuple(split_placeholders(words, queue, role=None, loss_mask=True))


def caption_in(fields: dict) -> tuple[str, str]:
    """(field, words) of the caption, transcript or text among the fields. DocumentError for a wrong type."""
    for key in WORDS:
        value = _first(fields.get(key))
        if value is None or value == []:
            continue
        if not isinstance(value, str):
            raise DocumentError(f"field {key!r} must be of type str, not {type(value).__name__}")
        if value.strip():
            return key, value
    label = fields.get("label")
    return ("label", label) if isinstance(label, str) else ("", "")


def _first(value):
    return value[0] if isinstance(value, list) and value else value


def _note_other_words(fields: dict, read: str, words: str, notes: Counter) -> None:
    if isinstance(fields.get(read), list) and len(fields[read]) > 1:
        notes[f"note: of several entries of field {read!r} the first was read"] += 1
    for key in WORDS if len(_WORDS & fields.keys()) > 1 else ():
        value = _first(fields.get(key)) if key != read else None
        if value not in (None, "", [], words) and not (isinstance(value, str) and not value.strip()):
            notes[f"note: fields {read!r} and {key!r} both hold text, of which the first was read"] += 1
