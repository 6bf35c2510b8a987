"""Whether what a compressed file holds may be believed, by the checksums in it, before any of it is used.

    sound_part(file)        (bytes of what it holds that its checksums vouch for, why no more), of gzip, bzip2 and xz
    not_vouched_for(file)   what to tell about a file too large to be read twice; "" for any other

A flipped bit seldom stops a decompressor: it gives wrong words up to the checksum, which stands at the end (of a member
in gzip and bzip2, of the file in xz as it is read here). So a file is read once for its checksums before it is read for
its documents: at the speed of decompression (gzip some 300 MB of what it holds a second, xz 100, bzip2 30), and once a
process while size, time and inode stay. Of a damaged file the members before the damaged one are given; of that
one nothing is, since wrong words cannot be told from right ones.

A file that was cut has no checksum behind the cut. What stands before it is given: a cut alters nothing, and a
download that broke off is the common case.

Files over MAX_BYTES are read once: there the documents before a damage have been given when the checksum tells, and
both are said, that it may be so before the first of them and that it was behind the last.
"""

import bz2
import functools
import lzma
import os
import zlib
from pathlib import Path

MAX_BYTES = 2**30
"""Size of a compressed file up to which its checksums are looked at first."""
_BLOCK = 2**18
_MAGICS = {
    b"\x1f\x8b": lambda: _Gzip(),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}
_BROKEN = (zlib.error, lzma.LZMAError, OSError, ValueError)


class _Gzip:
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


def sound_part(file: Path, *, most: float = float("inf")) -> tuple[float, str]:
    """(bytes of what the file holds that may be believed, why no more), inf and "" where all of it may.

    most: bytes of what it holds that are looked at; whoever reads stops there too.
    """
    status = os.stat(file)
    if status.st_size > MAX_BYTES:
        return float("inf"), ""
    return _sound_part(str(file), most, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=4096)
def _sound_part(file: str, most: float, *_) -> tuple[float, str]:
    sound = held = 0
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
                return sound, str(error)[:100]
            sound, data = held, member.unused_data.lstrip(b"\0") or stream.read(_BLOCK).lstrip(b"\0")
            data += stream.read(_BLOCK) if len(data) < len(magic) else b""
    return float("inf"), ""


def not_vouched_for(file: Path) -> str:
    """What to tell about a compressed file whose checksums come too late; "" for any other."""
    if os.stat(file).st_size <= MAX_BYTES:
        return ""
    with open(file, "rb") as stream:
        head = stream.read(8)
    if not any(head.startswith(magic) for magic in _MAGICS):
        return ""
    return f"a compressed file over {MAX_BYTES / 2**30:g} GiB is read before its checksum: unpack it to be sure"
