"""The record of a run: `metrics.jsonl` (numbers by step) and `events.jsonl` (what happened, when).

Both are appended line by line and survive a kill. A `MetricsSink` is a second reader: TensorBoard, or one of an
installed package, named by an entry point `brine.sinks` (a function of a folder that returns a sink). On resume the
metrics of steps that will be repeated are dropped, so the file of a killed run equals that of another; all that depends
on a clock is under the key `time`. Events are never removed. NaN and infinity are written as null.
"""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from brine.common.files import finite, parse_object, read_jsonl, to_plain, write_text
from brine.common.plugins import load_plugin, plugins

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
SINK_GROUP = "brine.sinks"
"""Entry points of sinks."""


class MetricsSink(Protocol):
    """A second reader of the metrics."""

    def log(self, line: dict[str, Any]) -> None:
        """Take one line of metrics; it has `step`."""

    def purge(self, step: int) -> None:
        """Forget the lines of `step` and later steps, which are about to be logged again."""

    def finish(self) -> None:
        """Flush and close."""


class RunLog:
    """The two files of one training stage, and any sinks. A last line that a kill cut short is removed.

    On ranks other than 0 give `folder=None`: every call does nothing.
    """

    def __init__(self, folder: Path | None, *, sinks: tuple[MetricsSink, ...] = ()):
        self.folder = None if folder is None else Path(folder)
        self.sinks, self._purged = sinks if folder is not None else (), False
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            repair_lines(self.folder / METRICS)
            repair_lines(self.folder / EVENTS)

    def metrics(self, line: dict[str, Any]) -> None:
        """Append one line of metrics; it must hold `step`. Sinks get what a reader of the file would."""
        if self.folder is not None:
            line = finite(to_plain(line))
            append_line(self.folder / METRICS, line)
            for sink in self.sinks:
                sink.log(line)

    def event(self, event: str, **details: Any) -> None:
        """Append one event; see `append_event`."""
        if self.folder is not None:
            append_event(self.folder, event, **details)

    def truncate(self, step: int, *, validation: bool = True) -> int:
        """Drop the metrics of steps beyond `step`, in one rename; returns the number of lines dropped.

        validation: keep the validation of `step` itself; False where it is about to be repeated.
        """
        if self.folder is None:
            return 0
        lines = read_jsonl(self.folder / METRICS)
        kept = [line for line in lines if (line["step"], "validation" in line and not validation) <= (step, False)]
        if len(kept) < len(lines):
            write_text(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        if self.sinks:
            # a sink forgets whole steps, and the first time all: it may be new
            since, self._purged = (step if self._purged else 0), True
            for sink in self.sinks:
                sink.purge(max(0, since))
                for line in kept:
                    if line["step"] >= since:
                        sink.log(line)
        return len(lines) - len(kept)

    def finish(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            sink.finish()


def repair_lines(path: Path) -> None:
    """Remove the lines of a JSON-lines file that are not whole."""
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines(keepends=True)
        whole = "".join(line for line in lines if line.endswith("\n") and parse_object(line) is not None)
        if whole != text:
            write_text(path, whole)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append one object to a JSON-lines file in one write, so that ranks may share the file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(finite(to_plain(line)), allow_nan=False) + "\n")


def append_event(folder: Path, event: str, **details: Any) -> None:
    """Append one event to `folder`/events.jsonl with the wall-clock time (seconds since 1970); any rank may."""
    append_line(Path(folder) / EVENTS, {"event": event, **details, "unix_time": round(time.time(), 3)})


def sink_names() -> list[str]:
    """Sinks that can be asked for by name."""
    return list(dict.fromkeys([*SINKS, *plugins(SINK_GROUP)]))


def require_sink(name: str) -> Callable[[Path], MetricsSink]:
    """What makes the sink of a name in a folder. Raises ValueError with the remedy for an unknown one, or one whose
    library is not installed."""
    if name in SINKS:
        require, make = SINKS[name]
        require()
        return make
    if entry := plugins(SINK_GROUP).get(name):
        return load_plugin(entry)
    raise ValueError(
        f"tracker = {name!r} is unknown: choose one of {', '.join(sink_names())}; metrics.jsonl is always written"
    )


def make_sinks(folder: Path, tracker: str | None) -> tuple[MetricsSink, ...]:
    """Second readers of a stage's metrics, each in a folder of its name: the one asked for, and those that were before
    and still can be, so that none keeps showing steps that were rolled back. Raises ValueError with the remedy where
    the one asked for cannot be had."""
    sinks = []
    for name in dict.fromkeys([*([tracker] if tracker else []), *sink_names()]):
        if name != tracker and not (Path(folder) / name).is_dir():
            continue
        try:
            sinks.append(require_sink(name)(Path(folder) / name))
        except ValueError:
            if name == tracker:
                raise
    return tuple(sinks)


def require_tensorboard() -> None:
    """Raises ValueError with the remedy where tensorboard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        remedy = "run `uv sync --extra tensorboard` or `pip install tensorboard`, or omit --tracker"
        raise ValueError(f"tensorboard is not installed: {remedy}") from error


class TensorBoardSink:
    """Every number of a metrics line as a scalar, nested keys joined by `/`.

    Event files are only appended to. Steps that a resume or a rollback repeats are purged as TensorBoard does it: a new
    file begins with the step from which on the files before it are void. Raises ValueError with the remedy where
    tensorboard is not installed.
    """

    def __init__(self, folder: Path):
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._open = partial(SummaryWriter, log_dir=str(folder))
        self._writer: SummaryWriter | None = None

    def purge(self, step: int) -> None:
        """Begin a file that makes void what was written of `step` and later ones."""
        self.finish()
        self._writer = self._open(purge_step=step)

    def log(self, line: dict[str, Any]) -> None:
        """Write one line's numbers at its step."""
        self._writer = self._writer or self._open()
        for name, value in flat_numbers(line):
            self._writer.add_scalar(name, value, global_step=line["step"])

    def finish(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def flat_numbers(line: dict[str, Any], *, prefix: str = "") -> Iterator[tuple[str, float]]:
    """`("validation/loss", 1.25)` for every number of a nested line but the step."""
    for key, value in line.items():
        if isinstance(value, dict):
            yield from flat_numbers(value, prefix=f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key != "step":
            yield prefix + key, float(value)


SINKS: dict[str, tuple[Callable[[], None], Callable[[Path], MetricsSink]]] = {
    "tensorboard": (require_tensorboard, TensorBoardSink)
}
"""Brine's own sinks: name -> (raises ValueError where its library is missing, makes one in a folder)."""
