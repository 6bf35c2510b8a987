"""Made-up measurements of two settings, S seeds by n cases, in which everything is known.

A case has a size (bytes, characters) and, in each setting under each seed, a rate. The two settings' rates differ by

    difference + seed[s] + case[i] + interaction[s, i]

`interaction_share` is the interaction's share of the variance within a seed, `seed_share` the seeds' share of the
variance of the estimate. Sizes are equal, log-normal (sigma 1) or Pareto (shape 2, without a finite variance), drawn
anew for each problem: cases are a sample of documents, and their sizes are too.

    bits      equal denominators on both sides: bits per byte, character error rate
    gain      1 minus a ratio whose denominators (blank losses) differ by case, seed and side
    unpaired  as bits, but each side has its own seeds and interactions, half of the variance each
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from brine.evals.comparison.seed_variance import CrossedVariance, crossed_variance

SIZES = ("equal", "lognormal", "pareto")
FORMS = ("bits", "gain", "unpaired")
CHUNK_CELLS = 100_000
"""Problems are made in chunks of about so many numbers, which stay in a core's cache."""


@dataclass(frozen=True)
class CrossedDesign:
    """One cell of the simulation. Raises ValueError for an unknown form or sizes."""

    seeds: int
    cases: int
    seed_share: float = 0.0
    interaction_share: float = 0.0
    sizes: str = "equal"
    form: str = "bits"
    difference: float = 0.0
    skewed: bool = False
    """Case effects are exponential instead of normal."""

    def __post_init__(self):
        if self.sizes not in SIZES or self.form not in FORMS:
            raise ValueError(f"sizes is one of {SIZES} and form one of {FORMS}, not {self.sizes}, {self.form}")

    @property
    def name(self) -> str:
        """Readable id."""
        words = [f"S{self.seeds}-n{self.cases}-seed{self.seed_share:g}-inter{self.interaction_share:g}", self.sizes]
        return "-".join([*words, self.form, *["skewed"] * self.skewed])


@dataclass(frozen=True)
class _Noise:
    """Standard normal effects of R problems: size (R, 1, n); seed (2, R, S, 1); case (R, 1, n); interaction and blank
    (2, R, S, n); level (R, 1, n)."""

    size: np.ndarray
    seed: np.ndarray
    case: np.ndarray
    interaction: np.ndarray
    blank: np.ndarray | None
    level: np.ndarray


def _draw(design: CrossedDesign, problems: int, rng: np.random.Generator) -> _Noise:
    wide, sides = (problems, 1, design.cases), 2 if design.form == "unpaired" else 1
    size = {
        "equal": lambda: np.ones(wide),
        "lognormal": lambda: np.exp(rng.standard_normal(wide)),
        "pareto": lambda: 1 + rng.pareto(2.0, wide),
    }[design.sizes]()
    case = rng.exponential(size=wide) - 1 if design.skewed else rng.standard_normal(wide)
    blank = None
    if design.form == "gain":
        blank = np.exp(0.1 * rng.standard_normal((2, problems, design.seeds, design.cases)))
    return _Noise(
        size, rng.standard_normal((sides, problems, design.seeds, 1)), case,
        rng.standard_normal((sides, problems, design.seeds, design.cases)), blank, rng.standard_normal(wide),
    )  # fmt: skip


