"""JSON files in, documents out: each object is recognised by its fields.

    content                       content parts, the native form (`brine.data.document`)
    messages, conversations       chat; LLaVA when the turns have `from`  (`chat`)
    texts                         OBELICS, or chat when it holds turns  (`parts`, `chat`)
    kind, path; text, image, ...  a media record; captioned media or text alone  (`captioned`)

A file may mix them; `record_format` holds every object to one. Ids are required in content parts and media records. The
split is the object's, else that of its file's or folder's name, else that of its media's folders. Manifests whose names
hold something out are read first: a document of an undeclared one that names media of theirs is held out too.
"""

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from brine.data.document import MODALITIES, Document, DocumentError, Quarantined, Text, media_paths, parse_document
from brine.data.files.compressed import plain_stem, unverified_note
from brine.data.formats.folders.captioned import captioned_document, flat_record_document, reject_single_turn
from brine.data.formats.lines.chat import SYSTEM, chat_document, llava_document
from brine.data.formats.lines.fields import (
    CONVERSATIONS,
    FIELDS,
    WORDS,
    fields_in,
    folded,
    json_decoded_fields,
    path_of,
    prompt_pair_hint,
)
from brine.data.formats.lines.lines import is_array, is_spread, json_items
from brine.data.formats.lines.loss_masks import KNOWN_CHAT_KEYS, sample_loss_off_key, with_loss_masks
from brine.data.formats.lines.parts import obelics_document, unfilled_placeholder
from brine.data.formats.lines.time_spans import check_not_clipped
from brine.data.formats.notes.unread_fields import check_unread_fields, has_media
from brine.data.formats.source import NOTE_PREFIX, ReadLimits
from brine.data.formats.splits import rules
from brine.data.formats.splits.names import HELD_OUT
from brine.data.formats.splits.split_lists import SplitListFiles

RECORD_FORMATS = ("content-parts", "chat", "llava", "obelics", "captioned")
_TURNS = frozenset(CONVERSATIONS[2:])
_WORDS = frozenset(WORDS)
_PLAIN = frozenset((*WORDS, *FIELDS))
_NATIVE = frozenset(("id", "kind", "level", "split", "source", "content"))
_PAGE = frozenset(("texts", "images"))
_BESIDE = {key: KNOWN_CHAT_KEYS | {key, "tools", *SYSTEM} for key in CONVERSATIONS}


def manifest_documents(
    files: Iterable[Path],
    root: Path,
    record_format: str | None,
    limits: ReadLimits,
    splits: rules.PathSplits | None,
    include_decode: bool,
    notes: Counter,
) -> Iterator[Document | Quarantined]:
    """Documents of JSONL files and JSON arrays, `Quarantined` for objects that give none; `notes` counts remarks."""
    paths, seen = {file: file.relative_to(root).as_posix() for file in files}, set()
    splits = splits or rules.PathSplits(paths.values(), files=True)
    media_splits, lists = rules.MediaPathSplits(root), SplitListFiles(root, notes)
    held = _HeldMedia(splits, paths.values(), notes)
    for file in sorted(paths, key=lambda file: paths[file] not in held.first):
        path, named = paths[file], splits.split_of(paths[file])
        below = path[: path.rfind("/") + 1]
        word = "entry" if is_array(file) or is_spread(file) else "line"
        if late := unverified_note(file):
            notes[f"note: {late}"] += 1
        for number, fields in json_items(file, max_line_mib=limits.max_line_mib):
            name, media = f"{word} {number}", ""
            try:
                if isinstance(fields, DocumentError):
                    raise fields
                fields = json_decoded_fields(folded(fields))
                name, media = _describe(fields, name)
                # a media record of split "decode" is read as test
                declared = fields.get("split") == "decode" or rules.split_in(fields)
                document = object_document(
                    fields,
                    root=root / below,
                    name=f"{below}{plain_stem(file)}#{number}",
                    record_format=record_format,
                    max_file_mib=limits.max_file_mib,
                    include_decode=include_decode,
                    notes=notes,
                )
                # an id that comes twice is a mistake in these forms
                kind = record_format or detect_record_format(fields)
                has_id = kind == "content-parts" or (kind == "captioned" and _is_media_record(fields))
                if document is not None and has_id:
                    if (below, document.id) in seen:
                        raise DocumentError(f"id {document.id!r} was used by an earlier line")
                    seen.add((below, document.id))
            except DocumentError as error:
                media = media and below + media
                held.remember(path, [media] if media else [], named)
                where = f"{word} {number}{f' of {path}' if below else ''}"
                yield Quarantined(name, media, f"{where}: {error}", line=number)
                continue
            if document is not None:
                document = _below(document, below)
                if not declared:
                    document = held.held_out(path, _with_split(document, named, media_splits, lists))
                held.remember(path, media_paths(document), document.split)
                yield document


