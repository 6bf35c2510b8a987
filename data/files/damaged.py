"""How much of a compressed file its checksums cover, found before any of it is used.

A flipped bit seldom stops a decompressor: it gives wrong words up to the checksum, which is at the end (of a member in
gzip and bzip2, of the file in xz). So a file is read for its checksums first, at the speed of decompression (gzip some
300 MB/s of content, xz 100, bzip2 30) and once a process while it stays unchanged. Members before a damaged one are
given; of the damaged one nothing is. A file that was cut has no checksum behind the cut and is given up to there, since
a cut alters nothing. Files over MAX_BYTES are read once, and a note says so.
"""

import bz2
import functools
import lzma
import os
import zlib
from pathlib import Path

MAX_BYTES = 2**30
"""Size of a compressed file up to which its checksums are read first."""
_BLOCK = 2**18
_MAGICS = {
    b"\x1f\x8b": lambda: _GzipMember(),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}
_BROKEN = (zlib.error, lzma.LZMAError, OSError, ValueError)


class _GzipMember:
    """One member of gzip, as the decompressors of the other two are."""

    def __init__(self):
        self.rest, self.member = b"", zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        content = self.member.decompress(self.rest + data, max_length)
        self.rest = self.member.unconsumed_tail
        return content

    @property
    def needs_input(self) -> bool:
        return not self.rest

    @property
    def eof(self) -> bool:
        return self.member.eof

    @property
    def unused_data(self) -> bytes:
        return self.member.unused_data


def verified_bytes(file: Path, *, most: float = float("inf")) -> tuple[float, str]:
    """(bytes of its content that a file's checksums cover, why no more); inf and "" where nothing is damaged.

    most: bytes of content that are read; readers stop there too.
    """
    status = os.stat(file)
    if status.st_size > MAX_BYTES:
        return float("inf"), ""
    return _verified_bytes(str(file), most, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=4096)
def _verified_bytes(file: str, most: float, *_) -> tuple[float, str]:
    verified = held = 0
    with open(file, "rb") as stream:
        data = stream.read(_BLOCK)
        magic = next((magic for magic in _MAGICS if data.startswith(magic)), None)
        # what is no member behind the last (padding, a signature) altered nothing before it
        while magic is not None and data.startswith(magic) and held <= most:
            member = _MAGICS[magic]()
            try:
                while not member.eof and held <= most:
                    content = member.decompress(data, 4 * _BLOCK)
                    if not data and not content and member.needs_input and not member.eof:
                        # it was cut
                        return float("inf"), ""
                    held += len(content)
                    data = b"" if not member.needs_input or member.eof else stream.read(_BLOCK)
            except _BROKEN as error:
                return verified, str(error)[:100]
            verified, data = held, member.unused_data.lstrip(b"\0") or stream.read(_BLOCK).lstrip(b"\0")
            data += stream.read(_BLOCK) if len(data) < len(magic) else b""
    return float("inf"), ""


def unverified_note(file: Path) -> str:
    """A note on a compressed file that is read before its checksums; "" for any other."""
    if os.stat(file).st_size <= MAX_BYTES:
        return ""
    with open(file, "rb") as stream:
        head = stream.read(8)
    if not any(head.startswith(magic) for magic in _MAGICS):
        return ""
    return f"a compressed file over {MAX_BYTES / 2**30:g} GiB is read before its checksum: unpack it to be sure"
