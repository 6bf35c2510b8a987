"""The difference of two settings over seeds of training and cases of evaluation: interval, verdict, what is missing.

One training of each setting says nothing of a setting: two equal trainings differ, often by more than documents do. So
a verdict needs several seeds of both, paired where they share what the seed decides (initial weights, order of data),
and its interval covers both sources of chance (`brine.evals.comparison.seed_variance` has the variance and the
quantile). One seed gives values, an interval over cases, and the outcome "no verdict".

Several comparisons at once, such as K settings against one or a gate's guards, are corrected by `holm`. Whether a model
learns to read images or audio at all is a phase change and not normal: every result also has the seeds' own values and
the share of seeds whose own difference is below 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from brine.evals.comparison.seed_variance import CrossedVariance, crossed_variance, fewest, holm_adjusted
from brine.evals.measurement import Measurement, MeasureSpec

MOST_SEEDS, MOST_CASES, MOST_FACTOR = 1000, 10_000_000, 100
"""More are not suggested: what would need them is not found with this measure."""


@dataclass(frozen=True)
class SeedDifference:
    """Ours minus theirs in one measure. `to_dict` is its JSON form."""

    measure: str
    """Name of the measure."""
    lower_is_better: bool
    """Direction of the measure."""
    value: float
    """Difference of the ratios of sums, pooled over seeds."""
    low: float | None
    """Lower end of the interval; with one seed of cases alone; None where there is neither."""
    high: float | None
    """Upper end."""
    standard_error: float | None
    """Of seeds and cases; with one seed, of cases."""
    degrees_of_freedom: float | None
    """Satterthwaite's; None where they are infinite. The interval's quantile is at least that of this t."""
    num_seeds: tuple[int, int]
    """Seeds of ours and of theirs."""
    num_cases: int
    """Cases that all were measured on."""
    num_excluded: int
    """Cases that some seed lacks, left out because `common_cases` was asked for."""
    paired: bool
    """Whether seeds are paired by position."""
    p_value: float | None
    """Two-sided; None with one seed."""
    p_worse: float | None
    """One-sided: how likely so bad a difference is where ours is not worse; None with one seed."""
    p_better: float | None
    """One-sided: how likely so good a difference is where ours is not better; None with one seed."""
    outcome: str
    """ "better" or "worse": the whole interval on one side of 0; "undecided"; "no verdict" with one seed."""
    seed_part: float | None
    """Share of the variance that more seeds reduce and more cases do not."""
    ours: tuple[float, ...]
    """Values of our seeds."""
    theirs: tuple[float, ...]
    """Values of their seeds."""
    share_below_zero: float
    """Share of seeds whose own difference is below 0; of all pairs of seeds where they are not paired."""
    confidence: float = 0.95
    """Of the interval."""
    variance: CrossedVariance | None = field(default=None, repr=False, compare=False)
    """Its terms, for `needed_seeds` and `needed_cases`."""

    @property
    def interval_of(self) -> str:
        """What the interval covers: "seeds and cases", "cases", or "nothing"."""
        if self.low is None:
            return "nothing"
        return "cases" if self.outcome == "no verdict" else "seeds and cases"

    def to_dict(self) -> dict[str, Any]:
        """JSON form: all fields but the terms of the variance, and `interval_of`."""
        found = {name: value for name, value in asdict(self).items() if name != "variance"}
        return found | {name: list(found[name]) for name in ("num_seeds", "ours", "theirs")} | {
            "interval_of": self.interval_of
        }  # fmt: skip


def seed_difference(
    ours: Sequence[Measurement], theirs: Sequence[Measurement], *, confidence: float = 0.95, paired: bool = True,
    common_cases: bool = False,
) -> SeedDifference:  # fmt: skip
    """The difference of two settings in one measure, a `Measurement` for each seed.

    Seeds are paired by position, cases by content id. paired: False where seeds have nothing in common (Welch). Raises
    ValueError for other measures, for seeds that cannot be paired, for denominators that sum to 0, and naming cases
    that some seed lacks, unless `common_cases` leaves those out.
    """
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence = {confidence} must lie in [0.5, 1)")
    spec = _one_measure([*ours, *theirs])
    if not ours or not theirs:
        raise ValueError(f"{spec.name}: no measurements of {'ours' if not ours else 'theirs'}: measure a seed of each")
    if paired and len(ours) != len(theirs):
        raise ValueError(
            f"{spec.name}: {len(ours)} seeds against {len(theirs)} cannot be paired: give equally many in the same "
            "order, or paired=False"
        )
    cases, excluded = _cases(spec.name, ours, theirs, common_cases=common_cases)
    our_numerator, our_denominator = _table(ours, cases)
    their_numerator, their_denominator = _table(theirs, cases)
    our_seeds, their_seeds = (
        _values(spec, side, numerator, denominator)
        for side, numerator, denominator in (
            ("ours", our_numerator, our_denominator), ("theirs", their_numerator, their_denominator)
        )
    )  # fmt: skip
    found = crossed_variance(our_numerator, our_denominator, their_numerator, their_denominator, paired=paired)
    sign = -1.0 if spec.one_minus else 1.0
    value = sign * float(found.value) + 0.0
    own = our_seeds - their_seeds if paired else our_seeds[:, None] - their_seeds[None, :]
    decided = min(len(ours), len(theirs)) > 1
    if not decided:
        found = _cases_alone(found)
    known = decided or len(cases) > 1
    half = float(found.half_width(confidence)) if known else math.nan
    tail = float(found.tail())
    above, below = (tail, 1 - tail) if value > 0 else (1 - tail, tail)
    worse, better = (above, below) if spec.lower_is_better else (below, above)
    outcome = "undecided" if decided else "no verdict"
    if decided and (value - half > 0 or value + half < 0):
        outcome = "better" if (value < 0) == spec.lower_is_better else "worse"
    degrees = float(found.degrees_of_freedom)
    total = float(found.variance)
    seeds_alone = max(0.0, float(found.between_seeds.sum(axis=0) - found.interaction))
    return SeedDifference(
        measure=spec.name, lower_is_better=spec.lower_is_better, value=value,
        low=value - half if known else None, high=value + half if known else None,
        standard_error=float(found.standard_error) if known else None,
        degrees_of_freedom=degrees if known and math.isfinite(degrees) else None,
        num_seeds=(len(ours), len(theirs)), num_cases=len(cases), num_excluded=excluded, paired=paired,
        p_value=2 * tail if decided else None,
        p_worse=worse if decided else None, p_better=better if decided else None, outcome=outcome,
        seed_part=(seeds_alone / total if total else 0.0) if decided else None,
        ours=tuple(our_seeds.tolist()), theirs=tuple(their_seeds.tolist()),
        share_below_zero=float(np.mean(own < 0)), confidence=confidence, variance=found,
    )  # fmt: skip


def needed_seeds(difference: SeedDifference) -> int | None:
    """About how many more seeds of each setting until the interval's half-width falls below |value|; 0 where it has,
    None where seeds alone do not get there, or with fewer than two seeds."""
    have = min(difference.num_seeds)
    return _needed(difference, have, MOST_SEEDS, lambda variance, factor: variance.with_more(seeds=factor))


def needed_cases(difference: SeedDifference) -> int | None:
    """About how many more cases until the interval's half-width falls below |value|; as `needed_seeds`."""
    have = difference.num_cases
    return _needed(difference, have, MOST_CASES, lambda variance, factor: variance.with_more(cases=factor))


