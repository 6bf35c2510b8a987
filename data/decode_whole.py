"""Whether a media file is whole, by what its own container declares; read by hand, since libraries forgive too much.

    check_whole(path)   DocumentError when more should have come; nothing is decoded

Pillow gives a picture when only its last rows are missing, libsndfile plays a WAV or OGG file up to where it was cut,
and FFmpeg fills in frames. A file cut by a broken download would teach a wrong end. Each container is asked for what it
says about its end:

    PNG     the IEND chunk                      WAV, WebP, AVI, AIFF   chunk sizes
    JPEG    an EOI mark after the last scan     OGG                    a whole last page with its end flag
    GIF     blocks up to the trailer            MP4, MOV               box sizes (and declared seconds, by the reader)
    TIFF    every directory and strip inside    MKV, WebM              the segment's size (likewise)
    AU      its size field                      MP3                    the last frame whole; the Xing header's bytes
    CAF     chunk sizes                         AAC (ADTS), AMR        the last frame whole
    AVIF    box sizes                           FLV                    the last tag whole; the size in its metadata
    JP2     box sizes and the EOC mark          WMV, WMA (ASF)         the size in its header, the data object's size
                                                MPEG-TS                the last packet whole

Where a cut cannot be seen in principle: MP3 without a Xing header, AAC (ADTS), AMR and FLAC of undeclared length, cut
between two frames; FLV without metadata between two tags; MPEG streams, MKV, WebM and fragmented MP4 written to a pipe
(no size, no duration), cut between two packets, clusters or fragments; a WAV whose sizes were left at 0 or all ones by
such a writer. (Uncompressed BMP, and FLAC of declared length, are counted out by their readers.) Trailing bytes are
allowed.

Cost: some seeks; GIF, MP3 and TIFF are walked, about 1 microsecond a block.
"""

import mmap
import struct
from pathlib import Path

from data.document import DocumentError

_MAX_STEPS = 2_000_000
_STREAMED = (0, 2**32 - 1)
"""Sizes that mean "unknown", left by writers that could not go back."""


def check_whole(path: Path) -> None:
    """Raise DocumentError with the reason when the file at `path` ends before what it declares.

    A file of a kind not listed above passes; so does one too broken to be walked, which its reader will refuse.
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
    for magic, place, look in _KINDS:
        if content[place : place + len(magic)] == magic:
            return look(content)
    if content[:1] == b"\xff" and content[1] & 0xF6 == 0xF0:
        return _adts(content, 0)
    if all(content[n : n + 1] == b"G" for n in (0, 188, 376)):
        return "the last packet is incomplete" if len(content) % 188 else ""
    if all(content[n : n + 1] == b"G" for n in (4, 196, 388)):
        return "the last packet is incomplete" if len(content) % 192 else ""
    if content[:3] == b"ID3" or (content[0] == 0xFF and content[1] & 0xE0 == 0xE0):
        return _mp3(content)
    return ""


def _png(content: mmap.mmap) -> str:
    return "" if content.rfind(b"\0\0\0\0IEND\xaeB`\x82") >= 0 else "the IEND chunk is missing"


def _jpeg(content: mmap.mmap) -> str:
    place = 2
    # segments up to the first scan, so that the end mark of an embedded thumbnail does not count
    for _ in range(_MAX_STEPS):
        if content[place] != 0xFF:
            return ""
        kind = content[place + 1]
        if kind == 0xDA:
            break
        # fill bytes and marks without a body
        bare = kind == 0xFF or kind == 0x01 or 0xD0 <= kind <= 0xD8
        place += 1 if kind == 0xFF else 2 if bare else 2 + struct.unpack_from(">H", content, place + 2)[0]
    return "" if content.find(b"\xff\xd9", place) >= 0 else "the end mark (EOI) is missing"


def _gif(content: mmap.mmap) -> str:
    flags = content[10]
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(_MAX_STEPS):
        kind = content[place]
        if kind == 0x3B:
            return ""
        if kind == 0x2C:
            flags = content[place + 9]
            place += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif kind == 0x21:
            place += 2
        else:
            # readers pass over stray bytes between blocks
            place += 1
            continue
        while content[place]:
            place += content[place] + 1
        place += 1
    raise DocumentError(f"GIF has over {_MAX_STEPS} blocks")


def _tiff(content: mmap.mmap) -> str:
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    word, count_form, entry_form = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    (place,) = struct.unpack_from(order + word, content, 8 if big else 4)
    seen = set()
    while place and place not in seen and len(seen) < 10_000:
        seen.add(place)
        (count,) = struct.unpack_from(order + count_form, content, place)
        place += struct.calcsize(order + count_form)
        size = struct.calcsize(order + entry_form + word)
        spans = {}
        for number in range(min(count, 4096)):
            tag, kind, length = struct.unpack_from(order + entry_form, content, place + number * size)
            if tag in (273, 279, 324, 325):
                value = place + number * size + struct.calcsize(order + entry_form)
                spans[tag] = _tiff_values(content, order, word, kind, length, value)
        for starts, sizes in ((273, 279), (324, 325)):
            ends = (start + size for start, size in zip(spans.get(starts, ()), spans.get(sizes, ()), strict=False))
            if max(ends, default=0) > len(content):
                return "a strip or tile lies beyond the end of the file"
        (place,) = struct.unpack_from(order + word, content, place + count * size)
    return ""


def _tiff_values(content: mmap.mmap, order: str, word: str, kind: int, length: int, place: int) -> tuple[int, ...]:
    """Whole numbers of one directory entry, whose value stands at `place` when it fits there and elsewhere if not."""
    form = {3: "H", 4: "I", 16: "Q"}.get(kind)
    if form is None or length > _MAX_STEPS:
        return ()
    values = f"{order}{length}{form}"
    if struct.calcsize(values) > struct.calcsize(order + word):
        (place,) = struct.unpack_from(order + word, content, place)
    return struct.unpack_from(values, content, place)


def _riff(content: mmap.mmap) -> str:
    """RIFF, RIFX, RF64 and FORM: the outer size, then each chunk's, up to the one with the samples."""
    order = ">" if content[:4] in (b"FORM", b"RIFX") else "<"
    (size,) = struct.unpack_from(order + "I", content, 4)
    place, wide = 12, content[:4] == b"RF64"
    # the padding byte of an odd last chunk may be left off
    if not wide and size not in _STREAMED and size + 8 > len(content) + _odd_end(content, order):
        return f"{size + 8} bytes are declared, {len(content)} are there"
    long_size = None
    for _ in range(_MAX_STEPS):
        if place + 8 > len(content):
            return ""
        kind, (size,) = content[place : place + 4], struct.unpack_from(order + "I", content, place + 4)
        if wide and kind == b"ds64":
            (long_size,) = struct.unpack_from("<Q", content, place + 16)
        if kind in (b"data", b"SSND"):
            size = long_size if long_size is not None and size == 2**32 - 1 else size
            streamed = size in _STREAMED
            return "" if streamed or place + 8 + size <= len(content) else f"{size} bytes of samples are declared"
        place += 8 + size + (size & 1)
    return ""


