"""How a trial ended, from the exit code of its process, and the states that a trial can be in."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

DONE, REFUSED, INTERRUPTED = 0, 2, 130
NO_MEMORY, DISK_FULL, BUSY = 71, 73, 75
"""Exit codes of a trial besides; those of sysexits.h for what they mean here."""
WAITING, RUNNING, FINISHED, DIVERGED, FAILED, CANCELLED = (
    "waiting", "running", "done", "diverged", "failed", "cancelled",
)  # fmt: skip
TAIL_BYTES = 4096


@dataclass(frozen=True)
class Ending:
    """How a trial's process ended. code: its exit code, negative for a signal; None where the engine lost it."""

    code: int | None
    message: str = ""

    @property
    def kind(self) -> str:
        """ "done", "refused" (not tried again), "interrupted" (back in the queue), "killed" (tried again), "disk full",
        or "crashed" (an error of the program, not tried again)."""
        if self.code == DONE:
            return "done"
        if self.code == REFUSED:
            return "refused"
        if self.code in (INTERRUPTED, BUSY, -signal.SIGINT):
            return "interrupted"
        if self.code == DISK_FULL:
            return "disk full"
        # 128 + n is how shells report a signal
        if self.code is None or self.code < 0 or self.code == NO_MEMORY or self.code > 128:
            return "killed"
        return "crashed"

    def text(self) -> str:
        """A line for a person."""
        if self.code is None:
            return self.message or "the engine lost it"
        if self.code == NO_MEMORY:
            return f"out of memory: {self.message}"
        if self.code < 0 or self.code > 128:
            number = -self.code if self.code < 0 else self.code - 128
            known = {each.value: each.name for each in signal.Signals}
            return f"killed by {known.get(number, f'signal {number}')}"
        return self.message or f"exit code {self.code}"


def last_line(log: Path) -> str:
    """The last error that a log names, else its last line; "" for none."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode("utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    lines = [line for line in lines if line]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")
