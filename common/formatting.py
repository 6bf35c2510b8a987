"""The console while training: a progress bar, and one aligned line of fixed fields every N steps.

    step   120/1000   tokens   1.97M   loss 2.6113   norm  0.84   lr 2.85e-03   tok/s  14.1k   MFU  41%   mem  1.2 GiB
    data  2%   left   9:21

`data` is the fraction of time spent waiting for batches. Without a terminal there is no bar.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, TextIO

from tqdm import tqdm


@dataclass(frozen=True)
class StatusLine:
    """The numbers of one status line."""

    step: int
    num_steps: int
    tokens: int  # tokens processed since the run began, padding included
    loss: float  # mean cross-entropy per target token since the last line, nats
    grad_norm: float  # norm of the last step's gradient before clipping
    learning_rate: float
    tokens_per_s: float  # tokens per second since the last line
    mfu: float  # fraction of the peak of matmuls
    memory_gib: float  # peak memory of a process, the maximum over ranks
    data_wait_fraction: float  # fraction of the time spent waiting for batches
    eta_s: float  # seconds to the end at this pace
    skew: float | None = None  # excess of the slowest rank's compute time over the mean; None for a single rank

    def line(self) -> str:
        return (
            f"step {self.step:>6}/{self.num_steps:<6} tokens {count(self.tokens):>7}  loss {self.loss:7.4f}  "
            f"norm {self.grad_norm:6.2f}  lr {self.learning_rate:.2e}  tok/s {count(self.tokens_per_s):>7}  "
            f"MFU {100 * self.mfu:3.0f}%  mem {self.memory_gib:5.1f} GiB  data {100 * self.data_wait_fraction:3.0f}%  "
            f"left {duration(self.eta_s):>8}" + ("" if self.skew is None else f"  skew {100 * self.skew:3.0f}%")
        )


class Console:
    """Bar and lines of one stage. `quiet` (ranks other than 0, tests) prints nothing."""

    def __init__(self, name: str, *, num_steps: int, quiet: bool = False, stream: TextIO | None = None):
        self.name = name
        self.quiet = quiet
        self.stream = stream or sys.stderr
        # None: only on a terminal
        disable = True if quiet else None
        self.bar = tqdm(
            total=num_steps, desc=name, unit="step", file=self.stream, disable=disable, dynamic_ncols=True, leave=False
        )

    def at(self, step: int) -> None:
        """Move the bar to `step`, forwards or (after a rollback) backwards."""
        self.bar.n = step
        self.bar.update(0)

    def status(self, status: StatusLine) -> None:
        """Print one status line above the bar."""
        self.say(status.line())

    def say(self, text: str) -> None:
        """Print any line above the bar, under the stage's name."""
        if not self.quiet:
            with self.bar.external_write_mode(file=self.stream):
                self.stream.write(f"{self.name:<14} {text}\n")
                self.stream.flush()

    def close(self) -> None:
        self.bar.close()


def progress_bar(items: Any = None, *, quiet: bool = False, **options: Any) -> tqdm:
    """tqdm on standard error: as wide as the terminal; in a log, a line in half a minute, and the last."""
    if sys.stderr.isatty():
        return tqdm(items, disable=quiet, dynamic_ncols=True, **options)
    # with a delay tqdm writes no first line, and without one a last line
    bar = tqdm(items, disable=quiet, dynamic_ncols=True, delay=1e-6, mininterval=30.0, maxinterval=60.0, **options)
    bar.delay = 0
    return bar


def count(number: float) -> str:
    """1234567 -> "1.23M": four characters or so, with k, M, G, T or P."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"


def counted(number: int, noun: str) -> str:
    """ "1 thread", "2 threads", "1,000 threads": a count with its noun, whose plural ends in s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def cut_at_word(text: str, width: int) -> str:
    """The text in at most `width` characters: what is longer ends behind a whole word, with "..."."""
    if len(text) <= width:
        return text
    kept = text[: width - 3]
    if not text[width - 3].isspace():
        # a single word longer than all is cut where it has to be
        kept = kept.rsplit(None, 1)[0] if len(kept.split()) > 1 else kept
    return f"{kept.rstrip(' ,;:.')}..."


def file_size(num_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """3725 -> "1:02:05"; from 100 hours on in days."""
    whole = max(0, round(seconds))
    if whole >= 360_000:
        return f"{whole / 86_400:,.0f} days"
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