def needed(difference: SeedDifference) -> str:
    """What would decide an undecided difference, in words: "about 4 more seeds or 300 more cases"."""
    if difference.outcome == "no verdict":
        return "at least 3 seeds of each"
    if difference.outcome != "undecided":
        return "nothing more"
    counts = ((needed_seeds(difference), "seeds"), (needed_cases(difference), "cases"))
    words = [f"{count:,} more {name if count != 1 else name[:-1]}" for count, name in counts if count]
    if words:
        return f"about {' or '.join(words)}"
    both = None if difference.value == 0 else _needed(
        difference, 1, MOST_FACTOR, lambda variance, factor: variance.with_more(seeds=factor, cases=factor)
    )  # fmt: skip
    if not both:
        return "more than can be suggested: the difference is near 0"
    seeds, cases = both * min(difference.num_seeds), both * difference.num_cases
    return f"about {seeds:,} more seeds and {cases:,} more cases"


def holm(p_values: Iterable[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979): those at most alpha are significant together."""
    given = np.asarray(list(p_values), np.float64)
    if not np.all((given >= 0) & (given <= 1)):
        raise ValueError(f"p-values must lie in [0, 1], not {given.tolist()}")
    return holm_adjusted(given).tolist() if given.size else []


def _needed(difference: SeedDifference, have: int, most: int, more) -> int | None:
    if difference.outcome in ("better", "worse"):
        return 0
    if difference.outcome == "no verdict" or difference.value == 0:
        return None
    variance, size = difference.variance, abs(difference.value)
    return fewest(
        lambda count: float(more(variance, (have + count) / have).half_width(difference.confidence)) < size, most=most
    )


def _cases_alone(found: CrossedVariance) -> CrossedVariance:
    """The variance over cases of the one seed that was measured."""
    nothing = np.zeros_like(found.between_seeds)
    return CrossedVariance(
        found.value, nothing, found.seed_degrees, found.between_cases, np.zeros_like(found.interaction),
        found.case_degrees, found.rounding,
    )  # fmt: skip


def _one_measure(measurements: Sequence[Measurement]) -> MeasureSpec:
    specs = list(dict.fromkeys(found.spec for found in measurements))
    if not specs:
        raise ValueError("no measurements: measure a seed of each setting")
    if len(specs) > 1:
        raise ValueError(f"one measure is compared at a time, not {specs[0]} with {specs[1]}")
    return specs[0]


def _cases(
    name: str, ours: Sequence[Measurement], theirs: Sequence[Measurement], *, common_cases: bool
) -> tuple[tuple[str, ...], int]:
    """(cases that every seed has, sorted; number of those that some seed lacks)."""
    seeds = [(f"{side}[{index}]", set(found.case)) for side, measured in (("ours", ours), ("theirs", theirs))
             for index, found in enumerate(measured)]  # fmt: skip
    every = set.union(*(cases for _, cases in seeds))
    common = set.intersection(*(cases for _, cases in seeds))
    if every != common and not common_cases:
        lacking = [f"{len(every - cases)} in {seed} (such as {min(every - cases)})" for seed, cases in seeds
                   if every - cases]  # fmt: skip
        raise ValueError(
            f"{name}: not every seed was measured on the same cases; missing are {', '.join(lacking)}: measure them, "
            "or ask for the common cases alone"
        )
    if not common:
        raise ValueError(f"{name}: no case was measured under every seed: measure all seeds on one suite")
    return tuple(sorted(common)), len(every) - len(common)


def _table(measured: Sequence[Measurement], cases: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(numerators, denominators), each (seeds, cases)."""
    rows = [found.select(cases) for found in measured]
    return np.stack([row.numerator for row in rows]), np.stack([row.denominator for row in rows])


def _values(spec: MeasureSpec, side: str, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """(seeds,) values of the measure. Raises ValueError where a seed's denominators sum to 0."""
    total = denominator.sum(axis=1)
    if not np.all(total):
        raise ValueError(f"{spec.name}: the denominators of {side}[{int(np.argmin(total != 0))}] sum to 0: nothing was "
                         "measured")  # fmt: skip
    ratios = numerator.sum(axis=1) / total
    return 1 - ratios if spec.one_minus else ratios
