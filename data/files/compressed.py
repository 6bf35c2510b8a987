"""Compressed files: which are read, and the command that unpacks the others.

JSON in gzip, bzip2 or xz, under any name, is read as a stream by the standard library. The stream may expand to
MAX_EXPANSION_RATIO times the file (a text compresses 5 to 50 times, a bomb fills a disk), and documents are given only
of what its checksums cover (`brine.data.files.damaged`). The library of this Python has no zstd, lz4 or LZW; a
compressed tar or table has no random access; an archive (ZIP, 7z, RAR) is no stream: these are named with the command.
"""

import bz2
import gzip
import io
import lzma
import re
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from brine.data.files.damaged import verified_bytes
from brine.data.files.signatures import is_tar

MAX_EXPANSION_RATIO = 250
"""How many times its own size a compressed file may expand to, above the first 64 MiB."""
_FREE_BYTES = 2**26
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)


@dataclass(frozen=True)
class Compression:
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
    # brotli has no sign of its own: it is told by its ending, where no text stands
    Compression("brotli", b"\0brotli", (".br",), "brotli -dc"),
    Compression("ZIP", b"PK\x03\x04", (".zip",), "unzip {name} -d {out}"),
    Compression("7z", b"7z\xbc\xaf\x27\x1c", (".7z",), "7z x {name} -o{out}"),
    Compression("RAR", b"Rar!\x1a\x07", (".rar",), "unrar x {name} {out}/"),
)
STREAMED_EXTENSIONS = (".gz", ".bz2", ".xz")
"""Endings of compressed JSON that is read as it stands."""
_STREAMS = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
# the pieces that `split`, zip -s, 7z -v and rar -v leave
_PIECE = re.compile(
    r"(?P<whole>.+?\.(?:(?:[a-z]+\.)?(?:gz|zst|xz|bz2|lz4)|tar|tgz|tbz2?|txz|tzst|zip|7z|rar|parquet|arrow))[._-]?"
    r"(?P<part>part[._-]?)?(?P<tail>(?(part)(?:[a-z]{2,3}|\d{1,4})|(?:a[a-z]|aa[a-z]|\d{2,5})))(?P<of>[._-]?of[._-]?\d+)?",
    re.IGNORECASE,
)
# lines may have a year or a language behind them (x.json.2023, x.json.ar)
_PIECE_OF_LINES = re.compile(
    r"(?P<whole>.+?\.(?:jsonl?|ndjson|jsonlines|jl|csv|tsv))[._-](?P<part>part[._-]?)?"
    r"(?P<tail>(?(part)(?:[a-z]{2,3}|\d{1,4})|(?:a[^fmrsz\W\d]|aa[a-z]|0\d{1,4})))(?P<of>[._-]?of[._-]?\d+)?",
    re.IGNORECASE,
)
_ZIP_PIECE = re.compile(r"(?P<whole>.+)\.z\d\d", re.IGNORECASE)
_OF_OTHERS = {
    (".xlsx", ".xlsm", ".ods"): "is a spreadsheet: save it as CSV, from which a metadata.jsonl can be written",
    (".docx", ".odt", ".pptx", ".odp", ".epub"): "is an office document: take its text (`pandoc FILE -o FILE.md`)",
    (".npz", ".pt", ".pth", ".ckpt", ".keras"): "holds arrays of numbers, which are not read",
}
"""Endings of files that are ZIP archives inside -> what to do about them."""
_INNER = (".tar", ".jsonl", ".json", ".ndjson", ".jsonlines", ".jl", ".parquet", ".arrow")


def compression_of(head: bytes) -> Compression | None:
    """The packing of a file that begins with `head`; None for a plain file."""
    return next((compression for compression in _COMPRESSIONS if head.startswith(compression.magic)), None)


def detect_compression(file: Path) -> Compression | None:
    """The packing of a file; None for a plain file."""
    with open(file, "rb") as stream:
        head = stream.read(64)
    if file.name.lower().endswith(".br") and not head.isascii():
        return next(compression for compression in _COMPRESSIONS if compression.name == "brotli")
    return compression_of(head)


def open_decompressed(file: Path, *, checked: bool = False) -> BinaryIO:
    """A file's content as a binary stream: decompressed from gzip, bzip2 and xz, any other file as it is.

    The stream ends where the data are broken or expand beyond MAX_EXPANSION_RATIO (`decompression_error` tells why),
    and with `checked` before what their checksums do not cover.
    """
    with open(file, "rb") as stream:
        compression = compression_of(stream.read(8))
        size = stream.seek(0, io.SEEK_END)
    if compression is None or compression.name not in _STREAMS:
        return open(file, "rb")
    limit = _FREE_BYTES + MAX_EXPANSION_RATIO * size
    bounded = _BoundedStream(_STREAMS[compression.name](file, "rb"), limit, compression.name)
    if checked:
        bounded.verified_limit, bounded.why = verified_bytes(file, most=limit)
    return io.BufferedReader(bounded, 2**18)


def decompression_error(stream: BinaryIO) -> str:
    """Why a stream of `open_decompressed` that is at its end ended too early; empty when it did not."""
    return getattr(getattr(stream, "raw", None), "problem", "")


