"""Measurements of registered models: which suite, part, machine, precision and revision of the code they are of.

Two models are compared on records that agree in all of these (`common_conditions`), so that a difference is one of the
models. `measure_on_suite` of `brine.evals` leaves a folder with `measurements.jsonl`, `timing.jsonl` and `result.json`;
a record keeps all measurements in one file, and the definitions of the measures, so that it is readable without the
suite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from brine.common.files import digest, read_json, to_plain
from brine.evals.measurement import MEASUREMENTS_FILE, Measurement, MeasureSpec, load_measurements

RESULT_FILE, TIMING_FILE = "result.json", "timing.jsonl"
DEV, GATE = "dev", "gate"


class SuiteInfo(Protocol):
    """What the registry reads of a suite (`brine.evals.suites`)."""

    name: str
    version: Any
    digest: str
    primary: str
    measures: tuple[MeasureSpec, ...]
    guards: tuple[str, ...]


@dataclass(frozen=True)
class Conditions:
    """What measurements must have in common to be compared."""

    suite: str
    """Digest of the suite."""
    machine: str
    precision: str
    revision: str
    """Of the code that measures."""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Conditions:
        """Those of a line of the log."""
        return cls(entry["suite"]["digest"], entry["machine"], entry["precision"], entry["revision"])

    def __str__(self) -> str:
        return f"machine {self.machine}, {self.precision}, revision {self.revision}"


def suite_identity(suite: SuiteInfo) -> dict[str, Any]:
    """{name, version, digest} of a suite, for records."""
    return {"name": suite.name, "version": suite.version, "digest": suite.digest}


def read_result(
    folder: Path, suite: SuiteInfo, weights: str
) -> tuple[dict[str, Any], dict[str, dict[str, Measurement]]]:
    """(record without files, measurements by part) of a measured folder.

    Raises ValueError where it is incomplete, of other weights, or of another suite.
    """
    result = read_json(folder / RESULT_FILE)
    if not isinstance(result, dict):
        raise ValueError(f"{folder / RESULT_FILE} is missing or cut off: measure the model on the suite first")
    measured = result.get("weights")
    if measured != weights:
        raise ValueError(f"{folder} measures the weights {str(measured)[:12]}, not {weights[:12]}: give that model's")
    said = result.get("suite")
    said = said.get("digest") if isinstance(said, dict) else result.get("suite_digest", said)
    if said != suite.digest:
        raise ValueError(
            f"{folder} is of the suite {str(said)[:12]}, not {suite.name} ({suite.digest[:12]}): measure it again"
        )
    parts = load_measurements(folder / MEASUREMENTS_FILE, suite.measures)
    if (folder / TIMING_FILE).is_file():
        # what a clock says lies apart
        for part, timed in load_measurements(folder / TIMING_FILE, suite.measures).items():
            parts.setdefault(part, {}).update(timed)
    if not parts:
        raise ValueError(f"{folder / MEASUREMENTS_FILE} holds no measurement: measure the model again")
    record = {"suite": suite_identity(suite), "parts": sorted(parts), "measures": to_plain(suite.measures)}
    for name in ("machine", "precision", "revision"):
        value = result.get(name)
        if value in (None, ""):
            raise ValueError(f"{folder / RESULT_FILE} does not say on what {name}: measure the model again")
        record[name] = str(value) if not isinstance(value, Mapping) else str(value.get("id", sorted(value.items())))
    return record, parts


def measurement_digest(found: Measurement) -> str:
    """Of a measurement's cases and numbers, in the order of the cases."""
    return digest(sorted(zip(found.case, found.numerator.tolist(), found.denominator.tolist(), strict=True)))


def specs_of(record: Mapping[str, Any]) -> tuple[MeasureSpec, ...]:
    """The definitions of the measures in a stored record."""
    return tuple(MeasureSpec(**measure) for measure in record["measures"])


def newest(entries: Iterable[Mapping[str, Any]], conditions: Conditions, part: str) -> Mapping[str, Any] | None:
    """The latest line of a model that measures this part under these conditions."""
    found = [each for each in entries if part in each["parts"] and Conditions.of(each) == conditions]
    return found[-1] if found else None


def conditions_for(entries: Sequence[Mapping[str, Any]], suite: str, parts: Iterable[str]) -> list[Conditions]:
    """Conditions under which a model has all of these parts of a suite, oldest first."""
    found: dict[Conditions, None] = {}
    for entry in entries:
        if entry["suite"]["digest"] == suite:
            # the latest comes last
            found.pop(Conditions.of(entry), None)
            found[Conditions.of(entry)] = None
    return [each for each in found if all(newest(entries, each, part) is not None for part in parts)]


def common_conditions(
    measured: Mapping[str, Sequence[Mapping[str, Any]]], suite: SuiteInfo, *, parts: Iterable[str], champions: set[str]
) -> Conditions:
    """The latest conditions under which all of these models have all of these parts.

    champions: those among the models that are of the champion's setting. Raises ValueError that says which model to
    measure, and where.
    """
    parts = tuple(parts)
    by_model = {model: conditions_for(entries, suite.digest, parts) for model, entries in measured.items()}
    command = f"`brine registry measure DIGEST --on {suite.name}`"
    without = [model for model, found in by_model.items() if not found]
    if without:
        names = ", ".join(f"{model[:12]}{' (the champion)' if model in champions else ''}" for model in without)
        raise ValueError(
            f"{names}: not measured on {' and '.join(parts)} of the suite {suite.name} ({suite.digest[:12]}): {command}"
        )
    shared = [each for each in next(iter(by_model.values())) if all(each in found for found in by_model.values())]
    if shared:
        return shared[-1]
    said = "; ".join(
        f"{model[:12]}{' (the champion)' if model in champions else ''}: {' or '.join(map(str, found))}"
        for model, found in by_model.items()
    )
    raise ValueError(
        f"not measured on the same machine, precision and revision ({said}): measure all of them on one, {command}"
    )
