"""Parquet files, and Hugging Face datasets saved to disk (`save_to_disk`: Arrow files and dataset_info.json).

Each row becomes one JSON object and is read like a line of a manifest. Media stay where they are, addressed
`file.parquet::row/column` (`tables.cells`); a struct with a `path` alone names a file beside the table. A column of
media may have any name: its modality is that of the features that `datasets` notes in the schema, of the extension of a
path, of the column's name, or of the first bytes, in this order. The split is a column, or the file's or folder's.
"""

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
from brine.data.files.extensions import media_type_of
from brine.data.formats.lines.fields import (
    CONVERSATIONS,
    FIELDS,
    SURE,
    WORDS,
    is_media_path,
    is_path,
    prompt_pair_hint,
)
from brine.data.formats.lines.lines import list_in
from brine.data.formats.lines.provenance import DOCUMENT_WORDS, is_of_repository, is_provenance
from brine.data.formats.manifest import detect_record_format, object_document
from brine.data.formats.source import ReadLimits
from brine.data.formats.splits.names import split_field_kind, split_of_name
from brine.data.formats.splits.rules import PathSplits, split_in
from brine.data.formats.tables.cells import open_table, table_rows

_FORMS = ("content", *CONVERSATIONS)
_IDS = ("id", "split", "source", "__key__", "key")
# columns whose bytes are text: many programs write strings without saying so
_TEXTS = frozenset((*_FORMS, *WORDS, "label", *_IDS))
_MODALITIES = {
    "image": re.compile(r"image|img|picture|photo|screenshot|jpg|jpeg|png|webp"),
    "audio": re.compile(r"audio|sound|speech|wav|flac|mp3|ogg"),
    "video": re.compile(r"video|film|clip|mp4|webm"),
}
# (modality, offset, first bytes there)
_SIGNATURES = (
    ("image", 0, (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")),
    ("audio", 0, (b"fLaC", b"OggS", b"ID3", b"\xff\xfb")),
    ("video", 0, (b"\x1aE\xdf\xa3",)),
    *(("image", 8, (b"WEBP",)), ("audio", 8, (b"WAVE",)), ("video", 4, (b"ftyp",))),
)


def table_documents(
    root: Path, files: list[str], limits: ReadLimits, skipped: Counter, splits: PathSplits | None = None
) -> Iterator[Document | Quarantined]:
    """A document for each row of the tables (paths relative to `root`, resolved), table by table."""
    states = [_with_state(root, file) for file in files]
    # what a data set says of itself is not in the names that the whole source goes by
    splits = splits if splits and states == files else PathSplits(states, files=True)
    for file, state in zip(files, states, strict=True):
        name, split = untagged(file), splits.split_of(state)
        try:
            path = resolve_container(root, file)
            schema = open_table(path).schema
            if twice := sorted(column for column, count in Counter(schema.names).items() if count > 1):
                raise DocumentError(f"several columns are called {twice[0][:100]!r}: rename all but one")
            features, named_media = _features(schema), SURE & set(schema.names)
            for number, values in table_rows(path, file, texts=_TEXTS):
                row_name = f"{os.path.splitext(name)[0]}#{number}"
                try:
                    if isinstance(values, DocumentError):
                        raise values
                    # a table has no other way to leave an image, audio or video out
                    absent = {column: None for column in named_media if not values.get(column)}
                    fields = {"id": row_name} | absent | _TableRow(values, features, skipped).fields()
                    record_format = detect_record_format(fields) or "captioned"
                    document = object_document(
                        fields,
                        root=root,
                        name=row_name,
                        record_format=record_format,
                        split=split,
                        max_file_mib=limits.max_file_mib,
                        notes=skipped,
                    )
                    # in a table a missing split means no more than that
                    is_open = record_format == "content-parts" and not split_in(fields)
                    yield _beside(document.with_split(split) if is_open else document, root, file)
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
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _beside(document: Document, root: Path, file: str) -> Document:
    folder = file.rpartition("/")[0]

    def moved(part):
        if not folder or isinstance(part, Text) or part.path.startswith(f"{file}::"):
            return part
        first, inner, _ = part.path.partition("/")
        if inner and not os.path.lexists(root / folder / first) and os.path.isdir(root / first):
            return part
        return dataclasses.replace(part, path=f"{folder}/{part.path}")

    return dataclasses.replace(document, parts=tuple(map(moved, document.parts)))


class _TableRow:
    """One row: its values, the first bytes of its cells of media (`heads`), and the features of its columns."""

    def __init__(self, values: dict, features: dict[str, str | list[str]], notes: Counter):
        self.heads: dict[str, bytes] = values.pop(None)
        self.values, self.features, self.notes = values, features, notes

    def fields(self) -> dict:
        values = self.values
        for column in [name for name in values if name.lower() in (*_FORMS, *WORDS) and name.lower() not in values]:
            values[column.lower()] = values.pop(column)
        for column in _FORMS:
            if isinstance(values.get(column), str) and values[column].lstrip().startswith("["):
                values[column] = list_in(values[column], is_text=column == "content")
        labels = {column: label for column in values if (label := self._label(column)) is not None}
        for column in [name for name in labels if split_field_kind(name) not in ("", "flag")]:
            values[column] = labels.pop(column)
        if detect_record_format(values) not in (None, "captioned"):
            for column, value in list(values.items()):
                for reference in _entries(value) if column not in FIELDS else ():
                    if self._is_cell(reference) and (kind := self._modality(column, reference)) is not None:
                        values[f"{kind}s"] = [*values.get(f"{kind}s", []), reference]
            return values
        media, used = self._media()
        self._check_cells(media, self.heads.keys() - used)
        fields = {column: value for column, value in values.items() if not (column in used or column == "kind")} | media
        if labels:
            column, label = next(iter(labels.items()))
            fields = {key: value for key, value in fields.items() if key != column} | {"label": label}
        for key in ("key", "__key__"):
            if isinstance(fields.get(key), str | int) and "id" not in values:
                fields["id"] = fields[key]
        return fields

    def _media(self) -> tuple[dict[str, list], set[str]]:
        """(modality -> references of all columns; columns and cells that they are from, or that name their files)."""
        values, used, media = self.values, set(), {}
        cells = {self._modality(column, value) for column, value in values.items() if self._is_cell(value)}
        of_repository = is_of_repository(values)
        for column, value in values.items():
            for reference in _entries(value):
                kind, is_cell = self._modality(column, reference), self._is_cell(reference)
                # the name of a file among programs
                if of_repository and not is_cell and is_provenance(column, "https://x"):
                    kind = None
                # beside media in a cell, a name of the same kind is what its file was called
                if kind is not None and (is_cell or kind not in cells):
                    media.setdefault(kind, []).append(reference)
                    used.update((column, reference))
        for column, value in values.items():
            values_of, kind = _entries(value)[:100], FIELDS.get(column)
            is_path = column in SURE or any(isinstance(each, str) and is_media_path(each) for each in values_of)
            is_name = bool(media) and (kind == "" or (kind in cells and is_path))
            if is_name or any(map(self._is_cell, values_of)):
                used.add(column)
        return media, used

    def _check_cells(self, media: dict[str, list], left: Iterable[str]) -> None:
        """DocumentError where nothing was read from cells of bytes that a caption, or their column's name, is about."""
        is_caption = not any(self.values.get(key) for key in DOCUMENT_WORDS)
        for address in sorted(left):
            column = unquote(address.rpartition("::")[2].split("/")[1])
            if not media and (is_caption or _modality_by_name(column)):
                raise DocumentError(
                    f"column {column[:40]!r} holds bytes of no image, audio or video format that is known"
                )
            self.notes[f"note: column {column[:40]!r} holds bytes of no known format and was not read"] += 1

    def _label(self, column: str) -> str | None:
        names, value = self.features.get(column), self.values[column]
        return names[value] if isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names) else None

    def _is_cell(self, value) -> bool:
        return isinstance(value, str) and value in self.heads

    def _modality(self, column: str, reference) -> str | None:
        if not isinstance(reference, str) or column in WORDS or column in _IDS:
            return None
        if isinstance(kind := self.features.get(column), str):
            return kind
        if self._is_cell(reference):
            head = self.heads[reference]
            by_head = (kind for kind, offset, heads in _SIGNATURES if head.startswith(heads, offset))
            return _modality_by_name(column) or next(by_head, None)
        # an address is no file beside the table
        if ("://" in reference and column not in FIELDS) or is_provenance(column, reference):
            return None
        media = media_type_of(reference) if is_path(reference) else None
        return media.__name__.lower() if media else None


def _entries(value) -> list:
    return value if isinstance(value, list) else [value]


def _modality_by_name(column: str) -> str | None:
    return next((kind for kind, pattern in _MODALITIES.items() if pattern.search(column.lower())), None)


def _features(schema) -> dict[str, str | list[str]]:
    """Column -> modality, or the names of its class labels, as the `datasets` package wrote them into a schema."""
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
        schema = open_table(file).schema
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
    """Those of the Arrow files below `root` that hold rows: what state.json names, if there is one."""
    found = []
    for path in candidates:
        folder, _, base = untagged(path).rpartition("/")
        try:
            named = [each["filename"] for each in _state(root / folder)["_data_files"]]
        except (KeyError, TypeError):
            named = None
        if base in named if named is not None else not base.startswith("cache-"):
            found.append(path)
    return found
