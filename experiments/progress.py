"""Where every trial stands, from its files alone: for `status`, and for the live table of `run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from brine.common.files import parse_object, read_json
from brine.common.formatting import cut_at_word, duration
from brine.common.tables import as_text, table
from brine.evals.run_files import STAGES
from brine.experiments.planning.plan import CANCELLED_FILE, TRIAL_FILE, ExperimentPlan, TrialSpec
from brine.experiments.trials import ending
from brine.training.logging.metrics import METRICS

REFRESH_S = 1.0
PLAIN_EVERY_S = 60.0
"""Between two lines about what runs, where the output is no terminal."""
TAIL_BYTES = 16384
REASON_WIDTH = 80
"""Characters of a reason in the table of trials."""


@dataclass(frozen=True)
class TrialStatus:
    """One trial now. state: "waiting", "running", "done", "diverged", "failed" or "cancelled"."""

    name: str
    state: str
    stage: str = ""
    step: int | None = None
    num_steps: int | None = None
    loss: float | None = None
    s_left: float | None = None
    """Seconds that the stage will still take."""
    message: str = ""


def trial_status(plan: ExperimentPlan, trial: TrialSpec, *, running: Collection[str] = ()) -> TrialStatus:
    """The status of a trial; running: names of those that an engine has."""
    folder = plan.trial_folder(trial)
    record = read_json(folder / TRIAL_FILE)
    if isinstance(record, dict):
        loss = record.get("loss")
        return TrialStatus(trial.name, record["outcome"], loss=loss, message=record.get("reason", ""))
    progress = _progress(plan, trial)
    if trial.name in running:
        return TrialStatus(trial.name, ending.RUNNING, **progress)
    state = ending.CANCELLED if (folder / CANCELLED_FILE).exists() else ending.WAITING
    progress.pop("s_left", None)
    return TrialStatus(trial.name, state, **progress)


def _progress(plan: ExperimentPlan, trial: TrialSpec) -> dict[str, Any]:
    """The newest line of metrics of the newest stage."""
    folder = plan.trial_folder(trial)
    for stage in reversed(STAGES):
        line = last_metrics(folder / stage / METRICS)
        if line is None:
            continue
        steps = (trial.recipe.get("small" if stage == "small" else "large") or {}).get("num_steps")
        found: dict[str, Any] = {"stage": stage, "step": line["step"], "num_steps": steps, "loss": line.get("loss")}
        rate = (line.get("time") or {}).get("tokens_per_s")
        if steps and rate and line.get("tokens") and line["step"]:
            found["s_left"] = (steps - line["step"]) * line["tokens"] / line["step"] / rate
        return found
    return {}


def last_metrics(path: Any) -> dict[str, Any] | None:
    """The last line of training metrics of a file, whatever is being written behind it; None without one."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    parsed = (parse_object(line) for line in reversed(lines))
    return next((line for line in parsed if line is not None and "loss" in line and "step" in line), None)


def status_rows(statuses: Iterable[TrialStatus]) -> list[list[str]]:
    """Rows of the table of trials."""
    return [
        [each.name, each.state, each.stage, "" if each.step is None else f"{each.step}/{each.num_steps}",
         "" if each.loss is None else f"{each.loss:.4f}", "" if each.s_left is None else duration(each.s_left),
         cut_at_word(" ".join(each.message.split()), REASON_WIDTH)]
        for each in statuses
    ]  # fmt: skip


HEAD = ("trial", "state", "stage", "step", "loss", "left", "")


def format_status(plan: ExperimentPlan, *, running: Collection[str] = ()) -> str:
    """All trials as text."""
    statuses = [trial_status(plan, trial, running=running) for trial in plan.trials]
    return f"{plan.name}: {counts_of(statuses)}\n\n" + as_text(table(HEAD, status_rows(statuses)))


def running_line(status: TrialStatus) -> str:
    """ "01-seed0: small step 20/60, loss 2.7183, about 1:20 left" of a trial that runs."""
    loss = "" if status.loss is None else f", loss {status.loss:.4f}"
    left = f", about {duration(status.s_left)} left" if status.s_left else ""
    return f"{status.name}: {status.stage} step {status.step}/{status.num_steps}{loss}{left}"


def counts_of(statuses: Iterable[TrialStatus]) -> str:
    """ "3 done, 1 running, 2 waiting"."""
    states = [each.state for each in statuses]
    order = (ending.FINISHED, ending.RUNNING, ending.WAITING, ending.DIVERGED, ending.FAILED, ending.CANCELLED)
    return ", ".join(f"{states.count(state)} {state}" for state in order if state in states)


class LiveTable:
    """One table that is redrawn while trials run; where standard error is no terminal, a line when a state changes and
    one a minute about what runs."""

    def __init__(self, *, live: bool | None = None):
        """live: draw a table; None: on a terminal."""
        self.live = sys.stderr.isatty() if live is None else live
        self._display: Any = None
        self._states: dict[str, str] = {}
        self._shown_at = self._told_at = 0.0

    def __enter__(self) -> LiveTable:
        if self.live:
            from rich.console import Console
            from rich.live import Live

            self._display = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def show(self, plan: ExperimentPlan, running: Collection[str], *, now: bool = False) -> None:
        """Show the trials, at most once a second unless `now`."""
        clock = time.monotonic()
        if not now and clock - self._shown_at < REFRESH_S:
            return
        self._shown_at = clock
        statuses = [trial_status(plan, trial, running=running) for trial in plan.trials]
        if self._display is not None:
            drawn = table(HEAD, status_rows(statuses))
            drawn.title = f"{plan.name}: {counts_of(statuses)}"
            self._display.update(drawn)
            return
        for each in statuses:
            if self._states.get(each.name, ending.WAITING) != each.state:
                more = f": {each.message}" if each.message else ""
                self.say(f"{each.name}: {each.state}{more}")
            self._states[each.name] = each.state
        if clock - self._told_at >= PLAIN_EVERY_S:
            if self._told_at:
                for each in statuses:
                    if each.state == ending.RUNNING and each.step is not None:
                        self.say(running_line(each))
            self._told_at = clock

    def say(self, text: str) -> None:
        """Print a line above the table."""
        if self._display is not None:
            self._display.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
