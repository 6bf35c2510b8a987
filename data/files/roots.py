"""Folders that media paths are relative to: one, or one for each source of a joined corpus.

In a corpus of several sources the first folder of a path is a source's name, `wiki/images/a.png`, and each source keeps
its own root: a path never leads from one into another, nor out of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brine.data.files.addresses import DocumentError, check_relative


@dataclass(frozen=True)
class MediaRoots:
    """Resolved folders by the name of their source. Stands where the one `Path` of a single source does."""

    folders: Mapping[str, Path]
    """Source name -> resolved folder."""

    def locate(self, path: str) -> tuple[Path, str]:
        """(root, path below it). Raises DocumentError where the path begins with no source's name or leaves its
        root."""
        name, _, rest = path.partition("/")
        if name not in self.folders or not rest:
            raise DocumentError(f"path {path[:200]!r} does not begin with the name of a source")
        return self.folders[name], check_relative(rest)

    def __truediv__(self, path: str) -> Path:
        root, rest = self.locate(path)
        return root / rest

    def __str__(self) -> str:
        return ", ".join(map(str, self.folders.values()))

    def exists(self) -> bool:
        """Whether every folder exists."""
        return all(folder.exists() for folder in self.folders.values())

    def is_dir(self) -> bool:
        """Whether every folder is one."""
        return all(folder.is_dir() for folder in self.folders.values())


def locate(root: Path | MediaRoots, path: str) -> tuple[Path, str]:
    """(folder, path below it) of a media path. Raises DocumentError for one that names no source."""
    return root.locate(path) if isinstance(root, MediaRoots) else (root, path)


def resolved_root(root: str | Path | MediaRoots) -> Path | MediaRoots:
    """The root with links followed."""
    return root if isinstance(root, MediaRoots) else Path(root).resolve()


def root_to_json(root: Path | MediaRoots) -> str | dict[str, str]:
    """Plain JSON: a path, or paths by source name."""
    if isinstance(root, MediaRoots):
        return {name: str(folder) for name, folder in root.folders.items()}
    return str(root)


def root_from_json(found: str | Mapping[str, str]) -> Path | MediaRoots:
    """The inverse of `root_to_json`."""
    if isinstance(found, Mapping):
        return MediaRoots({name: Path(folder) for name, folder in found.items()})
    return Path(found)
