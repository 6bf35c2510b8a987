"""Parquet files, and Hugging Face datasets saved to disk (`save_to_disk`: Arrow files and dataset_info.json).

Each row is one JSON object, read like a line of a manifest: with a column `content`, `messages`, `conversations` or
`texts` it is that record format; else its columns of media come first and its text follows (`text`, `caption`, ..., or
the name of a class label). Media stay where they are, addressed `file.parquet::row/column` (`tables.cells`); a struct
with a `path` alone names a file beside the table. What a column holds is decided by the features that `datasets` notes
in the schema, the ending of `path`, the column's name, or the first bytes, in this order. The split is a column, or the
file's or folder's. The `datasets` package is not needed; files of its cache (`cache-*.arrow`) are not read."""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from brine.data.document import Document, DocumentError, Quarantined, Text
from brine.data.files.addresses import untagged
from brine.data.files.archive import resolve_container
from brine.data.files.extensions import VIDEO_OR_CODE, extension_of, media_type_of
from brine.data.formats.lines.fields import (
    CONVERSATIONS,
    FIELDS,
    SURE,
    WORDS,
    is_medium,
    is_path,
    path_of,
    prompt_pair_hint,
)
from brine.data.formats.lines.lines import list_in
from brine.data.formats.lines.marks import is_loss_key
from brine.data.formats.lines.provenance import DOCUMENT_WORDS, is_of_repository, is_provenance, is_row_metadata
from brine.data.formats.manifest import detect_record_format, object_document
from brine.data.formats.source import ReadLimits
from brine.data.formats.splits.names import split_field_kind, split_of_name
from brine.data.formats.splits.rules import PathSplits, split_in
from brine.data.formats.tables.cells import open_table, table_rows

# columns whose bytes are text: many programs write strings without saying so
_TEXTS = frozenset(("content", *CONVERSATIONS, *WORDS, "label", "id", "split", "source", "__key__", "key"))
_KINDS = ("image", "audio", "video")
_NAMES = {
    "image": re.compile(r"image|img|picture|photo|screenshot|jpg|jpeg|png|webp"),
    "audio": re.compile(r"audio|sound|speech|wav|flac|mp3|ogg"),
    "video": re.compile(r"video|film|clip|mp4|webm"),
}
_FORMS = ("content", *CONVERSATIONS)
_TEXTUAL = {*CONVERSATIONS, *WORDS}


def table_documents(
    root: Path, files: list[str], limits: ReadLimits, skipped: Counter, splits: PathSplits | None = None
) -> Iterator[Document | Quarantined]:
    """A document for each row of the tables (paths relative to `root`, resolved), table by table."""
    states = [_with_state(root, file) for file in files]
    # what a data set says of itself is not in the names that the whole source goes by
    splits = splits if splits and states == files else PathSplits(states, files=True)
    for file, state in zip(files, states, strict=True):
        name = untagged(file)
        try:
            path = resolve_container(root, file)
            schema = open_table(path).schema_arrow
            if twice := sorted(column for column, count in Counter(schema.names).items() if count > 1):
                raise DocumentError(f"several columns are called {twice[0][:100]!r}: rename all but one")
            features, media = _features(schema), SURE & set(schema.names)
            for number, values in table_rows(path, file, texts=_TEXTS):
                row_name = f"{os.path.splitext(name)[0]}#{number}"
                try:
                    if isinstance(values, DocumentError):
                        raise values
                    row = _Row(values, features, skipped)
                    document = row.document(row_name, media, root, limits, splits.split_of(state))
                    yield _beside(document, root, file)
                except DocumentError as error:
                    yield Quarantined(row_name, name, f"row {number} of {name!r}: {error}", line=number + 1)
        except (DocumentError, OSError) as error:
            yield Quarantined(name, name, f"table {name!r}: {error}")


def _with_state(root: Path, file: str) -> str:
    """The path of a table, behind the split that a data set saved alone has noted in its state.json."""
    if not file.lower().endswith(".arrow") or (root / "dataset_dict.json").exists():
        return file
    folder, _, base = untagged(file).rpartition("/")
    split = _state(root / folder).get("_split")
    split = split_of_name(split) if isinstance(split, str) else ""
    return "/".join(filter(None, (folder, split, base))) if split else file


