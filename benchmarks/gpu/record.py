"""Results of a GPU, written to disk immediately: one line of JSON per figure, and a human-readable log.

    record = ResultsLog(folder)
    record.write(stage="smoke", case="peak", bf16_flops_per_s=...)

A line is appended in a single write and synchronised before `write` returns, so a run that is killed leaves whole lines
of all that was measured. Several processes append to one file: the parent, and the child that is at work. Every line
carries where it was made (`where`: GPU, driver, versions, commit), since lines of many runs end up in one file.

The facts are found by a child (`benchmarks.gpu.child --machine-info`), because the parent shall hold no context on the
GPU while a child fills it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

RESULTS, LOG, FACTS = "results.jsonl", "log.txt", "facts.json"
SHOWN = 400
"""Characters of a line that the log shows."""


class ResultsLog:
    """The folder that results go to."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def machine_info(self) -> dict[str, Any]:
        """What `save_machine_info` kept, or nothing."""
        try:
            return json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def save_machine_info(self, machine_info: dict[str, Any]) -> None:
        """Remember where this run is; every line from now on says so."""
        append(self.folder / f"{FACTS}.partial", json.dumps(machine_info, indent=1) + "\n", fresh=True)
        os.replace(self.folder / f"{FACTS}.partial", self.folder / FACTS)

    def write(self, *, stage: str, case: str, **figures: Any) -> dict[str, Any]:
        """Append one line -> the line. Values that JSON does not know are written as their text."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "stage": stage, "case": case, **figures}
        append(self.folder / RESULTS, json.dumps(line | {"where": self.machine_info()}, default=str) + "\n")
        shown = {name: value for name, value in figures.items() if value is not False and value != {}}
        self.say(f"{stage} {case}: {json.dumps(shown, default=_short)[:SHOWN]}")
        return line

    def say(self, words: str) -> None:
        """One human-readable line, in the log and on the console."""
        words = f"{time.strftime('%H:%M:%S')} {words}"
        append(self.folder / LOG, words + "\n")
        show(words)


def show(words: str) -> None:
    """Print, as long as somebody reads: `| head` ends neither a run nor a list with a traceback."""
    try:
        print(words, flush=True)
    except BrokenPipeError:
        # what waits in the buffer has to go somewhere when this process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def backend_choices() -> dict[str, str]:
    """Which backends the kernels took in this process, by device, mask class, dtype and head dim."""
    log = sys.modules.get("brine.kernels.selection.choice_log")
    return log.backend_choices() if log is not None else {}


def forget_choices() -> None:
    """From now on `backend_choices` reports later calls alone."""
    if log := sys.modules.get("brine.kernels.selection.choice_log"):
        log.reset_backend_choices()


def append(path: Path, text: str, *, fresh: bool = False) -> None:
    """Write at the end of a file in one piece, and see it to the disk."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if fresh else os.O_APPEND)
    number = os.open(path, flags, 0o644)
    try:
        os.write(number, text.encode())
        os.fsync(number)
    finally:
        os.close(number)


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a results file, or of the one in a folder. Raises ValueError for a file of something else."""
    path = Path(folder) / RESULTS if Path(folder).is_dir() else Path(folder)
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            found.append(json.loads(line))
            found[-1]["stage"], found[-1]["case"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number}: no line of a results file, such as FOLDER/{RESULTS}") from None
    return found


def error_of(error: BaseException) -> dict[str, str]:
    """{"error", "at"}: the traceback's last line, and the innermost line of this project."""
    root = str(Path(__file__).parents[2])
    last = traceback.format_exception_only(error)[-1].strip()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(root)]
    at = f"{os.path.relpath(frames[-1].filename, root)}:{frames[-1].lineno}" if frames else ""
    return {"error": last[:1000], "at": at}


def last_output_line(path: Path) -> str:
    """The last line that a process wrote into a file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    # what a traceback ends with stands at its margin; warnings and the like may follow it
    errors = [line for line in lines if line[:1].isupper() and "Error" in line.split(":")[0]]
    return (errors or lines or [""])[-1].strip()[:1000]


def _short(value: Any) -> str:
    return str(value)[:40]