class _BoundedStream(io.RawIOBase):
    """A decompressed stream that ends, with its problem noted, where it is broken or grows too long."""

    def __init__(self, stream: BinaryIO, limit: int, name: str):
        self.stream, self.left, self.name, self.problem = stream, limit, name, ""
        self.verified_limit, self.why = float("inf"), ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if self.problem:
            return 0
        if self.verified_limit <= 0:
            self.problem = (
                f"the {self.name} data are damaged ({self.why}): fetch the file again, since from here on wrong words "
                "cannot be told from right ones"
            )
            return 0
        try:
            content = self.stream.read1(min(len(buffer), self.verified_limit))
        except _BROKEN as error:
            self.problem = f"the {self.name} data break off here or are damaged ({str(error)[:100]})"
            return 0
        self.left -= len(content)
        self.verified_limit -= len(content)
        if self.left < 0:
            self.problem = (
                f"the {self.name} data expand to over {MAX_EXPANSION_RATIO} times their size: unpack them to read on"
            )
            return 0
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.stream.close()
        super().close()


def unpack_hint(file: Path) -> str:
    """The end of a message: what a compressed file is and the command that unpacks it; "" for what is read as it is."""
    if part := split_part_hint(file.name):
        return part
    compression = detect_compression(file)
    if compression is None:
        return ""
    if compression.name == "ZIP":
        for extensions, what in _OF_OTHERS.items():
            if file.name.lower().endswith(extensions):
                return what
    inner = b""
    if compression.name in _STREAMS:
        with open_decompressed(file) as stream:
            inner = stream.read(512)
            if not inner and decompression_error(stream):
                return f"is compressed ({compression.name}) and damaged: fetch it again"
        if not is_tar(inner) and inner[:4] != b"PAR1" and inner[:6] != b"ARROW1":
            return ""
    ending = ".tar" if is_tar(inner) else ".parquet" if inner[:4] == b"PAR1" else ""
    what = "a tar that is " if is_tar(inner) else ""
    return f"is {what}compressed ({compression.name}), {_remedy(file.name, compression, ending)}"


def compressed_content_hint(file: Path) -> str:
    """What a compressed file is that can be streamed but holds no documents, and the command that unpacks it."""
    compression = detect_compression(file)
    with open_decompressed(file) as stream:
        inner = stream.read(512)
    again = compression_of(inner)
    what = f"holds what is compressed again ({again.name})" if again else "holds no JSON object of a known form"
    return f"is compressed ({compression.name}) and {what}, {_remedy(file.name, compression, '')}, and give that"


def compressed_hint(name: str) -> str:
    """The same from the name alone, in few words that are equal for files of one kind; "" for any other name."""
    if is_split_part(name):
        return "piece of a split file: join by `cat NAME.* > NAME`"
    base = name.rsplit("/", 1)[-1].lower()
    compression = next((compression for compression in _COMPRESSIONS if base.endswith(compression.extensions)), None)
    if compression is None:
        return ""
    # of an extension such as .tar.gz both halves, of v1.2.gz the last alone
    inner = next((known for known in _INNER if known in base[:-1]), "")
    ending = (inner if base.split(".")[-2:-1] == [inner[1:]] else "") + Path(base).suffix
    command = compression.unpack.format(name="FILE", out="FOLDER")
    return f"compressed {ending}: unpack by `{command}{'' if 'FILE' in command else ' FILE > NEW'}`"


def nested_archive_hint(member: str) -> str:
    """What an archive inside an archive is and the remedy, in few words; "" for any other member."""
    ending = Path(member).suffix.lower()
    if ending == ".tar" or compressed_hint(member):
        return f"member {ending}, an archive in an archive: unpack the outer one"
    return ""


def plain_stem(file: Path) -> str:
    """The name of a file without its ending, nor that of a compression before which another stands."""
    extensions = tuple(ending for compression in _COMPRESSIONS for ending in compression.extensions)
    name = file.name
    if name.lower().endswith(extensions) and Path(Path(name).stem).suffix:
        name = Path(name).stem
    return Path(name).stem


def _remedy(name: str, compression: Compression, ending: str) -> str:
    """Why the packing is not read through, and the command."""
    stem = name
    for known in compression.extensions:
        if name.lower().endswith(known):
            stem = name[: -len(known)]
            ending = ending or (".tar" if known.startswith(".t") else "")
            break
    if "{out}" in compression.unpack:
        command = compression.unpack.format(
            name=shlex.quote(name), out=shlex.quote(stem if stem != name else f"{name}.d")
        )
        return f"an archive of files: unpack it by `{command}` and give the folder"
    out = stem if stem.lower().endswith(ending or _INNER) else stem + ending
    out = out if out != name else f"unpacked-{name}"
    why = "which rules out random access" if out.lower().endswith((".tar", ".parquet", ".arrow")) else "not read so"
    return f"{why}: unpack it by `{compression.unpack} {shlex.quote(name)} > {shlex.quote(out)}`"


def is_split_part(name: str) -> bool:
    """Whether a file is a piece of one that was split, by its name."""
    return bool(split_part_hint(name))


def split_part_hint(name: str) -> str:
    """What to do about a piece of a file that was split; empty for a whole file."""
    base = name.rsplit("/", 1)[-1]
    if match := _ZIP_PIECE.fullmatch(base):
        whole = shlex.quote(match["whole"] + ".zip")
        return f"is a piece of a split ZIP archive: join it by `zip -s 0 {whole} --out whole.zip`, then unpack that"
    match = _PIECE.fullmatch(base) or _PIECE_OF_LINES.fullmatch(base)
    if match is None:
        return ""
    whole, tail = match["whole"], match["tail"]
    head, end = base[: match.start("tail")], match["of"] or ""
    # numbers without zeros in front sort otherwise than they count
    if tail.isdigit() and len(tail) == 1:
        join = f"ls -v {shlex.quote(head)}*{shlex.quote(end) if end else ''} | xargs -d '\\n' cat"
    else:
        join = f"cat {shlex.quote(head)}{('[0-9]' if tail.isdigit() else '[a-z]') * len(tail)}{end}"
    return f"is a piece of a split file: join it by `{join} > {shlex.quote(whole)}` and give that"
