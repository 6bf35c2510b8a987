"""Safetensors files with the mode that the umask gives, where safetensors writes 0600."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; metadata: strings for its header."""
    path = Path(path)
    # the umask cannot be read without being changed, for all threads; a new file shows it
    with open(path, "wb"):
        mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    path.chmod(mode)
