"""Parquet files, and Hugging Face datasets saved to disk (`save_to_disk`: Arrow files and dataset_info.json).

Each row is one JSON object, read like a line of a manifest: with a column `content`, `messages`, `conversations` or
`texts` it is that form; else its columns of pictures, sounds and films come first and its words follow (`text`,
`caption`, `sentence`, `transcription` ..., or the name of a class label); else its words are a text. Media stay where
they are and are addressed `file.parquet::row/column` (`data.formats.cells`); a struct with a `path` alone names a
file beside the table.

What a column holds is told by the features that the `datasets` package notes in the schema, by the ending of `path`,
by the column's name, or by the first bytes, in this order. A column that holds JSON as a string is parsed. The split
is a column `split`, or that of the file's name or folder (`train-00000-of-00002.parquet`,
`test/data-00000-of-00001.arrow`). Bytes in columns of words are text. A column that is named after a medium and holds
none (pixels as numbers, base64) sets the row aside, and an empty one is noted, as in a manifest.

The `datasets` package itself is not needed. Files of its cache (`cache-*.arrow`) are not read.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from data.archive import resolve_container
from data.document import Document, DocumentError, Quarantined, Text, untagged
from data.endings import FILM_OR_CODE, ending_of, medium_of
from data.formats.cells import open_table, table_rows
from data.formats.fields import CONVERSATIONS, FIELDS, SURE, WORDS, asked_in_pairs, is_medium, is_path, path_of
from data.formats.lines import list_in
from data.formats.manifest import form_of, object_document
from data.formats.marks import is_mark
from data.formats.provenance import DOCUMENT_WORDS, is_of_repository, is_provenance, tells_of_row
from data.formats.source import Limits
from data.formats.splits import NamedSplits, split_in, splits_of_paths
from data.split_names import sort_of_field, split_of_name

_TEXTS = frozenset(("content", *CONVERSATIONS, *WORDS, "label", "id", "split", "source", "__key__", "key"))
"""Columns whose bytes are text: many programs write strings without saying so."""
_NAMES = (
    ("image", re.compile(r"image|img|picture|photo|screenshot|jpg|jpeg|png|webp")),
    ("audio", re.compile(r"audio|sound|speech|wav|flac|mp3|ogg")),
    ("video", re.compile(r"video|film|clip|mp4|webm")),
)
_FORMS = ("content", *CONVERSATIONS)
_TEXTUAL = {*CONVERSATIONS, *WORDS}


def table_documents(
    root: Path, files: list[str], limits: Limits, skipped: Counter, splits: NamedSplits | None = None
) -> Iterator[Document | Quarantined]:
    """A document for each row of the tables (paths relative to `root`, resolved), table by table."""
    states = [_with_state(root, file) for file in files]
    # what a data set says of itself is not in the names that the whole source goes by
    of_names = splits_of_paths(states, splits=splits if states == files else None)
    named = {file: of_names[name] for file, name in zip(files, states, strict=True)}
    for file in files:
        try:
            path = resolve_container(root, file)
            schema = open_table(path).schema_arrow
            if twice := sorted(name for name, count in Counter(schema.names).items() if count > 1):
                # a row as an object has room for one of them
                raise DocumentError(f"several columns are called {twice[0][:100]!r}: rename all but one")
            features, media = _features(schema), SURE & set(schema.names)
            for number, values in table_rows(path, file, texts=_TEXTS):
                item = _row(file, number, values, features, media, root, limits, named[file], skipped)
                yield _beside(item, root, file) if isinstance(item, Document) else item
        except (DocumentError, OSError) as error:
            yield Quarantined(untagged(file), untagged(file), f"table {untagged(file)!r}: {error}")


def _with_state(root: Path, file: str) -> str:
    """The path of a table, behind the split that a data set saved alone has noted in its state.json."""
    if not file.lower().endswith(".arrow") or (root / "dataset_dict.json").exists():
        return file
    folder, _, base = untagged(file).rpartition("/")
    try:
        split = json.loads((root / folder / "state.json").read_text(encoding="utf-8-sig")).get("_split")
    except (OSError, ValueError, AttributeError, RecursionError):
        return file
    split = split_of_name(split) if isinstance(split, str) else ""
    return "/".join(filter(None, (folder, split, base))) if split else file


def _row(
    file: str,
    number: int,
    values: dict | DocumentError,
    features: dict,
    media: set[str],
    root: Path,
    limits: Limits,
    split: str,
    notes: Counter,
) -> Document | Quarantined:
    name = f"{os.path.splitext(untagged(file))[0]}#{number}"
    try:
        if isinstance(values, DocumentError):
            raise values
        heads = values.pop(None)
        fields = _fields(values, heads, features, notes)
        beside = {
            column: value
            for column, value in values.items()
            if column not in fields and not _is_used(column, value, fields, heads, features)
        }
        fields.setdefault("id", name)
        # a table has no other way to leave a medium out
        for column in media:
            if not values.get(column):
                fields.setdefault(column, None)
        form = form_of(fields) or "captioned"
        document = object_document(
            fields,
            root=root,
            name=name,
            form=form,
            split=split,
            max_file_mib=limits.max_file_mib,
            notes=notes,
            beside=beside,
        )
        # in a table a missing split means no more than that
        if not split_in(fields) and form == "content-parts":
            document = Document(document.id, document.parts, document.kind, document.level, split, document.source)
        return document
    except DocumentError as error:
        file = untagged(file)
        return Quarantined(name, file, f"row {number} of {file!r}: {error}", line=number + 1)


def _beside(document: Document, root: Path, file: str) -> Document:
    """The document with the paths of its files, which lie beside its table, made relative to the source.

    A file of the same name on top of the source is another one. Only a path whose first folder is not beside the table
    but on top counts from there.
    """
    folder = file.rpartition("/")[0]

    def beside(part):
        if not folder or isinstance(part, Text) or part.path.startswith(f"{file}::"):
            return part
        first, inner, _ = part.path.partition("/")
        if inner and not os.path.lexists(root / folder / first) and os.path.isdir(root / first):
            return part
        return dataclasses.replace(part, path=f"{folder}/{part.path}")

    return dataclasses.replace(document, parts=tuple(map(beside, document.parts)))


def _fields(values: dict, heads: dict[str, bytes], features: dict, notes: Counter) -> dict:
    """A row as the JSON object it stands for."""
    for column in [name for name in values if name.lower() in _TEXTUAL and name.lower() not in values]:
        values[column.lower()] = values.pop(column)
    for column in _FORMS:
        if isinstance(values.get(column), str) and values[column].lstrip().startswith("["):
            values[column] = list_in(values[column], is_text=column == "content")
    for column in values:
        names = features.get(column)
        if isinstance(names, list) and sort_of_field(column) not in ("", "flag") and isinstance(values[column], int):
            values[column] = names[values[column]] if 0 <= values[column] < len(names) else values[column]
    if form_of(values) not in (None, "captioned"):
        for column, value in list(values.items()):
            for reference in value if isinstance(value, list) else [value]:
                if column not in FIELDS and isinstance(reference, str) and reference in heads:
                    kind = _kind(column, reference, heads, features)
                    if kind is not None:
                        values[f"{kind}s"] = [*values.get(f"{kind}s", []), reference]
        return values
    fields = {
        key: values[key]
        for key in ("id", "__key__", "key", "source", *filter(sort_of_field, values), *WORDS)
        if key in values
    }
    # the picture of a mask is a medium
    fields |= {key: value for key, value in values.items() if is_mark(key) and not _holds_media(value, heads)}
    for key in ("__key__", "key"):
        if isinstance(fields.get(key), str | int):
            fields.setdefault("id", fields[key])
    cells = {_kind(column, value, heads, features) for column, value in values.items() if _is_cell(value, heads)}
    used: set[str] = set()
    of_repository = is_of_repository(values)
    for column, value in values.items():
        for reference in value if isinstance(value, list) else [value]:
            kind = _kind(column, reference, heads, features)
            # the name of a file among programs
            if of_repository and is_provenance(column, "https://x") and not _is_cell(reference, heads):
                kind = None
            # beside a medium in a cell, a name of the same kind is what its file was called
            if kind is not None and (reference in heads or kind not in cells):
                fields.setdefault(kind, []).append(reference)
                used.update((column, reference))
            elif kind is None and isinstance(reference, str) and column not in WORDS and reference not in heads:
                is_named = column in FIELDS and ending_of(reference) in FILM_OR_CODE
                fields |= {column: value} if is_named or is_medium(reference) else {}
        # a field of media is one without an ending that tells so, too
        if FIELDS.get(column) and column not in used and FIELDS[column] not in cells and _names_file(value, heads):
            fields.setdefault(column, value)
            used.add(column)
        # a name beside a cell is that of its file
        elif FIELDS.get(column, "none") not in ("", *cells) and tells_of_row(column) and not _is_cell(value, heads):
            fields.setdefault(column, value)
    _check_cells(fields, heads.keys() - used, notes)
    for column, value in values.items():
        names = features.get(column)
        if isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names):
            fields.setdefault("label", names[value])
    if isinstance(values.get("label"), str):
        fields.setdefault("label", values["label"])
    return fields


def _names_file(value, heads: dict[str, bytes]) -> bool:
    """Whether a value of a field of media is a name, or a list of names, and no cell."""
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(isinstance(entry, str) and entry and entry not in heads for entry in entries)


def _check_cells(fields: dict, left: Iterable[str], notes: Counter) -> None:
    """DocumentError where nothing was read from cells of bytes that a caption, or their column's name, is about."""
    has_media = any(kind in fields for kind in ("image", "audio", "video"))
    is_caption = not any(fields.get(key) for key in DOCUMENT_WORDS)
    for place in sorted(left):
        column = unquote(place.rpartition("::")[2].split("/")[1])
        if has_media or not (is_caption or any(pattern.search(column.lower()) for _, pattern in _NAMES)):
            notes[f"note: column {column[:40]!r} holds bytes of no known medium and was not read"] += 1
        elif is_caption or any(pattern.search(column.lower()) for _, pattern in _NAMES):
            raise DocumentError(f"column {column[:40]!r} holds bytes of no image, audio or video format that is known")


