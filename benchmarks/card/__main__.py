"""A first half hour on a card, as one command that leaves numbers whatever happens.

Before, where the libraries and the repository are (the second for a copy without .git; BRINE_COMMIT=... does too):

    python -m benchmarks.card --pack-corpus corpus.tar.xz
    git rev-parse --short=12 HEAD > COMMIT

On the card, in commands of ten minutes, the first one first; the last two on fresh machines, or when there is time:

    python -m benchmarks.card --stage smoke tests attention --out FOLDER --host-gib 96
    python -m benchmarks.card --stage loss gluon gluon_backward sweep --out FOLDER
    python -m benchmarks.card --stage train generate --out FOLDER --host-gib 96 --corpus corpus.tar.xz
    python -m benchmarks.card --stage million --out FOLDER --host-gib 96
    python -m benchmarks.card --stage demo --out FOLDER --corpus corpus.tar.xz

Where commands last, `--stage all --minutes 60` does it at once; `--stage all --toy` is the rehearsal, also on a CPU.
Afterwards `--write-table FOLDER` puts the winners into the tables that "auto" reads, `--plot FILE` makes an image.
`million` wants a card of 141 GB.
`--host-gib`: host memory that may be pinned, for a machine whose memory grows on demand and is reported too small.

`FOLDER/results.jsonl` gets a line the moment there is a figure, synchronised to the disk, with card, driver, versions,
commit and the backends that the kernels chose; `log.txt` says it for people. Whatever fails is a line too ("error"),
and the rest goes on. Tests are told (counts, failing ids, junit) and stop nothing. Stages end in time by themselves (8
minutes at most, `million` 9); what does not fit into `--minutes` is a line too ("skipped"). A command that is killed
leaves what it had. Exit code 0, 1 where nothing ran well, 2 for a mistake in the command.

What is not measured: several cards, Nsight counters, power. Every time on a card is between CUDA events. Without a card
(or with --toy) sizes are toys: then times mean nothing, and only the command itself is tried.

This process holds no context on the card: each stage's items run in children (`benchmarks.card.child`), one child as
long as all goes well, another from the next item on when an item kills it, hangs, or breaks the card's context; a
contender that was at work at that moment is left out, and its item is done again without it.
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
from typing import Any

from benchmarks.card.record import ResultsLog, error_of, last_output_line, show
from benchmarks.card.stage import ROOT, STAGES, SuiteItem, SuiteStage
from benchmarks.card.work import check_folder, default_work, lock_work_folder

MARGIN_S = 5.0
"""Before the end of `--minutes` at which the last child is ended, so that its end is still told."""
STAGE_OVER = "the stage's time was up"
MAX_DEATHS = 2
"""Items that a contender may kill before it is left out of the whole stage."""
NAMES_SHOWN = 40
"""Items that are told to someone who named none of them."""
CORPUS_MIB = 24.0
"""Size of a packed corpus unless told otherwise."""


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
    """Items that ended well: neither raised nor passed over for want of time."""
    deaths: dict[str, int] = field(default_factory=dict)


def print_refusal(error: Exception) -> int:
    """One line that tells a user's mistake -> exit code."""
    told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    print(f"error: {told}", file=sys.stderr)
    return 2


def stages_of(names: list[str]) -> list[SuiteStage]:
    """The stages asked for, in the order of the half hour. Raises ValueError for an unknown one."""
    if unknown := sorted(set(names) - set(STAGES) - {"all"}):
        raise ValueError(f"no stage {unknown[0]!r}: choose from {', '.join(STAGES)}, all")
    return [stage for stage in STAGES.values() if "all" in names or stage.name in names]


def run(options: argparse.Namespace) -> int:
    """Find the facts, run the stages -> exit code."""
    record = ResultsLog(options.out)
    end = time.time() + 60 * options.minutes - MARGIN_S
    machine_info = find_facts(record, options.device)
    device = machine_info.get("device", "cpu")
    options.toy = options.toy or device == "cpu"
    try:
        check_items(options)
        options.work = options.work or default_work(machine_info, corpus=options.corpus)
        if options.toy:
            # nothing of a toy's is told or gone on with as a real run's
            options.work /= "toy"
        check_folder(options.work)
        lock = lock_work_folder(options.work)
    except (OSError, ValueError) as error:
        return print_refusal(error)
    with lock:
        return run_stages(SuiteRun(record, options, device, end))


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
            # told when it is this stage's turn
            return
    for word in options.items:
        if not any(word in name for name in names):
            more = f" and {len(names) - NAMES_SHOWN} more (--list)" * (len(names) > NAMES_SHOWN)
            raise ValueError(f"no item has {word!r} in its name: there are {', '.join(names[:NAMES_SHOWN])}{more}")


