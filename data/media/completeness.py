"""Whether a media file is whole, by what its own container declares; nothing is decoded.

Decoders forgive too much: Pillow gives an image that lacks its last bytes and reads the first frame alone, libsndfile
plays a WAV, OGG or MP3 up to a cut, FFmpeg fills in frames. A file cut by a broken download would teach a wrong end. So
the last element of each container must end inside the file: chunks (WAV, WebP, AVI, AIFF, CAF), boxes (MP4, MOV, AVIF,
JPEG 2000), frames (MP3, AAC, AMR), tags (FLV), packets (MPEG-TS), blocks (GIF), strips (TIFF), and end marks must be
there (PNG, JPEG, JPEG 2000, OGG).

A cut cannot be seen between two frames, packets or clusters of a format that declares no total: MP3 without a Xing
header, AAC (ADTS), AMR, MPEG streams, and MKV, FLV, WAV or fragmented MP4 from a pipe. Trailing bytes are allowed.
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

from brine.data.document import DocumentError

_MAX_STEPS = 2_000_000
_STREAMED = (0, 2**32 - 1)
"""Sizes that mean "unknown", left by writers that could not go back."""


def check_complete(path: Path) -> None:
    """Raise DocumentError with the reason when the file at `path` ends before what it declares.

    A file of another kind passes; so does one too broken to be walked, which its reader will refuse.
    """
    with open(path, "rb") as file:
        if not file.read(1):
            raise DocumentError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                missing = _missing(content)
            except (struct.error, IndexError):
                missing = "its last structure is incomplete"
    if missing:
        raise DocumentError(f"truncated: {missing}")


def _missing(content: mmap.mmap) -> str:
    """What is missing at the end, or nothing."""
    for magic, offset, check in _KINDS:
        if content[offset : offset + len(magic)] == magic:
            return check(content)
    for start, size in ((0, 188), (4, 192)):
        if all(content[start + n * size : start + n * size + 1] == b"G" for n in range(3)):
            return "the last packet is incomplete" if len(content) % size else ""
    if content[:3] == b"ID3" or (content[0] == 0xFF and content[1] & 0xE0 == 0xE0):
        return _mpeg_audio(content)
    return ""


def _unpack(form: str, content, offset: int):
    (value,) = struct.unpack_from(form, content, offset)
    return value


def _walk(content, offset: int, size_at: Callable[[int], int], what: str) -> str:
    """Follow elements from `offset` by their sizes; a size of 0 ends the walk. What is missing, or nothing."""
    for _ in range(_MAX_STEPS):
        if offset >= len(content):
            return f"the last {what} lacks {offset - len(content)} bytes" if offset > len(content) else ""
        size = size_at(offset)
        if not size:
            return ""
        offset += size
    raise DocumentError(f"the file has over {_MAX_STEPS} elements ({what})")


def _png(content) -> str:
    return "" if content.rfind(b"\0\0\0\0IEND\xaeB`\x82") >= 0 else "the IEND chunk is missing"


def _jpeg(content) -> str:
    scan = 0

    # segments up to the first scan, so that the end mark of an embedded thumbnail does not count
    def segment(offset: int) -> int:
        nonlocal scan
        scan, kind = offset, content[offset + 1]
        if content[offset] != 0xFF or kind == 0xDA:
            scan = offset if content[offset] == 0xFF else -1
            return 0
        # fill bytes, and marks without a body
        bare = kind == 0x01 or 0xD0 <= kind <= 0xD8
        return 1 if kind == 0xFF else 2 if bare else 2 + _unpack(">H", content, offset + 2)

    missing = _walk(content, 2, segment, "segment")
    return missing or ("" if scan < 0 or content.find(b"\xff\xd9", scan) >= 0 else "the end mark (EOI) is missing")


def _gif(content) -> str:
    offset = 13 + _gif_palette(content[10])
    for _ in range(_MAX_STEPS):
        kind = content[offset]
        if kind == 0x3B:
            return ""
        # readers pass over stray bytes between blocks
        offset += 11 + _gif_palette(content[offset + 9]) if kind == 0x2C else 2 if kind == 0x21 else 1
        while kind in (0x2C, 0x21) and content[offset]:
            offset += content[offset] + 1
        offset += kind in (0x2C, 0x21)
    raise DocumentError(f"GIF has over {_MAX_STEPS} blocks")


def _gif_palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _tiff(content) -> str:
    order = "<" if content[:2] == b"II" else ">"
    big = _unpack(order + "H", content, 2) == 43
    word, count_form, entry_form = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    head, size = struct.calcsize(order + entry_form), struct.calcsize(order + entry_form + word)
    offset, seen = _unpack(order + word, content, 8 if big else 4), set()
    while offset and offset not in seen and len(seen) < 10_000:
        seen.add(offset)
        count = _unpack(order + count_form, content, offset)
        offset += struct.calcsize(order + count_form)
        spans = {}
        for entry in range(offset, offset + min(count, 4096) * size, size):
            tag, kind, length = struct.unpack_from(order + entry_form, content, entry)
            if tag in (273, 279, 324, 325):
                spans[tag] = _tiff_values(content, order, word, kind, length, entry + head)
        for starts, sizes in ((273, 279), (324, 325)):
            ends = map(sum, zip(spans.get(starts, ()), spans.get(sizes, ()), strict=False))
            if max(ends, default=0) > len(content):
                return "a strip or tile lies beyond the end of the file"
        offset = _unpack(order + word, content, offset + count * size)
    return ""


def _tiff_values(content, order: str, word: str, kind: int, length: int, offset: int) -> tuple[int, ...]:
    """Whole numbers of one directory entry, whose value is at `offset` when it fits there and elsewhere if not."""
    form = {3: "H", 4: "I", 16: "Q"}.get(kind)
    if form is None or length > _MAX_STEPS:
        return ()
    values = f"{order}{length}{form}"
    if struct.calcsize(values) > struct.calcsize(order + word):
        offset = _unpack(order + word, content, offset)
    return struct.unpack_from(values, content, offset)


def _riff(content) -> str:
    """RIFF, RIFX, RF64 and FORM: the size of the samples, and the outer size."""
    order = ">" if content[:4] in (b"FORM", b"RIFX") else "<"
    outer, wide, long_size = _unpack(order + "I", content, 4), content[:4] == b"RF64", None
    offset, is_odd = 12, False
    for _ in range(_MAX_STEPS):
        if offset + 8 > len(content):
            break
        kind, size = content[offset : offset + 4], _unpack(order + "I", content, offset + 4)
        if wide and kind == b"ds64":
            long_size = _unpack("<Q", content, offset + 16)
        if kind in (b"data", b"SSND"):
            size = long_size if long_size is not None and size == 2**32 - 1 else size
            if size in _STREAMED:
                break
            if offset + 8 + size > len(content):
                return f"{size} bytes of samples are declared"
        # the padding byte of an odd last chunk may be left off
        is_odd = bool(size & 1) and offset + 8 + size == len(content)
        offset += 8 + size + (size & 1)
    whole = wide or outer in _STREAMED or outer + 8 <= len(content) + is_odd
    return "" if whole else f"{outer + 8} bytes are declared, {len(content)} are there"


def _au(content) -> str:
    start, size = struct.unpack_from(">II", content, 4)
    return "" if size in _STREAMED or start + size <= len(content) else f"{size} bytes of samples are declared"


def _ogg(content) -> str:
    page = content.rfind(b"OggS")
    flags, segments = content[page + 5], page + 27
    end = segments + content[page + 26]
    if end + sum(content[segments:end]) > len(content):
        return "the last page is incomplete"
    return "" if flags & 4 else "the page that ends the stream is missing"


def _mp4(content) -> str:
    def box(offset: int) -> int:
        size, head = _unpack(">I", content, offset), 8
        if offset + 8 > len(content):
            return 8
        if size == 1:
            size, head = _unpack(">Q", content, offset + 8), 16
        # zero: up to the end of the file; a size that cannot be is left to the reader
        return size if size >= head else 0

    return _walk(content, 0, box, "box")


def _matroska(content) -> str:
    offset, size = _ebml_size(content, 4)
    offset += size or 0
    # a Void or CRC element may stand between the header and the segment
    for _ in range(16):
        if content[offset : offset + 4] == b"\x18\x53\x80\x67":
            start, size = _ebml_size(content, offset + 4)
            lacks = 0 if size is None else start + size - len(content)
            return f"the segment lacks {lacks} bytes" if lacks > 0 else ""
        start, size = _ebml_size(content, offset + 1)
        offset = start + (size or 0)
    return ""


def _ebml_size(content, offset: int) -> tuple[int, int | None]:
    """Offset after an element's size field, and the size; None for an unknown one."""
    length = 9 - content[offset].bit_length()
    value = int.from_bytes(content[offset : offset + length], "big") & (1 << 7 * length) - 1
    return offset + length, None if value == (1 << 7 * length) - 1 or length > 8 else value


