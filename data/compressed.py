"""Compressed files: which there are, which are read, and the command that unpacks the others.

    packing_of(head)           the Packing that a file begins like; None for a plain file
    open_plain(file)           a binary stream of what is in a file, decompressed as it is read
    how_to_unpack(file)        the command for a compressed file or archive, or a piece of one; "" for a plain file
    packed_kind(name)          the same in few words, from the name alone, for counts of what was passed over

JSON in gzip, bzip2 or xz, under any name, is read as it stands, by the standard library and in bounded memory: the
stream is never held, and it may expand to MAX_RATIO times the file (a text compresses 5 to 50 times; a bomb of a few
bytes fills a disk). Documents are given only of what its checksums vouch for (`data.damaged`). The library of this
Python has no zstd, lz4 or LZW: those are named with the command.

A compressed tar has no random access, and media must be reached in any order; a table or an archive of files (ZIP, 7z,
RAR) is no stream at all. These are named with the command too: unpacked once, they are read many times.
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

from data.archive import is_tar
from data.damaged import sound_part

MAX_RATIO = 250
"""How many times its own size a compressed file may expand to, above the first 64 MiB."""
_FREE_BYTES = 2**26
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)


@dataclass(frozen=True)
class Packing:
    """A way of compressing."""

    name: str
    magic: bytes
    endings: tuple[str, ...]
    unpack: str
    """Command to which the file's name is added; one with {out} makes a folder, any other writes to its output."""


_PACKINGS = (
    Packing("gzip", b"\x1f\x8b", (".gz", ".tgz"), "gzip -dc"),
    Packing("bzip2", b"BZh", (".bz2", ".tbz2", ".tbz"), "bzip2 -dc"),
    Packing("xz", b"\xfd7zXZ\0", (".xz", ".txz"), "xz -dc"),
    Packing("zstd", b"\x28\xb5\x2f\xfd", (".zst", ".tzst", ".zstd"), "zstd -dc"),
    Packing("lz4", b"\x04\x22\x4d\x18", (".lz4",), "lz4 -dc"),
    Packing("LZW", b"\x1f\x9d", (".z",), "gzip -dc"),
    Packing("lzip", b"LZIP", (".lz",), "lzip -dc"),
    Packing("LZMA", b"\x5d\0\0", (".lzma",), "xz --format=lzma -dc"),
    Packing("Snappy", b"\xff\x06\0\0sNaPpY", (".sz",), "snzip -dc"),
    # brotli has no sign of its own: it is told by its ending, where no text stands
    Packing("brotli", b"\0brotli", (".br",), "brotli -dc"),
    Packing("ZIP", b"PK\x03\x04", (".zip",), "unzip {name} -d {out}"),
    Packing("7z", b"7z\xbc\xaf\x27\x1c", (".7z",), "7z x {name} -o{out}"),
    Packing("RAR", b"Rar!\x1a\x07", (".rar",), "unrar x {name} {out}/"),
)
READ_THROUGH = (".gz", ".bz2", ".xz")
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


def packing_of(head: bytes) -> Packing | None:
    """The packing of a file that begins with `head`; None for a plain file."""
    return next((packing for packing in _PACKINGS if head.startswith(packing.magic)), None)


def packing_in(file: Path) -> Packing | None:
    """The packing of a file; None for a plain file."""
    with open(file, "rb") as stream:
        head = stream.read(64)
    if file.name.lower().endswith(".br") and not head.isascii():
        return next(packing for packing in _PACKINGS if packing.name == "brotli")
    return packing_of(head)


def open_plain(file: Path, *, checked: bool = False) -> BinaryIO:
    """What is in a file as a binary stream: decompressed from gzip, bzip2 and xz, any other file as it is.

    Where the compressed data are broken or expand beyond MAX_RATIO the stream ends, so that what came before is not
    lost with a block; `problem_of` tells. With `checked` it ends before what their checksums do not vouch for
    (`data.damaged`), which for a file that is not read for the first time costs nothing.
    """
    with open(file, "rb") as stream:
        packing = packing_of(stream.read(8))
        size = stream.seek(0, io.SEEK_END)
    if packing is None or packing.name not in _STREAMS:
        return open(file, "rb")
    limit = _FREE_BYTES + MAX_RATIO * size
    bounded = _Bounded(_STREAMS[packing.name](file, "rb"), limit, packing.name)
    if checked:
        bounded.sound, bounded.why = sound_part(file, most=limit)
    return io.BufferedReader(bounded, 2**18)


