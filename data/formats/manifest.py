"""JSON files in, documents out: each object is recognised by its fields.

    content                       content parts, the native form (`brine.data.document`)
    messages, conversations       chat; LLaVA when the turns have `from`  (`chat`, `llava`)
    texts                         OBELICS, or chat when it holds turns  (`parts`, `chat`)
    kind, path; text, image, ...  a media record; captioned media or text alone  (`captioned`)

A file may mix them; `record_format` holds every object to one. Ids are required in content parts and media records;
others get `<file>#<number>`. The split is the object's, else that of its file's or folder's name, else that of its
media's folders; else content parts and media records are `train`, and the hash decides for others. Manifests whose
names hold something out are read first: a document of an undeclared manifest that names media of theirs is held out
too. Media paths are relative to the manifest's folder. No media file is opened; each bad line gives one `Quarantined`.
"""

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from brine.data.document import Document, DocumentError, Quarantined, Text, parse_document
from brine.data.files.compressed import plain_stem
from brine.data.files.damaged import unverified_note
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
from brine.data.formats.source import NOTE_PREFIX
from brine.data.formats.splits.names import HELD_OUT
from brine.data.formats.splits.rules import (
    FROM_FILES,
    FROM_RECORD_FORMAT,
    UNASSIGNED,
    MediaPathSplits,
    PathSplits,
    SplitWithOrigin,
    split_in,
    strictest_split,
)
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
    *,
    root: Path,
    record_format: str | None = None,
    max_line_mib: float,
    max_file_mib: float,
    include_decode: bool = False,
    notes: Counter | None = None,
    splits: PathSplits | None = None,
) -> Iterator[Document | Quarantined]:
    """Documents of JSONL files and JSON arrays, and a `Quarantined` for each entry that gives none.

    notes: counts remarks on documents that were read, each behind "note: ". splits: what the names of the whole source
    declare, of which the files are a part.
    """
    files, seen, notes = list(files), set(), Counter() if notes is None else notes
    paths = {file: file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name for file in files}
    splits = splits or PathSplits(paths.values(), files=True)
    media_splits, lists = MediaPathSplits(root), SplitListFiles(root, notes)
    held = _HeldMedia(splits, paths.values(), notes)
    for file in sorted(files, key=lambda file: not held.is_first(paths[file])):
        path, named = paths[file], splits.split_of(paths[file])
        folder = path.rpartition("/")[0]
        below = f"{folder}/" if folder else ""
        word = "entry" if is_array(file) or is_spread(file) else "line"
        if late := unverified_note(file):
            notes[f"note: {late}"] += 1
        for number, fields in json_items(file, max_line_mib=max_line_mib):
            name, medium = f"{word} {number}", ""
            try:
                if isinstance(fields, DocumentError):
                    raise fields
                fields = json_decoded_fields(folded(fields))
                name, medium = _describe(fields, name)
                # a media record of split "decode" is read as test
                declared = fields.get("split") == "decode" or split_in(fields)
                document = object_document(
                    fields,
                    root=root / folder,
                    name=f"{below}{plain_stem(file)}#{number}",
                    record_format=record_format,
                    max_file_mib=max_file_mib,
                    include_decode=include_decode,
                    notes=notes,
                )
                if document is not None and _promises_ids(fields, record_format):
                    if (folder, document.id) in seen:
                        raise DocumentError(f"id {document.id!r} was used by an earlier line")
                    seen.add((folder, document.id))
            except DocumentError as error:
                medium = below + medium if medium else ""
                held.remember(path, [medium] if medium else [], named)
                where = f"{word} {number} of {path}" if folder else f"{word} {number}"
                yield Quarantined(name, medium, f"{where}: {error}", line=number)
                continue
            if document is not None:
                document = _below(document, below)
                if not declared:
                    document = held.held_out(path, _with_split(document, named, media_splits, lists))
                held.remember(path, _media_in(document), document.split)
                yield document


