"""What a file is by its first bytes, whatever its extension, for messages that say what was given and what to do.

    format_mismatch_hint(path, Image)    ": it is a WAV sound, so give it as audio"
                            ": it is a HEIC image, so convert it to PNG (`magick FILE FILE.png`)"
                            "; convert it to PNG (`magick FILE FILE.png`)"          where the bytes tell nothing

Nothing is decoded or decided here: readers ask after they have refused a file.
"""

import tarfile
from pathlib import Path

from brine.data.document import Audio, Image, Video

TO_PNG = "convert it to PNG (`magick FILE FILE.png`)"
TO_WAV = "convert it to WAV (`ffmpeg -i FILE FILE.wav`)"
TO_MP4 = "convert it to MP4 (`ffmpeg -i FILE FILE.mp4`)"
DRAW = "draw it as PNG (`magick -density 150 FILE FILE.png`)"
PAGES = "draw its pages as PNG (`pdftoppm -png FILE PAGE`) or take its text (`pdftotext FILE`)"
_GIVE = {Image: "give it as image", Audio: "give it as audio", Video: "give it as video"}
_CONVERT = {Image: TO_PNG, Audio: TO_WAV, Video: TO_MP4}

_KNOWN = (
    # place, bytes, name, what it is where that is read, what to do about it where it is not
    (0, b"\x89PNG", "a PNG image", Image, ""),
    (0, b"\xff\xd8\xff", "a JPEG image", Image, ""),
    (0, b"GIF8", "a GIF image", Image, ""),
    (0, b"BM", "a BMP image", Image, ""),
    (8, b"WEBP", "a WebP image", Image, ""),
    *((0, magic, "a TIFF image", Image, "") for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((4, b"ftyp" + brand, "an AVIF image", Image, "") for brand in (b"avif", b"avis")),
    (4, b"jP  ", "a JPEG 2000 image", Image, ""),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image", Image, ""),
    *((4, b"ftyp" + kind, "a HEIC image", None, TO_PNG) for kind in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")),
    (4, b"ftypcrx", "a raw photograph (CR3)", None, TO_PNG),
    (4, b"JXL ", "a JPEG XL image", None, "convert it to PNG (`djxl FILE FILE.png`)"),
    (0, b"\xff\x0a", "a JPEG XL image", None, "convert it to PNG (`djxl FILE FILE.png`)"),
    (0, b"8BPS", "a Photoshop image", None, TO_PNG),
    (0, b"\0\0\1\0", "an icon (ICO)", None, TO_PNG),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image", None, TO_PNG),
    (0, b"#?RADIANCE", "a Radiance HDR image", None, TO_PNG),
    (0, b"DDS ", "a DirectDraw texture", None, TO_PNG),
    (0, b"gimp xcf", "a GIMP image", None, TO_PNG),
    (0, b"AT&TFORM", "a DjVu document", None, "draw its pages as PNG (`ddjvu -format=tiff FILE PAGES.tiff`)"),
    (0, b"%PDF", "a PDF document", None, PAGES),
    (0, b"%!PS", "a PostScript document", None, DRAW),
    (0, b"\xc5\xd0\xd3\xc6", "an EPS drawing", None, DRAW),
    (0, b"<svg", "an SVG drawing", None, DRAW),
    (8, b"WAVE", "a WAV sound", Audio, ""),
    (0, b"fLaC", "a FLAC sound", Audio, ""),
    (8, b"AIF", "an AIFF sound", Audio, ""),
    (0, b".snd", "an AU sound", Audio, ""),
    (0, b"ID3", "an MP3 sound", Audio, ""),
    *((0, bytes([255, second]), "an MP3 sound", Audio, "") for second in (0xFB, 0xFA, 0xF3, 0xF2, 0xE3, 0xE2)),
    *((0, bytes([255, second]), "an AAC sound", Audio, "") for second in (0xF0, 0xF1, 0xF8, 0xF9)),
    (0, b"#!AMR", "an AMR sound", Audio, ""),
    (0, b"caff", "a CAF sound", Audio, ""),
    *((28, head, "an OGG sound", Audio, "") for head in (b"\x01vorbis", b"OpusHead", b"Speex", b"\x7fFLAC")),
    *((4, b"ftypM4" + letter, "an M4A sound", Audio, "") for letter in (b"A", b"B")),
    (0, b"MThd", "a MIDI file, which holds notes and no sound", None, "play it into a WAV"),
    (0, b"MAC ", "a Monkey's Audio sound", None, TO_WAV),
    (0, b"wvpk", "a WavPack sound", None, TO_WAV),
    (0, b"TTA1", "a True Audio sound", None, TO_WAV),
    (0, b"DSD ", "a DSD sound", None, TO_WAV),
    (0, b"FRM8", "a DSD sound", None, TO_WAV),
    (0, b"\x0b\x77", "an AC-3 sound", None, TO_WAV),
    (0, b"\x7f\xfe\x80\x01", "a DTS sound", None, TO_WAV),
    (0, b".ra\xfd", "a RealAudio sound", None, TO_WAV),
    (0, b".RMF", "a RealMedia file", None, TO_MP4),
    (0, b"\x06\x0e\x2b\x34", "an MXF video", None, TO_MP4),
    (0, b"OggS", "an OGG video", Video, ""),
    (4, b"ftyp", "an MP4 file", Video, ""),
    (4, b"moov", "a QuickTime file", Video, ""),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM file", Video, ""),
    (8, b"AVI ", "an AVI video", Video, ""),
    (0, b"FLV\x01", "an FLV video", Video, ""),
    (0, b"\0\0\1\xba", "an MPEG video", Video, ""),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file", Video, ""),
    (0, b"PK\x03\x04", "a ZIP archive (or an office document)", None, "unpack it"),
    (0, b"\x1f\x8b", "compressed by gzip", None, "unpack it (`gunzip FILE`)"),
    (0, b"\xfd7zXZ", "compressed by xz", None, "unpack it (`unxz FILE`)"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", None, "unpack it (`unzstd FILE`)"),
    (0, b"7z\xbc\xaf", "a 7z archive", None, "unpack it"),
    (0, b"Rar!", "a RAR archive", None, "unpack it"),
    (0, b"#EXTM3U", "a playlist, which names other files", None, "give the files themselves"),
)


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with `head` (512 bytes or more) is a tar of any kind, by its first header's sum.

    The mark of newer kinds alone would miss the tars of old programs; a file of zeros is not a tar.
    """
    try:
        return bool(tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape").name)
    except (tarfile.HeaderError, ValueError, OverflowError):
        return False


def is_transport_stream(head: bytes) -> bool:
    """Whether a file that begins with `head` (576 bytes or more) is an MPEG transport stream.

    Packets of 188 bytes, or of 192 with a time in front as cameras and Blu-ray write them, each begin with `G`.
    """
    starts = ((start, size) for start, size in ((0, 188), (4, 192)) if len(head) > start + 2 * size)
    return any(head[start] == head[start + size] == head[start + 2 * size] == 0x47 for start, size in starts)


def identify_format(head: bytes) -> tuple[str, type | None, str] | None:
    """(what it is, Image, Audio or Video where that is read, what to do where it is not) of a file that begins so."""
    for place, magic, name, medium, remedy in _KNOWN:
        if head.startswith(magic, place):
            return name, medium, remedy
    if is_transport_stream(head):
        return "an MPEG transport stream", Video, ""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text and text.startswith((b"<?xml", b"<!--", b"<!doctype svg")):
        return "an SVG drawing", None, DRAW
    return None


def format_mismatch_hint(path: Path, wanted: type) -> str:
    """The end of a message on a file that cannot be read as `wanted` (Image, Audio, Video): what it is, what to do."""
    with open(path, "rb") as file:
        head = file.read(1024)
    name, medium, remedy = identify_format(head) or ("", wanted, "")
    if medium is not wanted:
        return f": it is {name}, so {remedy or _GIVE[medium]}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return ": it is a web page, so download the medium itself"
    return f"; {_CONVERT[wanted]}"
