"""What to do about a file that holds no documents as it stands, by its first bytes or its first object.

Each function returns the end of a sentence that begins with the file's name, or "" for a file that it does not know: a
media file or text alone, data of other programs, JSON of no known form, one object around lists, COCO. The last two,
and files of one document each, can be converted.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from brine.data.document import DocumentError
from brine.data.files.compressed import open_decompressed
from brine.data.files.extensions import extension_of
from brine.data.files.signatures import identify_format
from brine.data.formats.lines.fields import CONVERSATIONS, PAIRS, folded
from brine.data.formats.lines.lines import is_array, is_spread, json_items
from brine.data.formats.manifest import detect_record_format, needed
from brine.data.formats.splits.names import split_words
from brine.data.formats.splits.rules import manifest_name_for, split_first_stem
from brine.data.formats.tables.conversion import ManifestConversion, convert_command
from brine.data.formats.tables.table_form import MediaFiles

_HEAD_BYTES, _SCANNED_MIB = 2**16, 512
_FIRST = re.compile(r'\{\s*"([^"\\]{1,60})"')
_LIST = re.compile(r'"([^"\\]{1,60})"\s*:\s*\[\s*\{')
_FOREIGN = {
    "an HDF5 file": "h5 hdf5 he5",
    "a TFRecord file": "tfrecord tfrecords",
    "an LMDB database": "mdb lmdb",
    "a pickle, which runs code when it is opened": "pkl pickle joblib",
    "a shard of MosaicML streaming": "mds",
    "an ORC table": "orc",
    "an Avro file": "avro",
    "an old Feather table": "feather",
    "a database": "sqlite sqlite3 db duckdb",
    "an array of numbers": "npy npz mat safetensors pt pth ckpt",
    "a file of tokens of another program": "idx",
    "a RecordIO or FFCV file": "rec beton",
    "a spreadsheet": "xls xlsx xlsm ods",
    "a file of MessagePack": "msgpack",
}
_FOREIGN_ENDINGS = {ending: what for what, endings in _FOREIGN.items() for ending in endings.split()}
_TOKEN, _OBJECTS = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\]]', re.DOTALL), re.compile(r"\[\s*\{")
# fields of one document that hold lists
_DOCUMENTS = {*CONVERSATIONS, *(name for pair in PAIRS for name in pair), "content", "chosen", "rejected", "tools"}
_COCO = ("info", "licenses", "images", "annotations", "categories")


def describe_single_file(file: Path) -> str:
    """What to do about a media file or text that is given alone."""
    with open(file, "rb") as stream:
        name, media, remedy = identify_format(stream.read(1024)) or ("", None, "")
    if media is not None:
        return (
            f"is {name}, one media file without a caption: put {file.stem}.txt beside it and give the folder, or write "
            f'a manifest of lines {{"file_name": {json.dumps(file.name)}, "text": "..."}} and give that'
        )
    if name:
        return f"is {name}: {remedy}"
    is_text = extension_of(file.name) in ("txt", "text", "md", "markdown", "rst")
    text = 'is one text: give the folder that it is in, or write a manifest of lines {"text": "..."}'
    return describe_foreign_file(file.name) or (text if is_text else "")


def describe_foreign_file(name: str) -> str:
    """What a file of another program's data is, by its extension."""
    base = name.rsplit("/", 1)[-1]
    # `x.tfrecord-00000-of-00002`
    is_shard = re.search(r"\.tfrecords?[-.]", base)
    what = _FOREIGN_ENDINGS.get(extension_of(name)) or ("a TFRecord file" if is_shard else "")
    if not what or base.lower() == "thumbs.db":
        return ""
    return f"is {what}, and is not read: write its rows as JSON lines or Parquet, or its samples into a tar"


def describe_unknown_json(file: Path, *, root: Path | None = None) -> str:
    """What a JSON file of no known form holds. root: the folder of the media."""
    try:
        head = _head(file)
    except OSError:
        return ""
    if head[:1] not in ("{", "["):
        return ""
    if why := describe_coco(file, root=root) or _wrapped(file, head):
        return why
    where = "entry" if is_array(file) or is_spread(file) else "line"
    _, first = next(json_items(file, max_line_mib=16.0), (0, None))
    if first is None:
        return ""
    if isinstance(first, DocumentError):
        return f"has a first {where} that is quarantined: {first}"
    if _is_document(first):
        is_one = head.startswith("{") and file.name.lower().endswith(".json")
        what = "is one document, and no media file is beside it: write all of them as lines of documents.jsonl by"
        return f"{what} {convert_command(root or file.parent)}" if is_one else ""
    lists = [
        name for name, rows in first.items() if isinstance(rows, list) and rows and all(map(_is_document, rows[:10]))
    ]
    if lists and is_spread(file):
        return _in_lists(file, lists[0])
    names = ", ".join(repr(key[:40]) for key in list(first)[:12]) or "none"
    return f"has the fields {names} in its first {where}: {needed(first)}"


def describe_broken_json(file: Path) -> str:
    """What is wrong with a file that is called JSON and has no object at its beginning; "" where it has one."""
    try:
        if not file.stat().st_size:
            return "is empty (0 bytes): what was to write it failed, so write it again"
        number, first = next(json_items(file, max_line_mib=16.0, checked=False), (0, None))
    except (OSError, EOFError) as error:
        return f"cannot be read ({error})"
    if first is None:
        return "is empty (it holds no object): what was to write it failed, so write it again"
    where = "entry" if is_array(file) else "line"
    return f"has a first {where} that is quarantined (at {number}): {first}" if isinstance(first, DocumentError) else ""