class _HeldMedia:
    """The media of manifests whose names hold them out, for manifests that say nothing; 100 bytes for each file."""

    def __init__(self, splits: rules.PathSplits, paths: Iterable[str], notes: Counter):
        self.declared, self.notes = {path: splits.declared(path) for path in paths}, notes
        held_out = {path for path, split in self.declared.items() if split in HELD_OUT}
        self.first = held_out if "" in self.declared.values() else set()
        """Manifests that are read before those that say nothing."""
        self.split_by_media: dict[int, str] = {}

    def remember(self, path: str, media: Iterable[str], split: str) -> None:
        for key in map(_media_key, media if path in self.first and split in HELD_OUT else ()):
            self.split_by_media[key] = rules.strictest_split(split, self.split_by_media.get(key, rules.UNASSIGNED))

    def held_out(self, path: str, document: Document) -> Document:
        """A document that names no split, held out where its manifest says nothing and another one's name does."""
        if not self.split_by_media or self.declared[path] or document.split in HELD_OUT:
            return document
        split = rules.strictest_split(*(self.split_by_media.get(_media_key(media)) for media in media_paths(document)))
        if not split:
            return document
        self.notes[
            f"{NOTE_PREFIX}{path} names no split, and media of what is held out in others: its documents of them are "
            f"{split} too"
        ] += 1
        return document.with_split(rules.SplitWithOrigin(split, rules.FROM_FILES))


def _media_key(path: str) -> int:
    return hash(posixpath.normpath(path))


def _below(document: Document, folder: str) -> Document:
    parts = (
        part if isinstance(part, Text) else dataclasses.replace(part, path=folder + part.path)
        for part in document.parts
    )
    return dataclasses.replace(document, parts=tuple(parts)) if folder else document


def _with_split(
    document: Document, named: rules.SplitWithOrigin, media_splits: rules.MediaPathSplits, lists: SplitListFiles
) -> Document:
    """A document that names no split, with that of its manifest's name, or of the folders or lists of its media."""
    by_media = lists.split_of_document(document, media_splits.split_of(document), is_declared=not named.is_undeclared)
    # what is in a folder that is held out is not trained on, whatever the manifest is called
    is_open = named.is_undeclared or (named == rules.UNASSIGNED and by_media == "train")
    split = by_media if named not in HELD_OUT and (by_media in HELD_OUT or is_open) else named
    if document.split != rules.UNASSIGNED and split not in HELD_OUT:
        split = rules.SplitWithOrigin(document.split, rules.FROM_RECORD_FORMAT)
    return document.with_split(split)


def detect_record_format(fields: dict) -> str | None:
    """Which of RECORD_FORMATS an object has; None when it has none of them."""
    if "content" in fields and not isinstance(fields["content"], str):
        return "content-parts"
    if "messages" in fields:
        return "chat"
    if "conversations" in fields:
        first = _first_of(fields["conversations"])
        # neither: a question and its answer in each
        is_chat = isinstance(first, dict) and first and ("role" in first or not {"from", "value"} & first.keys())
        return "chat" if is_chat else "llava"
    if not _TURNS.isdisjoint(fields) and any(isinstance(_first_of(fields.get(key)), dict) for key in _TURNS):
        return "chat"
    if "texts" in fields:
        return "obelics"
    return "captioned" if "kind" in fields or "path" in fields or not _PLAIN.isdisjoint(fields) else None


def _first_of(turns):
    return turns[0] if isinstance(turns, list) and turns else None


