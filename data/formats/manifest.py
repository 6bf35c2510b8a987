"""JSON files in, documents out: each object is told apart by its fields.

    content                       content parts, the native form (`data.document`)
    messages                      chat            (`chat`)
    conversations                 LLaVA when turns have `from`, chat when they have `role`  (`llava`, `chat`)
    texts                         OBELICS, or chat when it holds turns  (`obelics`, `chat`)
    kind, path                    captioned media (`captioned`)
    text, image, file_name, ...   captioned media or words alone (`captioned`)

A file may mix them. Where the form is known (`form=`), every object is held to it, so that a misspelt field is
reported as what it is. Only the native and the captioned house form need an `id`; the others get `<file>#<number>`
where they have none. A split that an object names is kept; where none is named, the name of the file or of a folder
over it decides (`test-00.jsonl`, `test/metadata.jsonl`), then the folders of its media (`data.formats.splits`). Where
those hold nothing out, the native and the house form mean `train` and the others leave it to the hash.

Of several manifests one whose name declares nothing may hold all that the others do (Common Voice's `validated` beside
its `test`). So those whose names hold something out are read first, and a document of an undeclared one that names a
medium of theirs, and no split, is held out too. That costs some 100 bytes for each such medium, and nothing otherwise.

Manifests may lie in folders below the source's: media paths are relative to the manifest's own folder, ids that it does
not give begin with the folder's name, and ids may come again in another folder.

Nothing is decoded here and no media file is opened. Each bad line gives one `Quarantined` that names its number.
"""

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.compressed import plain_stem
from data.damaged import not_vouched_for
from data.document import Document, DocumentError, Quarantined, Text, parse_document
from data.formats.captioned import captioned_document, check_turn, plain_document
from data.formats.chat import SYSTEM, chat_document
from data.formats.fields import CONVERSATIONS, FIELDS, WORDS, asked_in_pairs, fields_in, folded, path_of, unpacked
from data.formats.lines import is_array, is_spread, json_items
from data.formats.llava import llava_document
from data.formats.marks import READ_BESIDE, marked_parts, object_switch
from data.formats.obelics import obelics_document
from data.formats.placeholders import waiting
from data.formats.source import NOTE
from data.formats.split_lists import SplitLists
from data.formats.splits import (
    FILES,
    FORM,
    HELD_OUT,
    UNASSIGNED,
    MediaSplits,
    NamedSplits,
    SplitFrom,
    ruling,
    split_in,
    splits_of_paths,
)
from data.formats.stretches import check_whole
from data.formats.unread import check_unread, has_media

FORMS = ("content-parts", "chat", "llava", "obelics", "captioned")
_TURNS = frozenset(CONVERSATIONS[2:])
_WORDS = frozenset(WORDS)
_PLAIN = frozenset((*WORDS, *FIELDS))
_NATIVE = frozenset(("id", "kind", "level", "split", "source", "content"))
_PAGE = frozenset(("texts", "images"))
_BESIDE = {key: READ_BESIDE | {key, "tools", *SYSTEM} for key in CONVERSATIONS}


def manifest_documents(
    files: Iterable[Path],
    *,
    root: Path,
    form: str | None = None,
    max_line_mib: float,
    max_file_mib: float,
    include_decode: bool = False,
    notes: Counter | None = None,
    splits: NamedSplits | None = None,
) -> Iterator[Document | Quarantined]:
    """Documents of JSONL files and JSON arrays in file order, and a `Quarantined` for each entry that gives none.

    Where a file's name says nothing of splits, those whose names hold something out come first.

    What is told about documents that were read is counted in `notes`, each sentence behind "note: ". `splits`: what
    the names of the whole source declare, of which the files are a part.
    """
    files, seen = list(files), set()
    paths = {file: file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name for file in files}
    splits = splits or NamedSplits(paths.values(), files=True)
    named, media_splits = splits_of_paths(paths.values(), splits=splits), MediaSplits(root)
    lists, held = SplitLists(root, notes), _HeldMedia(splits, paths.values(), notes)
    for file in sorted(files, key=lambda file: not held.is_first(paths[file])):
        folder = paths[file].rpartition("/")[0]
        base, stem = root / folder, f"{folder}/{plain_stem(file)}" if folder else plain_stem(file)
        word = "entry" if is_array(file) or is_spread(file) else "line"
        if notes is not None and (late := not_vouched_for(file)):
            notes[f"note: {late}"] += 1
        for number, fields in json_items(file, max_line_mib=max_line_mib):
            name, medium = f"{word} {number}", ""
            try:
                if isinstance(fields, DocumentError):
                    raise fields
                fields = unpacked(folded(fields))
                name, medium = _describe(fields, name)
                # a house line of split "decode" is read as test
                own = fields.get("split") == "decode" or split_in(fields)
                document = object_document(
                    fields,
                    root=base,
                    name=f"{stem}#{number}",
                    form=form,
                    max_file_mib=max_file_mib,
                    include_decode=include_decode,
                    notes=notes,
                )
                if document is not None and _promises_ids(fields, form):
                    if (folder, document.id) in seen:
                        raise DocumentError(f"id {document.id!r} was used by an earlier line")
                    seen.add((folder, document.id))
            except DocumentError as error:
                place = f"{word} {number} of {paths[file]}" if folder else f"{word} {number}"
                medium = f"{folder}/{medium}" if folder and medium else medium
                held.remember(paths[file], [medium] if medium else [], named[paths[file]])
                yield Quarantined(name, medium, f"{place}: {error}", line=number)
                continue
            if document is not None:
                document = _below(document, folder)
                if not own:
                    document = _with_split(document, named[paths[file]], media_splits, lists)
                    document = held.held_out(paths[file], document)
                held.remember(paths[file], _media_in(document), document.split)
                yield document


