"""What was measured of one model: a ratio of sums over cases, keyed by the cases' content.

Everything that is compared between models has this one form: bits per byte (bits over bytes), a media gain (1 - matched
over blank loss), a character error rate (edits over characters), needles answered (right over asked), latency (seconds
over tokens). Sums over cases, and not means of ratios, so that intervals over cases follow by the delta method
(`brine.evals.seed_interval`). A case is known by the hash of its content: measurements of two models, of whatever
corpora and tokenizers, are paired by it.

    measurements.jsonl    {"measure", "part", "case", "kind", "level", "numerator", "denominator"}, a line each
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brine.common.files import parse_object, replacing, to_json_line

MEASUREMENTS_FILE = "measurements.jsonl"


@dataclass(frozen=True)
class MeasureSpec:
    """A quantity that is measured. name: such as "bits_per_byte", "gain.image", "cer.audio", "needle.2048.text",
    "latency", "memory"; ratio of sums, or 1 minus it with `one_minus`."""

    name: str
    lower_is_better: bool = True
    one_minus: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Measurement:
    """One measure of one model. case: n content ids; numerator, denominator: (n,) float64; kind: (n,) names, level:
    (n,) int64. Raises ValueError for lengths that differ, a case that comes twice or a number that is not finite."""

    spec: MeasureSpec
    case: tuple[str, ...]
    numerator: np.ndarray
    denominator: np.ndarray
    kind: tuple[str, ...] = ()
    level: np.ndarray | None = None

    def __post_init__(self):
        count = len(self.case)
        if not (self.numerator.shape == self.denominator.shape == (count,)):
            raise ValueError(
                f"{self.spec.name}: {count} cases, numerators {self.numerator.shape}, denominators "
                f"{self.denominator.shape}: give one of each for a case"
            )
        if len(set(self.case)) != count:
            raise ValueError(f"{self.spec.name}: a case comes twice")
        if not (np.isfinite(self.numerator).all() and np.isfinite(self.denominator).all()):
            raise ValueError(f"{self.spec.name}: a numerator or denominator is not finite")

    def __len__(self) -> int:
        return len(self.case)

    @property
    def value(self) -> float | None:
        """The ratio of sums; None without cases or where the denominators sum to 0."""
        below = math.fsum(self.denominator)
        if not below:
            return None
        ratio = math.fsum(self.numerator) / below
        return 1 - ratio if self.spec.one_minus else ratio

    def select(self, cases: Iterable[str]) -> Measurement:
        """The same measure over `cases` alone, in their order. Raises KeyError for one that was not measured."""
        cases = tuple(cases)
        index = {name: number for number, name in enumerate(self.case)}
        chosen = np.array([index[name] for name in cases], np.int64)
        kind = tuple(self.kind[number] for number in chosen) if self.kind else ()
        level = None if self.level is None else self.level[chosen]
        return Measurement(self.spec, cases, self.numerator[chosen], self.denominator[chosen], kind, level)


def save_measurements(path: Path, parts: Mapping[str, Mapping[str, Measurement]]) -> None:
    """Write {part: {measure: Measurement}} as JSON lines, atomically; equal measurements give equal bytes."""
    with replacing(path) as file:
        for part, measurements in sorted(parts.items()):
            for name, found in sorted(measurements.items()):
                for number in sorted(range(len(found)), key=lambda index: found.case[index]):
                    line = {"measure": name, "part": part, "case": found.case[number]}
                    line |= {"kind": found.kind[number]} if found.kind else {}
                    line |= {"level": int(found.level[number])} if found.level is not None else {}
                    line["numerator"] = float(found.numerator[number])
                    line["denominator"] = float(found.denominator[number])
                    file.write(to_json_line(line))


def load_measurements(path: Path, specs: Iterable[MeasureSpec]) -> dict[str, dict[str, Measurement]]:
    """{part: {measure: Measurement}} of a file. Raises ValueError for a missing file, a bad line or a measure that is
    not among `specs`."""
    known = {spec.name: spec for spec in specs}
    rows: dict[tuple[str, str], list[dict]] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                line = parse_object(text)
                if line is None or not {"measure", "part", "case", "numerator", "denominator"} <= line.keys():
                    raise ValueError(f"{path}:{number} is not a measurement: measure the model again")
                if line["measure"] not in known:
                    raise ValueError(f"{path}:{number}: unknown measure {line['measure']!r}")
                rows.setdefault((line["part"], line["measure"]), []).append(line)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): measure the model first") from None
    found: dict[str, dict[str, Measurement]] = {}
    for (part, measure), lines in rows.items():
        found.setdefault(part, {})[measure] = Measurement(
            known[measure],
            tuple(line["case"] for line in lines),
            np.array([line["numerator"] for line in lines], np.float64),
            np.array([line["denominator"] for line in lines], np.float64),
            tuple(line["kind"] for line in lines) if all("kind" in line for line in lines) else (),
            np.array([line["level"] for line in lines], np.int64) if all("level" in line for line in lines) else None,
        )
    return found
