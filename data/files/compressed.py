"""Compressed files: which are read, how far their checksums reach, and the command that unpacks the others.

JSON in gzip, bzip2 or xz, under any name, is read as a stream by the standard library, to MAX_EXPANSION_RATIO times
the file's size (a text compresses 5 to 50 times). This Python has no zstd, lz4 or LZW; a compressed tar or table has no
random access; ZIP, 7z and RAR are archives: these are named with the command.

A flipped bit seldom stops a decompressor: it gives wrong words up to the checksum at the end of a member (of the file
in xz). So `checked` streams verify the checksums first, once per process (gzip 300 MB/s, xz 100, bzip2 30), and
end before the first damaged member. A cut alters nothing: such a file is given up to the cut.
"""

import bz2
import functools
import gzip
import io
import lzma
import os
import re
import shlex
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from brine.data.files.signatures import is_tar

MAX_EXPANSION_RATIO = 250  # how many times its own size a compressed file may expand to, above the first 64 MiB
_FREE_BYTES = 2**26
MAX_CHECKED_BYTES = 2**30
"""Size of a compressed file up to which its checksums are verified first; a note names larger ones."""
_BLOCK = 2**18
_BROKEN = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)


class Compression(NamedTuple):
    """A way of compressing."""

    name: str
    magic: bytes
    extensions: tuple[str, ...]
    unpack: str
    """Command to which the file's name is added; one with {out} makes a folder, any other writes to its output."""


_COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b", (".gz", ".tgz"), "gzip -dc"),
    Compression("bzip2", b"BZh", (".bz2", ".tbz2", ".tbz"), "bzip2 -dc"),
    Compression("xz", b"\xfd7zXZ\0", (".xz", ".txz"), "xz -dc"),
    Compression("zstd", b"\x28\xb5\x2f\xfd", (".zst", ".tzst", ".zstd"), "zstd -dc"),
    Compression("lz4", b"\x04\x22\x4d\x18", (".lz4",), "lz4 -dc"),
    Compression("LZW", b"\x1f\x9d", (".z",), "gzip -dc"),
    Compression("lzip", b"LZIP", (".lz",), "lzip -dc"),
    Compression("LZMA", b"\x5d\0\0", (".lzma",), "xz --format=lzma -dc"),
    Compression("Snappy", b"\xff\x06\0\0sNaPpY", (".sz",), "snzip -dc"),
    Compression("ZIP", b"PK\x03\x04", (".zip",), "unzip {name} -d {out}"),
    Compression("7z", b"7z\xbc\xaf\x27\x1c", (".7z",), "7z x {name} -o{out}"),
    Compression("RAR", b"Rar!\x1a\x07", (".rar",), "unrar x {name} {out}/"),
    # brotli has no magic bytes: its extension counts where the content is not text
    Compression("brotli", b"\0brotli", (".br",), "brotli -dc"),
)
STREAMED_EXTENSIONS = (".gz", ".bz2", ".xz")  # extensions of compressed JSON that is read as it is
_STREAMS = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
# the parts that `split`, zip -s, 7z -v and rar -v leave
_TAIL = r"(?P<part>part[._-]?)?(?P<tail>(?(part)(?:[a-z]{2,3}|\d{1,4})|(?:%s)))(?P<of>[._-]?of[._-]?\d+)?"
_PARTS = (
    r"(?P<whole>.+?\.(?:(?:[a-z]+\.)?(?:gz|zst|xz|bz2|lz4)|tar|tgz|tbz2?|txz|tzst|zip|7z|rar|parquet|arrow))[._-]?"
    + _TAIL % r"a[a-z]|aa[a-z]|\d{2,5}",
    # lines may have a year or a language after them (x.json.2023, x.json.ar)
    r"(?P<whole>.+?\.(?:jsonl?|ndjson|jsonlines|jl|csv|tsv))[._-]" + _TAIL % r"a[^fmrsz\W\d]|aa[a-z]|0\d{1,4}",
)
_OFFICE = {
    (".xlsx", ".xlsm", ".ods"): "is a spreadsheet: save it as CSV, from which a metadata.jsonl can be written",
    (".docx", ".odt", ".pptx", ".odp", ".epub"): "is an office document: take its text (`pandoc FILE -o FILE.md`)",
    (".npz", ".pt", ".pth", ".ckpt", ".keras"): "holds arrays of numbers, which are not read",
}
"""Extensions of files that are ZIP archives inside -> what to do about them."""
_INNER = (".tar", ".jsonl", ".json", ".ndjson", ".jsonlines", ".jl", ".parquet", ".arrow")


def compression_of(head: bytes) -> Compression | None:
    """The compression of a file that begins with `head`; None for a plain file."""
    return next((known for known in _COMPRESSIONS if head.startswith(known.magic)), None)


