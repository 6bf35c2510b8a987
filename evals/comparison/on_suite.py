"""Two sides of a comparison measured on a suite, each a run for a seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brine.common.content_store import ContentStore
from brine.evals.measurement import Measurement
from brine.evals.suites.measure import default_cache, measure_on_suite
from brine.evals.suites.suite import Suite


def measure_sides(
    sides: Sequence[Sequence[Path]], models: Sequence[str | None], suite: str, *, part: str, **compute: Any
) -> tuple[list[list[dict[str, Measurement]]], str]:
    """(what a suite's part measures of each run of each side, the suite's primary measure). compute: device and dtype,
    as `measure_on_suite` takes them."""
    opened = Suite.open(suite)

    def measure(run: Path, model: str | None) -> dict[str, Measurement]:
        cache = ContentStore(default_cache(run))
        return measure_on_suite(run, opened, model=model, part=(part,), cache=cache, **compute)[part]

    measured = [[measure(run, model) for run in runs] for runs, model in zip(sides, models, strict=True)]
    return measured, opened.primary
