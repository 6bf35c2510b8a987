"""Hooks of pytest for the long checks that continuous integration does not run; each has a small case elsewhere.

    uv run pytest -m acceptance -n 0     # over an hour on two cores; one line to benchmarks/results/acceptance.jsonl

The line says which checks ran, how each ended and how long it took, with hardware, versions and commit.
`tests/conftest.py` imports the hooks, since cases of other folders bear the mark too.
"""

import json
import os
import time

from tests.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "acceptance.jsonl"
_LOAD = os.getloadavg()[0]
_ended: dict[str, dict] = {}


def pytest_runtest_logreport(report):
    if "acceptance" in report.keywords:
        # of one test with hundreds of cases elsewhere, the worst outcome and the sum
        name = report.nodeid if "tests/acceptance/" in report.nodeid else report.nodeid.partition("[")[0]
        case = _ended.setdefault(name, {"outcome": "passed", "cases": 0, "seconds": 0.0})
        case["cases"] += report.when == "call"
        case["seconds"] = round(case["seconds"] + report.duration, 2)
        if report.failed or (report.skipped and case["outcome"] == "passed"):
            case["outcome"] = report.outcome


def pytest_sessionfinish(session):
    # a process of xdist has reported to the one that started it
    if not _ended or hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    from benchmarks.harness.machine import hardware

    outcomes = [case["outcome"] for case in _ended.values()]
    line = {
        "benchmark": "acceptance",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": "pytest " + " ".join(session.config.invocation_params.args),
        "hardware": hardware("cpu", 1, _LOAD),
        "counts": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "tests": _ended,
    }
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