_MP3_KBPS = {
    # (MPEG 1?, layer): kilobits a second by index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mpeg_audio(content) -> str:
    """MP3 and AAC (ADTS): ID3 tags, the bytes that a Xing header declares, then frame by frame."""
    offset = 0
    while content[offset : offset + 3] == b"ID3":
        size = content[offset + 6 : offset + 10]
        offset += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
        if offset > len(content):
            return "the ID3 tag lacks bytes"
    while offset < len(content) and not content[offset]:
        offset += 1
    is_adts = content[offset : offset + 1] == b"\xff" and content[offset + 1] & 0xF6 == 0xF0
    first = content[offset : offset + 200]
    for mark in () if is_adts else (b"Xing", b"Info"):
        found = first.find(mark)
        # flags: 1 frames, 2 bytes, each a field of four
        if 0 < found <= 40 and first[found + 7] & 2:
            size = _unpack(">I", first, found + (12 if first[found + 7] & 1 else 8))
            if offset + size > len(content):
                return f"{size} bytes of frames are declared, {len(content) - offset} are there"
    num_head, frame_bytes = (7, _adts_frame) if is_adts else (4, _mp3_frame)

    def frame(offset: int) -> int:
        head = content[offset : offset + num_head]
        # what follows the frames (ID3v1, APE) or cannot be read as one is no sign of a cut
        return num_head if len(head) < num_head and head[0] == 0xFF else frame_bytes(head)

    return _walk(content, offset, frame, "frame")


def _adts_frame(head: bytes) -> int:
    """Bytes of the AAC frame with this header; 0 for anything else."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    return max(7, (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5)


def _mp3_frame(head: bytes) -> int:
    """Bytes of the MPEG audio frame with this header; 0 for anything else, and for a free bit rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    index, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or index in (0, 15) or rate_index == 3:
        return 0
    rate_hz = (44100, 48000, 32000)[rate_index] >> (0, 1, 1, 2)[3 - version]
    bits = _MP3_KBPS[version == 3, layer][index] * 1000
    if layer == 1:
        return (12 * bits // rate_hz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits // rate_hz + padding


_AMR_BYTES = (13, 14, 16, 18, 20, 21, 27, 32, 6), (18, 24, 33, 37, 41, 47, 51, 59, 61, 6)
"""Bytes of a frame with its head, by its type, of the narrow and of the wide band; other types are a head alone."""


def _amr(content) -> str:
    wide = content[5:9] == b"-WB\n"
    sizes = dict(enumerate(_AMR_BYTES[wide]))
    return _walk(content, 9 if wide else 6, lambda offset: sizes.get(content[offset] >> 3 & 15, 1), "frame")


def _caf(content) -> str:
    def chunk(offset: int) -> int:
        if offset + 12 > len(content):
            return 12
        # a size of -1: up to the end of the file
        return max(0, 12 + _unpack(">q", content, offset + 4)) if content[offset + 4] < 128 else 0

    return _walk(content, 8, chunk, "chunk")


def _flv(content) -> str:
    found = content.find(b"\x00\x08filesize\x00", 0, 4096)
    if found >= 0 and (size := _unpack(">d", content, found + 11)) > len(content):
        return f"{size:.0f} bytes are declared, {len(content)} are there"
    first = _unpack(">I", content, 5) + 4
    return _walk(content, first, lambda at: 15 + int.from_bytes(content[at + 1 : at + 4], "big"), "tag")


_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def _asf(content) -> str:
    head_size = _unpack("<Q", content, 16)
    found = content.find(_ASF_FILE, 0, min(head_size, len(content)))
    if found >= 0:
        # a broadcast does not know its size
        if _unpack("<I", content, found + 88) & 1:
            return ""
        if (size := _unpack("<Q", content, found + 40)) > len(content):
            return f"{size} bytes are declared, {len(content)} are there"
    if content[head_size : head_size + 16] != _ASF_DATA:
        return "the data are missing"
    size = _unpack("<Q", content, head_size + 16)
    return f"{size} bytes of data are declared" if head_size + size > len(content) else ""


def _jp2(content) -> str:
    # no two bytes of coded data are a mark's
    missing = "" if content.rfind(b"\xff\xd9") >= 0 else "the end mark (EOC) is missing"
    return missing or (_mp4(content) if content[4:8] == b"jP  " else "")


_KINDS = (
    (b"#!AMR", 0, _amr),
    (b"caff", 0, _caf),
    (b"FLV\x01", 0, _flv),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0, _asf),
    (b"jP  ", 4, _jp2),
    (b"\xff\x4f\xff\x51", 0, _jp2),
    (b"\x89PNG", 0, _png),
    (b"\xff\xd8\xff", 0, _jpeg),
    (b"GIF8", 0, _gif),
    *((magic, 0, _tiff) for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((magic, 0, _riff) for magic in (b"RIFF", b"RIFX", b"RF64", b"FORM")),
    (b".snd", 0, _au),
    (b"OggS", 0, _ogg),
    (b"\x1a\x45\xdf\xa3", 0, _matroska),
    *((kind, 4, _mp4) for kind in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")),
)