class _HeldMedia:
    """The media of manifests whose names hold them out, for those of other manifests that say nothing.

    paths: of the manifests that are read together. Costs some 100 bytes for each such medium.
    """

    def __init__(self, splits: PathSplits, paths: Iterable[str], notes: Counter):
        self.declared, self.notes = {path: splits.declared(path) for path in paths}, notes
        found = set(self.declared.values())
        self.is_needed = "" in found and not found.isdisjoint(HELD_OUT)
        self.split_by_media: dict[int, str] = {}

    def is_first(self, path: str) -> bool:
        """Whether a manifest is to be read before those that say nothing."""
        return self.is_needed and self.declared[path] in HELD_OUT

    def remember(self, path: str, media: Iterable[str], split: str) -> None:
        """Takes what a document of a manifest names, and its split."""
        if self.is_first(path) and split in HELD_OUT:
            for key in map(_media_key, media):
                self.split_by_media[key] = strictest_split(split, self.split_by_media.get(key, UNASSIGNED))

    def held_out(self, path: str, document: Document) -> Document:
        """A document that names no split, held out where its manifest says nothing and another one's name does."""
        if not self.split_by_media or self.declared[path] or document.split in HELD_OUT:
            return document
        split = strictest_split(*(self.split_by_media.get(_media_key(medium)) for medium in _media_in(document)))
        if not split:
            return document
        self.notes[
            f"{NOTE_PREFIX}{path} names no split, and media of what is held out in others: its documents of them are "
            f"{split} too"
        ] += 1
        return document.with_split(SplitWithOrigin(split, FROM_FILES))


def _media_key(path: str) -> int:
    return hash(posixpath.normpath(path))


def _media_in(document: Document) -> list[str]:
    return [part.path for part in document.parts if not isinstance(part, Text)]


def _below(document: Document, folder: str) -> Document:
    """The document with its media paths, relative to `folder` (with a slash behind it), made relative to the source."""
    if not folder:
        return document
    parts = (
        part if isinstance(part, Text) else dataclasses.replace(part, path=folder + part.path)
        for part in document.parts
    )
    return dataclasses.replace(document, parts=tuple(parts))


def _with_split(
    document: Document, named: SplitWithOrigin, media_splits: MediaPathSplits, lists: SplitListFiles
) -> Document:
    """A document that names no split, with that of its manifest's name, or of the folders or lists of its media."""
    by_media = lists.split_of_document(document, media_splits.split_of(document), is_declared=not named.is_undeclared)
    # what lies in a folder that is held out is not trained on, whatever the manifest is called
    is_left_open = named.is_undeclared or (named == UNASSIGNED and by_media == "train")
    split = by_media if named not in HELD_OUT and (by_media in HELD_OUT or is_left_open) else named
    if document.split != UNASSIGNED and split not in HELD_OUT:
        return document.with_split(SplitWithOrigin(document.split, FROM_RECORD_FORMAT))
    return document.with_split(split)


