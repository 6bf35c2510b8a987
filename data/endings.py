"""Which files are media, by their ending: what is read, and what is known but not read, with the remedy.

medium_of("a/heron.PNG")     Image
remedy_for("a/heron.svg")    "draw it as PNG"; None for what is read and for what is no medium
"""

import os

from data.document import Audio, Image, Video

READ = {
    **dict.fromkeys(("png", "jpg", "jpeg", "jfif", "webp", "gif", "tif", "tiff", "bmp", "ppm", "pgm", "pbm"), Image),
    **dict.fromkeys(("wav", "flac", "ogg", "oga", "mp3", "opus", "aif", "aiff", "aifc", "au", "snd"), Audio),
    **dict.fromkeys(("mp4", "m4v", "mkv", "webm", "mov", "avi", "ogv", "flv", "mpg", "mpeg"), Video),
}  # fmt: skip
"""Ending without its dot, in lower case -> the kind of part that a file with it is."""
UNREAD: dict[str, str] = {}
"""Ending of a medium that is not read -> what to do about it, as the end of a sentence."""


def ending_of(path: str) -> str:
    """The ending of a path, in lower case and without its dot."""
    return os.path.splitext(path)[1][1:].lower()


def medium_of(path: str) -> type | None:
    """Image, Audio or Video by a file's ending; None for any other."""
    return READ.get(ending_of(path))


def remedy_for(path: str) -> str | None:
    """What to do about a medium whose ending is known but not read; None for any other file."""
    return UNREAD.get(ending_of(path))
