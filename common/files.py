"""Files written completely or not at all, JSON, and digests by content.

A run may be killed at any moment, so new content goes to a temporary neighbour, is flushed, and is renamed; the folder
is flushed too. `digest` names a configuration by its content; `differences` compares one with an earlier one.
`full_disk_number` knows a full disk in whatever words a library tells it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from brine.common.config_fields import affects_result

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room, a quota that is used up, a file that may not grow."""
_NUMBERS = "|".join(map(str, FULL_DISK))
_IN_WORDS = re.compile(rf"\[Errno ({_NUMBERS})\]|\(os error ({_NUMBERS})\)")
"""As Python and as Rust say it."""


def to_plain(value: Any) -> Any:
    """Plain JSON types for dataclasses, mappings, sequences, sets and paths; raises TypeError for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of `value`, anything that `to_plain` takes."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def deciding(value: Any) -> Any:
    """As `to_plain`, without the fields of dataclasses that do not affect the result."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if affects_result(field, value)]
        return {field.name: deciding(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): deciding(item) for key, item in value.items()}
    return to_plain(value)


def differences(old: Any, new: Any, *, name: str = "") -> list[str]:
    """What changed from a plain value to another, or to dataclasses, a line each: `learning_rate: 0.001 -> 0.003`.

    Of a dataclass only fields that affect the result are compared; one that `old` lacks is new, and equal if it has its
    default.
    """
    fields: dict[str, dataclasses.Field] = {}
    known: Mapping[str, Any] = {}
    if dataclasses.is_dataclass(new):
        fields = {field.name: field for field in dataclasses.fields(new)}
        known = {key: getattr(new, key) for key, field in fields.items() if affects_result(field, new)}
    elif isinstance(new, Mapping):
        known = new
    if not isinstance(old, dict) or not (fields or isinstance(new, Mapping)):
        new = deciding(new)
        if _are_records(old) and _are_records(new) and len(old) == len(new):
            # item by item: of two long lists only the beginnings would be seen
            pairs = enumerate(zip(old, new, strict=True))
            return [line for index, pair in pairs for line in differences(*pair, name=f"{name or 'value'}[{index}]")]
        return [] if old == new else [f"{name or 'value'}: {_short(old)} -> {_short(new)}"]
    lines = []
    for key in sorted(set(old) | set(known)):
        inner = f"{name}.{key}" if name else key
        if key not in known:
            lines += [] if key in fields else [f"{inner}: gone, was {_short(old[key])}"]
        elif key in old:
            lines += differences(old[key], known[key], name=inner)
        elif key not in fields or to_plain(known[key]) != _default(fields[key]):
            lines.append(f"{inner}: new, {_short(deciding(known[key]))}")
    return lines


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return to_plain(field.default_factory())
    return dataclasses.MISSING if field.default is dataclasses.MISSING else to_plain(field.default)


@contextlib.contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """A file open for writing ("w": UTF-8, or "wb") that replaces `path`, flushed, if the block ends without error."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, flushed to the disk."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(to_plain(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file, flushed, whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    shutil.copyfile(source, temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, target)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link to a file, or a copy where its file system cannot link; whole or absent."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), temporary)
    except OSError:
        copy_whole(source, target)
        return
    os.replace(temporary, target)
    # renaming one link of a file over another does nothing
    temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any | None:
    """The value in a JSON file, or None where the file is absent or incomplete."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def finite(value: Any) -> Any:
    """The same plain JSON value, NaN and infinity replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value


def parse_object(line: str) -> dict[str, Any] | None:
    """The object on a line of a JSON-lines file; None for anything else."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def to_json_line(value: Mapping[str, Any]) -> str:
    """A line of a JSON-lines file, with its line break. Raises ValueError for a number that is not finite."""
    return json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False) + "\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; other lines are skipped, a missing file gives none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return [value for value in map(parse_object, file) if value is not None]
    except OSError:
        return []


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, where the system can open one."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def full_disk_number(error: BaseException) -> int | None:
    """The errno of a full disk that an error, or one that caused it, has or quotes; None where it is another error.

    Libraries that write in threads or ranks (checkpoints), or in Rust (safetensors), leave only the text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL_DISK:
            return seen.errno
        if found := _IN_WORDS.search(str(seen)):
            return int(found[1] or found[2])
        seen = seen.__cause__
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
