"""A command whose reader has gone (`brine generate ... | head -c 5`) ends quietly, with code 0.

Python would flush its buffers once more at exit and complain, so standard output is redirected to the null device.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


def exit_on_closed_pipe(command: Callable[..., int]) -> Callable[..., int]:
    """A command that ends quietly where its output pipe is closed."""

    @functools.wraps(command)
    def run(*arguments, **options) -> int:
        try:
            try:
                return command(*arguments, **options)
            finally:
                # also after --help, which raises SystemExit; None where it was closed from the start
                if sys.stdout is not None:
                    sys.stdout.flush()
        except BrokenPipeError:
            return closed_pipe()

    return run


def closed_pipe() -> int:
    """Send remaining output to the null device; returns the exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return 0