def detect_record_format(fields: dict) -> str | None:
    """Which of RECORD_FORMATS an object has; None when it has none of them."""
    if "content" in fields and not isinstance(fields["content"], str):
        return "content-parts"
    if "messages" in fields:
        return "chat"
    if "conversations" in fields:
        turns = fields["conversations"]
        first = turns[0] if isinstance(turns, list) and turns else None
        # neither: a question and its answer in each
        is_chat = isinstance(first, dict) and ("role" in first or not {"from", "value"} & first.keys())
        return "chat" if is_chat and first else "llava"
    for turns in map(fields.get, () if _TURNS.isdisjoint(fields) else CONVERSATIONS[2:]):
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return "chat"
    if "texts" in fields:
        return "obelics"
    if "kind" in fields or "path" in fields or not _PLAIN.isdisjoint(fields):
        return "captioned"
    return None


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
    split: str = UNASSIGNED,
    max_file_mib: float,
    include_decode: bool = False,
    notes: Counter | None = None,
) -> Document | None:
    """The document in one JSON object, or None for one that is not for training. Raises DocumentError.

    name, split: its id and split where it has none.
    """
    record_format, notes = record_format or detect_record_format(fields), Counter() if notes is None else notes
    if record_format is None:
        raise DocumentError(needed(fields))
    if record_format == "content-parts":
        reject_single_turn(fields)
        document = parse_document(with_loss_masks(fields, notes) | {"split": split_in(fields) or "train"})
        known = _NATIVE | check_not_clipped(fields, document.parts, notes)
        any_read = has_media(document)
        check_unread_fields(fields, known, notes, any_read=any_read, where="a part of 'content'", by_name=False)
        if not any_read:
            _reject_placeholders(document)
        return document
    if record_format not in ("chat", "llava") and (off := sample_loss_off_key(fields, notes)):
        raise DocumentError(f"field {off!r} says that nothing here is to be learned")
    if record_format == "captioned" and _is_media_record(fields):
        return captioned_document(
            fields, root=root, max_file_mib=max_file_mib, include_decode=include_decode, notes=notes
        )
    name = _own_name(fields) or name
    if record_format == "captioned":
        document = flat_record_document(fields, root=root, name=name, notes=notes)
        return checked(document, fields, split)
    if record_format == "obelics":
        document, known = obelics_document(fields, name=name), _PAGE
    else:
        read = chat_document if record_format == "chat" else llava_document
        document = read(fields, name=name, notes=notes)
        known = _BESIDE[next((key for key in CONVERSATIONS if key in fields), "messages")]
    any_read = has_media(document)
    known = known | check_not_clipped(fields, document.parts, notes)
    check_unread_fields(fields, known, notes, any_read=any_read, by_name=record_format != "obelics")
    if record_format == "obelics" and not any_read:
        _reject_placeholders(document)
    return checked(document, fields, split)


def _reject_placeholders(document: Document) -> None:
    """DocumentError for text with a media placeholder, in a document without media."""
    for part in document.parts:
        if isinstance(part, Text) and "<" in part.text and (found := unfilled_placeholder(part.text)):
            raise DocumentError(f"there are more {found} placeholders than media (0 listed)")


def checked(document: Document, fields: dict, split: str = UNASSIGNED) -> Document:
    """The document with the split, kind and source that its object names, after the checks of the native form."""
    named = {key: fields[key] for key in ("kind", "source") if isinstance(fields.get(key), str)}
    split = split_in(fields) or split
    # the native form has no word for a split that is still open
    return parse_document(document.to_json() | {"split": split or "train"} | named).with_split(split)


def _is_media_record(fields: dict) -> bool:
    """Whether a captioned object is a media record: `kind` and `path`; a `path` alone is a medium's or a text's."""
    if "path" in fields and ("kind" in fields or _WORDS.isdisjoint(fields)):
        return True
    return "kind" in fields and _PLAIN.isdisjoint(fields)


def _promises_ids(fields: dict, record_format: str | None) -> bool:
    """Whether an id that comes twice is a mistake in this object's form."""
    record_format = record_format or detect_record_format(fields)
    return record_format == "content-parts" or (record_format == "captioned" and _is_media_record(fields))


def _own_name(fields: dict) -> str:
    name = fields.get("id")
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if name is not None and not isinstance(name, str):
        raise DocumentError(f"field 'id' must be of type str, not {type(name).__name__}")
    return name or ""


def _describe(fields: dict, name: str) -> tuple[str, str]:
    """Id and file for a quarantine record, before anything is checked."""
    if isinstance(fields.get("id"), str) and fields["id"]:
        name = _writable(fields["id"][:200])
    file = fields.get("path") or next((path for key in fields_in(fields) if (path := path_of(fields[key]))), None)
    if isinstance(content := fields.get("content"), list):
        media = (part for part in content if isinstance(part, dict) and part.get("type") in ("image", "audio", "video"))
        file = next((part.get(part["type"]) for part in media), None)
    return name, _writable(file[:500]) if isinstance(file, str) else ""


def _writable(text: str) -> str:
    """Text without lone surrogates, which could not be written into a record."""
    return text.encode("utf-8", "backslashreplace").decode()
