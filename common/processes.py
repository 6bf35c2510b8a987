"""Helper processes that end with their parent, and signals that let a step finish.

`StopSignal` turns SIGINT and SIGTERM into a flag that the training loop reads after each step. A second Ctrl-C exits
immediately; two within half a second count as one, since terminal, launcher and wrapper may each forward it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import brine

IMPORT_FOLDER = str(Path(brine.__file__).resolve().parents[1])
"""The folder from which a child imports `brine`: the checkout's, or site-packages."""

DEBOUNCE_S = 0.5
PR_SET_PDEATHSIG = 1


class TrainingInterrupted(Exception):
    """A run was asked to stop, has saved a checkpoint, and can resume from it."""


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def die_with_parent(signal_number: int = signal.SIGKILL, *, parent: int | None = None) -> None:
    """Let the kernel end this process with its parent (Linux), or exit if `parent` (a process id) has ended already."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def exit_with_parent(parent: int) -> None:
    """End this process within a second of its parent `parent`, on any system, by a thread that looks."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class StopSignal:
    """Context (main thread): SIGINT and SIGTERM only set a flag; in forked children SIGTERM ends the process."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._owner = os.getpid()
        self._first = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Has a signal asked this process to stop?"""
        return self.signal_name is not None

    def request(self, name: str) -> None:
        """Ask for a stop without a signal."""
        self.signal_name = self.signal_name or name

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.signal_name is None:
            self.signal_name, self._first = signal.Signals(number).name, time.monotonic()
            print(
                "\nfinishing the step and saving; press Ctrl-C again to exit immediately", file=sys.stderr, flush=True
            )
        elif number == signal.SIGINT and time.monotonic() - self._first > DEBOUNCE_S:
            # without clean-up: the last checkpoint on disk is complete anyway
            os._exit(130)


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
