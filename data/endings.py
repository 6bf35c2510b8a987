"""Which files are media, by their ending: what is read, and what is known but not read, with the remedy.

medium_of("a/heron.PNG")     Image
medium_in(root, "a/7.ts")    Video, where its content is a film's; None for a TypeScript source
remedy_for("a/heron.svg")    "draw it as PNG (...)"; None for what is read and for what is no medium

An ending decides only how a file in a folder or a tar is listed. What its content is decides how it is read: a JPEG
called .png is a picture, and a film listed in a manifest may have any name. Endings that usually are something else are
in neither table: .ts and .mts are TypeScript far more often than MPEG transport streams (.m2ts is read; a manifest may
name either), so of these the first bytes are looked at; .raw, .dat, .bin, .mod, .it, .ai and .fit are many things.
"""

import os
from collections.abc import Callable
from pathlib import Path

from data.document import Audio, Image, Video
from data.signatures import DRAW, PAGES, TO_MP4, TO_PNG, TO_WAV, is_transport_stream


def _each(endings: str, value):
    return dict.fromkeys(endings.split(), value)


READ = {
    **_each("png apng jpg jpeg jpe jfif jif mpo webp gif tif tiff bmp dib ppm pgm pbm pnm", Image),
    **_each("avif jp2 j2k j2c jpc jpf jpx", Image),
    **_each("wav wave flac ogg oga mp3 mp2 mpga m1a m2a opus aif aiff aifc au snd rf64", Audio),
    **_each("m4a m4b m4r f4a aac adts amr awb caf wma mka weba", Audio),
    **_each("mp4 m4v mkv webm mov qt avi ogv ogm flv f4v mpg mpeg mpe vob", Video),
    **_each("m2ts m2t m2p wmv asf 3gp 3gpp 3g2 3gp2 3gpp2 divx", Video),
}
"""Ending without its dot, in lower case -> the kind of part that a file with it is."""
UNREAD: dict[str, str] = {
    **_each("heic heif hif heics heifs avifs jng mng dpx psd psb xcf ico cur icns tga pcx pict pct dds", TO_PNG),
    **_each("exr hdr rgbe pfm pam xbm xpm sgi fits dcm dicom jls jxr wdp bpg flif qoi wbmp", TO_PNG),
    **_each("cr2 cr3 crw nef nrw dng arw sr2 srf orf rw2 raf pef srw x3f erf mrw kdc dcr 3fr", TO_PNG),
    **_each("jxl", "convert it to PNG (`djxl FILE FILE.png`)"),
    **_each("svg svgz eps epsf ps emf wmf cdr", DRAW),
    **_each("pdf xps", PAGES),
    **_each("djvu djv", "draw its pages as PNG (`ddjvu -format=tiff FILE PAGES.tiff`)"),
    **_each("ra ram ape oma aa3 g722 wv tta dsf dff dts ac3 eac3 ec3 mlp ofr shn tak mpc mp+ aax aaxc", TO_WAV),
    **_each("gsm voc vox spx sph nist w64 8svx iff qcp dss adx m4p alac sd2", TO_WAV),
    **_each("mid midi kar xm s3m", "play it into a WAV (it holds notes and no sound)"),
    **_each("rm rmvb mxf dv wtv ogx ivf y4m yuv h264 264 h265 265 hevc m1v m2v mjpeg mjpg", TO_MP4),
    **_each("evo tod trp dvr-ms amv bik smk swf fli flc nsv roq braw r3d insv lrv", TO_MP4),
}
"""Ending of a medium that is not read -> what to do about it, as the end of a sentence."""


FILM_OR_CODE = ("ts", "mts", "cts", "tp")
"""Endings of transport streams that are those of programs and other files too."""
_HEAD_BYTES = 1024


def ending_of(path: str) -> str:
    """The ending of a path, in lower case and without its dot."""
    return os.path.splitext(path)[1][1:].lower()


def medium_of(path: str) -> type | None:
    """Image, Audio or Video by a file's ending; None for any other."""
    return READ.get(ending_of(path))


def medium_by(path: str, read: Callable[[int], bytes]) -> type | None:
    """The same, where an ending leaves it open by the first bytes, which `read(count)` gives."""
    if (known := medium_of(path)) or ending_of(path) not in FILM_OR_CODE:
        return known
    return Video if is_transport_stream(read(_HEAD_BYTES)) else None


def medium_in(root: Path, path: str) -> type | None:
    """The same for a plain file at `path` below `root`."""
    return medium_at(root / path, path)


def medium_at(file: Path, path: str) -> type | None:
    """The same for a plain file that goes by the name `path`."""

    def read(count: int) -> bytes:
        try:
            with open(file, "rb") as stream:
                return stream.read(count)
        except OSError:
            return b""

    return medium_by(path, read)


def remedy_for(path: str) -> str | None:
    """What to do about a medium whose ending is known but not read; None for any other file."""
    return UNREAD.get(ending_of(path))
