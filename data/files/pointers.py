"""Files that stand for others whose content was not fetched, and the command that fetches it.

Git LFS, git-annex and git-xet leave a few lines of text in place of a large file, DVC a file `a.png.dvc` beside it.
Only files below 1 KiB are read; a git-annex pointer that is a link is met by `brine.data.files.resolve`.
"""

import itertools
import os
from pathlib import Path

MAX_BYTES = 1024  # a file of this size or more is not a pointer
_DVC = "has not been fetched: `dvc pull` fetches it"
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "git-lfs", "git lfs pull"),
    (b"version https://hawser.github.com/spec/", "git-lfs", "git lfs pull"),
    (b"/annex/objects/", "git-annex", "git annex get"),
    (b"# xet version", "git-xet", "git xet pull"),
)


def pointer_in(file: str | Path) -> str:
    """The command that fetches what a small file points to, as a message's end, or "". OSError if unreadable."""
    if os.stat(file).st_size >= MAX_BYTES:
        return ""
    with open(file, "rb") as stream:
        content = stream.read(MAX_BYTES)
    target = dvc_target(os.path.basename(file)) if b"outs:" in content else ""
    return f"stands for {target!r}, which {_DVC}" if target else pointer_of(content)


def pointer_of(content: bytes) -> str:
    """The same for the content of a file."""
    head = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, tool, command in _POINTERS:
        if head.startswith(start) and len(content) < MAX_BYTES:
            return f"is a pointer of {tool}, whose content is not in this copy: `{command}` fetches it"
    return ""


def missing_file_hint(path: str | Path) -> str:
    """What to do about a missing file that DVC keeps, alone or with a folder above it; "" for any other."""
    tracked = (str(path), *map(str, itertools.islice(Path(path).parents, 16)))
    return _DVC if any(os.path.basename(name) and os.path.isfile(f"{name}.dvc") for name in tracked) else ""


def dvc_target(name: str) -> str:
    """The name of the file that a file of DVC stands for; "" for any other."""
    return name[:-4] if name.lower().endswith(".dvc") and os.path.basename(name)[:-4] else ""