def describe_wrapped_json(file: Path) -> str:
    """What to do about one object that holds documents of a known form in lists."""
    head = _head(file)
    why = _wrapped(file, head) if head[:1] == "{" else ""
    try:
        offset = next(iter(_outer_lists(head).values())) if why else 0
        row, _ = json.JSONDecoder().raw_decode(head, head.index("{", offset))
    except (ValueError, RecursionError):
        # the first row is longer than what was looked at
        return why
    return why if why and _is_document(row) else ""


def _head(file: Path) -> str:
    with open_decompressed(file) as stream:
        return stream.read(_HEAD_BYTES).decode("utf-8-sig", "replace").lstrip()


def _is_document(row) -> bool:
    return isinstance(row, dict) and detect_record_format(folded(row)) is not None


def _outer_lists(head: str) -> dict[str, int]:
    """Name -> offset of each list of objects that an object holds directly, as far as its beginning goes."""
    found: dict[str, int] = {}
    depth, name = 0, ""
    for token in _TOKEN.finditer(head):
        if token[0][0] == '"':
            name = token[0][1:-1]
            continue
        is_named = depth == 1 and len(name) <= 60 and "\\" not in name
        if is_named and token[0] == "[" and _OBJECTS.match(head, token.start()):
            found.setdefault(name, token.start())
        depth += 1 if token[0] in "{[" else -1
        if not depth:
            break
    return found


def _wrapped(file: Path, head: str) -> str:
    if file.name.lower().partition(".json")[2][:1] == "l":
        return ""
    lists = _outer_lists(head)
    # of several objects, each is a document
    if not _FIRST.match(head) or not lists or re.search(r"\}\s*\n\s*\{", head) or not _DOCUMENTS.isdisjoint(lists):
        return ""
    name, offset = next(iter(lists.items()))
    return "" if head[:offset].count("{") > 1 else _in_lists(file, name)


def _in_lists(file: Path, name: str) -> str:
    return (
        f"is one object with a list of objects under {name!r}, and no array of documents: write each such list into a "
        f"file by {convert_command(file)}"
    )


def convert_wrapped(file: Path) -> ManifestConversion:
    """The manifests of the lists of objects in one object: those of documents, or of all where none is of these."""
    with open_decompressed(file) as stream:
        whole = json.loads(stream.read().decode("utf-8-sig"))
    lists = {
        name: rows for name, rows in whole.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)
    }
    lists = {name: rows for name, rows in lists.items() if all(map(_is_document, rows[:10]))} or lists
    # a name in a file leads to no other folder
    names = {name: re.sub(r"[/\\\0]|^\.+", "_", name) for name in lists}
    manifests = {f"{names[name]}.jsonl": lambda rows=rows: rows for name, rows in lists.items()}
    return ManifestConversion(file.parent, manifests)


def convert_documents(root: Path, paths: list[str]) -> ManifestConversion:
    """The manifest of JSON files of one document each."""

    def rows() -> Iterator[dict]:
        for path in sorted(path for path in paths if path.lower().endswith(".json")):
            found = json.loads((root / path).read_text(encoding="utf-8-sig"))
            yield from [found] if _is_document(found) else []

    return ManifestConversion(root, {"documents.jsonl": rows})


def describe_coco(file: Path, *, root: Path | None = None) -> str:
    """What to do about an object of images and annotations, which looks like a list of images."""
    head = _head(file)
    first, lists = _FIRST.match(head), {"images", "annotations"} & set(_LIST.findall(head))
    is_coco = first and first[1] in _COCO and lists and re.search(r'"(file_name|image_id)"\s*:', head)
    if not is_coco or _is_line(head):
        return ""
    what = "is one object of images and annotations (COCO), and no array of documents"
    if not _has_captions(file):
        return (
            f"{what}, and it has no captions: write a metadata.jsonl beside the images of lines "
            '{"file_name": "heron.jpg", "text": "..."}, with what you know of them as text'
        )
    found = convert_coco(file, root=root)
    return (
        f"{what}: write a {next(iter(found.manifests))} in the folder {str(found.base)!r}, where its paths hold, by "
        f"{convert_command(file, root=root)}{found.note}"
    )


def convert_coco(file: Path, *, root: Path | None = None) -> ManifestConversion:
    """The manifest of the captions of a COCO file."""
    names = re.findall(r'"file_name"\s*:\s*"([^"\\]{1,900})"', _head(file))
    media = MediaFiles().find_column([[name] for name in names[:50]], file, root=root)
    # a metadata.jsonl would hide what is written of the other splits
    out = manifest_name_for(file, media.base) if media.is_above(file) else "metadata.jsonl"
    out = f"{split_first_stem(file.stem)}.jsonl" if split_words(file.stem) else out

    def rows() -> Iterator[dict]:
        with open_decompressed(file) as stream:
            whole = json.loads(stream.read().decode("utf-8-sig"))
        paths = {image["id"]: media.path_of(image["file_name"]) for image in whole["images"]}
        for note in whole["annotations"]:
            if "caption" in note:
                yield {"file_name": paths[note["image_id"]], "text": note["caption"]}

    missing = "" if media.column is not None else " (its images were not found: give their folder in file_name)"
    return ManifestConversion(media.base, {out: rows}, missing)


def _is_line(head: str) -> bool:
    """Whether the first line is an object by itself that others follow, or a document alone."""
    line, _, rest = head.partition("\n")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and (bool(rest.strip()) or ("annotations" not in row and _is_document(row)))


def _has_captions(file: Path) -> bool:
    rest = b""
    with open_decompressed(file) as stream:
        for _ in range(_SCANNED_MIB):
            block = stream.read(2**20)
            if not block or b'"caption"' in rest + block:
                return bool(block)
            rest = block[-16:]
    return True
