"""What a string of a prompt is: words, or the path of a medium that its owner meant and perhaps misspelt.

A string that names an existing image, sound or video is that medium, whatever characters are in the name, but for a
line break inside. White space around a name is cut where the name as it stands is none and what is left is. A string
that only looks like a path is not read as words, which nobody meant: it is an error that names the file and both ways
out. What looks like a path:

    shot.png, a/b.heic      no white space, and the ending of a medium, read or not
    ~/my holiday/1.jpg      white space, but an existing folder or a beginning that only paths have, and such an ending
    /data/words.txt         begins as only paths do, no white space, and any ending
    notes.txt               an existing file that is no medium, or an existing folder written with a separator
    https://host/a.png      an address, with or without what follows a question mark

All other strings are words, and so are those with control characters that name no file; `brine.data.document.Text`
makes words of any string. Which endings are media is decided by `brine.data.files.extensions`. Nothing is opened here.
"""

from __future__ import annotations

import os
import re
import unicodedata
from urllib.parse import unquote

from brine.data.files.addresses import split_address
from brine.data.files.extensions import SUPPORTED, UNSUPPORTED, conversion_hint, extension_of, media_type_of

LITERAL_HINT = "to give these words as text, wrap them in brine.data.document.Text"
"""The way out for words that look like a path, from Python."""
_URL = re.compile(r"(https?|ftp|file|s3|gs|hf)://\S+$", re.IGNORECASE)
_ROOTED = re.compile(r"(/|~[^/\s]*/|\.{1,2}/|[A-Za-z]:[\\/])")
_MOST = 1000
"""Longer strings that name no file are words."""
_LONGEST = 4096
"""No system takes a longer path."""


class TextFileError(ValueError):
    """A string is the path of a file that is no medium."""


def media_path_in(text: str, *, literal_hint: str = LITERAL_HINT) -> str | None:
    """The path of a medium that a string is, or None where it is words.

    literally: what to do to have the string read as words, for messages. Raises ValueError, naming the file and what to
    do, for a string that looks like a path but is of no file that can be read as a medium.
    """
    if not text or len(text) > _LONGEST:
        return None
    if (path := _existing(text)) is not None:
        if media_type_of(path):
            return path
        place = os.path.expanduser(path)
        raise ValueError(f"{escape_path(path)} is of a form that is not read: {conversion_hint(place)}; {literal_hint}")
    if len(text) > _MOST or any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        return None
    if text.startswith("data:") and ";base64," in text[:100]:
        raise ValueError(
            f"{text[:40]}... holds the bytes of a file: write them to a file and give its path; {literal_hint}"
        )
    if _URL.match(text) or (text.lower().startswith("file://") and os.path.isfile(_file_url_path(text))):
        return _check_url(text, literal_hint)
    place = os.path.expanduser(text)
    ending = extension_of(place)
    medium = ending in SUPPORTED or ending in UNSUPPORTED
    if os.path.isfile(_container(place)):
        if ending or os.sep in text:
            raise TextFileError(
                f"{text} is a file, but no medium: for its content as text give a TextFile (brine.inference.prompt), "
                f"and for a medium of another name give Image, Audio or Video (brine.data.document); {literal_hint}"
            )
        return None
    if os.path.isdir(place) and (medium or os.sep in text) and not any(char.isspace() for char in text):
        raise ValueError(f"{text} is a folder: give a file in it; {literal_hint}")
    if not _looks_like_path(text, place, medium, ending):
        return None
    remedy = f", and its form is not read: {conversion_hint(place)}" if conversion_hint(place) else ""
    raise ValueError(f"file {text} does not exist or cannot be reached{remedy}: correct the path; {literal_hint}")


def _existing(text: str) -> str | None:
    """The existing file with the ending of a medium that a string names, as it stands or without the white space around
    it; None where it names none."""
    for path in dict.fromkeys((text, text.strip())):
        place = os.path.expanduser(path)
        ending = extension_of(place)
        if (ending in SUPPORTED or ending in UNSUPPORTED) and "\n" not in path and os.path.isfile(_container(place)):
            return path
    return None


def escape_path(path: str) -> str:
    """A path for a message: control characters as they are escaped, since they would move the cursor of a terminal."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Cs") else char for char in path
    )


def _looks_like_path(text: str, place: str, medium: bool, ending: str) -> bool:
    """Whether a string that is no file was meant to be one."""
    rooted = _ROOTED.match(text) is not None
    if any(char.isspace() for char in text):
        folder = os.path.dirname(place)
        return medium and text == text.strip() and (rooted or (bool(folder) and os.path.isdir(folder)))
    # "/help" or "./configure" are words; so is what ends in a dot and more than a word, as sentences do
    return medium or (rooted and re.fullmatch(r"[a-z0-9]{1,8}", ending) is not None)


def _check_url(text: str, literal_hint: str) -> None:
    """None for an address of something else; ValueError for one of a medium, or of a file on this machine."""
    if text.lower().startswith("file://"):
        raise ValueError(f"{text} is an address: give the path alone, {_file_url_path(text)}; {literal_hint}")
    ending = extension_of(re.split(r"[?#]", text, maxsplit=1)[0])
    if ending in SUPPORTED or ending in UNSUPPORTED:
        raise ValueError(f"{text} is remote: download it and give the path of the file; {literal_hint}")
    return None


def url_hint(path: str) -> str | None:
    """What is wrong with a path that was named as one and is an address, and what to do; None for any other."""
    # a pathlib.Path has one slash of the two
    found = re.match(r"(https?|ftp|file|s3|gs|hf|data):/*", path, re.IGNORECASE)
    if found is None or os.path.exists(path):
        return None
    scheme = found[1].lower()
    if scheme == "data":
        return f"{path[:40]} holds the bytes of a file: write them to a file and give its path"
    if scheme == "file":
        return f"{path} is an address: give the path alone, {_file_url_path(path)}"
    return f"{path} is remote: download it and give the path of the file"


def _file_url_path(address: str) -> str:
    """The path in a file's address, whose host is this machine."""
    rest = re.sub(r"^file:/*", "", address, count=1, flags=re.IGNORECASE)
    return f"/{unquote(rest.removeprefix('localhost/'))}"


def _container(place: str) -> str:
    """The file to look for: the container of `shard.tar::a.png`, else the path itself."""
    return (split_address(place) or (place,))[0]
