"""Manifests in, documents out; whatever cannot be used comes out too, with the reason.

`read_manifest` reads one JSON object a line and tells two forms apart line by line:

    content parts      {"id", "content": [...], ...}        the native form, see `data.document`
    captioned media    {"id", "kind", "path", "text", ...}  one medium, and the words that belong to it

A captioned document's `kind` is taken from its folder (`speech/fsdd/x.flac` is "fsdd"), so that sources are
reported apart; where the top folder is not named after the line's own kind, that kind is added
(`docs/book/media/x.jpg` of kind "image" is "book-image"). The medium comes first and the words follow, as the target.
`doc` lines are Markdown pages whose picture links become parts, `text` lines are the file itself. A label "true" or
"false" is added to the caption: without it a picture with a false statement beside it would teach the falsehood.

Nothing is decoded here and no media file is opened. Lines are read with a bound, so that a line of a gigabyte costs its
bound in memory; each bad line gives one `Quarantined` that names its number.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.document import (
    SPLITS,
    Audio,
    Document,
    DocumentError,
    Image,
    Quarantined,
    Text,
    Video,
    check_relative,
    parse_document,
    resolve_media,
)
from data.markdown import markdown_parts

_CAPTIONED = {"image": Image, "speech": Audio, "sound": Audio, "audio": Audio, "video": Video}


def read_manifest(
    path: str | Path, *, max_line_mib: float = 16.0, max_file_mib: float = 256.0
) -> Iterator[Document | Quarantined]:
    """Documents of a manifest in file order, and a `Quarantined` for each line that gives none.

    Lines of split "decode" (files for decoder tests) and empty lines are passed over. Raises ValueError when the
    manifest itself cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise ValueError(f"manifest {path} {what}: give a JSONL file with one document a line")
    root = path.resolve().parent
    seen: set[str] = set()
    for number, line in enumerate(_bounded_lines(path, int(max_line_mib * 2**20)), start=1):
        if line is not None and not line.strip():
            continue
        name, file = f"line {number}", ""
        try:
            if line is None:
                raise DocumentError(f"longer than max_line_mib={max_line_mib:g}")
            fields = _parse_json(line)
            name, file = _describe(fields, name)
            document = parse_document(fields) if "content" in fields else _captioned(fields, root, max_file_mib)
            if document is None:
                continue
            if document.id in seen:
                raise DocumentError(f"id {document.id!r} was used by an earlier line")
        except DocumentError as error:
            yield Quarantined(name, file, f"line {number}: {error}", line=number)
            continue
        seen.add(document.id)
        yield document


def texts_of(documents: Iterable[Document | Quarantined], *, split: str = "train") -> Iterator[str]:
    """The text parts of one split, for training a tokenizer on nothing else."""
    for document in documents:
        if isinstance(document, Document) and document.split == split:
            for part in document.parts:
                if isinstance(part, Text):
                    yield part.text


def _bounded_lines(path: Path, limit: int) -> Iterator[bytes | None]:
    """Lines of a file; None for one longer than `limit` bytes, which is skipped without being held in memory."""
    with open(path, "rb") as file:
        while line := file.readline(limit + 1):
            if len(line) <= limit or line.endswith(b"\n"):
                yield line
                continue
            while (rest := file.readline(2**20)) and not rest.endswith(b"\n"):
                pass
            yield None


def _parse_json(line: bytes) -> dict:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise DocumentError("JSON nested too deeply") from None
    except ValueError as error:
        # the reader's own message quotes nothing of the line, so it is safe and short
        raise DocumentError(f"not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise DocumentError(f"a document must be a JSON object, not {type(fields).__name__}")
    return fields


def _describe(fields: dict, name: str) -> tuple[str, str]:
    """Id and file for a quarantine record, before anything is checked."""
    if isinstance(fields.get("id"), str) and fields["id"]:
        name = fields["id"][:200]
    file = fields.get("path")
    if isinstance(fields.get("content"), list):
        media = [
            part.get(part["type"])
            for part in fields["content"]
            if isinstance(part, dict) and part.get("type") in ("image", "audio", "video")
        ]
        file = media[0] if media else None
    return name, file[:500] if isinstance(file, str) else ""


def _captioned(fields: dict, root: Path, max_file_mib: float) -> Document | None:
    """A document from a captioned-media line, or None when the line is not meant for training."""
    for name in ("id", "kind", "path"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            wrong = "is missing or empty" if fields.get(name) in (None, "") else "must be of type str"
            raise DocumentError(f"field {name!r} {wrong} (a line needs 'content', or 'kind' and 'path')")
    split, kind, path = fields.get("split", "train"), fields["kind"], check_relative(fields["path"])
    if split == "decode":
        return None
    if split not in SPLITS:
        raise DocumentError(f"field 'split' must be one of {', '.join(SPLITS)}, not {split!r}"[:200])
    text = fields.get("text", "")
    if not isinstance(text, str):
        raise DocumentError(f"field 'text' must be of type str, not {type(text).__name__}")
    if fields.get("label") in ("true", "false"):
        text = f"{text} {fields['label']}"
    if kind == "doc":
        parts = markdown_parts(_read_text(root, path, max_file_mib), path=path)
    elif kind == "text":
        parts = (Text(_read_text(root, path, max_file_mib)),)
    elif kind in _CAPTIONED:
        if not text:
            raise DocumentError("field 'text' is empty: a medium needs words to be learnt from")
        parts = (_CAPTIONED[kind](path), Text(text))
    else:
        raise DocumentError(f"field 'kind' is {kind[:40]!r}, none of doc, text, {', '.join(_CAPTIONED)}")
    document = Document(
        id=fields["id"],
        parts=parts,
        kind=_folder_kind(path, kind),
        split=split,
        source=str(fields.get("source", "")).split("@")[0][:200],
    )
    # through the native form once, so that both forms pass the same checks
    return parse_document(document.to_json())


def _folder_kind(path: str, kind: str) -> str:
    folders = os.path.normpath(path).split(os.sep)[:-1]
    if not folders:
        return kind
    name = folders[1] if len(folders) > 1 else folders[0]
    return name if folders[0] == kind else f"{name}-{kind}"


def _read_text(root: Path, path: str, max_file_mib: float) -> str:
    content = resolve_media(root, path, max_file_mib=max_file_mib).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"file {path!r} is not UTF-8 (byte {error.start})") from None
    return re.sub("\r\n?", "\n", text)
