"""Media inside containers: `shard.tar::name.jpg` and `file.parquet::12/image` open like files.

A plain path is returned as it is. The bytes of a member or cell are copied into a memory file (`/proc/self/fd/N` on
Linux, a temporary file elsewhere), since Pillow, libsndfile and PyAV open paths, seek, and expect the file to end with
the media. A tar is never unpacked: `tarfile` walks its headers once per process, and the index is kept while path, size
and time of change stay the same (the least recently used go above CACHED_MEMBERS). Random access to more members than
that walks headers again and again: build such a corpus with its media kept.
"""

import contextlib
import io
import os
import posixpath
import tarfile
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from brine.data.files.addresses import DocumentError, check_relative, split_address, untagged
from brine.data.files.compressed import compression_of
from brine.data.files.pointers import pointer_of
from brine.data.files.resolve import resolve_media

MAX_MEMBERS = 2_000_000  # members of one tar; a larger one is refused, since its index alone would be hundreds of MB
CACHED_MEMBERS = 500_000  # members that the indexes kept in one process may hold together
AGAIN = " (again"  # appended to the name of a refused member that has the name of an earlier one
_BROKEN = (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError)


@dataclass
class TarIndex:
    """What a tar holds."""

    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name -> (offset of the content, bytes), in the order of the file; of equal names the first."""
    refused: dict[str, str] = field(default_factory=dict)
    """Name -> reason, for members that are not regular files, leave the archive or end beyond the file."""
    cut: str = ""  # why the walk ended before the tar's end mark; empty for a whole tar


_indexes: OrderedDict[tuple, TarIndex] = OrderedDict()


@contextlib.contextmanager
def open_media(root: Path, path: str, *, max_file_mib: float) -> Iterator[Path]:
    """A readable path of the media file `path` below `root` (resolved), inside the context. Raises DocumentError."""
    address = split_address(path)
    if address is None:
        yield resolve_media(root, path, max_file_mib=max_file_mib)
        return
    check_relative(path)
    container, inside = address
    if container.lower().endswith(".tar"):
        content = read_member(root, container, inside, max_file_mib=max_file_mib)
    else:
        # pyarrow is optional
        from brine.data.formats.tables.cells import read_cell

        content = read_cell(resolve_container(root, container), inside, max_file_mib=max_file_mib)
    if problem := pointer_of(content):
        raise DocumentError(f"member {inside[:200]!r} {problem}, before it is packed")
    with _as_file(content, os.path.splitext(inside)[1]) as file:
        yield file


def resolve_container(root: Path, path: str) -> Path:
    """The real file of a container below `root`, of any size; `path` is its name in addresses. Raises DocumentError."""
    return resolve_media(root, untagged(path), max_file_mib=float("inf"))


def read_member(root: Path, container: str, name: str, *, max_file_mib: float) -> bytes:
    """Content of one member of the tar `container` below `root`. Raises DocumentError with the reason."""
    file = resolve_container(root, container)
    index = tar_index(file)
    name = posixpath.normpath(name)
    offset, size = index.members.get(name, (0, -1))
    content, problem = b"", ""
    if size < 0:
        problem = index.refused.get(name) or "is not in the tar" + (f", which {index.cut}" if index.cut else "")
    elif not size:
        problem = "is empty (0 bytes)"
    elif size > max_file_mib * 2**20:
        problem = f"has {size / 2**20:.0f} MiB, over max_file_mib={max_file_mib:g}"
    else:
        with open(file, "rb") as stream:
            stream.seek(offset)
            content = stream.read(size)
        problem = f"ends before its {size} bytes: the tar was cut while it was read" if len(content) < size else ""
    if problem:
        raise DocumentError(f"member {name[:200]!r} {problem}")
    return content


def tar_index(file: Path) -> TarIndex:
    """The index of a tar, from memory when the file is unchanged. Raises DocumentError for any other file."""
    status = os.stat(file)
    key = (str(file), status.st_size, status.st_mtime_ns)
    index = _indexes[key] = _indexes.pop(key, None) or _walk(file, status.st_size)
    while len(_indexes) > 1 and sum(len(kept.members) for kept in list(_indexes.values())) > CACHED_MEMBERS:
        _indexes.popitem(last=False)
    return index


class _Headers(io.FileIO):
    """A tar of which no header extension over 1 MiB is read, whatever size it claims."""

    def read(self, size: int = -1) -> bytes:
        return super().read(max(0, min(size, 2**20)))


def _walk(file: Path, end: int) -> TarIndex:
    """Index the members from header to header; `end` is the size of the file."""
    index, offset = TarIndex(), 0
    with _Headers(file) as stream:
        compression = compression_of(stream.read(tarfile.BLOCKSIZE))
        if compression is not None and "{name}" not in compression.unpack:
            remedy = f"unpack it by `{compression.unpack} FILE > NEW.tar`"
            raise DocumentError(f"tar {file.name!r} is compressed, which rules out random access: {remedy}")
        stream.seek(0)
        try:
            tar = tarfile.open(fileobj=stream, mode="r:", encoding="utf-8")  # noqa: SIM115 (`stream` is closed here)
        except _BROKEN as error:
            raise DocumentError(f"{file.name!r} is not a tar file ({error})") from None
        try:
            while (member := tar.next()) is not None:
                # a negative size would lead back to an earlier header
                if tar.offset <= offset:
                    raise ValueError(f"a member of {member.size} bytes")
                _add_member(index, member, end)
                # the index is all that is kept of a member
                tar.members, offset = [], tar.offset
                if len(index.members) + len(index.refused) > MAX_MEMBERS:
                    break
            index.cut = _end_reason(stream, tar.offset)
        except _BROKEN as error:
            index.cut = _end_reason(stream, tar.offset) or f"is cut or damaged at byte {offset} ({error})"
    if len(index.members) + len(index.refused) > MAX_MEMBERS:
        raise DocumentError(f"tar {file.name!r} has over {MAX_MEMBERS} members: split it into shards")
    return index


def _end_reason(stream: io.FileIO, offset: int) -> str:
    """Why no header can be read at `offset`; "" where the tar's end mark or a header is."""
    try:
        stream.seek(offset)
        tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:
        return ""
    except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, OSError):
        return "ends without the mark that closes a tar: it was cut"
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        return f"is damaged at byte {offset} ({error})"
    return ""


