"""Long checks that continuous integration does not run; each has a small case among the other tests.

    uv run pytest -m acceptance -n 0          # an hour on two cores; one line to benchmarks/results/acceptance.jsonl

The line says which checks ran, how each ended and how long it took, with hardware, versions and commit.
"""

import json
import os
import time

import pytest

from benchmarks.harness.machine import hardware
from tests.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "acceptance.jsonl"
_LOAD = os.getloadavg()[0]
_ended: dict[str, dict] = {}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "acceptance":
            item.add_marker(pytest.mark.acceptance)


def pytest_runtest_logreport(report):
    # of other folders too, whose longest cases bear the mark
    if "acceptance" in report.keywords:
        case = _ended.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        case["seconds"] = round(case["seconds"] + report.duration, 2)
        if report.outcome != "passed":
            case["outcome"] = report.outcome


def pytest_sessionfinish(session):
    # a process of xdist has reported to the one that started it
    if not _ended or hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    outcomes = [case["outcome"] for case in _ended.values()]
    line = {
        "benchmark": "acceptance",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": "pytest " + " ".join(session.config.invocation_params.args),
        "hardware": hardware("cpu", 1, _LOAD),
        "counts": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "cases": _ended,
    }
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
