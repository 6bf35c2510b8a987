"""Media inside containers: `shard.tar::name.jpg` and `file.parquet::12/image` open like files.

    open_media(root, path, max_file_mib=...)   a context manager; gives a Path that any library can read
    tar_index(file)                            every member of a tar: name -> (offset, bytes), by walking its headers
    read_member(root, container, name, ...)    the bytes of one member

A plain path is handed on as it is. The bytes of a member are copied into a memory file (`/proc/self/fd/N`, Linux;
a temporary file elsewhere), since Pillow, libsndfile and PyAV open paths, seek, and expect the file to end
where the medium does. It is gone when the context closes. Opening a small member costs about 0.1 ms in all.

A tar is never unpacked. Its headers are walked once per process, by seeking over the contents, and the index is kept
while its path, size and time of change stay the same; the least used go when together they hold over 500,000 members
(some 100 MB). Random order over more members than that walks headers again and again: encode such a corpus with its
media kept, or read it shard by shard.

Nothing is believed: links, devices and sparse files inside a tar are refused, so are names that climb out; a member
that ends beyond the end of the file belongs to a tar that was cut. A compressed tar has no random access and is
refused with the remedy. Names of two members that are equal mean the first. Cells of tables are read by
`data.formats.cells`, which alone needs pyarrow.
"""

import contextlib
import os
import posixpath
import tarfile
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data.document import DocumentError, check_relative, resolve_media, split_address, untagged
from data.pointers import pointer_of

MAX_MEMBERS = 2_000_000
"""Members of one tar; a larger one is refused, since its index alone would be hundreds of MB."""
CACHED_MEMBERS = 500_000
"""Members that the indexes kept in one process may hold together."""
AGAIN = " (again"
"""What stands behind the name of a refused member that has the name of an earlier one."""
_MAX_EXTENSION = 2**20
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TarIndex:
    """What a tar holds."""

    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name -> (offset of the content, bytes), in the order of the file."""
    refused: dict[str, str] = field(default_factory=dict)
    """Name -> reason, for members that are no regular files or lie beyond the end of the file."""
    cut: str = ""
    """Why the walk ended before the tar's end mark; empty for a whole tar."""


_indexes: OrderedDict[tuple, TarIndex] = OrderedDict()


@contextlib.contextmanager
def open_media(root: Path, path: str, *, max_file_mib: float) -> Iterator[Path]:
    """A readable path of the medium at `path` below `root` (resolved), valid inside the context.

    Raises DocumentError with the reason when there is no such file or member, or it may not be opened.
    """
    address = split_address(path)
    if address is None:
        yield resolve_media(root, path, max_file_mib=max_file_mib)
        return
    check_relative(path)
    container, inside = address
    if container.lower().endswith(".tar"):
        content = read_member(root, container, inside, max_file_mib=max_file_mib)
    else:
        from data.formats.cells import read_cell

        content = read_cell(resolve_container(root, container), inside, max_file_mib=max_file_mib)
    if problem := pointer_of(content):
        raise DocumentError(f"member {inside[:200]!r} {problem}, before it is packed")
    with _as_file(content, os.path.splitext(inside)[1]) as file:
        yield file


def resolve_container(root: Path, path: str) -> Path:
    """The real file of a container below `root`, of any size. Raises DocumentError like `resolve_media`.

    `path` is the container's name in addresses (`data.document.tagged`).
    """
    return resolve_media(root, untagged(path), max_file_mib=float("inf"))


def read_member(root: Path, container: str, name: str, *, max_file_mib: float) -> bytes:
    """Content of one member of the tar `container`, which lies below `root`. Raises DocumentError with the reason."""
    file = resolve_container(root, container)
    index = tar_index(file)
    name = posixpath.normpath(name)
    if name not in index.members:
        reason = index.refused.get(name) or ("is not in the tar" + (f", which {index.cut}" if index.cut else ""))
        raise DocumentError(f"member {name[:200]!r} {reason}")
    offset, size = index.members[name]
    if not size:
        raise DocumentError(f"member {name[:200]!r} is empty (0 bytes)")
    if size > max_file_mib * 2**20:
        raise DocumentError(f"member {name[:200]!r} has {size / 2**20:.0f} MiB, over max_file_mib={max_file_mib:g}")
    with open(file, "rb") as stream:
        stream.seek(offset)
        content = stream.read(size)
    if len(content) < size:
        raise DocumentError(f"member {name[:200]!r} ends before its {size} bytes: the tar was cut while it was read")
    return content


def tar_index(file: Path) -> TarIndex:
    """The index of a tar, from this process's memory when the file is unchanged.

    Raises DocumentError for a compressed tar and for a file that is no tar.
    """
    status = os.stat(file)
    key = (str(file), status.st_size, status.st_mtime_ns)
    if key in _indexes:
        _indexes.move_to_end(key)
        return _indexes[key]
    with open(file, "rb") as stream:
        index = _walk(stream, status.st_size, file.name)
    _indexes[key] = index
    while len(_indexes) > 1 and sum(len(kept.members) for kept in _indexes.values()) > CACHED_MEMBERS:
        _indexes.popitem(last=False)
    return index