def _is_used(column: str, value, fields: dict, heads: dict[str, bytes], features: dict) -> bool:
    """Whether a column that is not among a row's fields was read all the same, or is told of elsewhere."""
    entries = value if isinstance(value, list) else [value]
    media = [entry for kind in ("image", "audio", "video") for entry in fields.get(kind) or () if kind not in (column,)]
    if any(isinstance(entry, str) and (entry in heads or entry in media) for entry in entries[:100]):
        return True
    names = features.get(column)
    if isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names):
        return fields.get("label") == names[value]
    # what the file of a cell was called
    return bool(media) and column in FIELDS and not FIELDS[column]


def _is_cell(value, heads: dict[str, bytes]) -> bool:
    return isinstance(value, str) and value in heads


def _holds_media(value, heads: dict[str, bytes]) -> bool:
    """Whether a value, or one of a list, is a cell or names a file of a medium."""
    entries = value if isinstance(value, list) else [value]
    return any(_is_cell(entry, heads) or is_medium(path_of(entry)) for entry in entries)


def _kind(column: str, reference, heads: dict[str, bytes], features: dict) -> str | None:
    """ "image", "audio" or "video" for a reference to a medium; None for any other value."""
    if not isinstance(reference, str) or column in WORDS or column in ("id", "split", "source", "__key__", "key"):
        return None
    known = features.get(column)
    if known in ("image", "audio", "video"):
        return known
    is_cell = reference in heads
    if not is_cell:
        # an address is no file beside the table
        if ("://" in reference and column not in FIELDS) or is_provenance(column, reference):
            return None
        medium = medium_of(reference) if is_path(reference) else None
        return medium.__name__.lower() if medium else None
    named = next((kind for kind, pattern in _NAMES if pattern.search(column.lower())), None)
    return named or _sniff(heads[reference])


def _sniff(head: bytes) -> str | None:
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
    """ValueError when a table has nothing to learn from: no form that is known and no column of words."""
    try:
        schema = open_table(file).schema_arrow
    except (DocumentError, OSError):
        # a file that is broken is set aside while reading, like any other
        return
    labels = [column for column, value in _features(schema).items() if isinstance(value, list)]
    if not {*schema.names, *map(str.lower, schema.names)} & {*_FORMS, *WORDS, "label", *labels}:
        raise ValueError(
            f"table {file} has the columns {', '.join(schema.names[:20])}, none of which holds text: "
            f"rename one to {', '.join(WORDS)}, or to {', '.join(_FORMS)}"
            f"{asked_in_pairs(dict.fromkeys(schema.names, ''))}"
        )


def dataset_files(root: Path, candidates: list[str]) -> list[str]:
    """Those of the Arrow files below `root` that hold rows: what state.json names, where there is one."""
    found = []
    for path in candidates:
        folder, _, base = untagged(path).rpartition("/")
        try:
            state = json.loads((root / folder / "state.json").read_text(encoding="utf-8-sig"))
            named = [entry["filename"] for entry in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError):
            named = None
        if base in named if named is not None else not base.startswith("cache-"):
            found.append(path)
    return found
