"""Whether a media file is whole, by what its own container declares; nothing is decoded.

Decoders forgive too much: Pillow gives an image that lacks its last bytes and reads the first frame alone, libsndfile
plays a WAV, OGG or MP3 up to a cut, FFmpeg fills in frames. A file cut by a broken download would teach a wrong end. So
each container has a function that gives the bytes it needs: where its last element ends, infinity without its end mark.

A cut cannot be seen between two frames, packets or clusters of a format that declares no total: MP3 without a Xing
header, AAC (ADTS), AMR, MPEG streams, and MKV, FLV, WAV or fragmented MP4 from a pipe. Trailing bytes are allowed.
"""

import mmap
import re
import struct
from collections.abc import Callable
from math import inf
from pathlib import Path

from brine.data.document import DocumentError
from brine.data.files.signatures import ts_packet_bytes

_MAX_STEPS = 2_000_000
_STREAMED = (0, 2**32 - 1)  # sizes that mean "unknown", left by writers that could not go back


def check_complete(path: Path) -> None:
    """Raise DocumentError when a file ends before what it declares; unknown kinds and broken files pass."""
    with open(path, "rb") as file:
        if not file.read(1):
            raise DocumentError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            head, size = content[:1024], len(content)
            try:
                needed = next((check(content) for magic, check in _CHECKS if re.match(magic, head, re.DOTALL)), 0)
            except (struct.error, IndexError):
                raise DocumentError("truncated: its last element is incomplete") from None
    if needed > size:
        what = "its end mark is missing" if needed == inf else f"{needed:.0f} bytes are declared, {size} are there"
        raise DocumentError(f"truncated: {what}")


def _int(form: str, content, offset: int) -> int:
    return struct.unpack_from(form, content, offset)[0]


def _end(content, offset: int, size_at: Callable[[int], int]) -> int:
    """Where the elements from `offset` on end, by their sizes; a size of 0 ends the walk."""
    for _ in range(_MAX_STEPS):
        size = size_at(offset) if offset < len(content) else 0
        if not size:
            return offset
        offset += size
    raise DocumentError(f"the file has over {_MAX_STEPS} elements")


def _png(content) -> float:
    return 0 if content.rfind(b"\0\0\0\0IEND\xaeB`\x82") >= 0 else inf


def _jpeg(content) -> float:
    # segments up to the first scan, so that the end mark of an embedded thumbnail does not count
    def segment(offset: int) -> int:
        kind = content[offset + 1]
        if content[offset] != 0xFF or kind == 0xDA:
            return 0
        # fill bytes, and marks without a body
        bare = kind == 0x01 or 0xD0 <= kind <= 0xD8
        return 1 if kind == 0xFF else 2 if bare else 2 + _int(">H", content, offset + 2)

    scan = _end(content, 2, segment)
    is_whole = scan < len(content) and (content[scan] != 0xFF or content.find(b"\xff\xd9", scan) >= 0)
    return 0 if is_whole else inf


