"""Measures a finished run on the suite of its experiment, and reads what was measured.

Without a suite the run's own evaluation is used, `evaluate/documents.jsonl`: bits per byte, and each modality's media
gain, keyed by the documents' ids. That compares trials of one corpus; a suite compares any two runs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from brine.common.content_store import ContentStore
from brine.common.files import read_jsonl
from brine.data.document import MODALITIES
from brine.evals.measurement import (
    MEASUREMENTS_FILE,
    Measurement,
    MeasureSpec,
    load_measurements,
    save_measurements,
)
from brine.evals.run_files import main_model, read_results, upgrade_results
from brine.pipeline.recipe import Recipe
from brine.training.runtime import resolve_runtime

EVALUATE = "evaluate"
"""The name of the run's own evaluation."""
SUITES_FOLDER = "suites"
MEASURED_PARTS = ("dev", "test")
TIMED = ("latency", "memory")
"""Measures that depend on the machine and its load; they are no part of the table."""
Measured = dict[str, dict[str, Measurement]]
"""{part: {measure: Measurement}}"""


def suite_facts(name: str | None) -> dict[str, Any]:
    """What a plan keeps of a suite: {"name", "path", "digest", "primary", "guards", "measures"}.

    Raises ValueError for a suite that is not there."""
    if name is None:
        return {"name": EVALUATE, "path": None, "digest": None, "primary": "bits_per_byte", "guards": [],
                "measures": []}  # fmt: skip
    suite = _open_suite(name)
    return {
        # trials run elsewhere: a name is looked up from where the plan is made
        "name": suite.name, "path": str(suite.folder.absolute()), "digest": suite.digest,
        "primary": suite.primary, "guards": list(suite.guards),
        "measures": [asdict(spec) for spec in suite.measures],
    }  # fmt: skip


def measure_run(run: Path, facts: Mapping[str, Any], recipe: Recipe, *, out: Path, cache: Path | None = None) -> Path:
    """Measure the main model of a finished run into `out`/suites/<suite>/measurements.jsonl; returns that file.

    facts: of the plan's suite. cache: root of a content store for what was measured before. Raises ValueError where the
    suite has changed since, or the run holds nothing to measure."""
    path = measurements_path(out, facts)
    if facts["name"] == EVALUATE:
        measured = measure_own_evaluation(run)
    else:
        from brine.evals.suites.measure import measure_on_suite

        suite = _open_suite(facts["path"])
        if suite.digest != facts["digest"]:
            raise ValueError(f"the suite {facts['path']} is another one than when the experiment was planned")
        runtime = resolve_runtime(recipe.runtime, folder=run)
        measured = measure_on_suite(
            run, suite, part=MEASURED_PARTS, device=runtime.device, compute_dtype=runtime.compute_dtype,
            cache=None if cache is None else ContentStore(cache),
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save_measurements(path, measured)
    return path


def measurements_path(trial_folder: Path, facts: Mapping[str, Any]) -> Path:
    """Where a trial's measurements lie."""
    return trial_folder / SUITES_FOLDER / facts["name"].replace("/", "_") / MEASUREMENTS_FILE


def load_measured(trial_folder: Path, facts: Mapping[str, Any]) -> Measured:
    """What a trial measured. Raises ValueError where it is missing or damaged."""
    path = measurements_path(trial_folder, facts)
    specs = [MeasureSpec(**each) for each in facts["measures"]]
    if facts["name"] == EVALUATE:
        specs = [own_spec(name) for name in {line.get("measure") for line in read_jsonl(path)} if isinstance(name, str)]
    return load_measurements(path, specs)


def own_spec(name: str) -> MeasureSpec:
    """The specification of a measure of the run's own evaluation."""
    is_gain = name.startswith("gain.")
    return MeasureSpec(name, lower_is_better=not is_gain, one_minus=is_gain, unit="" if is_gain else "bit/B")


def measure_own_evaluation(run: Path) -> Measured:
    """Bits per byte (of all documents, and per kind) and media gains of the main model, from documents.jsonl.

    Raises ValueError where the run is not evaluated."""
    results = read_results(run)
    records = [upgrade_results(line) for line in read_jsonl(run / "evaluate" / "documents.jsonl")]
    if not results or not records:
        raise ValueError(f"{run} is not evaluated (no evaluate/documents.jsonl): it cannot be measured")
    main = results.get("main_model") or main_model({line["model"] for line in records})
    lines = [line for line in records if line["model"] == main]
    matched = [line for line in lines if line["condition"] == "matched"]
    found = {"bits_per_byte": _bits_per_byte("bits_per_byte", matched)}
    for kind in sorted({line["kind"] for line in matched}):
        name = f"bits_per_byte.{kind}"
        found[name] = _bits_per_byte(name, [line for line in matched if line["kind"] == kind])
    for modality in MODALITIES:
        blank = [line for line in lines if line["condition"] == f"blank {modality}"]
        if blank:
            found[f"gain.{modality}"] = _gain(modality, matched, blank)
    return {"test": {name: measurement for name, measurement in found.items() if len(measurement)}}


def _bits_per_byte(name: str, lines: list[dict[str, Any]]) -> Measurement:
    return _measurement(name, _sums(lines, "loss", scale=1 / math.log(2)), _sums(lines, "bytes"), lines)


def _gain(modality: str, matched: list[dict[str, Any]], blank: list[dict[str, Any]]) -> Measurement:
    """1 - loss with the media / loss with blank ones, over targets whose last media are of the modality."""
    pair = [[line for line in lines if line["modality_context"] == modality] for lines in (matched, blank)]
    above, below = (_sums(lines, "loss") for lines in pair)
    both = above.keys() & below.keys()
    above, below = ({case: sums[case] for case in both} for sums in (above, below))
    return _measurement(f"gain.{modality}", above, below, pair[0])


def _sums(lines: Iterable[dict[str, Any]], field: str, *, scale: float = 1.0) -> dict[str, float]:
    """Case -> sum of a field over the lines of the case."""
    terms: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        value = line[field]
        terms[str(line["id"])].append(math.nan if value is None else scale * value)
    return {case: math.fsum(values) for case, values in terms.items()}


def _measurement(name: str, above: dict[str, float], below: dict[str, float], lines: list[dict]) -> Measurement:
    """Sums as a measurement; cases that have no denominator, or whose loss is not finite, are left out."""
    cases = sorted(case for case in above if below[case] and math.isfinite(above[case]) and math.isfinite(below[case]))
    facts = {str(line["id"]): line for line in lines}
    return Measurement(
        own_spec(name), tuple(cases), np.array([above[case] for case in cases]),
        np.array([below[case] for case in cases]), tuple(facts[case]["kind"] for case in cases),
        np.array([facts[case]["level"] for case in cases], np.int64),
    )  # fmt: skip


def _open_suite(name: str) -> Any:
    try:
        from brine.evals.suites.suite import Suite
    except ImportError as error:
        raise ValueError(f"suite {name!r}: this version has no suites ({error})") from error
    return Suite.open(name)