def detect_compression(file: Path) -> Compression | None:
    """The compression of a file; None for a plain file."""
    with open(file, "rb") as stream:
        head = stream.read(64)
    if file.name.lower().endswith(".br") and not head.isascii():
        return _COMPRESSIONS[-1]
    return compression_of(head)


def open_decompressed(file: Path, *, checked: bool = False) -> BinaryIO:
    """A file's content as a binary stream: decompressed from gzip, bzip2 and xz, any other file as it is.

    It ends where the data are broken or expand beyond MAX_EXPANSION_RATIO (`decompression_error` tells why), and with
    `checked` before what its checksums do not cover.
    """
    with open(file, "rb") as stream:
        compression = compression_of(stream.read(8))
        size = stream.seek(0, io.SEEK_END)
    if compression is None or compression.name not in _STREAMS:
        return open(file, "rb")
    most = _FREE_BYTES + MAX_EXPANSION_RATIO * size
    verified, why = verified_bytes(file, most=most) if checked else (float("inf"), "")
    stream = _STREAMS[compression.name](file, "rb")
    return io.BufferedReader(_BoundedStream(stream, compression.name, most, verified, why), _BLOCK)


def head_of(file: Path, size: int = 2**16, *, decompressed: bool = False) -> bytes:
    """The first bytes of a file; none of one that cannot be read."""
    try:
        with (open_decompressed if decompressed else lambda path: open(path, "rb"))(file) as stream:
            return stream.read(size)
    except OSError:
        return b""


def decompression_error(stream: BinaryIO) -> str:
    """Why a stream of `open_decompressed` ended too early; empty when it did not."""
    return getattr(getattr(stream, "raw", None), "problem", "")


class _BoundedStream(io.RawIOBase):
    """A decompressed stream that ends, with its problem noted, where it is broken or grows too long."""

    def __init__(self, stream: BinaryIO, name: str, most: int, verified: float, why: str):
        self.stream, self.name, self.left, self.verified, self.why = stream, name, most, verified, why
        self.problem = ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        content = b""
        if self.verified <= 0:
            self.problem = (
                f"the {self.name} data are damaged ({self.why}): fetch the file again, since from here on wrong words "
                "cannot be told from right ones"
            )
        if not self.problem:
            try:
                content = self.stream.read1(min(len(buffer), self.verified))
            except _BROKEN as error:
                self.problem = f"the {self.name} data break off here or are damaged ({str(error)[:100]})"
        self.left -= len(content)
        self.verified -= len(content)
        if self.left < 0:
            ratio = f"over {MAX_EXPANSION_RATIO} times their size"
            self.problem, content = f"the {self.name} data expand to {ratio}: unpack them to read on", b""
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.stream.close()
        super().close()


class _GzipMember:
    """One member of gzip, with the interface of the decompressors of bz2 and lzma."""

    def __init__(self):
        self.inner, self.needs_input = zlib.decompressobj(wbits=31), True

    def decompress(self, data: bytes, max_length: int) -> bytes:
        content = self.inner.decompress(self.inner.unconsumed_tail + data, max_length)
        self.needs_input = not self.inner.unconsumed_tail
        return content

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


