"""A folder that may not be written to, for tests; root too gives up its right to write everywhere meanwhile."""

import contextlib
import ctypes
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

_VERSION = 0x20080522
"""Of the kernel's interface to capabilities with 64 bits."""
_OVERRIDES = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


@contextlib.contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Take the write bits of folders while it is open. Permissions count in this thread, not in other processes."""
    modes = [(folder, folder.stat().st_mode) for folder in folders]
    try:
        for folder in folders:
            folder.chmod(0o555)
        with _permissions_count():
            for folder in folders:
                try:
                    (folder / ".probe").touch()
                except PermissionError:
                    continue
                (folder / ".probe").unlink()
                pytest.skip(f"permissions do not count in {folder}")
            yield
    finally:
        for folder, mode in modes:
            folder.chmod(mode)


@contextlib.contextmanager
def _permissions_count() -> Iterator[None]:
    """Take the overriding capabilities out of the effective set (capset(2)); they stay permitted, and come back."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = struct.pack("Ii", _VERSION, 0), ctypes.create_string_buffer(24)
    if libc.capget(header, before):
        yield
        return
    effective, *others = struct.unpack("6I", before.raw)
    libc.capset(header, struct.pack("6I", effective & ~_OVERRIDES, *others))
    try:
        yield
    finally:
        libc.capset(header, before.raw)
