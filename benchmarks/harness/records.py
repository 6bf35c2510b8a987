"""What every benchmark does around its measurements: refuse, record, append, draw.

The tests of the operation run first (`benchmarks.harness.correctness`), in a process of their own, and where they fail
nothing is measured and nothing is written: results of an incorrect kernel are not recorded. On a GPU small cases are
also held against the specification on the device itself. Where time on a GPU is short, `--tests report` measures all
the same and `--tests none` runs none; the record then says so in its "tests". `--quick` tries the whole script at toy
sizes, without tests, and writes nothing.

What a case gave is on disk as soon as it ends, in `results/<name>.<time>.partial.jsonl` (`save_case`): a run that is
killed leaves it there, one that ends takes it away.

A record is one line of JSON appended in a single write to `results/<name>.jsonl`, with hardware, versions, commit
(and whether files differed from it; results themselves do not count), load of the machine before the start, the
roofline, every case, and the targets. The same record is the last line printed. Old lines are never touched.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.record import append
from benchmarks.harness.correctness import TestsFailedError, run_tests
from benchmarks.harness.implementations import TimingLimits
from benchmarks.harness.machine import hardware
from brine.common.processes import usable_cores
from brine.model.device import resolve_device
from brine.training.logging.metrics import append_line

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MOST_PROCESSES = 10
"""Processes of tests on a GPU, each of which holds a context."""


class LogCapture(logging.Handler):
    """Keeps what the kernels log, such as which backend they chose and why."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.messages.append(record.getMessage())


_log_capture = LogCapture()


MODULES = {
    "attention": "benchmarks.kernels.attention",
    "linear_loss": "benchmarks.kernels.linear_loss",
    "ring": "benchmarks.kernels.ring",
    "data": "benchmarks.data.throughput",
    "data_fuzz": "benchmarks.data.fuzz",
    "data_plan": "benchmarks.data.plan",
    "gate": "benchmarks.statistics.gate",
    "intervals": "benchmarks.statistics.intervals",
    "long_context": "benchmarks.context.long_context",
    "meshes": "benchmarks.training.meshes",
    "planner": "benchmarks.training.planner",
    "train_cpu": "benchmarks.training.train_cpu",
    "train_gpu": "benchmarks.training.train_gpu",
}
"""Name of a record -> the module that makes it."""


def module_of(name: str) -> str:
    """The module that makes a record, for its command."""
    return MODULES.get(name, f"benchmarks.{name}")


class UsageError(ValueError):
    """Something in the command line that nothing can be done with."""


def command(main: Callable[[], int]) -> int:
    """Run a script's `main` -> exit status; a mistake in the command line is one line on standard error and 2."""
    try:
        return main()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class BenchmarkParser(argparse.ArgumentParser):
    """A parser whose options hold the words that they came from as `argv`, for the record's command."""

    def parse_args(self, arguments: list[str] | None = None) -> argparse.Namespace:
        """The options behind the arguments; those of the process where None."""
        options = super().parse_args(arguments)
        options.argv = list(sys.argv[1:] if arguments is None else arguments)
        return options