def _odd_end(content: mmap.mmap, order: str) -> int:
    """1 when the last chunk of a RIFF file has an odd size and ends exactly with the file."""
    place = 12
    for _ in range(1000):
        if place + 8 > len(content):
            break
        (size,) = struct.unpack_from(order + "I", content, place + 4)
        if place + 8 + size == len(content) and size & 1:
            return 1
        place += 8 + size + (size & 1)
    return 0


def _au(content: mmap.mmap) -> str:
    start, size = struct.unpack_from(">II", content, 4)
    whole = size in _STREAMED or start + size <= len(content)
    return "" if whole else f"{size} bytes of samples are declared"


def _ogg(content: mmap.mmap) -> str:
    page = content.rfind(b"OggS")
    flags, num_segments = content[page + 5], content[page + 26]
    end = page + 27 + num_segments
    if end + sum(content[page + 27 : end]) > len(content):
        return "the last page is incomplete"
    return "" if flags & 4 else "the page that ends the stream is missing"


def _mp4(content: mmap.mmap) -> str:
    place = 0
    for _ in range(_MAX_STEPS):
        if place == len(content):
            return ""
        size, head = struct.unpack_from(">I", content, place)[0], 8
        kind = content[place + 4 : place + 8]
        if len(kind) < 4:
            return "a box header is incomplete"
        if size == 1:
            (size,), head = struct.unpack_from(">Q", content, place + 8), 16
        # zero: up to the end of the file; a size that cannot be is left to the reader
        if size < head:
            return ""
        place += size
        if place > len(content):
            return f"box {kind.decode('latin-1')!r} lacks {place - len(content)} bytes"
    raise DocumentError(f"MP4 has over {_MAX_STEPS} boxes")


def _matroska(content: mmap.mmap) -> str:
    place, size = _ebml_size(content, 4)
    place += size or 0
    # a Void or CRC element may stand between the header and the segment
    for _ in range(16):
        if content[place : place + 4] == b"\x18\x53\x80\x67":
            start, size = _ebml_size(content, place + 4)
            short = size is not None and start + size > len(content)
            return f"the segment lacks {start + size - len(content)} bytes" if short else ""
        start, size = _ebml_size(content, place + 1)
        place = start + (size or 0)
    return ""


def _ebml_size(content: mmap.mmap, place: int) -> tuple[int, int | None]:
    """Place after an element's size field, and the size; None for an unknown one."""
    length = 9 - content[place].bit_length()
    value = int.from_bytes(content[place : place + length], "big") & (1 << 7 * length) - 1
    return place + length, None if value == (1 << 7 * length) - 1 or length > 8 else value


