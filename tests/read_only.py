"""A folder that may not be written to, for tests; they are skipped where permissions do not count, as for root.

As root without the right to override them: `setpriv --bounding-set=-dac_override,-dac_read_search uv run pytest ...`
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Take the write bits of folders while it is open."""
    modes = [(folder, folder.stat().st_mode) for folder in folders]
    try:
        for folder in folders:
            folder.chmod(0o555)
            try:
                (folder / ".probe").touch()
            except PermissionError:
                continue
            (folder / ".probe").unlink()
            pytest.skip("permissions do not count here")
        yield
    finally:
        for folder, mode in modes:
            folder.chmod(mode)