def _gif(content) -> int:
    def palette(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    def block(offset: int) -> int:
        kind = content[offset]
        if kind not in (0x2C, 0x21):
            # readers pass over stray bytes between blocks
            return int(kind != 0x3B)
        end = offset + (11 + palette(content[offset + 9]) if kind == 0x2C else 2)
        while content[end]:
            end += content[end] + 1
        return end + 1 - offset

    return _end(content, 13 + palette(content[10]), block) + 1


def _tiff(content) -> int:
    order = "<" if content[:2] == b"II" else ">"
    word, count_form, entry_form = ("Q", "Q", "HHQ") if _int(order + "H", content, 2) == 43 else ("I", "H", "HHI")
    head, size = struct.calcsize(order + entry_form), struct.calcsize(order + entry_form + word)
    offset, seen, end = _int(order + word, content, 8 if word == "Q" else 4), set(), 0
    while offset and offset not in seen and len(seen) < 10_000:
        seen.add(offset)
        count = _int(order + count_form, content, offset)
        offset += struct.calcsize(order + count_form)
        spans = {}
        for entry in range(offset, offset + min(count, 4096) * size, size):
            tag, kind, length = struct.unpack_from(order + entry_form, content, entry)
            form = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if tag in (273, 279, 324, 325) and form and length <= _MAX_STEPS:
                values, at = f"{order}{length}{form}", entry + head
                # values that do not fit into the entry are elsewhere
                fits = struct.calcsize(values) <= struct.calcsize(order + word)
                spans[tag] = struct.unpack_from(values, content, at if fits else _int(order + word, content, at))
        for starts, sizes in ((273, 279), (324, 325)):
            end = max(end, *map(sum, zip(spans.get(starts, ()), spans.get(sizes, ()), strict=False)), 0)
        offset = _int(order + word, content, offset + count * size)
    return end


def _riff(content) -> int:
    """RIFF, RIFX, RF64 and FORM: the size of the samples, and the outer size."""
    order = ">" if content[:4] in (b"FORM", b"RIFX") else "<"
    outer, is_64_bit = _int(order + "I", content, 4), content[:4] == b"RF64"
    needed, long_size, padding = 0, 2**32 - 1, 0

    def chunk(offset: int) -> int:
        nonlocal needed, long_size, padding
        if offset + 8 > len(content):
            return 0
        kind, size = struct.unpack_from(f"{order}4sI", content, offset)
        if is_64_bit and kind == b"ds64":
            long_size = _int("<Q", content, offset + 16)
        if kind in (b"data", b"SSND"):
            size = long_size if size == 2**32 - 1 else size
            if size in _STREAMED:
                return 0
            needed = max(needed, offset + 8 + size)
        # the padding byte of an odd last chunk may be left off
        padding = size & 1 if offset + 8 + size == len(content) else 0
        return 8 + size + (size & 1)

    _end(content, 12, chunk)
    return needed if is_64_bit or outer in _STREAMED else max(needed, outer + 8 - padding)


def _au(content) -> int:
    start, size = struct.unpack_from(">II", content, 4)
    return 0 if size in _STREAMED else start + size


def _ogg(content) -> float:
    page = content.rfind(b"OggS")
    segments, is_last = page + 27, content[page + 5] & 4
    end = segments + content[page + 26]
    return end + sum(content[segments:end]) if is_last else inf


def _mp4(content) -> int:
    def box(offset: int) -> int:
        size, head = _int(">I4x", content, offset), 8
        if size == 1:
            size, head = _int(">Q", content, offset + 8), 16
        # zero: up to the end of the file; an impossible size is left to the reader
        return size if size >= head else 0

    return _end(content, 0, box)


def _jp2(content) -> float:
    # no two bytes of coded data are an end mark
    return inf if content.rfind(b"\xff\xd9") < 0 else _mp4(content) if content[4:8] == b"jP  " else 0


def _matroska(content) -> int:
    def value(offset: int) -> tuple[int, int]:
        length = 9 - content[offset].bit_length()
        most = (1 << 7 * length) - 1
        size = int.from_bytes(content[offset : offset + length], "big") & most
        return offset + length, 0 if size == most or length > 8 else size

    def element(offset: int) -> int:
        return 0 if content[offset : offset + 4] == b"\x18\x53\x80\x67" else sum(value(offset + 1)) - offset

    # a Void or CRC element may stand between the header and the segment
    return sum(value(_end(content, sum(value(4)), element) + 4))


_MP3_KBPS = {
    # (MPEG 1?, layer): kilobits per second by index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mpeg_audio(content) -> int:
    """MP3 and AAC (ADTS): ID3 tags, the bytes that a Xing header declares, then frame by frame."""
    offset = 0
    while content[offset : offset + 3] == b"ID3":
        size = content[offset + 6 : offset + 10]
        offset += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    if offset >= len(content):
        return offset
    offset = re.compile(rb"\0*").match(content, offset).end()
    is_adts = content[offset : offset + 1] == b"\xff" and content[offset + 1] & 0xF6 == 0xF0
    first, needed = content[offset : offset + 200], 0
    found = re.search(b"Xing|Info", first[1:44])
    # flags: 1 frames, 2 bytes, each a field of four
    if not is_adts and found and first[found.end() + 4] & 2:
        needed = offset + _int(">I", first, found.end() + (9 if first[found.end() + 4] & 1 else 5))

    def frame(offset: int) -> int:
        head = content[offset : offset + (7 if is_adts else 4)]
        # what follows the frames (ID3v1, APE) or cannot be read as one is no sign of a cut
        if head[0] != 0xFF:
            return 0
        if len(head) < (7 if is_adts else 4):
            return 7
        if is_adts:
            return max(7, (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5) if head[1] & 0xF6 == 0xF0 else 0
        return _mp3_frame_bytes(head) if head[1] & 0xE0 == 0xE0 else 0

    return max(needed, _end(content, offset, frame))


def _mp3_frame_bytes(head: bytes) -> int:
    """Bytes of the MPEG audio frame with this header; 0 for an impossible header or a free bit rate."""
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


def _amr(content) -> int:
    is_wideband = content[5:9] == b"-WB\n"
    sizes = dict(enumerate(_AMR_BYTES[is_wideband]))
    return _end(content, 9 if is_wideband else 6, lambda offset: sizes.get(content[offset] >> 3 & 15, 1))


def _caf(content) -> int:
    # a size of -1: up to the end of the file
    return _end(content, 8, lambda at: 12 + size if (size := _int(">4xq", content, at)) >= 0 else 0)


def _flv(content) -> float:
    found = content.find(b"\x00\x08filesize\x00", 0, 4096)
    declared = _int(">d", content, found + 11) if found >= 0 else 0
    tags = _int(">I", content, 5) + 4
    return max(declared, _end(content, tags, lambda at: 15 + int.from_bytes(content[at + 1 : at + 4], "big")))


def _asf(content) -> float:
    head_bytes = _int("<Q", content, 16)
    found = content.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"), 0, min(head_bytes, len(content)))
    declared = 0
    if found >= 0:
        # a broadcast does not know its size
        if _int("<I", content, found + 88) & 1:
            return 0
        declared = _int("<Q", content, found + 40)
    if content[head_bytes : head_bytes + 16] != bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"):
        return inf
    return max(declared, head_bytes + _int("<Q", content, head_bytes + 16))


def _transport_stream(content) -> int:
    size = ts_packet_bytes(content[:1024])
    return -(-len(content) // size) * size


_CHECKS = (
    (rb"#!AMR", _amr),
    (rb"caff", _caf),
    (rb"FLV\x01", _flv),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _asf),
    (rb".{4}jP  |\xff\x4f\xff\x51", _jp2),
    (rb"\x89PNG", _png),
    (rb"\xff\xd8\xff", _jpeg),
    (rb"GIF8", _gif),
    (rb"II[*+]\0|MM\0[*+]", _tiff),
    (rb"RIFF|RIFX|RF64|FORM", _riff),
    (rb"\.snd", _au),
    (rb"OggS", _ogg),
    (rb"\x1a\x45\xdf\xa3", _matroska),
    (rb".{4}(?:ftyp|moov|mdat|free|skip|wide)", _mp4),
    (rb"G.{187}G.{187}G|.{4}G.{191}G.{191}G", _transport_stream),
    (rb"ID3|\xff[\xe0-\xff]", _mpeg_audio),
)
