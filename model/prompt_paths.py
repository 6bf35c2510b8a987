"""What a string of a prompt is: words, or the path of a medium that its owner meant and perhaps misspelt.

A string that names an existing image, sound or video is that medium. One that only looks like it is not read as words,
which nobody meant: it is an error that names the file and both ways out. What looks like a path:

    shot.png, a/b.heic      no white space, and the ending of a medium, read or not
    ~/my holiday/1.jpg      white space, but an existing folder or a beginning that only paths have, and such an ending
    /data/words.txt         begins as only paths do, no white space, and any ending
    notes.txt               an existing file that is no medium, or an existing folder written with a separator
    https://host/a.png      an address, with or without what follows a question mark

All other strings are words, and `data.document.Text` makes words of any string. Which endings are media is decided by
`data.endings`. Nothing is opened here.
"""

from __future__ import annotations

import os
import re

from data.document import split_address
from data.endings import READ, UNREAD, ending_of, medium_of, remedy_for

LITERALLY = "to give these words as text, wrap them in data.document.Text"
"""The way out for words that look like a path, from Python."""
_ADDRESS = re.compile(r"(https?|ftp|file|s3|gs|hf)://\S+$", re.IGNORECASE)
_ROOTED = re.compile(r"(/|~[^/\s]*/|\.{1,2}/|[A-Za-z]:[\\/])")
_MOST = 1000
"""Longer strings are words."""


def path_in(text: str, *, literally: str = LITERALLY) -> str | None:
    """The path of a medium that a string is, or None where it is words.

    literally: what to do to have the string read as words, for messages. Raises ValueError, naming the file and what to
    do, for a string that looks like a path but is of no file that can be read as a medium.
    """
    if not text or len(text) > _MOST or not text.isprintable():
        return None
    if text.startswith("data:") and ";base64," in text[:100]:
        raise ValueError(
            f"{text[:40]}... holds the bytes of a file: write them to a file and give its path; {literally}"
        )
    if _ADDRESS.match(text):
        return _address(text, literally)
    place = os.path.expanduser(text)
    ending = ending_of(place)
    medium = ending in READ or ending in UNREAD
    if os.path.isfile(_container(place)):
        if medium_of(place):
            return text
        if medium:
            raise ValueError(f"{text} is of a form that is not read: {remedy_for(place)}; {literally}")
        if ending or os.sep in text:
            raise ValueError(
                f"{text} is a file, but no medium: for its content as text give a TextFile (model.prompt), which is "
                f"--prompt-file on the command line, and for a medium that is named otherwise give Image, Audio or "
                f"Video (data.document); {literally}"
            )
        return None
    if os.path.isdir(place) and os.sep in text and not any(char.isspace() for char in text):
        raise ValueError(f"{text} is a folder: give a file in it; {literally}")
    if not _looks_meant(text, place, medium, ending):
        return None
    remedy = f", and its form is not read: {remedy_for(place)}" if remedy_for(place) else ""
    raise ValueError(f"file {text} does not exist or cannot be reached{remedy}: correct the path; {literally}")


def _looks_meant(text: str, place: str, medium: bool, ending: str) -> bool:
    """Whether a string that is no file was meant to be one."""
    rooted = _ROOTED.match(text) is not None
    if any(char.isspace() for char in text):
        folder = os.path.dirname(place)
        return medium and text == text.strip() and (rooted or (bool(folder) and os.path.isdir(folder)))
    # "/help" or "./configure" are words; so is what ends in a dot and more than a word, as sentences do
    return medium or (rooted and re.fullmatch(r"[a-z0-9]{1,8}", ending) is not None)


def _address(text: str, literally: str) -> None:
    """None for an address of something else; ValueError for one of a medium, or of a file on this machine."""
    if text.lower().startswith("file://"):
        raise ValueError(f"{text} is an address: give the path alone, {text[7:]}; {literally}")
    ending = ending_of(re.split(r"[?#]", text, maxsplit=1)[0])
    if ending in READ or ending in UNREAD:
        raise ValueError(f"{text} is remote: download it and give the path of the file; {literally}")
    return None


def remedy_for_address(path: str) -> str | None:
    """What is wrong with a path that was named as one and is an address, and what to do; None for any other."""
    # a pathlib.Path has one slash of the two
    found = re.match(r"(https?|ftp|file|s3|gs|hf|data):/*", path, re.IGNORECASE)
    if found is None or os.path.exists(path):
        return None
    scheme = found[1].lower()
    if scheme == "data":
        return f"{path[:40]} holds the bytes of a file: write them to a file and give its path"
    if scheme == "file":
        return f"{path} is an address: give the path alone, /{path[found.end() :]}"
    return f"{path} is remote: download it and give the path of the file"


def _container(place: str) -> str:
    """The file to look for: the container of `shard.tar::a.png`, else the path itself."""
    return (split_address(place) or (place,))[0]
