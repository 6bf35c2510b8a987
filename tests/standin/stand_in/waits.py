"""Counts what the host waits for, and whose line of the project it was."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.standin.stand_in.names import HERE, ROOT


@dataclass
class Waits:
    """What the host waited for, in the order of its asking."""

    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(line of the project, operation, "read" or "upload")."""

    @property
    def total(self) -> int:
        """Waits of both kinds."""
        return len(self.asked)

    @property
    def reads(self) -> int:
        """Times the host needed a number of the device."""
        return sum(kind == "read" for _, _, kind in self.asked)

    @property
    def uploads(self) -> int:
        """Copies to the device that waited."""
        return sum(kind == "upload" for _, _, kind in self.asked)

    @property
    def lines(self) -> Counter[str]:
        """Waits by line and operation: {"training/step.py:188 _to_copy": 3}."""
        return Counter(f"{line} {operation}" for line, operation, _ in self.asked)

    def __str__(self) -> str:
        return "\n".join(f"{count:4d}  {line}" for line, count in self.lines.most_common()) or "none"


_counting: list[Waits] = []


@contextmanager
def count_waits() -> Iterator[Waits]:
    """Count what the host waits for in here, in whatever thread."""
    waits = Waits()
    _counting.append(waits)
    try:
        yield waits
    finally:
        _counting.remove(waits)


def waited(operation: str, kind: str = "read") -> None:
    """Note a wait."""
    if _counting:
        line = line_of_project()
        for waits in _counting:
            waits.asked.append((line, operation, kind))


def line_of_project() -> str:
    """The innermost line of the project (the stand-in left out) that is running in this thread."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(str(ROOT)) and not name.startswith(str(HERE)) and "site-packages" not in name:
            return f"{Path(name).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the project"