def _solve(design: CrossedDesign, noise: _Noise) -> tuple[CrossedVariance, float]:
    """(the problems' differences with their variances, the true difference)."""
    spread, sides = 0.2, len(noise.seed)
    weight = noise.size[:, 0] / noise.size[:, 0].sum(axis=-1, keepdims=True)
    within = 1 - design.interaction_share + design.interaction_share / design.seeds
    # of all problems, so that the variance of seeds is one number
    base = float((weight**2).sum(axis=-1).mean()) * within
    between = design.seed_share / (1 - design.seed_share) * base * design.seeds
    effects = [
        np.sqrt(between / sides) * noise.seed[side]
        + np.sqrt(design.interaction_share / sides) * noise.interaction[side]
        for side in range(sides)
    ]
    # every document has a level of its own, which pairing removes
    ours = 2 + 0.3 * noise.level + design.difference + spread * (effects[0] + np.sqrt(1 - design.interaction_share)
                                                                 * noise.case)  # fmt: skip
    theirs = 2 + 0.3 * noise.level + np.zeros_like(ours)
    if sides == 2:
        theirs = theirs - spread * effects[1]
    ours_below = theirs_below = np.broadcast_to(noise.size, ours.shape)
    our_numerator, their_numerator = ours * noise.size, theirs * noise.size
    if noise.blank is not None:
        # a blank loss that varies by itself, and a matched one that follows it: the gain differs by what it did
        ours_below, theirs_below = noise.size * noise.blank[0], noise.size * noise.blank[1]
        our_numerator, their_numerator = ours * ours_below, theirs * theirs_below
    found = crossed_variance(our_numerator, ours_below, their_numerator, theirs_below, paired=sides == 1)
    return found, design.difference


def simulate(
    design: CrossedDesign, *, problems: int, seed: int = 0, seed_shares: tuple[float, ...] | None = None
) -> list[dict[str, Any]]:
    """One record for each share of the seeds (the design's own if none are given), all from the same random numbers:
    coverage of the 95 % interval, of Satterthwaite's quantile on the same variance, and of plain two-way clustering
    with it. What is not covered at a true difference of 0 is a false verdict."""
    rng = np.random.default_rng([seed, design.seeds, design.cases, round(100 * design.interaction_share)])
    shares = seed_shares or (design.seed_share,)
    counts = {share: np.zeros(3) for share in shares}
    chunk = max(1, CHUNK_CELLS // (design.seeds * design.cases))
    done = 0
    while done < problems:
        number = min(chunk, problems - done)
        noise = _draw(design, number, rng)
        for share in shares:
            counts[share] += _count(replace(design, seed_share=share), noise)
        done += number
    names = ("covered", "covered_satterthwaite", "covered_two_way")
    return [
        {"case": replace(design, seed_share=share).name, "seeds": design.seeds, "cases": design.cases,
         "seed_share": share, "interaction_share": design.interaction_share, "sizes": design.sizes,
         "form": design.form, "skewed": design.skewed, "problems": problems}
        | dict(zip(names, (counts[share] / problems).tolist(), strict=True))
        for share in shares
    ]  # fmt: skip


def _count(design: CrossedDesign, noise: _Noise) -> np.ndarray:
    found, truth = _solve(design, noise)
    error, half = np.abs(found.value - truth), found.half_width(0.95)
    satterthwaite = stdtrit(found.degrees_of_freedom.clip(1, 1e9), 0.975) * found.standard_error
    plain, degrees = _two_way(found, design)
    two_way = stdtrit(degrees, 0.975) * np.sqrt(plain)
    return np.array([np.count_nonzero(error <= half), np.count_nonzero(error <= satterthwaite),
                     np.count_nonzero(error <= two_way)])  # fmt: skip


def _two_way(found: CrossedVariance, design: CrossedDesign) -> tuple[np.ndarray, np.ndarray]:
    """(variance, Satterthwaite's degrees) of plain two-way clustering: sums of squares, seeds + cases - both."""
    shrink = (design.seeds - 1) / design.seeds
    seeds = found.between_seeds.sum(axis=0) * shrink
    # the sum over both is that of the interaction, of the seeds' part within it and of the cases'
    both = found.interaction * shrink + seeds / design.cases + found.between_cases / design.seeds
    cases = found.between_cases
    variance = np.maximum(seeds + cases - both, np.finfo(float).tiny)
    below = seeds**2 / (design.seeds - 1) + cases**2 / (design.cases - 1)
    return variance, np.clip(variance**2 / np.maximum(below, np.finfo(float).tiny), 1, 1e9)