def find_facts(record: ResultsLog, device: str) -> dict[str, Any]:
    """Ask a child what this machine is; {} and a line that says why where it cannot tell."""
    record.save_machine_info({})
    command = [sys.executable, "-m", "benchmarks.card.child", "--machine-info", "--device", device]
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
    command = [sys.executable, "-m", "benchmarks.card.child", "--stage", stage.name, "--items", *names]
    command += ["--device", state.device, "--out", str(options.out), "--work", str(options.work), "--now", str(now)]
    command += ["--end", str(end), "--host-gib", str(options.host_gib), "--without", json.dumps(without)]
    command += ["--card-gib", str(options.card_gib)]
    command += ["--corpus", str(options.corpus)] * (options.corpus is not None)
    command += ["--module", options.module] * bool(options.module)
    return command + ["--toy"] * options.toy


def environment(stage: SuiteStage, state: SuiteRun) -> dict[str, str]:
    """A child's variables: without a card, Triton's kernels are swept by its interpreter."""
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


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.card",
        description=__doc__.splitlines()[0],
        epilog="stages:\n" + "\n".join(f"  {s.name:<14} {s.minutes:g} min at most: {s.what}" for s in STAGES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--stage", nargs="+", default=["all"], metavar="STAGE", help="some of those below, or all")
    made.add_argument("--minutes", type=float, default=9.5, help="of the whole command")
    made.add_argument("--out", type=Path, default=Path("card"), help="folder of the results, few and small")
    made.add_argument(
        "--work", type=Path, default=None, help="folder of corpora and runs; one of this commit among temporary files"
    )
    made.add_argument("--corpus", type=Path, default=None, help="what --pack-corpus wrote, for train and demo")
    made.add_argument("--items", nargs="+", default=[], metavar="WORD", help="only what has one of these in its name")
    made.add_argument("--host-gib", type=float, default=0.0, help="host memory that may be pinned; 0: 3/4 of all")
    made.add_argument("--card-gib", type=float, default=0.0, help="memory of the card that may be planned with; 0: all")
    made.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: leave a card alone")
    made.add_argument("--toy", action="store_true", help="toy sizes, as on a machine without a card: does it all run?")
    made.add_argument("--module", default="", help=argparse.SUPPRESS)
    made.add_argument("--list", action="store_true", help="print the stages' items and stop")
    made.add_argument(
        "--pack-corpus", type=Path, metavar="FILE", help="write an encoded corpus to bring along, and stop"
    )
    made.add_argument("--pack-mib", type=float, default=CORPUS_MIB, help="about how large that file may become")
    made.add_argument("--write-table", type=Path, metavar="FOLDER", help="winners of a results folder into the table")
    made.add_argument("--plot", type=Path, metavar="FILE", help="an image of a results file, beside it")
    return made


def side_work(options: argparse.Namespace) -> int | None:
    """What measures nothing -> exit code, or None where a run is asked for. Raises ValueError, OSError, ImportError."""
    if options.plot:
        from benchmarks.card.plot import plot

        return plot(options.plot)
    if options.pack_corpus:
        from benchmarks.card.corpus import pack

        return pack(options.pack_corpus, mib=options.pack_mib, toy=options.toy)
    if options.write_table:
        from benchmarks.card.table import write_table

        return write_table(options.write_table)
    if options.list:
        for stage in stages_of(options.stage):
            show("\n  ".join([stage.name, *(item.name for item in stage.module(options.module).items(options.toy))]))
        return 0
    return None


def prepare(options: argparse.Namespace) -> None:
    """Look at stages, corpus and folders before anything starts. Raises ValueError or OSError."""
    stages_of(options.stage)
    if not options.minutes > 0:
        raise ValueError(f"--minutes {options.minutes:g}: give the command more than none")
    for name in ("out", "work", "corpus"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).resolve())
    if options.corpus is not None:
        from benchmarks.card.corpus import validate_archive

        validate_archive(options.corpus)
    for folder in (options.out, options.work):
        if folder is not None:
            check_folder(folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the command -> exit code."""
    options = build_parser().parse_args(arguments)
    try:
        code = side_work(options)
        if code is not None:
            return code
        prepare(options)
    except ImportError as error:
        return print_refusal(ImportError(f"{error}: install {error.name or 'it'} where this is done"))
    except (OSError, ValueError) as error:
        return print_refusal(error)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
