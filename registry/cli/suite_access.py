"""Suites by path or name, and a registered model measured on one (`brine.evals.suites`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from brine.registry.measured import RESULT_FILE, SuiteInfo

PARTS = ("dev", "test", "gate")


def open_suite(name: str) -> SuiteInfo:
    """A suite by its path or name. Raises ValueError where there is none."""
    return _suites("suite").Suite.open(name)


def measure_model(folder: Path, suite: SuiteInfo, *, device: Any, compute_dtype: Any) -> Path:
    """Measure a model on all parts of a suite; returns the folder with `measurements.jsonl` and `result.json`."""
    _suites("measure").measure_on_suite(folder, suite, part=PARTS, device=device, compute_dtype=compute_dtype)
    found = folder / "suites" / suite.name
    if not (found / RESULT_FILE).is_file():
        raise ValueError(f"{found / RESULT_FILE} is missing after measuring: measure it again")
    return found


def _suites(module: str) -> Any:
    try:
        return importlib.import_module(f"brine.evals.suites.{module}")
    except ModuleNotFoundError as error:
        raise ValueError(f"evaluation suites cannot be opened ({error}): install a version that has them") from None
