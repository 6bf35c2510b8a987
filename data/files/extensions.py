"""Which files are media, by extension: what is read, and what is known but not read, with the remedy.

An extension only decides how a file in a folder or a tar is listed; its content decides how it is read: a JPEG called
.png is an image. Extensions that usually mean something else are in neither table (.raw, .dat, .bin, .mod, .fit ...);
of .ts and .mts, TypeScript more often than MPEG transport streams, the first bytes are read.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from brine.data.document import Audio, Image, Video
from brine.data.files.signatures import DJVU_PAGES, DRAW, JXL_TO_PNG, PAGES, TO_MP4, TO_PNG, TO_WAV, ts_packet_bytes


def _each(extensions: str, value):
    return dict.fromkeys(extensions.split(), value)


SUPPORTED = {
    **_each("png apng jpg jpeg jpe jfif jif mpo webp gif tif tiff bmp dib ppm pgm pbm pnm", Image),
    **_each("avif jp2 j2k j2c jpc jpf jpx", Image),
    **_each("wav wave flac ogg oga mp3 mp2 mpga m1a m2a opus aif aiff aifc au snd rf64", Audio),
    **_each("m4a m4b m4r f4a aac adts amr awb caf wma mka weba", Audio),
    **_each("mp4 m4v mkv webm mov qt avi ogv ogm flv f4v mpg mpeg mpe vob", Video),
    **_each("m2ts m2t m2p wmv asf 3gp 3gpp 3g2 3gp2 3gpp2 divx", Video),
}
"""Extension without its dot, in lower case -> Image, Audio or Video."""
UNSUPPORTED: dict[str, str] = {
    **_each("heic heif hif heics heifs avifs jng mng dpx psd psb xcf ico cur icns tga pcx pict pct dds", TO_PNG),
    **_each("exr hdr rgbe pfm pam xbm xpm sgi fits dcm dicom jls jxr wdp bpg flif qoi wbmp", TO_PNG),
    **_each("cr2 cr3 crw nef nrw dng arw sr2 srf orf rw2 raf pef srw x3f erf mrw kdc dcr 3fr", TO_PNG),
    **_each("jxl", JXL_TO_PNG),
    **_each("svg svgz eps epsf ps emf wmf cdr", DRAW),
    **_each("pdf xps", PAGES),
    **_each("djvu djv", DJVU_PAGES),
    **_each("ra ram ape oma aa3 g722 wv tta dsf dff dts ac3 eac3 ec3 mlp ofr shn tak mpc mp+ aax aaxc", TO_WAV),
    **_each("gsm voc vox spx sph nist w64 8svx iff qcp dss adx m4p alac sd2", TO_WAV),
    **_each("mid midi kar xm s3m", "play it into a WAV (it holds notes and no audio)"),
    **_each("rm rmvb mxf dv wtv ogx ivf y4m yuv h264 264 h265 265 hevc m1v m2v mjpeg mjpg", TO_MP4),
    **_each("evo tod trp dvr-ms amv bik smk swf fli flc nsv roq braw r3d insv lrv", TO_MP4),
}
"""Extension of a media file that is not read -> what to do about it, as the end of a sentence."""
VIDEO_OR_CODE = ("ts", "mts", "cts", "tp")  # extensions of transport streams that programs and other files have too


def extension_of(path: str) -> str:
    """The extension of a path, in lower case and without its dot."""
    return os.path.splitext(path)[1][1:].lower()


def stem_of(path: str) -> str:
    """The file's name without its folder and extension."""
    return os.path.splitext(os.path.basename(path))[0]


def media_type_of(path: str) -> type | None:
    """Image, Audio or Video by a file's extension; None for any other."""
    return SUPPORTED.get(extension_of(path))


def media_type_by_content(path: str, read: Callable[[int], bytes]) -> type | None:
    """The same, by the first bytes (`read(count)`) where the extension is ambiguous."""
    if extension_of(path) not in VIDEO_OR_CODE:
        return media_type_of(path)
    return Video if ts_packet_bytes(read(1024)) else None


def media_type_of_file(file: Path, path: str) -> type | None:
    """The same for a regular file whose name is `path`."""
    if extension_of(path) in VIDEO_OR_CODE:
        with contextlib.suppress(OSError), open(file, "rb") as stream:
            return media_type_by_content(path, stream.read)
    return media_type_of(path)


def media_type_in(root: Path, path: str) -> type | None:
    """The same for a regular file at `path` below `root`."""
    return media_type_of_file(root / path, path)


def conversion_hint(path: str) -> str | None:
    """What to do about a media file whose extension is known but not read; None for any other file."""
    return UNSUPPORTED.get(extension_of(path))