def problem_of(stream: BinaryIO) -> str:
    """Why a stream of `open_plain` that is at its end ended too early; empty when it did not."""
    return getattr(getattr(stream, "raw", None), "problem", "")


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends, with its problem noted, where it is broken or grows too long."""

    def __init__(self, stream: BinaryIO, limit: int, name: str):
        self.stream, self.left, self.name, self.problem = stream, limit, name, ""
        self.sound, self.why = float("inf"), ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if self.problem:
            return 0
        if self.sound <= 0:
            self.problem = f"the {self.name} data are damaged ({self.why}): fetch the file again"
            self.problem += ", since behind this place wrong words cannot be told from right ones"
            return 0
        try:
            content = self.stream.read1(min(len(buffer), self.sound))
        except _BROKEN as error:
            self.problem = f"the {self.name} data break off here or are damaged ({str(error)[:100]})"
            return 0
        self.left -= len(content)
        self.sound -= len(content)
        if self.left < 0:
            self.problem = f"the {self.name} data expand to over {MAX_RATIO} times their size: unpack them to read on"
            return 0
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.stream.close()
        super().close()


def how_to_unpack(file: Path) -> str:
    """What a compressed file is and the command that unpacks it, as the end of a message.

    Empty for a plain file, and for JSON that is read through its compression.
    """
    piece = piece_remedy(file.name)
    if piece:
        return piece
    packing = packing_in(file)
    if packing is None:
        return ""
    if packing.name == "ZIP" and (
        what := next((w for e, w in _OF_OTHERS.items() if file.name.lower().endswith(e)), "")
    ):
        return what
    inner = b""
    if packing.name in _STREAMS:
        with open_plain(file) as stream:
            inner = stream.read(512)
            if not inner and problem_of(stream):
                return f"is compressed ({packing.name}) and damaged: fetch it again"
        if not is_tar(inner) and inner[:4] != b"PAR1" and inner[:6] != b"ARROW1":
            return ""
    ending = ".tar" if is_tar(inner) else ".parquet" if inner[:4] == b"PAR1" else ""
    what = "a tar that is " if is_tar(inner) else ""
    return f"is {what}compressed ({packing.name}), {_remedy(file.name, packing, ending)}"


def what_is_packed(file: Path) -> str:
    """What a compressed file is that can be streamed but holds no documents, and the command that unpacks it."""
    packing = packing_in(file)
    with open_plain(file) as stream:
        inner = stream.read(512)
    again = packing_of(inner)
    what = f"holds what is compressed again ({again.name})" if again else "holds no JSON object of a known form"
    return f"is compressed ({packing.name}) and {what}, {_remedy(file.name, packing, '')}, and give that"


def packed_kind(name: str) -> str:
    """What a file is that looks compressed or split by its name, and the remedy, in few words; "" for any other.

    The words are the same for files of one kind, so that they can be counted. Nothing is opened.
    """
    if is_piece(name):
        return "piece of a split file: join by `cat NAME.* > NAME`"
    base = name.rsplit("/", 1)[-1].lower()
    packing = next((packing for packing in _PACKINGS if base.endswith(packing.endings)), None)
    if packing is None:
        return ""
    # of an ending such as .tar.gz both halves, of v1.2.gz the last alone
    inner = next((f"{known}" for known in _INNER if known in base[:-1]), "")
    ending = (inner if base.split(".")[-2:-1] == [inner[1:]] else "") + Path(base).suffix
    command = packing.unpack.format(name="FILE", out="FOLDER")
    return f"compressed {ending}: unpack by `{command}{'' if 'FILE' in command else ' FILE > NEW'}`"


def nested_kind(member: str) -> str:
    """What an archive inside an archive is and the remedy, in few words; "" for any other member."""
    ending = Path(member).suffix.lower()
    if ending == ".tar" or packed_kind(member):
        return f"member {ending}, an archive in an archive: unpack the outer one"
    return ""


def plain_stem(file: Path) -> str:
    """The name of a file without its ending, nor that of a compression before which another stands."""
    endings = tuple(ending for packing in _PACKINGS for ending in packing.endings)
    name = file.name
    if name.lower().endswith(endings) and Path(Path(name).stem).suffix:
        name = Path(name).stem
    return Path(name).stem


def _remedy(name: str, packing: Packing, ending: str) -> str:
    """Why the packing is not read through, and the command."""
    stem = name
    for known in packing.endings:
        if name.lower().endswith(known):
            stem = name[: -len(known)]
            ending = ending or (".tar" if known.startswith(".t") else "")
            break
    if "{out}" in packing.unpack:
        command = packing.unpack.format(name=shlex.quote(name), out=shlex.quote(stem if stem != name else f"{name}.d"))
        return f"an archive of files: unpack it by `{command}` and give the folder"
    out = stem if stem.lower().endswith(ending or _INNER) else stem + ending
    out = out if out != name else f"unpacked-{name}"
    why = "which rules out random access" if out.lower().endswith((".tar", ".parquet", ".arrow")) else "not read so"
    return f"{why}: unpack it by `{packing.unpack} {shlex.quote(name)} > {shlex.quote(out)}`"


def is_piece(name: str) -> bool:
    """Whether a file is a piece of one that was split, by its name."""
    return bool(piece_remedy(name))


def piece_remedy(name: str) -> str:
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
