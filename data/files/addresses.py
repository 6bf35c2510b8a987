"""How media paths are spelled: relative to the manifest's folder, and into containers as `container::inside`.

`shard.tar::name.png` is a member of a tar, `file.parquet::12/image` a cell of a table. A container whose name lacks
such an extension has it added in addresses (`shard#.tar::name.png`), so that a file's kind is in its address and names
such as `std::vector.png` stay plain. Only spelling is checked here; `brine.data.files.resolve` follows links.
"""

import os

CONTAINERS = (".tar", ".parquet", ".arrow")  # extensions of files whose insides can be addressed


class DocumentError(ValueError):
    """A document that cannot be used; the message says which field or file, and why."""


def split_address(path: str) -> tuple[str, str] | None:
    """(container, inside) of a path such as `shard.tar::a.png`; None for the path of a plain file."""
    colons = path.find("::")
    # the name of a container may hold colons too
    while colons >= 0 and not path[:colons].lower().endswith(CONTAINERS):
        colons = path.find("::", colons + 1)
    return (path[:colons], path[colons + 2 :]) if colons >= 0 else None


def tagged(name: str, ending: str) -> str:
    """The name of a container in addresses: unchanged where it ends with `ending`, else with `#.tar` (or so) added."""
    lower = name.lower()
    return name if lower.endswith(ending) and not lower.endswith(f"#{ending}") else f"{name}#{ending}"


def untagged(name: str) -> str:
    """The path of a container's file from its name in an address."""
    tag = next((f"#{ending}" for ending in CONTAINERS if name.lower().endswith(f"#{ending}")), "")
    return name[: len(name) - len(tag)]


def check_relative(path: str) -> str:
    """The path itself when it (and each half of an address) is relative and stays in its folder; else DocumentError."""
    if not path or "\0" in path:
        raise DocumentError("a media path is empty or holds a NUL byte")
    for half in split_address(path) or (path,):
        if not half:
            raise DocumentError(f"path {path[:200]!r} names nothing inside its container")
        if os.path.isabs(half) or half.startswith(("~", "data:")) or "://" in half[:16]:
            raise DocumentError(f"path {path[:200]!r} is not relative to the manifest's folder")
        if os.path.normpath(half).split(os.sep)[0] == os.pardir:
            raise DocumentError(f"path {path[:200]!r} leaves the manifest's folder")
    return path
