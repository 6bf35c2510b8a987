"""What a file is by its first bytes, whatever its extension, for messages that say what was given and what to do.

    format_mismatch_hint(path, Image)    ": it is a WAV audio file, so give it as audio"
                                         ": it is a HEIC image, so convert it to PNG (`magick FILE FILE.png`)"
                                         "; convert it to PNG (`magick FILE FILE.png`)"       for unknown bytes

Nothing is decoded: readers ask after they have refused a file. `filetype` and `puremagic` know fewer of these formats,
and not what to do.
"""

import re
import tarfile
from pathlib import Path

from brine.data.document import Audio, Image, Video

TO_PNG = "convert it to PNG (`magick FILE FILE.png`)"
TO_WAV = "convert it to WAV (`ffmpeg -i FILE FILE.wav`)"
TO_MP4 = "convert it to MP4 (`ffmpeg -i FILE FILE.mp4`)"
DRAW = "draw it as PNG (`magick -density 150 FILE FILE.png`)"
PAGES = "draw its pages as PNG (`pdftoppm -png FILE PAGE`) or take its text (`pdftotext FILE`)"
DJVU_PAGES = "draw its pages as PNG (`ddjvu -format=tiff FILE PAGES.tiff`)"
JXL_TO_PNG = "convert it to PNG (`djxl FILE FILE.png`)"
_CONVERT = {Image: TO_PNG, Audio: TO_WAV, Video: TO_MP4}

# format = first bytes, all kinds of one fate together
_IMAGES = (
    rb"(?P<PNG>\x89PNG)|(?P<JPEG>\xff\xd8\xff)|(?P<GIF>GIF8)|(?P<BMP>BM)|(?P<WebP>.{8}WEBP)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<AVIF>.{4}ftypavi[fs])|(?P<JPEG_2000>.{4}jP  |\xff\x4f\xff\x51)"
)
_OTHER_IMAGES = (
    rb"(?P<HEIC>.{4}ftyp(?:hei[cx]|hevc|mif1|msf1))|(?P<CR3_raw>.{4}ftypcrx)|(?P<Photoshop>8BPS)|(?P<ICO>\0\0\x01\0)"
    rb"|(?P<OpenEXR>\x76\x2f\x31\x01)|(?P<Radiance_HDR>#\?RADIANCE)|(?P<DDS>DDS )|(?P<GIMP>gimp xcf)"
)
_SPACE = rb"(?:\xef\xbb\xbf|\s)*"
_DRAWINGS = (
    rb"(?P<PostScript>%!PS)|(?P<EPS>\xc5\xd0\xd3\xc6)"
    rb"|(?P<SVG><svg|(?i:" + _SPACE + rb"(?:<\?xml|<!--|<!doctype svg).*<svg))"
)
_AUDIO = (
    rb"(?P<WAV>.{8}WAVE)|(?P<FLAC>fLaC)|(?P<AIFF>.{8}AIF)|(?P<AU>\.snd)|(?P<AMR>#!AMR)|(?P<CAF>caff)"
    rb"|(?P<MP3>ID3|\xff[\xfb\xfa\xf3\xf2\xe3\xe2])|(?P<AAC>\xff[\xf0\xf1\xf8\xf9])|(?P<M4A>.{4}ftypM4[AB])"
    rb"|(?P<OGG>.{28}(?:\x01vorbis|OpusHead|Speex|\x7fFLAC))"
)
_OTHER_AUDIO = (
    rb"(?P<APE>MAC )|(?P<WavPack>wvpk)|(?P<TTA>TTA1)|(?P<DSD>DSD |FRM8)|(?P<AC3>\x0b\x77)|(?P<DTS>\x7f\xfe\x80\x01)"
    rb"|(?P<RealAudio>\.ra\xfd)"
)
_VIDEOS = (
    rb"(?P<OGG>OggS)|(?P<MP4>.{4}ftyp)|(?P<QuickTime>.{4}moov)|(?P<Matroska_or_WebM>\x1a\x45\xdf\xa3)|(?P<AVI>.{8}AVI )"
    rb"|(?P<FLV>FLV\x01)|(?P<MPEG>\0\0\x01\xba)|(?P<Windows_Media>\x30\x26\xb2\x75\x8e\x66\xcf\x11)"
)
_KNOWN = (
    # kind of file, what it is read as, what to do where it is not read; the first match counts
    (_IMAGES, "image", Image, ""),
    (_OTHER_IMAGES, "image", None, TO_PNG),
    (rb"(?P<JPEG_XL>.{4}JXL |\xff\x0a)", "image", None, JXL_TO_PNG),
    (rb"(?P<DjVu>AT&TFORM)", "document", None, DJVU_PAGES),
    (rb"(?P<PDF>%PDF)", "document", None, PAGES),
    (_DRAWINGS, "drawing", None, DRAW),
    (_AUDIO, "audio file", Audio, ""),
    (rb"(?P<MIDI>MThd)", "file, which holds notes and no audio", None, "play it into a WAV"),
    (_OTHER_AUDIO, "audio file", None, TO_WAV),
    (rb"(?P<RealMedia>\.RMF)|(?P<MXF>\x06\x0e\x2b\x34)", "video", None, TO_MP4),
    (_VIDEOS, "file", Video, ""),
    (rb"(?P<ZIP>PK\x03\x04)", "archive or office document", None, "unpack it"),
    (rb"(?P<_7z>7z\xbc\xaf)|(?P<RAR>Rar!)", "archive", None, "unpack it"),
    (rb"(?P<gzip>\x1f\x8b)", "compressed file", None, "unpack it (`gunzip FILE`)"),
    (rb"(?P<xz>\xfd7zXZ)", "compressed file", None, "unpack it (`unxz FILE`)"),
    (rb"(?P<zstd>\x28\xb5\x2f\xfd)", "compressed file", None, "unpack it (`unzstd FILE`)"),
    (rb"(?P<M3U>#EXTM3U)", "playlist, which names other files", None, "give the files themselves"),
)


