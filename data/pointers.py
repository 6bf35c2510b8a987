"""Files that stand for others whose content was not fetched: what a version-control system leaves in their place.

    pointer_in(file)       what such a file is and the command that fetches its content; "" for any other
    pointer_of(content)    the same for the content of a small file, or of a member of an archive
    why_missing(path)      the command for a file that is not there but was, or lies in a folder that was, given to DVC
    awaited(name)          the name of the file or folder that a file of DVC (a.png.dvc) stands for

Git LFS, git-annex and git-xet keep large files elsewhere and put a line or three of text where they belong. A clone
without the tool, or a download of the repository as an archive, has nothing else: a picture of 130 bytes that no
decoder knows. Only files below 1 KiB are looked into, and a pointer of git-annex that is a link is told by
`data.links`.
"""

import itertools
import os
from pathlib import Path

MAX_BYTES = 1024
"""Size from which on a file is no pointer."""
_DVC = "has not been fetched: `dvc pull` fetches it"
_DEPTH = 16
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a pointer of git-lfs", "git lfs pull"),
    (b"version https://hawser.github.com/spec/", "a pointer of git-lfs", "git lfs pull"),
    (b"/annex/objects/", "a pointer of git-annex", "git annex get"),
    (b"# xet version", "a pointer of git-xet", "git xet pull"),
)


def pointer_in(file: str | Path) -> str:
    """What a small file points to and the command that fetches it, as the end of a message; "" for any other file.

    Raises OSError when the file cannot be read.
    """
    if os.stat(file).st_size >= MAX_BYTES:
        return ""
    with open(file, "rb") as stream:
        content = stream.read(MAX_BYTES)
    if str(file).lower().endswith(".dvc") and b"outs:" in content:
        return f"stands for {os.path.basename(file)[:-4]!r}, which {_DVC}"
    return pointer_of(content)


def pointer_of(content: bytes) -> str:
    """The same for the content of a file."""
    if len(content) >= MAX_BYTES:
        return ""
    head = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, what, command in _POINTERS:
        if head.startswith(start):
            return f"is {what}, whose content is not in this copy: `{command}` fetches it"
    return ""


def why_missing(path: str | Path) -> str:
    """What to do about a file that is not there, as the end of a message; "" when that is all there is to say."""
    for place in (str(path), *map(str, itertools.islice(Path(path).parents, _DEPTH))):
        # DVC keeps a file beside what it took, be that a file or a folder
        if os.path.basename(place) and os.path.isfile(f"{place}.dvc"):
            return _DVC
    return ""


def awaited(name: str) -> str:
    """The name of the file that a file of DVC stands for; "" for any other."""
    return name[:-4] if name.lower().endswith(".dvc") and os.path.basename(name)[:-4] else ""