def _state(folder: Path) -> dict:
    """What `datasets` noted in a folder's state.json; {} where there is none."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _beside(document: Document, root: Path, file: str) -> Document:
    """The document with the paths of its files made relative to the source: beside the table, else below its root."""
    folder = file.rpartition("/")[0]

    def moved(part):
        if not folder or isinstance(part, Text) or part.path.startswith(f"{file}::"):
            return part
        first, inner, _ = part.path.partition("/")
        if inner and not os.path.lexists(root / folder / first) and os.path.isdir(root / first):
            return part
        return dataclasses.replace(part, path=f"{folder}/{part.path}")

    return dataclasses.replace(document, parts=tuple(map(moved, document.parts)))


class _Row:
    """One row: its values, the first bytes of its cells of media (`heads`), and the features of its columns."""

    def __init__(self, values: dict, features: dict[str, str | list[str]], notes: Counter):
        self.heads: dict[str, bytes] = values.pop(None)
        self.values, self.features, self.notes = values, features, notes

    def document(self, name: str, media: set[str], root: Path, limits: ReadLimits, split: str) -> Document:
        """The document of the row. media: columns that are named after a medium. Raises DocumentError."""
        values, fields = self.values, self._fields()
        other_fields = {
            column: value
            for column, value in values.items()
            if column not in fields and not self._is_used(column, fields)
        }
        fields.setdefault("id", name)
        # a table has no other way to leave a medium out
        for column in media:
            if not values.get(column):
                fields.setdefault(column, None)
        record_format = detect_record_format(fields) or "captioned"
        document = object_document(
            fields,
            root=root,
            name=name,
            record_format=record_format,
            split=split,
            max_file_mib=limits.max_file_mib,
            notes=self.notes,
            other_fields=other_fields,
        )
        # in a table a missing split means no more than that
        is_open = record_format == "content-parts" and not split_in(fields)
        return document.with_split(split) if is_open else document

    def _fields(self) -> dict:
        """The row as the JSON object it stands for."""
        values, heads = self.values, self.heads
        for column in [name for name in values if name.lower() in _TEXTUAL and name.lower() not in values]:
            values[column.lower()] = values.pop(column)
        for column in _FORMS:
            if isinstance(values.get(column), str) and values[column].lstrip().startswith("["):
                values[column] = list_in(values[column], is_text=column == "content")
        for column in values:
            if split_field_kind(column) not in ("", "flag") and (label := self._label(column)) is not None:
                values[column] = label
        if detect_record_format(values) not in (None, "captioned"):
            for column, value in list(values.items()):
                for reference in _entries(value) if column not in FIELDS else ():
                    if self._is_cell(reference) and (kind := self._kind(column, reference)) is not None:
                        values[f"{kind}s"] = [*values.get(f"{kind}s", []), reference]
            return values
        known = ("id", "__key__", "key", "source", *filter(split_field_kind, values), *WORDS)
        fields = {key: values[key] for key in known if key in values}
        # the image of a mask is a medium
        fields |= {key: value for key, value in values.items() if is_loss_key(key) and not self._holds_media(value)}
        for key in ("__key__", "key"):
            if isinstance(fields.get(key), str | int):
                fields.setdefault("id", fields[key])
        used = self._add_media(fields)
        self._check_cells(fields, heads.keys() - used)
        for column in values:
            if (label := self._label(column)) is not None:
                fields.setdefault("label", label)
        if isinstance(values.get("label"), str):
            fields.setdefault("label", values["label"])
        return fields

    def _add_media(self, fields: dict) -> set[str]:
        """Adds the references to media to the fields; the columns and cells that were used."""
        values, used = self.values, set()
        cells = {self._kind(column, value) for column, value in values.items() if self._is_cell(value)}
        of_repository = is_of_repository(values)
        for column, value in values.items():
            for reference in _entries(value):
                kind, is_cell = self._kind(column, reference), self._is_cell(reference)
                # the name of a file among programs
                if of_repository and not is_cell and is_provenance(column, "https://x"):
                    kind = None
                # beside a medium in a cell, a name of the same kind is what its file was called
                if kind is not None and (is_cell or kind not in cells):
                    fields.setdefault(kind, []).append(reference)
                    used.update((column, reference))
                elif kind is None and column not in WORDS and self._is_name(reference):
                    is_video = column in FIELDS and extension_of(reference) in VIDEO_OR_CODE
                    fields |= {column: value} if is_video or is_medium(reference) else {}
            if (kind := FIELDS.get(column, "unknown")) and kind not in cells:
                entries = _entries(value)
                # a field of media is one without an ending that says so, too
                if column in FIELDS and column not in used and entries and all(map(self._is_name, entries)):
                    fields.setdefault(column, value)
                    used.add(column)
                # a name beside a cell is that of its file
                elif is_row_metadata(column) and not self._is_cell(value):
                    fields.setdefault(column, value)
        return used

    def _check_cells(self, fields: dict, left: Iterable[str]) -> None:
        """DocumentError where nothing was read from cells of bytes that a caption, or their column's name, is about."""
        has_media = any(kind in fields for kind in _KINDS)
        is_caption = not any(fields.get(key) for key in DOCUMENT_WORDS)
        for index in sorted(left):
            column = unquote(index.rpartition("::")[2].split("/")[1])
            if not has_media and (is_caption or _kind_by_name(column)):
                raise DocumentError(
                    f"column {column[:40]!r} holds bytes of no image, audio or video format that is known"
                )
            self.notes[f"note: column {column[:40]!r} holds bytes of no known medium and was not read"] += 1

    def _is_used(self, column: str, fields: dict) -> bool:
        """Whether a column that is not among the row's fields was read all the same, or is reported elsewhere."""
        media = [entry for kind in _KINDS if kind != column for entry in fields.get(kind) or ()]
        entries = _entries(self.values[column])[:100]
        if any(isinstance(entry, str) and (entry in self.heads or entry in media) for entry in entries):
            return True
        if (label := self._label(column)) is not None:
            return fields.get("label") == label
        # what the file of a cell was called
        return bool(media) and column in FIELDS and not FIELDS[column]

    def _label(self, column: str) -> str | None:
        """The name of the class in a column of class labels; None for any other value."""
        names, value = self.features.get(column), self.values[column]
        return names[value] if isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names) else None

    def _is_cell(self, value) -> bool:
        return isinstance(value, str) and value in self.heads

    def _is_name(self, value) -> bool:
        return isinstance(value, str) and bool(value) and value not in self.heads

    def _holds_media(self, value) -> bool:
        return any(self._is_cell(entry) or is_medium(path_of(entry)) for entry in _entries(value))

    def _kind(self, column: str, reference) -> str | None:
        """ "image", "audio" or "video" for a reference to a medium; None for any other value."""
        if not isinstance(reference, str) or column in WORDS or column in ("id", "split", "source", "__key__", "key"):
            return None
        if self.features.get(column) in _KINDS:
            return self.features[column]
        if self._is_cell(reference):
            return _kind_by_name(column) or _detect_modality(self.heads[reference])
        # an address is no file beside the table
        if ("://" in reference and column not in FIELDS) or is_provenance(column, reference):
            return None
        medium = media_type_of(reference) if is_path(reference) else None
        return medium.__name__.lower() if medium else None


