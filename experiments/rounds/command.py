"""`brine experiments round LINE`: runs the rounds of a line of a Python file, and prints what came of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from brine.common.tables import as_text, table
from brine.experiments.engines.options import EngineOptions
from brine.experiments.rounds.driver import LineRun
from brine.experiments.rounds.line import RoundLine
from brine.recipes.registry import make_by_name

GROUP = "brine.rounds"
"""Entry points of lines."""


@dataclass(frozen=True, kw_only=True)
class RoundRequest(EngineOptions):
    """Run rounds of a line: train the small model, audit and label, train the large one with and without the new words,
    compare with the last round, ask the gate. The same command continues after a kill. The engine distributes the
    trainings of large models; the small one is trained, and labels, in this process."""

    line: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="LINE")]
    """Path of a Python file with a function that returns a `RoundLine`, or an entry point `brine.rounds`."""
    rounds: int = 1
    """Rounds that there are at the end, earlier ones included."""
    name: str | None = None
    """Name of the line's folder; that of the function or file if not given."""
    runs: Path = Path("runs")
    """Folder that holds the runs."""

    def run(self) -> None:
        """Run, then print a table and one JSON object. Raises ValueError for a wrong request."""
        if self.rounds < 1:
            raise ValueError(f"--rounds {self.rounds}: give 1 or more")
        open_engine = self.engine_opener()
        name, line = find_line(self.line)
        running = LineRun(
            self.name or (Path(self.line).stem if self.line.endswith(".py") else name), line, runs=self.runs,
            open_engine=open_engine, engine_name=self.engine,
        )  # fmt: skip
        found = running.run(self.rounds)
        print(format_rounds(found))
        if why := running.stop_reason(found):
            print(why)
        print(json.dumps({"rounds": len(found), "value": found[-1]["value"] if found else None}))


def find_line(name: str) -> tuple[str, RoundLine]:
    """(name, line) of an entry point or of a Python file. Raises ValueError for none, and for one that fails."""
    return make_by_name(name, RoundLine, group=GROUP, what="line")


def format_rounds(found: Sequence[Mapping[str, Any]]) -> str:
    """The rounds as a table: value, what the new words brought, against the last round, the gate."""
    rows = []
    for each in found:
        gate = each["gate"] or {}
        rows.append((
            f"round {each['round']}", f"{each['value']:.4f}" if each["value"] is not None else "",
            _outcome(each["brought"]), _outcome(each["last"]), gate.get("outcome", ""),
            "kept" if each["accepted"] else "left out",
        ))  # fmt: skip
    primary = found[0]["primary"] if found else "value"
    head = ("", primary, "with minus without its words", "minus the last round", "gate", "its words")
    return as_text(table(head, rows))


def _outcome(entry: Mapping[str, Any]) -> str:
    value = entry.get("value")
    return entry["outcome"] if value is None else f"{value:+.4f} {entry['outcome']}"