_MEMBERS = {"gzip": _GzipMember, "bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}


def verified_bytes(file: Path, *, most: float = float("inf")) -> tuple[float, str]:
    """(bytes of content that the checksums cover, why no more); (inf, "") for no damage. most: bytes that are read."""
    status = os.stat(file)
    if status.st_size > MAX_CHECKED_BYTES:
        return float("inf"), ""
    return _verified_bytes(str(file), most, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=4096)
def _verified_bytes(file: str, most: float, *_) -> tuple[float, str]:
    verified = read = 0
    with open(file, "rb") as stream:
        data = stream.read(_BLOCK)
        known = compression_of(data)
        # anything else after the last member (padding, a signature) altered nothing before it
        while known and known.name in _MEMBERS and data.startswith(known.magic) and read <= most:
            member = _MEMBERS[known.name]()
            try:
                while not member.eof and read <= most:
                    content = member.decompress(data, 4 * _BLOCK)
                    if not data and not content and member.needs_input and not member.eof:
                        # it was cut
                        return float("inf"), ""
                    read += len(content)
                    data = b"" if not member.needs_input or member.eof else stream.read(_BLOCK)
            except _BROKEN as error:
                return verified, str(error)[:100]
            verified, data = read, member.unused_data.lstrip(b"\0") or stream.read(_BLOCK).lstrip(b"\0")
            data += stream.read(_BLOCK) if len(data) < len(known.magic) else b""
    return float("inf"), ""


def unverified_note(file: Path) -> str:
    """A note on a compressed file that is read before its checksums; "" for any other."""
    if os.stat(file).st_size <= MAX_CHECKED_BYTES or getattr(detect_compression(file), "name", "") not in _STREAMS:
        return ""
    gib = MAX_CHECKED_BYTES / 2**30
    return f"a compressed file over {gib:g} GiB is read before its checksum: unpack it to be sure"


def unpack_hint(file: Path) -> str:
    """The end of a message: what a compressed file is and the command that unpacks it; "" for what is read as it is."""
    if part := split_part_hint(file.name):
        return part
    compression = detect_compression(file)
    if compression is None:
        return ""
    if compression.name == "ZIP":
        for extensions, what in _OFFICE.items():
            if file.name.lower().endswith(extensions):
                return what
    inner = b""
    if compression.name in _STREAMS:
        with open_decompressed(file) as stream:
            inner = stream.read(512)
            if not inner and decompression_error(stream):
                return f"is compressed ({compression.name}) and damaged: fetch it again"
        if not is_tar(inner) and not inner.startswith((b"PAR1", b"ARROW1")):
            return ""
    ending = ".tar" if is_tar(inner) else ".parquet" if inner.startswith(b"PAR1") else ""
    what = "a tar that is " if is_tar(inner) else ""
    return f"is {what}compressed ({compression.name}), {_remedy(file.name, compression, ending)}"


def compressed_content_hint(file: Path) -> str:
    """What a compressed file is that can be streamed but holds no documents, and the command that unpacks it."""
    compression = detect_compression(file)
    with open_decompressed(file) as stream:
        again = compression_of(stream.read(512))
    what = f"holds what is compressed again ({again.name})" if again else "holds no JSON object of a known form"
    return f"is compressed ({compression.name}) and {what}, {_remedy(file.name, compression, '')}, and give that"


def compressed_hint(name: str) -> str:
    """The same from the name alone, in few words that are equal for files of one kind; "" for any other name."""
    if split_part_hint(name):
        return "part of a split file: join by `cat NAME.* > NAME`"
    base = name.rsplit("/", 1)[-1].lower()
    compression = next((known for known in _COMPRESSIONS if base.endswith(known.extensions)), None)
    if compression is None:
        return ""
    # both halves of an extension such as .tar.gz, the last alone of v1.2.gz
    inner, last = Path(Path(base).stem).suffix, Path(base).suffix
    command = compression.unpack.format(name="FILE", out="FOLDER")
    command += "" if "FILE" in command else " FILE > NEW"
    return f"compressed {inner if inner in _INNER else ''}{last}: unpack by `{command}`"


def nested_archive_hint(member: str) -> str:
    """What an archive inside an archive is and the remedy, in few words; "" for any other member."""
    ending = Path(member).suffix.lower()
    is_archive = ending == ".tar" or compressed_hint(member)
    return f"member {ending}, an archive in an archive: unpack the outer one" if is_archive else ""


def plain_stem(file: Path) -> str:
    """The name of a file without its extension, nor that of a compression after another extension."""
    inner = Path(file.stem)
    compressed = any(file.name.lower().endswith(known.extensions) for known in _COMPRESSIONS)
    return inner.stem if compressed and inner.suffix else file.stem


def _remedy(name: str, compression: Compression, ending: str) -> str:
    found = next((known for known in compression.extensions if name.lower().endswith(known)), "")
    stem = name[: -len(found)] if found else name
    ending = ending or (".tar" if found.startswith(".t") else "")
    if "{out}" in compression.unpack:
        out = shlex.quote(stem if found else f"{name}.d")
        command = compression.unpack.format(name=shlex.quote(name), out=out)
        return f"an archive of files: unpack it by `{command}` and give the folder"
    out = stem if stem.lower().endswith(ending or _INNER) else stem + ending
    out = out if out != name else f"unpacked-{name}"
    why = "which rules out random access" if out.lower().endswith((".tar", ".parquet", ".arrow")) else "not read so"
    return f"{why}: unpack it by `{compression.unpack} {shlex.quote(name)} > {shlex.quote(out)}`"


def is_split_part(name: str) -> bool:
    return bool(split_part_hint(name))


def split_part_hint(name: str) -> str:
    """What to do about a part of a file that was split; empty for a whole file."""
    base = name.rsplit("/", 1)[-1]
    if match := re.fullmatch(r"(?P<whole>.+)\.z\d\d", base, re.IGNORECASE):
        whole = shlex.quote(match["whole"] + ".zip")
        return f"is a part of a split ZIP archive: join it by `zip -s 0 {whole} --out whole.zip`, then unpack that"
    match = next(filter(None, (re.fullmatch(pattern, base, re.IGNORECASE) for pattern in _PARTS)), None)
    if match is None:
        return ""
    tail, head, end = match["tail"], shlex.quote(base[: match.start("tail")]), match["of"] or ""
    # numbers without leading zeros sort otherwise than they count
    if tail.isdigit() and len(tail) == 1:
        join = f"ls -v {head}*{shlex.quote(end) if end else ''} | xargs -d '\\n' cat"
    else:
        join = f"cat {head}{('[0-9]' if tail.isdigit() else '[a-z]') * len(tail)}{end}"
    return f"is a part of a split file: join it by `{join} > {shlex.quote(match['whole'])}` and give that"
