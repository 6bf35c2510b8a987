"""Files that stand for others whose content was not fetched, and the command that fetches it.

Git LFS, git-annex and git-xet keep large files elsewhere and leave a few lines of text in their place, DVC a file
`a.png.dvc` beside it. A clone without the tool, or a download of the repository as an archive, has nothing else. Only
files below 1 KiB are read; a git-annex pointer that is a link is met by `brine.data.files.links`.
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


def missing_file_hint(path: str | Path) -> str:
    """What to do about a file that is not there, as the end of a message; "" when that is all there is to say."""
    for place in (str(path), *map(str, itertools.islice(Path(path).parents, _DEPTH))):
        # DVC keeps a file beside what it took, be that a file or a folder
        if os.path.basename(place) and os.path.isfile(f"{place}.dvc"):
            return _DVC
    return ""


def dvc_target(name: str) -> str:
    """The name of the file that a file of DVC stands for; "" for any other."""
    return name[:-4] if name.lower().endswith(".dvc") and os.path.basename(name)[:-4] else ""
