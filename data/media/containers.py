"""Containers of video and audio that PyAV opens: recognised by their first bytes, opened under their name.

Only known kinds are opened: left to guess, FFmpeg takes a text for a playlist (and opens what it names) and a PNG or
the cover of a song for a video.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from brine.data.document import DocumentError
from brine.data.files.signatures import ts_packet_bytes

_CONTAINERS = {
    # some image formats use MP4 boxes too
    "mov": rb".{4}(?:ftyp(?!avif|heic|heix|mif1|crx )|moov|mdat|free|skip|wide)",
    "avi": rb"RIFF.{4}AVI ",
    "matroska": rb"\x1a\x45\xdf\xa3",
    "ogg": rb"OggS",
    "flv": rb"FLV\x01",
    "mpeg": rb"\0\0\x01\xba",
    "asf": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "aac": rb"\xff[\xf0\xf1\xf8\xf9]",
    "amr": rb"#!AMR",
}
AUDIO_ONLY = ("aac", "amr")


def container_of(path: Path) -> str:
    """FFmpeg's name of the container, from its first bytes; "" for a kind that PyAV is not asked to read."""
    with open(path, "rb") as file:
        head = file.read(1024)
        if head[:3] == b"ID3" and len(head) > 10:
            file.seek(10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]))
            head = file.read(1024)
    found = (name for name, magic in _CONTAINERS.items() if re.match(magic, head, re.DOTALL))
    return next(found, "mpegts" if ts_packet_bytes(head) else "")


@contextlib.contextmanager
def open_container(path: Path, kind: str, failure: str) -> Iterator:
    """PyAV's container. Whatever fails in it is a DocumentError: `failure` and the first line of PyAV's reason."""
    try:
        import av
    except ImportError:
        remedy = "`uv sync` installs it, or pip install av"
        raise DocumentError(f"reading this file takes PyAV, which is not installed: {remedy}") from None
    try:
        with av.open(str(path), format=kind) as container:
            yield container
    except (DocumentError, MemoryError):
        raise
    # PyAV raises what FFmpeg gives it, in classes of many names
    except Exception as error:
        reason = str(error).splitlines()[0][-120:] if str(error) else type(error).__name__
        raise DocumentError(f"{failure} ({reason})") from None


def video_streams(container) -> list:
    """The video streams of a PyAV container; a cover image does not count."""
    import av

    attached = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & attached]


def check_length(declared_s: float, missing_s: float, length_s: float) -> None:
    """DocumentError where the end lacks more than a second and a twentieth of `length_s`."""
    if missing_s > max(1.0, 0.05 * length_s):
        raise DocumentError(f"truncated: {declared_s:.1f} s are declared, the last {missing_s:.1f} s are missing")