def is_tar(head: bytes) -> bool:
    """Whether `head` (512 bytes or more) begins a tar, by its header's checksum: old tars have no magic number."""
    try:
        return bool(tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape").name)
    except (tarfile.HeaderError, ValueError, OverflowError):
        return False


def ts_packet_bytes(head: bytes) -> int:
    """Packet size of the MPEG transport stream that begins with `head` (576 bytes): 188, 192 (with a time), or 0."""
    for start, size in ((0, 188), (4, 192)):
        if head[start : start + 2 * size + 1 : size] == b"GGG":
            return size
    return 0


def identify_format(head: bytes) -> tuple[str, type | None, str] | None:
    """(name with its article, Image, Audio or Video, "") of a file's first bytes, or (name, None, what to do)."""
    for pattern, kind, type_, remedy in _KNOWN:
        if match := re.match(pattern, head, re.DOTALL):
            name = match.lastgroup.strip("_").replace("_", " ")
            return f"{'an' if re.match('[AEIO]|FLV|M[34PX]|SVG', name) else 'a'} {name} {kind}", type_, remedy
    return ("an MPEG transport stream", Video, "") if ts_packet_bytes(head) else None


def format_mismatch_hint(path: Path, wanted: type) -> str:
    """The end of a message on a file that cannot be read as `wanted` (Image, Audio, Video): what it is, what to do."""
    with open(path, "rb") as file:
        head = file.read(1024)
    name, type_, remedy = identify_format(head) or ("", wanted, "")
    if type_ is not wanted:
        return f": it is {name}, so {remedy or f'give it as {type_.__name__.lower()}'}"
    if re.match(_SPACE + rb"(?i:<!doctype html|<html)", head):
        return ": it is a web page, so download the media file itself"
    return f"; {_CONVERT[wanted]}"
