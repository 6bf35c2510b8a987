"""Runs the trials of a plan on an engine: hands them over, takes note of how they end, and plans what follows.

Engines retry and requeue what they can see; what a trial's own exit says is decided here. Everything is read from
files, so that `run` may be killed at any moment and the next one continues: a trial is finished when its trial.json is
there, and was never handed over twice, since its folder is locked while it runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from brine.common.content_store import file_lock
from brine.common.files import read_json, read_jsonl, write_json
from brine.common.formatting import counted
from brine.common.processes import StopSignal
from brine.experiments.engines.engine import Engine
from brine.experiments.engines.process import GRACE_S, TrialJob
from brine.experiments.follow_up import follow_up
from brine.experiments.planning.plan import (
    CANCELLED_FILE,
    EVENTS_FILE,
    LOCK_FILE,
    LOGS_FOLDER,
    TRIAL_FILE,
    ExperimentPlan,
    TrialSpec,
)
from brine.experiments.planning.snapshot import CODE_FOLDER
from brine.experiments.progress import LiveTable
from brine.experiments.table import write_table
from brine.experiments.trials.ending import FAILED, Ending
from brine.pipeline.stages.run_lock import is_run_locked
from brine.training.logging.metrics import append_event, repair_lines

MAX_KILLS = 2
"""How often a trial is tried again that was killed or ran out of memory."""
MIN_FREE_GIB = 0.25
"""With less room on the disk no trial is begun."""
TICK_S = 0.2
CLOSE_S = 30.0
PYTHON_VARIABLE, TRACKER_VARIABLE = "BRINE_TRIAL_PYTHON", "BRINE_TRIAL_TRACKER"


class TrialsFailedError(ValueError):
    """Some trials failed; the message names them."""


class BatchRun:
    """One `run` of a plan: the queue, what is at work, and why no more is begun."""

    def __init__(self, plan: ExperimentPlan, engine: Engine, *, engine_name: str, tracker: str | None = None,
                 grace_s: float = GRACE_S, display: LiveTable | None = None):  # fmt: skip
        """tracker: sink of every trial's metrics (`brine.training.logging.metrics`)."""
        self.plan, self.engine, self.engine_name, self.tracker = plan, engine, engine_name, tracker
        self.grace_s, self.display = grace_s, display or LiveTable()
        self.running: dict[str, TrialSpec] = {}
        self.blocked = ""
        """Why no trial is begun any more; "" while they are."""
        self._asked_to_end: set[str] = set()
        """Trials whose next ending is no fault of theirs, however it comes."""

    def run(self) -> None:
        """Run every trial to its end, with those that follow, then write the table.

        Raises KeyboardInterrupt after SIGINT or SIGTERM, once all trials have saved; ValueError where the disk is full
        or trials failed."""
        with batch_lock(self.plan.folder), StopSignal() as stop, self.display:
            try:
                self._attach()
                while not stop.requested:
                    self._poll()
                    if not self.blocked and not stop.requested:
                        self._claim()
                    self.display.show(self.plan, self.running)
                    if not self.running and (self.blocked or not self._waiting()):
                        more = [] if self.blocked else follow_up(self.plan)
                        if not more:
                            break
                        self.plan = self.plan.append(more)
                        continue
                    time.sleep(TICK_S)
                if stop.requested:
                    self._end_all()
                    raise KeyboardInterrupt
            finally:
                self.engine.close()
                self.display.show(self.plan, self.running, now=True)
            write_table(self.plan)
            self._say_cancelled()
        if self.blocked:
            raise ValueError(self.blocked)
        self._raise_for_failed()

    def _waiting(self) -> list[TrialSpec]:
        """Trials that have not ended, are not at work and not cancelled, in the plan's order."""
        return [
            trial for trial in self.plan.trials
            if trial.name not in self.running and not (self.plan.trial_folder(trial) / TRIAL_FILE).exists()
            and not (self.plan.trial_folder(trial) / CANCELLED_FILE).exists()
        ]  # fmt: skip

    def _claim(self) -> None:
        """Hand over as many trials as the engine takes."""
        for trial in self._waiting():
            if len(self.running) >= self.engine.max_jobs:
                return
            free = shutil.disk_usage(self.plan.folder).free / 2**30
            if free < MIN_FREE_GIB:
                self._block(f"the disk of {self.plan.folder} is full ({free:.2f} GiB are left)")
                return
            job = self.job(trial)
            has_room = getattr(self.engine, "has_room", None)
            if has_room is not None and not has_room(job):
                return
            handle = self.engine.submit(job)
            self.running[trial.name] = trial
            self._event("submitted", trial, engine=self.engine_name, handle=handle)

    def _say_cancelled(self) -> None:
        folders = {trial.name: self.plan.trial_folder(trial) for trial in self.plan.trials}
        names = [name for name, folder in folders.items()
                 if (folder / CANCELLED_FILE).exists() and not (folder / TRIAL_FILE).exists()]  # fmt: skip
        if (self.plan.folder / CANCELLED_FILE).exists():
            self.display.say(f"{self.plan.name} was cancelled: nothing more is trained before `retry`")
        elif names:
            self.display.say(
                f"{counted(len(names), 'trial')} cancelled ({', '.join(names[:5])}): what followed was chosen without; "
                "`retry` trains them"
            )

    def _attach(self) -> None:
        """Take up what an earlier `run` left with an engine that outlives it."""
        attach = getattr(self.engine, "attach", None)
        if attach is None:
            return
        last: dict[str, dict] = {}
        for event in read_jsonl(self.plan.folder / EVENTS_FILE):
            last[event.get("trial", "")] = event
        for trial in self._waiting():
            event = last.get(trial.name, {})
            mine = event.get("event") == "submitted" and event.get("engine") == self.engine_name
            job = self.job(trial)
            if mine and attach(job, str(event.get("handle"))):
                self.running[trial.name] = trial
                if job.stop_file.exists():
                    # an earlier `run` asked it, and did not see it end
                    self._asked_to_end.add(trial.name)

    def _poll(self) -> None:
        for name, trial in list(self.running.items()):
            wants_end = (self.plan.trial_folder(trial) / CANCELLED_FILE).exists()
            if wants_end and name not in self._asked_to_end:
                self._ask_to_end(name)
            ending = self.engine.poll(name)
            if ending is not None:
                del self.running[name]
                self._ended(trial, ending, asked=name in self._asked_to_end)
                self._asked_to_end.discard(name)

    def _ask_to_end(self, name: str) -> None:
        self._asked_to_end.add(name)
        self.engine.cancel(name)

    def _ended(self, trial: TrialSpec, ending: Ending, *, asked: bool) -> None:
        """Take note of an ending: done, back in the queue, or failed. asked: it was asked to end, so that a kill (one
        that took too long to save, a job taken from a queue) is an interruption."""
        folder, kind = self.plan.trial_folder(trial), ending.kind
        if asked and kind == "killed":
            kind = "interrupted"
        finished = (folder / TRIAL_FILE).exists()
        self._event("ended", trial, kind="done" if finished else kind, code=ending.code, message=ending.text()[:500])
        if finished or kind == "interrupted":
            return
        if kind == "done":
            return self._fail(trial, "its process ended well without a result")
        if kind == "disk full":
            return self._block(f"{trial.name}: {ending.text()}")
        if kind == "killed" and self._kills(trial) <= MAX_KILLS:
            self.display.say(f"{trial.name}: {ending.text()}; it is tried again")
            return None
        return self._fail(trial, ending.text() + (f" ({MAX_KILLS + 1} times)" if kind == "killed" else ""))

    def _kills(self, trial: TrialSpec) -> int:
        """How often the trial was killed since it was last begun anew by `retry`."""
        count = 0
        for event in read_jsonl(self.plan.folder / EVENTS_FILE):
            if event.get("trial") == trial.name:
                count = 0 if event["event"] == "retried" else count + (event.get("kind") == "killed")
        return count

    def _fail(self, trial: TrialSpec, reason: str) -> None:
        folder = self.plan.trial_folder(trial)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / TRIAL_FILE, {"outcome": FAILED, "reason": " ".join(reason.split())[:500]})

    def _block(self, reason: str) -> None:
        if not self.blocked:
            self.blocked = f"{reason}: no trial is begun any more; free some space, then `run` continues"
            self.display.say(self.blocked)

    def _end_all(self) -> None:
        """Ask all trials to save and end, and wait for that."""
        self.display.say(f"ending {counted(len(self.running), 'trial')}; each saves first")
        for name in self.running:
            self._ask_to_end(name)
        end = time.monotonic() + self.grace_s + CLOSE_S
        while self.running and time.monotonic() < end:
            self._poll()
            self.display.show(self.plan, self.running)
            time.sleep(TICK_S)

    def _event(self, event: str, trial: TrialSpec, **details: object) -> None:
        append_event(self.plan.folder, event, trial=trial.name, **details)

    def job(self, trial: TrialSpec) -> TrialJob:
        """What an engine runs for a trial: the plan's code under this interpreter, all paths absolute."""
        folder = self.plan.folder.absolute()
        code, before = str(folder / CODE_FOLDER), os.environ.get("PYTHONPATH", "")
        environment = {
            "PYTHONPATH": os.pathsep.join([code, before]) if before else code, PYTHON_VARIABLE: sys.executable,
            "BRINE_COMMIT": self.plan.head["code"]["commit"], "OMP_NUM_THREADS": str(self.plan.head["threads"]),
            TRACKER_VARIABLE: self.tracker or "", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        command = (sys.executable, "-m", "brine.experiments.trials.trial", str(folder), trial.name)
        return TrialJob(
            trial.name, command, environment, folder / LOGS_FOLDER / f"{trial.name}.log",
            cores=int(trial.resources["cores"]), gpus=int(trial.resources["gpus"]),
            memory_gib=trial.resources["memory_gib"], grace_s=self.grace_s,
        )  # fmt: skip

    def _raise_for_failed(self) -> None:
        records = {
            trial.name: read_json(self.plan.trial_folder(trial) / TRIAL_FILE) or {} for trial in self.plan.trials
        }
        failed = [f"{name} ({record['reason']})" for name, record in records.items() if record.get("outcome") == FAILED]
        if failed:
            raise TrialsFailedError(
                f"{len(failed)} of {counted(len(records), 'trial')} failed: {'; '.join(failed[:5])}; "
                f"`brine experiments retry {self.plan.name}` tries them again"
            )


@contextlib.contextmanager
def batch_lock(folder: Path) -> Iterator[None]:
    """Hold an experiment for one `run`. Raises ValueError where another process has it."""
    try:
        with file_lock(folder / LOCK_FILE, what=folder.name, timeout_s=0):
            repair_lines(folder / EVENTS_FILE)
            yield
    except TimeoutError:
        raise ValueError(f"{folder.name} is being run by another process: wait for it, or end it") from None


def is_at_work(plan: ExperimentPlan, trial: TrialSpec) -> bool:
    """Does a process hold the trial's folder?"""
    return is_run_locked(plan.trial_folder(trial))


def retry(plan: ExperimentPlan, names: list[str]) -> list[str]:
    """Put failed and cancelled trials back into the queue, or those named; returns their names. What failed keeps its
    record as trial.json.old-N. What follows from results follows again. Raises ValueError for an unknown name or one
    that is done."""
    chosen = []
    for trial in [plan.trial(name) for name in names] if names else plan.trials:
        folder = plan.trial_folder(trial)
        record = read_json(folder / TRIAL_FILE)
        if record is not None and record.get("outcome") != FAILED:
            if names:
                raise ValueError(
                    f"{trial.name} is {record.get('outcome')}: only failed and cancelled trials are retried"
                )
            continue
        cancelled = (folder / CANCELLED_FILE).exists()
        if record is None and not cancelled:
            continue
        (folder / CANCELLED_FILE).unlink(missing_ok=True)
        if record is not None:
            number = 1
            while (old := folder / f"{TRIAL_FILE}.old-{number}").exists():
                number += 1
            os.rename(folder / TRIAL_FILE, old)
        append_event(plan.folder, "retried", trial=trial.name)
        chosen.append(trial.name)
    (plan.folder / CANCELLED_FILE).unlink(missing_ok=True)
    return chosen


def cancel(plan: ExperimentPlan, names: list[str]) -> list[str]:
    """Cancel trials that have not ended, all of them and what would follow if none is named: a `run` that is at work on
    one asks it to save and end; returns their names. Raises ValueError for an unknown name or one that has ended."""
    chosen = []
    if not names:
        # first, so that no `run` sees all trials cancelled and goes on to what follows
        (plan.folder / CANCELLED_FILE).touch()
    for trial in [plan.trial(name) for name in names] if names else plan.trials:
        folder = plan.trial_folder(trial)
        record = read_json(folder / TRIAL_FILE)
        if record is not None and names:
            raise ValueError(f"{trial.name} is {record.get('outcome')}: only trials that have not ended are cancelled")
        if record is None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CANCELLED_FILE).touch()
            chosen.append(trial.name)
    return chosen
