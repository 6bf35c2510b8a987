"""Numbers and names of the report as text, and the tables that its templates show.

A cell is text, "" for a dash. A column without a heading holds bars: per cent of its width, or None for none.
"""

from collections.abc import Mapping
from typing import Any

STAGE_NAMES = {
    "large_salt": "large, with SALT",
    "large_baseline": "large, baseline",
    "small": "small",
    "select": "selection",
}
NBSP = "\N{NO-BREAK SPACE}"


def number(value: Any, digits: int = 3) -> str:
    """A number with fixed digits, "" for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}") if isinstance(value, float) else f"{value:,}"


def percent(fraction: float, digits: int = 0) -> str:
    """A fraction in per cent."""
    return f"{100 * fraction:.{digits}f}{NBSP}%"


def duration(seconds: Any) -> str:
    """Seconds, minutes or hours."""
    if not isinstance(seconds, int | float):
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def interval(entry: Mapping[str, Any], digits: int = 2, *, prefix: str = "") -> str:
    """ "low to high" of an entry with such keys, "" without."""
    low, high = entry.get(f"{prefix}low"), entry.get(f"{prefix}high")
    return f"{number(low, digits)} to {number(high, digits)}" if low is not None and high is not None else ""


def cell_name(kind: str, level: int) -> str:
    """A kind and its level of difficulty, which documents of one's own do not have."""
    return f"{kind}, level {level}" if level else str(kind)


def counts(entries: Mapping[str, int]) -> str:
    """ "3 page, 2 text"."""
    return ", ".join(f"{count:,} {name}" for name, count in entries.items())