def parser(name: str, description: str) -> BenchmarkParser:
    """The options that all benchmarks share."""
    made = BenchmarkParser(
        prog=f"python -m {module_of(name)}",
        description=description,
        epilog=f"Runs the tests first, appends one line to benchmarks/results/{name}.jsonl, and prints it last.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="toy sizes, no tests, writes nothing: does it run at all?")
    made.add_argument("--cases", nargs="+", default=[], metavar="WORD", help="only cases whose name has one of these")
    made.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    made.add_argument("--minutes", type=float, default=0.0, help="begin no case after so many; 0 for no limit")
    made.add_argument(
        "--tests", choices=("gate", "report", "none"), default="gate",
        help="run first: refuse to measure where they fail, note that they did, or leave them out",
    )  # fmt: skip
    made.add_argument("--threads", type=int, default=usable_cores(), help="CPU threads of torch")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the record and the plot")
    return made


def device_options(made: argparse.ArgumentParser) -> None:
    """Options of benchmarks that know GPUs, and those by which a case's own process is started."""
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    made.add_argument("--backend", default="", help="of ours; on CUDA triton unless given, as its tests ran first here")
    made.add_argument("--case-timeout-s", type=float, default=300.0, help="on CUDA, longest time of one case")
    made.add_argument(
        "--budget-s", type=float, default=None, help="seconds of a case's rounds; each script has its own"
    )
    made.add_argument("--min-rounds", type=int, default=None, help="rounds in any case")
    made.add_argument("--no-peak", action="store_true", help="on CUDA, do without the extra run that measures memory")
    made.add_argument("--without", default="", metavar="A,B", help="implementations to leave out")
    for hidden in ("--child", "--stage"):
        made.add_argument(hidden, default="", help=argparse.SUPPRESS)


def prepare(options: argparse.Namespace) -> str:
    """Set threads and logging -> the device. Raises UsageError for a GPU that is not there."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
    # which backend ran is part of the result
    logging.getLogger("brine.kernels").setLevel(logging.INFO)
    logging.getLogger("brine.kernels").addHandler(_log_capture)
    torch.set_num_threads(options.threads)
    options.end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    try:
        device = str(resolve_device(getattr(options, "device", "cpu")))
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not getattr(options, "backend", "auto"):
        # "auto" keeps to GPUs on which the tests are known to have passed; here they have just run
        options.backend = "triton" if device == "cuda" else "auto"
    return device


def captured_logs() -> list[str]:
    """What the kernels have logged since this was last asked; each choice is logged once a process."""
    messages, _log_capture.messages = _log_capture.messages, []
    return messages


def select(names: list[str], words: list[str]) -> list[str]:
    """The names that hold one of the words; all without words. Raises UsageError where nothing is left."""
    kept = [name for name in names if not words or any(word in name for word in words)]
    if not kept:
        raise UsageError(f"no case has one of {', '.join(words)} in its name; --list shows them")
    return kept


def timing_limits(options: argparse.Namespace, *, tolerance: float, **usual: Any) -> TimingLimits:
    """How long a case may take: what the command line says, else what is usual for a benchmark; toys by --quick."""
    if options.quick:
        return TimingLimits(tolerance=tolerance, budget_s=0.0, min_rounds=2, max_rounds=2)
    asked = {"budget_s": options.budget_s, "min_rounds": options.min_rounds}
    asked = {name: value for name, value in asked.items() if value is not None}
    return TimingLimits(**{"tolerance": tolerance, **usual, **asked, "peak": not options.no_peak})


def begin(name: str, options: argparse.Namespace, device: str, tests: tuple[str, ...]) -> dict[str, Any]:
    """Run the tests (not for --quick) -> the record so far. Raises TestsFailedError."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is not idle (load {load:.1f}): numbers will suffer", file=sys.stderr)
    checked = None
    if not options.quick and options.tests != "none":
        try:
            # a GPU's tests compile many small kernels, each in one process
            on_gpu = device.startswith("cuda")
            checked = run_tests(tests, processes=min(MOST_PROCESSES, usable_cores()) if on_gpu else 0)
        except TestsFailedError as error:
            if options.tests == "gate":
                raise
            checked = {"passed": False, "said": str(error)[-2000:]}
    return {
        "benchmark": name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        # a record speaks of the project, not of where somebody's folders lie
        "command": " ".join(["python -m", module_of(name), *map(_short, options.argv)]),
        "quick": options.quick,
        "tests": checked,
        "hardware": hardware(device, options.threads, load),
        "cases": [],
        "targets": [],
    }


def _short(word: str) -> str:
    """A word of a command line, an absolute path by its last part."""
    return Path(word).name if Path(word).is_absolute() else word


