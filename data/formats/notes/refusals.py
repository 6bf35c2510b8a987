"""What to do about a file that holds no documents as it stands, looked at by its first bytes or first object.

Each function answers with the end of a sentence that begins with the file's name, or "" for a file that it does not
know: one media file or text alone, data of other programs, JSON of no known form, one object around lists, COCO.
"""

import json
import os
import re
import shlex
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
from brine.data.formats.tables.word_tables import find_media_column

_HEAD_BYTES = 2**16
_SCANNED_MIB = 512
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
_DOCUMENTS = {*CONVERSATIONS, *(name for pair in PAIRS for name in pair), "content", "chosen", "rejected", "tools"}
"""Fields of one document that hold lists."""
_COCO = ("info", "licenses", "images", "annotations", "categories")


def describe_single_file(file: Path) -> str:
    """What to do about a media file or text that is given alone; "" for any other file."""
    with open(file, "rb") as stream:
        name, medium, remedy = identify_format(stream.read(1024)) or ("", None, "")
    if medium is not None:
        return (
            f"is {name}, one media file without words: put {file.stem}.txt beside it and give the folder, or write a "
            f'manifest of lines {{"file_name": {json.dumps(file.name)}, "text": "..."}} and give that'
        )
    if name:
        return f"is {name}: {remedy}"
    is_text = extension_of(file.name) in ("txt", "text", "md", "markdown", "rst")
    text = 'is one text: give the folder that it lies in, or write a manifest of lines {"text": "..."}'
    return describe_foreign_file(file.name) or (text if is_text else "")


def describe_foreign_file(name: str) -> str:
    """What a file of another program's data is, by its ending, and what to do; "" for any other."""
    base = name.rsplit("/", 1)[-1]
    # `x.tfrecord-00000-of-00002`
    is_shard = re.search(r"\.tfrecords?[-.]", base)
    what = _FOREIGN_ENDINGS.get(extension_of(name)) or ("a TFRecord file" if is_shard else "")
    if not what or base.lower() == "thumbs.db":
        return ""
    return f"is {what}, and is not read: write its rows as JSON lines or Parquet, or its samples into a tar"


def describe_unknown_json(file: Path, *, root: Path | None = None) -> str:
    """What a JSON file of no known form holds, and what to do; "" for any other. root: the folder of the media."""
    try:
        head = _head(file)
    except OSError:
        return ""
    if head[:1] not in ("{", "["):
        return ""
    if why := _coco(file, head, root) or _wrapped(file, head):
        return why
    where = "entry" if is_array(file) or is_spread(file) else "line"
    _, first = next(json_items(file, max_line_mib=16.0), (0, None))
    if first is None:
        return ""
    if isinstance(first, DocumentError):
        return f"has a first {where} that is set aside: {first}"
    if _is_document(first):
        return _one_document(file, head)
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
    if isinstance(first, DocumentError):
        return f"has a first {'entry' if is_array(file) else 'line'} that is set aside (at {number}): {first}"
    return ""


def describe_coco(file: Path) -> str:
    """What to do about an object of images and annotations, which looks like a list of images; "" for others."""
    return _coco(file, _head(file))


def describe_wrapped_json(file: Path) -> str:
    """What to do about one object that holds documents of a known form in lists; "" for any other file."""
    head = _head(file)
    why = _wrapped(file, head) if head[:1] == "{" else ""
    return why if why and _opens_documents(head, next(iter(_outer_lists(head).values()))) else ""


def _head(file: Path) -> str:
    with open_decompressed(file) as stream:
        return stream.read(_HEAD_BYTES).decode("utf-8-sig", "replace").lstrip()


def _is_document(row) -> bool:
    return isinstance(row, dict) and detect_record_format(folded(row)) is not None


def _python(program: str, out: str) -> str:
    return f"`python -c {shlex.quote(program)} > {shlex.quote(out)}`"


def _one_document(file: Path, head: str) -> str:
    """What to do about a file of one document, of which there may be many."""
    if not head.startswith("{") or not file.name.lower().endswith(".json"):
        return ""
    program = (
        'import glob, json; [print(json.dumps(json.load(open(name, encoding="utf-8")))) for name in '
        'sorted(glob.glob("**/*.json", recursive=True))]'
    )
    return (
        "is one document, and no media file lies beside it: write all of them as lines of one file by "
        f"{_python(program, 'documents.jsonl')}"
    )


