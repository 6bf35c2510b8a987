"""Suites by path or name, and registered models measured on one (`brine.evals.suites`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from brine.registry.measured import SuiteInfo

PARTS = ("dev", "test", "gate")


def open_suite(name: str) -> SuiteInfo:
    """A suite by its path or name. Raises ValueError where there is none."""
    return _suites("suite").Suite.open(name)


def measure_model(folder: Path, suite: SuiteInfo, out: Path, *, device: Any, compute_dtype: Any) -> None:
    """Measure a model on all parts of a suite, latency and memory too, and write what `Registry.measure` reads into
    `out`. Nothing is taken from a cache: the champion is to be measured again."""
    _suites("measure").measure_on_suite(
        folder, suite, part=PARTS, device=device, compute_dtype=compute_dtype, cache=None, out=out
    )


def _suites(module: str) -> Any:
    try:
        return importlib.import_module(f"brine.evals.suites.{module}")
    except ModuleNotFoundError as error:
        raise ValueError(f"evaluation suites cannot be opened ({error}): install a version that has them") from None