_MP3_KBPS = {
    # (MPEG 1?, layer): kilobits a second by index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mp3(content: mmap.mmap) -> str:
    place = 0
    while content[place : place + 3] == b"ID3":
        size = content[place + 6 : place + 10]
        place += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
        if place > len(content):
            return "the ID3 tag lacks bytes"
    while place < len(content) and not content[place]:
        place += 1
    if content[place : place + 1] == b"\xff" and content[place + 1] & 0xF6 == 0xF0:
        return _adts(content, place)
    first = content[place : place + 200]
    for mark in (b"Xing", b"Info"):
        found = first.find(mark)
        # flags: 1 frames, 2 bytes, each a field of four
        if 0 < found <= 40 and first[found + 7] & 2:
            (size,) = struct.unpack_from(">I", first, found + (12 if first[found + 7] & 1 else 8))
            if place + size > len(content):
                return f"{size} bytes of frames are declared, {len(content) - place} are there"
    for _ in range(_MAX_STEPS):
        size = _mp3_frame(content[place : place + 4])
        # what follows the frames (ID3v1, APE) or cannot be read as one is no sign of a cut
        if not size:
            stub = 0 < len(content) - place < 4 and content[place] == 0xFF
            return "the last frame is incomplete" if stub else ""
        place += size
        if place > len(content):
            return "the last frame is incomplete"
    raise DocumentError(f"MP3 has over {_MAX_STEPS} frames")


def _mp3_frame(head: bytes) -> int:
    """Bytes of the MPEG audio frame with this header; 0 for what is none, or of free bit rate."""
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


def _adts(content: mmap.mmap, place: int) -> str:
    for _ in range(_MAX_STEPS):
        if place + 7 > len(content) or content[place] != 0xFF or content[place + 1] & 0xF6 != 0xF0:
            stub = 0 < len(content) - place < 7 and content[place] == 0xFF
            return "the last frame is incomplete" if stub else ""
        size = (content[place + 3] & 3) << 11 | content[place + 4] << 3 | content[place + 5] >> 5
        place += max(7, size)
        if place > len(content):
            return "the last frame is incomplete"
    raise DocumentError(f"AAC has over {_MAX_STEPS} frames")


_AMR_BYTES = (13, 14, 16, 18, 20, 21, 27, 32, 6), (18, 24, 33, 37, 41, 47, 51, 59, 61, 6)
"""Bytes of a frame with its head, by its type: of the narrow and of the wide band; other types are a head alone."""


def _amr(content: mmap.mmap) -> str:
    wide = content[5:9] == b"-WB\n"
    place, table = 9 if wide else 6, _AMR_BYTES[wide]
    for _ in range(_MAX_STEPS):
        if place >= len(content):
            return "the last frame is incomplete" if place > len(content) else ""
        kind = content[place] >> 3 & 15
        place += table[kind] if kind < len(table) else 1
    raise DocumentError(f"AMR has over {_MAX_STEPS} frames")


def _caf(content: mmap.mmap) -> str:
    place = 8
    for _ in range(10_000):
        if place + 12 > len(content):
            return "a chunk header is incomplete" if place < len(content) else ""
        (size,) = struct.unpack_from(">q", content, place + 4)
        # a size of -1: up to the end of the file
        if size < 0:
            return ""
        place += 12 + size
        if place > len(content):
            return f"{size} bytes of a chunk are declared"
    return ""


def _flv(content: mmap.mmap) -> str:
    found = content.find(b"\x00\x08filesize\x00", 0, 4096)
    if found >= 0:
        (size,) = struct.unpack_from(">d", content, found + 11)
        if size > len(content):
            return f"{size:.0f} bytes are declared, {len(content)} are there"
    place = struct.unpack_from(">I", content, 5)[0] + 4
    for _ in range(_MAX_STEPS):
        if place >= len(content):
            return "the last tag is incomplete" if place > len(content) else ""
        place += 15 + int.from_bytes(content[place + 1 : place + 4], "big")
    raise DocumentError(f"FLV has over {_MAX_STEPS} tags")


_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def _asf(content: mmap.mmap) -> str:
    (head_size,) = struct.unpack_from("<Q", content, 16)
    found = content.find(_ASF_FILE, 0, min(head_size, len(content)))
    if found >= 0:
        (size,) = struct.unpack_from("<Q", content, found + 40)
        (flags,) = struct.unpack_from("<I", content, found + 88)
        # a broadcast does not know its size
        if flags & 1:
            return ""
        if size > len(content):
            return f"{size} bytes are declared, {len(content)} are there"
    if content[head_size : head_size + 16] == _ASF_DATA:
        (size,) = struct.unpack_from("<Q", content, head_size + 16)
        return f"{size} bytes of data are declared" if head_size + size > len(content) else ""
    return "the data are missing"


def _jp2(content: mmap.mmap) -> str:
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