def _walk(stream: BinaryIO, end: int, label: str) -> TarIndex:
    """Index the members from header to header."""
    head = stream.read(_BLOCK)
    for magic, program in _COMPRESSED.items():
        if head.startswith(magic):
            remedy = f"unpack it by `{program} -dc FILE > NEW.tar`"
            raise DocumentError(f"tar {label!r} is compressed, which rules out random access: {remedy}")
    index = TarIndex()
    place, extra, cut = 0, {}, "ends without the mark that closes a tar: it was cut"
    while len(head) == _BLOCK:
        try:
            header = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:
            cut = ""
            break
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            if not place:
                raise DocumentError(f"{label!r} is no tar file ({error})") from None
            cut = f"is damaged at byte {place} ({error})"
            break
        size = header.size if header.type in _EXTENSIONS else _size(header, extra)
        if not 0 <= size < 2**62:
            cut = f"is damaged at byte {place} (a member of {size} bytes)"
            break
        content = place + _BLOCK + _sparse_map_bytes(stream, head, header)
        if header.type in _EXTENSIONS:
            if size > _MAX_EXTENSION:
                cut = f"is damaged at byte {place} (a header extension of {size} bytes)"
                break
            extra |= _extension(header.type, stream.read(size))
        # other extension headers speak of the whole archive, or of nothing that a reader needs
        elif header.type != tarfile.XGLTYPE:
            _enter(index, header, extra, content, size, end)
            extra = {}
        if len(index.members) + len(index.refused) > MAX_MEMBERS:
            raise DocumentError(f"tar {label!r} has over {MAX_MEMBERS} members: split it into shards")
        place = content + (size + _BLOCK - 1) // _BLOCK * _BLOCK if _has_content(header) else content
        if place > end:
            break
        stream.seek(place)
        head = stream.read(_BLOCK)
    return TarIndex(index.members, index.refused, cut)


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with `head` (512 bytes or more) is a tar, of any kind, by its first header's sum.

    The mark of newer kinds alone would miss the tars of old programs, and what is empty but for zeros is no tar.
    """
    try:
        return bool(tarfile.TarInfo.frombuf(head[:_BLOCK], "utf-8", "surrogateescape").name)
    except (tarfile.HeaderError, ValueError, OverflowError):
        return False


def _has_content(header: tarfile.TarInfo) -> bool:
    return not (header.islnk() or header.issym() or header.isdev() or header.isdir())


def _sparse_map_bytes(stream: BinaryIO, head: bytes, header: tarfile.TarInfo) -> int:
    """Bytes of further header blocks that an old GNU sparse member has between its header and its content."""
    blocks, more = 0, header.type == tarfile.GNUTYPE_SPARSE and head[482] != 0
    while more:
        block = stream.read(_BLOCK)
        blocks += 1
        more = len(block) == _BLOCK and block[504] != 0
    return blocks * _BLOCK


def _size(header: tarfile.TarInfo, extra: dict[str, str]) -> int:
    if "size" not in extra:
        return header.size
    return int(extra["size"]) if extra["size"].isascii() and extra["size"].isdigit() else -1


def _extension(kind: bytes, content: bytes) -> dict[str, str]:
    """Fields that a PAX or GNU extension header gives the member after it."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    if kind == tarfile.GNUTYPE_LONGLINK:
        return {}
    fields, start = {}, 0
    # each record is "<its own length> <key>=<value>\n"
    while (space := content.find(b" ", start, start + 8)) > 0 and content[start:space].isdigit():
        length = int(content[start:space])
        key, mark, value = content[space + 1 : start + length - 1].partition(b"=")
        if not mark or length < 5:
            break
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        start += length
    return fields


def _enter(index: TarIndex, header: tarfile.TarInfo, extra: dict[str, str], offset: int, size: int, end: int) -> None:
    """Take a member into the index, or its reason; folders are passed over."""
    name = extra.get("path", header.name)
    normal = posixpath.normpath(name)
    reason = ""
    if header.isdir():
        return
    if not name or not name.isprintable() or len(name) > 900:
        reason = "has an empty, overlong or unprintable name"
    elif name.startswith("/") or normal.split("/")[0] == "..":
        reason = "has a name that leaves the archive"
    elif header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in extra):
        reason = "is a sparse file: pack it again without --sparse"
    elif not header.isreg():
        reason = "is a link or device, not a regular file"
    elif offset + size > end:
        reason = f"ends at byte {offset + size}, beyond the end of the tar at {end}: the tar was cut"
    elif normal in index.members:
        again = f"{normal}{AGAIN})"
        # a third one has a name of its own, so that each has its record
        normal = f"{normal}{AGAIN}, at byte {offset})" if again in index.refused else again
        reason = "has the name of an earlier member"
    if reason:
        index.refused[normal] = reason
    else:
        index.members[normal] = (offset, size)


@contextlib.contextmanager
def _as_file(content: bytes, suffix: str) -> Iterator[Path]:
    """A path that reads as `content`."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("medium", os.MFD_CLOEXEC)
        with open(number, "wb", buffering=0) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            yield Path(f"/proc/self/fd/{number}")
        return
    with tempfile.TemporaryDirectory(prefix="brine-") as folder:
        path = Path(folder) / f"medium{suffix if suffix[1:].isalnum() else ''}"
        path.write_bytes(content)
        yield path
