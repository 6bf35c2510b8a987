"""Safetensors files with the mode that the umask gives, where safetensors writes 0600."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from brine.common.files import full_disk_number


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; metadata: strings for its header. Raises OSError where the disk is full."""
    path = Path(path)
    # the umask cannot be read without being changed, for all threads; a new file shows it
    with open(path, "wb"):
        mode = path.stat().st_mode & 0o777
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        if (number := full_disk_number(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    path.chmod(mode)