def _entries(value) -> list:
    return value if isinstance(value, list) else [value]


def _kind_by_name(column: str) -> str | None:
    return next((kind for kind, pattern in _NAMES.items() if pattern.search(column.lower())), None)


def _detect_modality(head: bytes) -> str | None:
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or head[8:12] == b"WEBP":
        return "image"
    if head.startswith((b"fLaC", b"OggS", b"ID3", b"\xff\xfb")) or head[8:12] == b"WAVE":
        return "audio"
    return "video" if head[4:8] == b"ftyp" or head.startswith(b"\x1aE\xdf\xa3") else None


def _features(schema) -> dict[str, str | list[str]]:
    """Column -> medium, or the names of its class labels, as the `datasets` package wrote them into a schema."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"].items()
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    features = {}
    for column, feature in found:
        # a list of media is written [feature], or {"feature": feature, "_type": "Sequence" or "List"}
        for _ in range(4):
            if isinstance(feature, list) and feature:
                feature = feature[0]
            elif isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
                feature = feature["feature"]
        kind = feature.get("_type") if isinstance(feature, dict) else None
        if kind in ("Image", "Audio", "Video"):
            features[column] = kind.lower()
        elif kind == "ClassLabel" and isinstance(feature.get("names"), list):
            features[column] = [name for name in feature["names"] if isinstance(name, str)]
    return features


def check_columns(file: Path) -> None:
    """ValueError when a table has no text: no known record format and no column of words."""
    try:
        schema = open_table(file).schema_arrow
    except (DocumentError, OSError):
        # a damaged file is quarantined while reading, like any other
        return
    labels = [column for column, value in _features(schema).items() if isinstance(value, list)]
    if {*schema.names, *map(str.lower, schema.names)}.isdisjoint({*_FORMS, *WORDS, "label", *labels}):
        raise ValueError(
            f"table {file} has the columns {', '.join(schema.names[:20])}, none of which holds text: "
            f"rename one to {', '.join(WORDS)}, or to {', '.join(_FORMS)}"
            f"{prompt_pair_hint(dict.fromkeys(schema.names, ''))}"
        )


def dataset_files(root: Path, candidates: list[str]) -> list[str]:
    """Those of the Arrow files below `root` that hold rows: what state.json names, where there is one."""
    found = []
    for path in candidates:
        folder, _, base = untagged(path).rpartition("/")
        try:
            named = [entry["filename"] for entry in _state(root / folder)["_data_files"]]
        except (KeyError, TypeError):
            named = None
        if base in named if named is not None else not base.startswith("cache-"):
            found.append(path)
    return found