def _add_member(index: TarIndex, member: tarfile.TarInfo, end: int) -> None:
    offset, size, name = member.offset_data, member.size, posixpath.normpath(member.name)
    if member.isdir():
        return
    if not member.name or not member.name.isprintable() or len(member.name) > 900:
        index.refused[name] = "has an empty, overlong or unprintable name"
    elif name.startswith("/") or name.split("/")[0] == "..":
        index.refused[name] = "has a name that leaves the archive"
    elif member.issparse() or any(key.startswith("GNU.sparse") for key in member.pax_headers):
        index.refused[name] = "is a sparse file: pack it again without --sparse"
    elif not member.isreg():
        index.refused[name] = "is a link or device, not a regular file"
    elif offset + size > end:
        index.refused[name] = f"ends at byte {offset + size}, beyond the end of the tar at {end}: the tar was cut"
    elif name in index.members:
        # a third one has a name that differs, so that each has its record
        again = f"{name}{AGAIN}, at byte {offset})" if f"{name}{AGAIN})" in index.refused else f"{name}{AGAIN})"
        index.refused[again] = "has the name of an earlier member"
    else:
        index.members[name] = (offset, size)


@contextlib.contextmanager
def _as_file(content: bytes, suffix: str) -> Iterator[Path]:
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("media", os.MFD_CLOEXEC), "wb") as file:
            file.write(content)
            file.flush()
            yield Path(f"/proc/self/fd/{file.fileno()}")
        return
    with tempfile.TemporaryDirectory(prefix="brine-") as folder:
        path = Path(folder) / f"media{suffix if suffix[1:].isalnum() else ''}"
        path.write_bytes(content)
        yield path
