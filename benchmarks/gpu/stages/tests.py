"""Stage `tests`: the tests of the kernels that touch the GPU; reported, and no gate. (`tests/gpu` is in stage `smoke`.)

What computes on the host alone is left to `pytest`, which needs no GPU for it. Many small kernels are compiled by
these tests, so they run in as many processes as there are cores (ten at most, as each holds a context on the GPU),
under `benchmarks.gpu.test_timeouts`: a kernel that never ends costs one test. Lines of pytest's report are read as
they come: where the time is up, what had passed and failed until then is reported all the same. `tests-<item>.txt` has
the report, `junit-<item>.xml` what pytest writes at its end.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections import Counter

from benchmarks.gpu.stage import ROOT, StageContext, SuiteItem, run_command
from brine.common.processes import usable_cores

MOST_PROCESSES = 10
GROUPS = {
    # by themselves, not by the test that starts them in a child and reports their number
    "attention": ("tests/kernels/attention/attention_triton_*cases.py",),
    "loss": ("tests/kernels/linear_loss/test_triton.py",),
    "gpu": ("tests/gpu/test_*.py",),
    "toy": ("tests/kernels/attention/test_spans.py",),
}
"""Files by item."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # deterministic matmuls, which fixtures ask for, want this
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # reasons in the summary are cut where a line ends
    "COLUMNS": "400",
}
LIMITS_S = {"attention": 160.0, "loss": 70.0}
OUTCOME = re.compile(
    r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\s+(\S+::.*?)\s*$|^(\S+::.*?)\s+(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
)
SUMMARY = re.compile(r"^(FAILED|ERROR) (\S+?::.*?)(?: - (.*))?$")
FAILING_SHOWN = 60


def items(toy: bool) -> list[SuiteItem]:
    """A group an item; a toy tries one small file."""
    return [SuiteItem("toy", 120)] if toy else [SuiteItem(name, limit_s) for name, limit_s in LIMITS_S.items()]


def files_of(name: str) -> list[str]:
    """Files of a group."""
    return sorted(str(path.relative_to(ROOT)) for pattern in GROUPS[name] for path in ROOT.glob(pattern))


def run(item: SuiteItem, context: StageContext) -> None:
    """Run a group's files and report the outcome."""
    files = files_of(item.name.removesuffix("-tests"))
    if not files:
        context.record(skipped="there are no such tests")
        return
    junit, log = context.out / f"junit-{item.name}.xml", context.out / f"tests-{item.name}.txt"
    # the project's own options are for people: quiet, and two processes
    command = [sys.executable, "-m", "pytest", *files, "-o", "addopts=-m 'not acceptance'", "-v", "-rfE", "--tb=short"]
    command += ["-p", "no:cacheprovider", f"--junitxml={junit}"]
    if item.name != "gpu-tests":
        # those have it by themselves
        command += ["-p", "benchmarks.gpu.test_timeouts"]
    processes = 1 if context.toy else min(MOST_PROCESSES, usable_cores())
    if importlib.util.find_spec("xdist") and processes > 1:
        # (with loadgroup, pytest-xdist 3.8 stands still once a process was replaced)
        command += ["-n", str(processes), "--dist", "worksteal"]
    start = time.monotonic()
    code = run_command(command, log=log, seconds=min(item.timeout_s, context.left_s()) - 5, **ENVIRONMENT)
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
            # a test that lost the GPU is reported twice; the first reason is its own
            reasons.setdefault(found[2], (found[3] or "")[:300])
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