class _HeldMedia:
    """The media of manifests whose names hold them out, for those of other manifests that say nothing.

    paths: of the manifests that are read together.
    """

    def __init__(self, splits: NamedSplits, paths: Iterable[str], notes: Counter | None):
        self.declared = {path: splits.declared(path) for path in paths}
        self.notes = Counter() if notes is None else notes
        said = set(self.declared.values())
        self.is_needed = "" in said and not said.isdisjoint(HELD_OUT)
        self.split_of: dict[int, str] = {}

    def is_first(self, path: str) -> bool:
        """Whether a manifest is to be read before those that say nothing."""
        return self.is_needed and self.declared[path] in HELD_OUT

    def remember(self, path: str, media: Iterable[str], split: str) -> None:
        """Takes what a document of a manifest names, and its split."""
        if self.is_first(path) and split in HELD_OUT:
            for medium in media:
                key = hash(posixpath.normpath(medium))
                self.split_of[key] = ruling(split, self.split_of.get(key, UNASSIGNED))

    def held_out(self, path: str, document: Document) -> Document:
        """A document that names no split, held out where its manifest says nothing and another one's name does."""
        if not self.split_of or self.declared[path] or document.split in HELD_OUT:
            return document
        split = ruling(*(self.split_of.get(hash(posixpath.normpath(medium))) for medium in _media_in(document)))
        if not split:
            return document
        self.notes[
            f"{NOTE}{path} names no split, and media of what is held out in others: its documents of them are "
            f"{split} too"
        ] += 1
        return document.in_split(SplitFrom(split, FILES))


def _media_in(document: Document) -> list[str]:
    return [part.path for part in document.parts if not isinstance(part, Text)]


def _below(document: Document, folder: str) -> Document:
    """The document with its media paths, which are relative to `folder`, made relative to the source."""
    if not folder:
        return document
    parts = tuple(
        part if isinstance(part, Text) else dataclasses.replace(part, path=f"{folder}/{part.path}")
        for part in document.parts
    )
    return dataclasses.replace(document, parts=parts)


def _with_split(document: Document, named: SplitFrom, media_splits: MediaSplits, lists: SplitLists) -> Document:
    """A document that names no split, with that of its manifest's name, or of the folders or lists of its media."""
    by_media = lists.of_document(document, media_splits.of(document), is_declared=not named.is_open)
    # what lies in a folder that is held out is not trained on, whatever the manifest is called
    is_left_open = named.is_open or (named == UNASSIGNED and by_media == "train")
    split = by_media if named not in HELD_OUT and (by_media in HELD_OUT or is_left_open) else named
    if document.split != UNASSIGNED and split not in HELD_OUT:
        return document.in_split(SplitFrom(document.split, FORM))
    return document.in_split(split)


def form_of(fields: dict) -> str | None:
    """Which of FORMS an object has; None when it has none of them."""
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
    for key in () if _TURNS.isdisjoint(fields) else CONVERSATIONS[2:]:
        turns = fields.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return "chat"
    if "texts" in fields:
        return "obelics"
    if "kind" in fields or "path" in fields or not _PLAIN.isdisjoint(fields):
        return "captioned"
    return None