def _outer_lists(head: str) -> dict[str, int]:
    """Name -> offset of each list of objects that an object holds itself, as far as its beginning goes."""
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


def _opens_documents(head: str, offset: int) -> bool:
    """Whether the first row of a list is of a known form, or longer than what was looked at."""
    try:
        row, _ = json.JSONDecoder().raw_decode(head, head.index("{", offset))
    except (ValueError, RecursionError):
        return True
    return _is_document(row)


def _wrapped(file: Path, head: str) -> str:
    """What to do about one object that holds the documents in lists; "" for any other file."""
    if file.name.lower().partition(".json")[2][:1] == "l":
        return ""
    lists = _outer_lists(head)
    # of several objects, each is a document
    if not _FIRST.match(head) or not lists or re.search(r"\}\s*\n\s*\{", head) or not _DOCUMENTS.isdisjoint(lists):
        return ""
    name, offset = next(iter(lists.items()))
    return "" if head[:offset].count("{") > 1 else _in_lists(file, name)


def _in_lists(file: Path, name: str) -> str:
    program = (
        f'import json; [print(json.dumps(row)) for row in json.load(open({json.dumps(file.name)}, encoding="utf-8"))'
        f"[{json.dumps(name)}]]"
    )
    return (
        f"is one object with a list of objects under {name!r}, and no array of documents: write each such list into a "
        f"file of its own by `python -c {shlex.quote(program)} > {shlex.quote(name)}.jsonl`"
    )


def _is_line(head: str) -> bool:
    """Whether the first line is an object by itself that others follow, or a document of its own."""
    line, _, rest = head.partition("\n")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and (bool(rest.strip()) or ("annotations" not in row and _is_document(row)))


def _coco(file: Path, head: str, root: Path | None = None) -> str:
    first, lists = _FIRST.match(head), {"images", "annotations"} & set(_LIST.findall(head))
    is_coco = first and first[1] in _COCO and lists and re.search(r'"(file_name|image_id)"\s*:', head)
    if not is_coco or _is_line(head):
        return ""
    what = "is one object of images and annotations (COCO), and no array of documents"
    if not _has_captions(file):
        return (
            f"{what}, and it has no captions: write a metadata.jsonl beside the images of lines "
            '{"file_name": "heron.jpg", "text": "..."}, with what you know of them in words'
        )
    names = re.findall(r'"file_name"\s*:\s*"([^"\\]{1,900})"', head)
    column = find_media_column([[name] for name in names[:50]], file, root=root)
    shown = os.path.relpath(file.resolve(), column.base)
    path = column.around('i["file_name"]')
    program = (
        f"import json{', pathlib' if column.by_name else ''}; {column.names}"
        f'd = json.load(open({json.dumps(shown, ensure_ascii=False)}, encoding="utf-8")); '
        f'n = {{i["id"]: {path} for i in d["images"]}}; [print(json.dumps({{"file_name": '
        'n[a["image_id"]], "text": a["caption"]})) for a in d["annotations"] if "caption" in a]'
    )
    # a metadata.jsonl would hide what is written of the other splits
    is_one = not column.is_above(file)
    out = "metadata.jsonl" if is_one else manifest_name_for(file, column.base)
    out = f"{split_first_stem(file.stem)}.jsonl" if split_words(file.stem) else out
    missing = "" if column.column is not None else " (its images were not found: give their folder in file_name)"
    return (
        f"{what}: write a {out} in the folder {str(column.base)!r}, where its paths hold, by {_python(program, out)}"
        f"{missing}"
    )


def _has_captions(file: Path) -> bool:
    """Whether the word stands in a file, as far as it is looked at."""
    rest = b""
    with open_decompressed(file) as stream:
        for _ in range(_SCANNED_MIB):
            block = stream.read(2**20)
            if not block or b'"caption"' in rest + block:
                return bool(block)
            rest = block[-16:]
    return True