def save_case(record: dict[str, Any], options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Put a case that has ended on disk, where it stays until the whole record is there."""
    if options.quick:
        return
    path = partial_path(record, options)
    if not path.exists():
        append(
            path, json.dumps({name: value for name, value in record.items() if name not in ("cases", "targets")}) + "\n"
        )
    append(path, json.dumps(result) + "\n")


def partial_path(record: dict[str, Any], options: argparse.Namespace) -> Path:
    """Where the cases of a run that has not ended stand."""
    options.results.mkdir(parents=True, exist_ok=True)
    when = record["time"].translate({ord(sign): None for sign in "-:"})
    return options.results / f"{record['benchmark']}.{when}.partial.jsonl"


def run_cases(
    names: list[str],
    run: Callable[[str, Callable[[str], None]], dict[str, Any]],
    show: Callable[[dict[str, Any]], str],
    *,
    minutes: float = 0.0,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> list[dict[str, Any]]:
    """Run the cases under a progress bar, printing each as it ends. Ctrl-C keeps what is done.

    run: (name, on_stage) -> result; on_stage tells the bar which one runs. show: result -> lines for the console.
    keep: called with each result as it ends, to put it on disk.
    """
    results, start = [], time.monotonic()
    with tqdm(names, desc="cases", file=sys.stderr, disable=None) as bar:
        for name in bar:
            if minutes and time.monotonic() - start > 60 * minutes:
                results.append({"case": name, "skipped": f"not begun within {minutes:g} minutes"})
                continue
            bar.set_postfix_str(name)
            try:
                results.append(run(name, lambda stage, name=name: bar.set_postfix_str(f"{name} {stage}")))
            except KeyboardInterrupt:
                results.append({"case": name, "skipped": "interrupted"})
                break
            keep(results[-1])
            with tqdm.external_write_mode(file=sys.stdout):
                print(show(results[-1]), flush=True)
    return results


def case_timeout_s(options: argparse.Namespace) -> float:
    """Longest time of a case that begins now: no longer than the command itself may last."""
    return max(1.0, min(options.case_timeout_s, options.end - time.monotonic()))


def finish(record: dict[str, Any], options: argparse.Namespace, plot: Callable[[dict[str, Any], Path], None]) -> int:
    """Show the targets, append the record, draw it, print it as the last line -> exit status."""
    if options.quick:
        print("toy sizes: neither times nor targets mean anything")
    for target in record["targets"]:
        print(
            f"{'met   ' if target['met'] else 'missed'} {target['case']}: {target['what']} = {target['measured']:.3g}, "
            f"target {target['relation']} {target['target']:g}"
        )
    if not options.quick:
        options.results.mkdir(parents=True, exist_ok=True)
        path = options.results / f"{record['benchmark']}.jsonl"
        append_line(path, record)
        partial_path(record, options).unlink(missing_ok=True)
        image = options.results / f"{record['benchmark']}-{record['hardware']['device']}.png"
        plot(record, image)
        print(f"appended to {path}, drawn in {image}", file=sys.stderr)
    print(json.dumps(record), flush=True)
    return 0


def print_refusal(name: str, error: Exception) -> int:
    """Say why there is nothing to report -> exit status."""
    print(str(error), file=sys.stderr)
    print(json.dumps({"benchmark": name, "refused": str(error)}), flush=True)
    return 1


def target(case: str, what: str, measured: float | None, relation: str, wanted: float) -> list[dict[str, Any]]:
    """One line of the record's targets; nothing where nothing was measured. relation: "at least" or "at most"."""
    if measured is None:
        return []
    met = measured >= wanted if relation == "at least" else measured <= wanted
    return [{"case": case, "what": what, "measured": measured, "relation": relation, "target": wanted, "met": met}]


def table(rows: list[Mapping[str, str]]) -> str:
    """Rows of equal keys, aligned, the first column to the left."""
    if not rows:
        return ""
    lines = [list(rows[0]), *[list(row.values()) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
