"""The parent of a suite: stages in order, their items in children, one line for whatever happens.

It holds no context on the GPU: items run in `benchmarks.gpu.child`, in one process as long as all is well. When an item
kills its process, hangs, or breaks the GPU's context, another process takes over from the next item; an implementation
that was at work then is left out, and its item is done again without it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.record import ResultsLog, error_of, last_output_line
from benchmarks.gpu.stage import ROOT, STAGES, SuiteItem, SuiteStage
from benchmarks.gpu.work import check_folder, default_work, lock_work_folder

MARGIN_S = 5.0
"""Before the end of `--minutes` at which the last child is ended, so that its end is still recorded."""
STAGE_OVER = "the stage's time was up"
MAX_DEATHS = 2
"""Items that an implementation may kill before it is left out of the whole stage."""
NAMES_SHOWN = 40
"""Items that are listed to someone who named none of them."""


@dataclass
class SuiteRun:
    """One command."""

    record: ResultsLog
    options: argparse.Namespace
    device: str
    end: float
    """By `time.time`."""
    current: subprocess.Popen | None = None
    ran: int = 0
    """Items that ended well: neither raised nor skipped for lack of time."""
    deaths: dict[str, int] = field(default_factory=dict)


def stages_of(names: list[str]) -> list[SuiteStage]:
    """The stages asked for, in the order of the half hour. Raises ValueError for an unknown one."""
    if unknown := sorted(set(names) - set(STAGES) - {"all"}):
        raise ValueError(f"no stage {unknown[0]!r}: choose from {', '.join(STAGES)}, all")
    return [stage for stage in STAGES.values() if "all" in names or stage.name in names]


def begin(options: argparse.Namespace) -> tuple[SuiteRun, IO[str]]:
    """Find what this machine is -> the run, and the lock on its working folder. Raises ValueError or OSError."""
    record = ResultsLog(options.out)
    end = time.time() + 60 * options.minutes - MARGIN_S
    machine_info = find_facts(record, options.device)
    device = machine_info.get("device", "cpu")
    options.toy = options.toy or device == "cpu"
    check_items(options)
    options.work = options.work or default_work(machine_info, corpus=options.corpus)
    if options.toy:
        # a toy's results and runs are kept apart from a real run's
        options.work /= "toy"
    check_folder(options.work)
    return SuiteRun(record, options, device, end), lock_work_folder(options.work)


def run_stages(state: SuiteRun) -> int:
    """One stage after the other, as far as the time goes -> exit code."""
    options, record = state.options, state.record
    _on_signal(state)
    record.write(stage="start", case="command", toy=options.toy, stages=options.stage, minutes=options.minutes,
                 work=str(options.work))  # fmt: skip
    for stage in stages_of(options.stage):
        least = 0.0 if options.toy else 60 * stage.least
        if state.end - time.time() < least:
            left = max(0, state.end - time.time()) / 60
            record.write(stage=stage.name, case="stage", skipped=f"wants {stage.least:g} minutes, {left:.1f} are left")
            continue
        run_stage(stage, state)
    record.write(stage="end", case="command", items=state.ran)
    return 0 if state.ran else 1


def check_items(options: argparse.Namespace) -> None:
    """Raises ValueError for a word of --items that no item has in its name."""
    names = []
    for stage in stages_of(options.stage) if options.items else ():
        try:
            names += [item.name for item in stage.module(options.module).items(options.toy)]
        except Exception:
            # reported when it is this stage's turn
            return
    for word in options.items:
        if not any(word in name for name in names):
            more = f" and {len(names) - NAMES_SHOWN} more (--list)" * (len(names) > NAMES_SHOWN)
            raise ValueError(f"no item has {word!r} in its name: there are {', '.join(names[:NAMES_SHOWN])}{more}")


def find_facts(record: ResultsLog, device: str) -> dict[str, Any]:
    """Ask a child what this machine is; {} and a line that says why where it cannot tell."""
    record.save_machine_info({})
    command = [sys.executable, "-m", "benchmarks.gpu.child", "--machine-info", "--device", device]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        machine_info = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        said = "" if isinstance(error, subprocess.TimeoutExpired) else done.stderr.strip().splitlines()[-1:]
        record.write(stage="start", case="machine_info", error=f"{error}: {said}")
        return {}
    record.save_machine_info(machine_info)
    return machine_info


def run_stage(stage: SuiteStage, state: SuiteRun) -> None:
    """All items of a stage, in as many children as it takes."""
    began, state.deaths = time.time(), {}
    end = min(state.end, began + 60 * stage.minutes)
    try:
        items = stage.module(state.options.module).items(state.options.toy)
    except Exception as error:
        state.record.write(stage=stage.name, case="stage", **error_of(error))
        return
    if state.options.items:
        items = [item for item in items if any(word in item.name for word in state.options.items)]
    todo, without = list(items), {}
    while todo:
        if time.time() >= end:
            names = [item.name for item in todo]
            state.record.write(stage=stage.name, case="stage", skipped=STAGE_OVER, items=names)
            break
        batch = todo[:1]
        if not todo[0].fresh:
            batch = [item for item in todo if not item.fresh]
        ended, died = run_child(stage, batch, without, state, end)
        todo = [item for item in todo if item.name not in ended]
        if died is not None:
            todo = handle_dead_child(stage, died, todo, without, state)
    state.record.write(stage=stage.name, case="stage", ended=True, s=round(time.time() - began, 1))


def handle_dead_child(
    stage: SuiteStage, died: dict[str, Any], todo: list[SuiteItem], without: dict, state: SuiteRun
) -> list[SuiteItem]:
    """Tell of an item whose process died -> what is left to do: the item again if the guilty one is known."""
    name, implementation_name = died["item"], died["implementation_name"]
    more = {"hung_at": died["hung"]} if died["hung"] else {}
    state.record.write(
        stage=stage.name,
        case=name,
        toy=state.options.toy,
        error=died["why"],
        at_work=implementation_name or None,
        **more,
    )
    if (
        not implementation_name
        or implementation_name in without.get(name, ())
        or implementation_name in without.get("", ())
    ):
        return [item for item in todo if item.name != name]
    without.setdefault(name, []).append(implementation_name)
    state.deaths[implementation_name] = state.deaths.get(implementation_name, 0) + 1
    if state.deaths[implementation_name] >= MAX_DEATHS:
        without.setdefault("", []).append(implementation_name)
    return todo


def run_child(
    stage: SuiteStage, batch: list[SuiteItem], without: dict[str, list[str]], state: SuiteRun, end: float
) -> tuple[set[str], dict[str, Any] | None]:
    """One process for some items -> (names of those that ended, well or not, how it died or None)."""
    names, limits = [item.name for item in batch], {item.name: item.timeout_s for item in batch}
    why, hung, at = "", [], None
    with tempfile.TemporaryDirectory() as folder:
        now, said = Path(folder) / "now", Path(folder) / "stderr"
        with said.open("w") as errors:
            command = child_command(stage, names, without, state, end, now)
            child = state.current = subprocess.Popen(
                command, cwd=ROOT, stderr=errors, start_new_session=True, env=environment(stage, state)
            )
        while child.poll() is None:
            time.sleep(0.05)
            at = _read(now) or at
            if time.time() > end:
                why = STAGE_OVER
            elif at and not at["ended"] and time.time() - at["began"] > limits[at["item"]]:
                why = f"took longer than {limits[at['item']]:.0f} s"
            if why:
                hung = where(child, said)
                _kill(child)
        state.current, at = None, _read(now) or at
        why = why or f"its process ended with {child.returncode}: {last_output_line(said)}"
    if at is None:
        # it never came to an item, and would not the next time
        state.record.write(stage=stage.name, case="stage", error=why, items=names)
        return set(names), None
    ended = set(names[: names.index(at["item"]) + at["ended"]])
    state.ran += len(ended - set(at["device_error"]))
    if at["ended"]:
        return ended, None
    return ended, {
        "item": at["item"],
        "implementation_name": "" if why == STAGE_OVER else at["implementation_name"],
        "why": why,
        "hung": hung,
    }


def child_command(
    stage: SuiteStage, names: list[str], without: dict[str, list[str]], state: SuiteRun, end: float, now: Path
) -> list[str]:
    """The command line of a child."""
    options = state.options
    command = [sys.executable, "-m", "benchmarks.gpu.child", "--stage", stage.name, "--items", *names]
    command += ["--device", state.device, "--out", str(options.out), "--work", str(options.work), "--now", str(now)]
    command += ["--end", str(end), "--host-gib", str(options.host_gib), "--without", json.dumps(without)]
    command += ["--gpu-gib", str(options.gpu_gib)]
    command += ["--corpus", str(options.corpus)] * (options.corpus is not None)
    command += ["--module", options.module] * bool(options.module)
    return command + ["--toy"] * options.toy


def environment(stage: SuiteStage, state: SuiteRun) -> dict[str, str]:
    """A child's variables: without a GPU, Triton's kernels are swept by its interpreter."""
    interpreted = stage.name == "sweep" and state.device == "cpu"
    return os.environ | ({"TRITON_INTERPRET": "1"} if interpreted else {})


def where(child: subprocess.Popen, said: Path) -> list[str]:
    """The calls that a child is in which is about to be ended, innermost first: where it hangs."""
    with contextlib.suppress(OSError):
        child.send_signal(signal.SIGUSR1)
        stacks, end = "", time.time() + 5.0
        while not stacks.strip() and time.time() < end:
            time.sleep(0.5)
            stacks = said.read_text(errors="replace").rpartition("(most recent call first):")[2]
        return [line.strip() for line in stacks.strip().splitlines()][:30]
    return []


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _kill(child: subprocess.Popen) -> None:
    """End a child and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _on_signal(state: SuiteRun) -> None:
    """A polite end: take the child along and say so."""

    def stop(number: int, _frame: Any) -> None:
        if state.current is not None:
            _kill(state.current)
        state.record.write(stage="end", case="command", error=f"stopped by signal {number}", items=state.ran)
        # results are on disk; threads and temporary folders are not worth waiting for
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
