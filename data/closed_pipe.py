"""Whoever reads a command's output may stop before its end: `python -m model.generate ... | head -c 5`.

Writing then raises BrokenPipeError. That is no mistake of anybody, so nothing is said, and the code is 0. Python would
write what is left in its buffers once more at its end and complain then, which is why standard output leads nowhere
afterwards.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


def until_closed(command: Callable[..., int]) -> Callable[..., int]:
    """A command that ends quietly where nobody reads its output any more."""

    @functools.wraps(command)
    def run(*arguments, **options) -> int:
        try:
            code = command(*arguments, **options)
            # there is none where it was closed from the start
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except BrokenPipeError:
            return closed_pipe()

    return run


def closed_pipe() -> int:
    """Send what is still to be written nowhere; returns the exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return 0