def needed(fields: dict) -> str:
    """What an object of no known record format lacks, as a sentence."""
    known = ", ".join(map(repr, ("content", "messages", "conversations", "texts", WORDS[0])))
    return f"none of the record formats that are read: a line needs {known}, or 'kind' and 'path'" + prompt_pair_hint(
        fields
    )


def object_document(
    fields: dict,
    *,
    root: Path,
    name: str,
    record_format: str | None = None,
    split: str = rules.UNASSIGNED,
    max_file_mib: float,
    include_decode: bool = False,
    notes: Counter,
) -> Document | None:
    """The document in one JSON object (name, split: its defaults), None if not for training. Raises DocumentError."""
    record_format = record_format or detect_record_format(fields)
    if record_format is None:
        raise DocumentError(needed(fields))
    if record_format == "content-parts":
        reject_single_turn(fields)
        document = parse_document(with_loss_masks(fields, notes) | {"split": rules.split_in(fields) or "train"})
        known = _NATIVE | check_not_clipped(fields, document.parts, notes)
        any_read = has_media(document)
        check_unread_fields(fields, known, notes, any_read=any_read, where="a part of 'content'", by_name=False)
        return _without_placeholders(document)
    if record_format not in ("chat", "llava") and (off := sample_loss_off_key(fields, notes)):
        raise DocumentError(f"field {off!r} masks the whole sample from the loss")
    if record_format == "captioned" and _is_media_record(fields):
        return captioned_document(
            fields, root=root, max_file_mib=max_file_mib, include_decode=include_decode, notes=notes
        )
    name = _own_name(fields) or name
    if record_format == "captioned":
        document = flat_record_document(fields, root=root, name=name, notes=notes)
        return checked(document, fields, split)
    is_page = record_format == "obelics"
    if is_page:
        document, known = obelics_document(fields, name=name), _PAGE
    else:
        read = chat_document if record_format == "chat" else llava_document
        document = read(fields, name=name, notes=notes)
        known = _BESIDE[next((key for key in CONVERSATIONS if key in fields), "messages")]
    known = known | check_not_clipped(fields, document.parts, notes)
    check_unread_fields(fields, known, notes, any_read=has_media(document), by_name=not is_page)
    return checked(_without_placeholders(document) if is_page else document, fields, split)


def _without_placeholders(document: Document) -> Document:
    """The document itself. DocumentError for text with a media placeholder, in a document without media."""
    for part in () if has_media(document) else document.parts:
        if isinstance(part, Text) and "<" in part.text and (found := unfilled_placeholder(part.text)):
            raise DocumentError(f"there are more {found} placeholders than media (0 listed)")
    return document


def checked(document: Document, fields: dict, split: str = rules.UNASSIGNED) -> Document:
    """The document with the split, kind and source that its object names, after the checks of the native form."""
    named = {key: fields[key] for key in ("kind", "source") if isinstance(fields.get(key), str)}
    split = rules.split_in(fields) or split
    # the native form has no word for a split that is still open
    return parse_document(document.to_json() | {"split": split or "train"} | named).with_split(split)


def _is_media_record(fields: dict) -> bool:
    """Whether a captioned object is a media record: `kind` and `path`; a `path` alone is that of media or a text."""
    if "path" in fields and ("kind" in fields or _WORDS.isdisjoint(fields)):
        return True
    return "kind" in fields and _PLAIN.isdisjoint(fields)


def _own_name(fields: dict) -> str:
    name = fields.get("id")
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if name is not None and not isinstance(name, str):
        raise DocumentError(f"field 'id' must be of type str, not {type(name).__name__}")
    return name or ""


def _describe(fields: dict, name: str) -> tuple[str, str]:
    if isinstance(fields.get("id"), str) and fields["id"]:
        name = fields["id"][:200]
    file = fields.get("path") or next((path for key in fields_in(fields) if (path := path_of(fields[key]))), None)
    if isinstance(content := fields.get("content"), list):
        media = (part for part in content if isinstance(part, dict) and part.get("type") in MODALITIES)
        file = next((part.get(part["type"]) for part in media), None)
    # a lone surrogate could not be written into a record
    return tuple(
        text.encode("utf-8", "backslashreplace").decode()
        for text in (name, file[:500] if isinstance(file, str) else "")
    )
