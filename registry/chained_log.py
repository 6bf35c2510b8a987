"""An append-only log of JSON lines in which each line carries the SHA-256 of the line before.

    log.jsonl    {"line": 3, "previous": "<SHA-256 of line 2>", "event": "promote", ...}
    head.json    how many lines have been applied, with the SHA-256 of the last of them
    log.torn     last lines that a kill cut off, as they were

The log is written first and flushed; then what follows from it (cards, the pointer to the champion), then the head. A
head behind the log therefore says which lines may not have been applied, and a head ahead of it that lines are gone.
A last line without its line break was never written whole: it does not count, and is moved to `log.torn` at the next
open. Anything else that does not fit is damage, which `scan` names by line and nothing here repairs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brine.common.files import parse_object, sync_folder, to_json_line, write_json
from brine.common.formatting import counted

LOG_FILE, HEAD_FILE, TORN_FILE = "log.jsonl", "head.json", "log.torn"


@dataclass(frozen=True)
class LogScan:
    """What a log holds. entries: its whole lines. damage: what does not fit, a sentence each, by line. torn: bytes
    after the last line break. num_applied: lines that the head counts. hashes: SHA-256 of each whole line."""

    entries: list[dict[str, Any]]
    damage: list[str]
    torn: bytes = b""
    num_applied: int = 0
    hashes: list[str] = field(default_factory=list)


class ChainedLog:
    """The log of a folder. Whoever appends or repairs holds the folder's lock."""

    def __init__(self, folder: Path):
        self.path, self.head = folder / LOG_FILE, folder / HEAD_FILE

    def scan(self) -> LogScan:
        """Read the log and compare every line with the next one and with the head."""
        try:
            *lines, torn = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            lines, torn = [], b""
        hashes = [hashlib.sha256(line).hexdigest() for line in lines]
        num_applied, last_hash, damage = self._read_head()
        entries: list[dict[str, Any]] = []
        damaged: dict[int, str] = {}
        for index, line in enumerate(lines):
            entry = parse_object(line.decode(errors="replace"))
            if entry is None or not isinstance(entry.get("previous"), str) or not isinstance(entry.get("line"), int):
                damaged[index] = "is not a line of this log"
            entries.append(entry or {})
        numbers, gaps = self._find_gaps(entries, damaged)
        # what the next line, or the head, says of a line
        for index, found in enumerate(hashes):
            said = last_hash if index + 1 == len(lines) and num_applied == numbers[index] else None
            if index + 1 < len(lines) and numbers[index] + 1 == numbers[index + 1]:
                said = entries[index + 1].get("previous")
            if said is not None and said != found:
                damaged.setdefault(index, "differs from what the next line, or the head, says of it")
        if entries and numbers[0] == 1 and entries[0].get("previous", "") != "":
            damaged.setdefault(0, "is the first, but names a line before it")
        for index, why in sorted(damaged.items()):
            # a line whose own `previous` changed makes its predecessor look changed too
            if why.startswith("differs") and index + 1 in damaged:
                continue
            damage.append(f"{self.path} line {index + 1} {why}")
        damage += gaps
        if num_applied > (numbers[-1] if lines else 0):
            cut = " (and its last line is cut off)" if torn else ""
            damage.append(f"{self.path} is truncated: it has {len(lines)} of {counted(num_applied, 'line')}{cut}")
        return LogScan(entries, damage, torn, num_applied, hashes)

    def append(self, entries: Iterable[Mapping[str, Any]], scan: LogScan) -> list[dict[str, Any]]:
        """Add lines, all in one write, and flush them; returns them as they stand there. scan: of the log as it is."""
        before = scan.hashes[-1] if scan.hashes else ""
        made, text = [], b""
        for number, entry in enumerate(entries, start=len(scan.entries) + 1):
            made.append({**entry, "line": number, "previous": before})
            line = to_json_line(made[-1]).encode()
            before = hashlib.sha256(line.rstrip(b"\n")).hexdigest()
            text += line
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            written = 0
            while written < len(text):
                written += os.write(handle, text[written:])
            os.fsync(handle)
        finally:
            os.close(handle)
        if not scan.entries:
            sync_folder(self.path.parent)
        return made

    def write_head(self) -> None:
        """Record that all lines have been applied."""
        lines = self.path.read_bytes().split(b"\n")[:-1]
        said = {"lines": len(lines), "sha256": hashlib.sha256(lines[-1]).hexdigest() if lines else ""}
        write_json(self.head, said | {"check": _check(said)})

    def set_torn_line_apart(self, torn: bytes) -> str:
        """Move a last line that was cut off to `log.torn`; returns a sentence that says so."""
        with open(self.path.with_name(TORN_FILE), "ab") as file:
            file.write(torn + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with open(self.path, "r+b") as file:
            file.truncate(os.path.getsize(self.path) - len(torn))
            os.fsync(file.fileno())
        return (
            f"{self.path}: its last line was cut off by a kill ({len(torn)} bytes) and does not count; it is kept in "
            f"{TORN_FILE}"
        )

    def _read_head(self) -> tuple[int, str, list[str]]:
        """(lines applied, SHA-256 of the last of them, damage)."""
        try:
            said = json.loads(self.head.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 0, "", []
        except (ValueError, UnicodeDecodeError):
            said = None
        if not isinstance(said, dict) or said.get("check") != _check(said):
            return 0, "", [f"{self.head} is damaged: it does not match its own check"]
        return int(said["lines"]), str(said["sha256"]), []

    def _find_gaps(self, entries: list[dict], damaged: dict[int, str]) -> tuple[list[int], list[str]]:
        """(number of each line, a sentence for each gap); adds lines whose number changed to `damaged`."""
        numbers, gaps, expected = [], [], 1
        for index, entry in enumerate(entries):
            said, follows = entry.get("line"), entries[index + 1].get("line") if index + 1 < len(entries) else None
            if said != expected and index not in damaged:
                if isinstance(said, int) and said > expected and follows in (None, said + 1):
                    gone = f"line {expected} is" if said == expected + 1 else f"lines {expected} to {said - 1} are"
                    gaps.append(f"{self.path}: {gone} missing before its line {index + 1}")
                    expected = said
                else:
                    damaged[index] = f"has the number {said}, not {expected}"
                    # a line that comes twice
                    expected = said if isinstance(said, int) and follows == said + 1 else expected
            numbers.append(expected)
            expected += 1
        return numbers, gaps


def _check(said: Mapping[str, Any]) -> str:
    text = json.dumps([said.get("lines"), said.get("sha256")])
    return hashlib.sha256(text.encode()).hexdigest()
