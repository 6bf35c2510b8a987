"""Two sides of a comparison measured on a suite, each a run for a seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brine.common.content_store import ContentStore
from brine.common.files import file_digest
from brine.evals.measurement import Measurement
from brine.evals.suites.measure import default_cache, measure_on_suite
from brine.evals.suites.suite import Suite
from brine.inference.load import WEIGHTS, find_model_folder


def measure_sides(
    sides: Sequence[Sequence[Path]], models: Sequence[str | None], suite: str, *, part: str, **compute: Any
) -> tuple[list[list[dict[str, Measurement]]], str]:
    """(what a suite's part measures of each run of each side, the suite's primary measure). compute: device and dtype,
    as `measure_on_suite` takes them. Raises ValueError, before anything is measured, for weights that come twice on a
    side: counted as two seeds they would make any difference look certain."""
    opened = Suite.open(suite)
    for runs, model in zip(sides, models, strict=True):
        first: dict[str, Path] = {}
        for run in runs:
            before = first.setdefault(file_digest(find_model_folder(run / model if model else run) / WEIGHTS), run)
            if before is not run:
                raise ValueError(f"{run} and {before} are one training (equal weights): give different seeds")

    def measure(run: Path, model: str | None) -> dict[str, Measurement]:
        cache = ContentStore(default_cache(run))
        return measure_on_suite(run, opened, model=model, part=(part,), cache=cache, **compute)[part]

    measured = [[measure(run, model) for run in runs] for runs, model in zip(sides, models, strict=True)]
    return measured, opened.primary