def needed(fields: dict) -> str:
    """What an object of no known form lacks, as a sentence."""
    known = ", ".join(map(repr, ("content", "messages", "conversations", "texts", WORDS[0])))
    return f"none of the forms that are read: a line needs {known}, or 'kind' and 'path'{asked_in_pairs(fields)}"


def object_document(
    fields: dict,
    *,
    root: Path,
    name: str,
    form: str | None = None,
    split: str = UNASSIGNED,
    max_file_mib: float,
    include_decode: bool = False,
    notes: Counter | None = None,
    beside: dict | None = None,
) -> Document | None:
    """The document in one JSON object, or None when it is not meant for training.

    `beside` are fields that are not to be read, and may not vanish either (columns of a table). `name` is its id and
    `split` its split where it has none of its own. Raises DocumentError naming what is wrong.
    """
    form, notes = form or form_of(fields), Counter() if notes is None else notes
    if form is None:
        raise DocumentError(needed(fields))
    if form == "content-parts":
        check_turn(fields)
        document = parse_document(marked_parts(fields, notes) | {"split": split_in(fields) or "train"})
        any_read = has_media(document)
        told = check_whole(fields, document.parts, notes)
        check_unread(fields, _NATIVE | told, notes, any_read=any_read, where="a part of 'content'", by_name=False)
        if not any_read:
            _check_waiting(document)
        return document
    if form not in ("chat", "llava") and (off := object_switch(fields, notes)):
        raise DocumentError(f"field {off!r} says that nothing here is to be learned")
    if form == "captioned" and _is_house(fields):
        return captioned_document(
            fields, root=root, max_file_mib=max_file_mib, include_decode=include_decode, notes=notes
        )
    name = _own_name(fields) or name
    if form == "chat":
        document = chat_document(fields, name=name, notes=notes)
    elif form == "llava":
        document = llava_document(fields, name=name, notes=notes)
    elif form == "obelics":
        document = obelics_document(fields, name=name)
    else:
        document = plain_document(fields, root=root, name=name, notes=notes, beside=beside)
    if form != "captioned":
        any_read = has_media(document)
        every, by_name = fields | beside if beside else fields, form != "obelics"
        told = check_whole(every, document.parts, notes)
        check_unread(every, _read(fields, form) | told, notes, any_read=any_read, by_name=by_name)
        if form == "obelics" and not any_read:
            _check_waiting(document)
    return checked(document, fields, split)


def _read(fields: dict, form: str) -> frozenset[str]:
    """The fields that the reader of a conversation or page reads."""
    if form == "obelics":
        return _PAGE
    key = next((key for key in CONVERSATIONS if key in fields), "messages")
    return _BESIDE[key]


def _check_waiting(document: Document) -> None:
    """DocumentError for words of a page that wait for a medium, where there is none."""
    for part in document.parts:
        if isinstance(part, Text) and "<" in part.text and (found := waiting(part.text)):
            raise DocumentError(f"there are more {found} placeholders than media (0 listed)")


def checked(document: Document, fields: dict, split: str = UNASSIGNED) -> Document:
    """The document with the split, kind and source that its object names, after the checks of the native form."""
    named = {key: fields[key] for key in ("kind", "source") if isinstance(fields.get(key), str)}
    split = split_in(fields) or split
    # the native form has no word for a split that is still open
    whole = parse_document(document.to_json() | {"split": split or "train"} | named)
    return whole.in_split(split)


def _is_house(fields: dict) -> bool:
    """Whether a captioned object is of the house form: `kind` and `path`; a `path` alone is a medium's or a text's."""
    if "path" in fields and ("kind" in fields or _WORDS.isdisjoint(fields)):
        return True
    return "kind" in fields and _PLAIN.isdisjoint(fields)


def _promises_ids(fields: dict, form: str | None) -> bool:
    """Whether an id that comes twice is a mistake in this object's form."""
    form = form or form_of(fields)
    return form == "content-parts" or (form == "captioned" and _is_house(fields))


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
    if isinstance(fields.get("content"), list):
        media = [
            part.get(part["type"])
            for part in fields["content"]
            if isinstance(part, dict) and part.get("type") in ("image", "audio", "video")
        ]
        file = media[0] if media else None
    return name, _writable(file[:500]) if isinstance(file, str) else ""


def _writable(text: str) -> str:
    """Text without lone surrogates, which could not be written into a record."""
    return text.encode("utf-8", "backslashreplace").decode()
