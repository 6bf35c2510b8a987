"""Stage `tests`: the tests of the kernels; told, and no gate. (`tests/card`, which need a card, run in stage `smoke`.)

Many small kernels are compiled by these tests, so they run in as many processes as there are cores (ten at most, as
each holds a context on the card). Lines of pytest's report are read as they come: where the time is up, what had passed
and failed until then is told all the same. `tests-<item>.txt` has the report, `junit-<item>.xml` what pytest writes at
its end.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections import Counter

from benchmarks.card_stage import ROOT, Context, Item, run_command
from training.runtime import usable_cores

MOST_PROCESSES = 10
GROUPS = {
    "attention": ("tests/kernels/test_attention*.py", "tests/kernels/test_spans.py", "tests/kernels/test_flash*.py",
                  "tests/kernels/test_flex*.py"),
    "loss": ("tests/kernels/test_linear_loss*.py",),
    "others": ("tests/kernels/test_*.py",),
    "card": ("tests/card/test_*.py",),
}  # fmt: skip
"""Files by item; each file runs once, in the first group that has it."""
OUTCOME = re.compile(
    r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\s+(\S+::.*?)\s*$|^(\S+::.*?)\s+(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
)
SUMMARY = re.compile(r"^(FAILED|ERROR) (\S+?::.*?)(?: - (.*))?$")
FAILING_SHOWN = 60


def items(toy: bool) -> list[Item]:
    """A group an item; a toy tries one small file."""
    return [Item("toy", 120)] if toy else [Item(name, 150) for name in GROUPS if name != "card"]


def files_of(name: str) -> list[str]:
    """Files of a group, those of earlier groups left out."""
    if name == "toy":
        return ["tests/kernels/test_spans.py"]
    seen: list[str] = []
    for group, patterns in GROUPS.items():
        found = sorted({str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)})
        found = [file for file in found if file not in seen]
        if group == name:
            return found
        seen += found
    raise KeyError(name)


def run(item: Item, context: Context) -> None:
    """Run a group's files and tell what came of it."""
    files = files_of(item.name.removesuffix("-tests"))
    if not files:
        context.record(skipped="there are no such tests")
        return
    junit, log = context.out / f"junit-{item.name}.xml", context.out / f"tests-{item.name}.txt"
    # the project's own options are for people: quiet, and two processes
    command = [sys.executable, "-m", "pytest", *files, "-o", "addopts=", "-v", "-rfE", "--tb=short"]
    command += ["-p", "no:cacheprovider", f"--junitxml={junit}"]
    processes = 1 if context.toy else min(MOST_PROCESSES, usable_cores())
    if importlib.util.find_spec("xdist") and processes > 1:
        # large problems are grouped, so that only one of them is on the card at a time
        command += ["-n", str(processes), "--dist", "loadgroup"]
    start = time.monotonic()
    code = run_command(command, log=log, seconds=min(item.timeout_s, context.left_s()) - 5, OMP_NUM_THREADS="1")
    context.record(
        files=len(files), processes=processes, s=round(time.monotonic() - start, 1), exit_code=code,
        ended="the time was up" if code is None else "by itself", **outcomes(log.read_text(errors="replace")),
    )  # fmt: skip


def outcomes(report: str) -> dict[str, object]:
    """Counts of a verbose report, whole or cut off, and the failing tests with their reasons where it has them."""
    states: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for line in report.splitlines():
        if found := SUMMARY.match(line):
            reasons[found[2]] = (found[3] or "")[:300]
            states[found[2]] = found[1]
        elif found := OUTCOME.search(line):
            states[found[2] or found[3]] = found[1] or found[4]
    failing = [name for name, state in states.items() if state in ("FAILED", "ERROR")]
    counts = Counter(state.lower() for state in states.values())
    return {
        "counts": dict(counts),
        "failing": [f"{name}: {reasons.get(name, '')}".rstrip(": ") for name in failing[:FAILING_SHOWN]],
        "last": (report.strip().splitlines() or [""])[-1][:200],
    }
