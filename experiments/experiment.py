"""What an experiment is: a question, what is expected, a base recipe, and what is varied, measured and compared.

    def filters_or_none() -> Experiment:
        return Experiment(
            question="Do near-duplicate filters help at equal FLOPs?",
            expects="bits per byte fall by 0.01 to 0.03; gains do not move",
            base=demo(),
            axes=Grid({"corpus.filters": [(), ("near_duplicates",)], "large.learning_rate": [2e-3, 4e-3]}),
            seeds=Seeds(screen=(0, 1, 2), confirm=(100, 101, 102)),
            budget=Budget(large_flops=2e12),
        )

The expectation is written before anything runs and printed beside what came out. Screening seeds choose the winner,
which makes its number too good; confirmation seeds alone give the verdict.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brine.pipeline.recipe import Recipe

LAST = "last"
"""Anchor: the winner of the batch before."""
Changes = dict[str, Any]
"""Dotted name of a recipe's field -> value."""


@dataclass(frozen=True)
class Grid:
    """Every combination of the values of each field. Raises ValueError for an axis without values."""

    values: Mapping[str, Sequence[Any]]
    """Dotted name of a recipe's field, such as "large.learning_rate" -> its values."""

    def __post_init__(self):
        if not self.values:
            raise ValueError("Grid({}) varies nothing: name a field of the recipe and its values")
        for name, values in self.values.items():
            if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
                raise ValueError(f"Grid: {name} = {values!r}: give a list of values")

    def settings(self) -> list[Changes]:
        """The changes of each setting, the last field varying fastest."""
        return [dict(zip(self.values, values, strict=True)) for values in itertools.product(*self.values.values())]

    def fields(self) -> list[str]:
        """The fields that are varied."""
        return list(self.values)


@dataclass(frozen=True)
class Listed:
    """Settings as they are listed; {} is the base recipe."""

    listed: Sequence[Mapping[str, Any]]
    """For each setting, dotted name of a recipe's field -> value."""

    def __post_init__(self):
        if not self.listed or not all(isinstance(each, Mapping) for each in self.listed):
            raise ValueError("Listed([...]) takes settings, each {dotted name of a field: value}; {} is the base")

    def settings(self) -> list[Changes]:
        """The changes of each setting."""
        return [dict(each) for each in self.listed]

    def fields(self) -> list[str]:
        """The fields that are varied."""
        return list(dict.fromkeys(itertools.chain.from_iterable(self.listed)))


@dataclass(frozen=True)
class Uniform:
    """A float between two bounds. Raises ValueError for bounds that cannot be."""

    low: float
    high: float
    log: bool = False
    """Uniform in the logarithm."""

    def __post_init__(self):
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self}: give low < high, and both above 0 with log")


@dataclass(frozen=True)
class Integers:
    """A whole number between two bounds, both included. Raises ValueError for bounds that cannot be."""

    low: int
    high: int
    log: bool = False
    """Uniform in the logarithm."""

    def __post_init__(self):
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self}: give low < high, and both above 0 with log")


@dataclass(frozen=True)
class Choice:
    """One of some values, which need no order."""

    values: Sequence[Any]

    def __post_init__(self):
        if len(self.values) < 2:
            raise ValueError(f"Choice({list(self.values)!r}): give at least two values")


@dataclass(frozen=True)
class Search:
    """Settings that Optuna asks for (extra `search`), pruned by rungs of whole schedules.

    Every rung is a complete training with its own decayed schedule, of a fraction of the budget, and only the best of a
    rung are trained at the next one: losses before the decay are never compared. The sampler learns from the first
    rung alone, where all trials have the same budget."""

    space: Mapping[str, Uniform | Integers | Choice]
    """Dotted name of a recipe's field -> the values that it may have."""
    trials: int = 12
    """Settings to ask for."""
    rungs: tuple[float, ...] = (1 / 9, 1 / 3, 1.0)
    """Fractions of the budget, rising to 1; of each rung the best rung / next rung of the settings go on."""
    generation: int = 4
    """Settings that are asked for together; results do not depend on the number of workers."""
    seed: int = 0
    """Seed of the sampler."""

    def __post_init__(self):
        kinds = (Uniform, Integers, Choice)
        if not self.space or not all(isinstance(each, kinds) for each in self.space.values()):
            raise ValueError("Search(space): give {dotted name of a field: Uniform(...), Integers(...) or Choice(...)}")
        if self.trials < 2 or self.generation < 1:
            raise ValueError(f"Search: trials = {self.trials}, generation = {self.generation}: give 2 and 1 or more")
        rising = all(0 < low < high for low, high in itertools.pairwise(self.rungs))
        if not self.rungs or not rising or self.rungs[-1] != 1:
            raise ValueError(f"Search: rungs = {self.rungs} must rise to 1, such as (1 / 9, 1 / 3, 1)")

    def fields(self) -> list[str]:
        """The fields that are varied."""
        return list(self.space)


@dataclass(frozen=True)
class Seeds:
    """Seeds of training. Seed s adds 1000 s to the recipe's `seed`, `small.seed` and `large.seed`, and never moves
    those of the evaluation or of the synthetic corpus. Raises ValueError for seeds that cannot be."""

    screen: tuple[int, ...] = (0, 1, 2)
    """Seeds of every setting, by which the winner is chosen."""
    confirm: tuple[int, ...] = ()
    """Seeds of the winner and of what it is compared with, trained afterwards; they give the verdict."""

    def __post_init__(self):
        for name in ("screen", "confirm"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in value):
                raise ValueError(f"seeds.{name} = {value}: give whole numbers from 0 on")
        if not self.screen:
            raise ValueError("seeds.screen is empty: give at least one seed")
        both = (*self.screen, *self.confirm)
        if len(set(both)) != len(both):
            raise ValueError(f"seeds {both} come twice: a seed that chose the winner cannot confirm it")


@dataclass(frozen=True)
class Budget:
    """What every setting may cost: equal steps of the large model (by default the base recipe's), or equal FLOPs of it,
    from which the steps of each setting follow. Raises ValueError for both at once."""

    large_steps: int | None = None
    """Steps of the large model in every setting."""
    large_flops: float | None = None
    """FLOPs of training the large model (forward and backward, without its teacher), counted from shapes."""

    def __post_init__(self):
        if self.large_steps is not None and self.large_flops is not None:
            raise ValueError("budget: give large_steps or large_flops, not both")
        if any(each is not None and each <= 0 for each in (self.large_steps, self.large_flops)):
            raise ValueError(f"{self}: give a number above 0")


@dataclass(frozen=True)
class Experiment:
    """One batch of trainings that are compared. Raises ValueError for parts of a wrong type."""

    question: str
    """What it should answer."""
    expects: str
    """What is expected, written before; printed beside what came out."""
    base: Recipe
    """The recipe that the settings change."""
    axes: Grid | Listed | Search
    """What is varied; the first setting (with `Search`, the base) is what the others are compared with."""
    seeds: Seeds = field(default_factory=Seeds)
    """Screening and confirmation seeds."""
    budget: Budget | None = field(default_factory=Budget)
    """Equal steps or equal FLOPs; None: as each setting says, so that `large.num_steps` may be an axis."""
    suite: str | None = None
    """Name or path of the suite that every trial is measured on; None: the documents of the run's own evaluation."""
    primary: str | None = None
    """Measure by which settings are ranked; None: the suite's."""
    guards: tuple[str, ...] | str = "all"
    """Measures that must not become worse: names, "all" that the suite declares, or () for none."""
    anchor: str | None = None
    """Trained again under today's code for comparison: "last" (the winner of the newest other experiment), or
    "EXPERIMENT" or "EXPERIMENT/SETTING"; None: nothing."""

    def __post_init__(self):
        kinds = {"question": str, "expects": str, "base": Recipe, "axes": (Grid, Listed, Search), "seeds": Seeds,
                 "budget": (Budget, type(None)), "suite": (str, type(None)), "primary": (str, type(None)),
                 "guards": (tuple, list, str), "anchor": (str, type(None))}  # fmt: skip
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} of an experiment has a wrong type: see `Experiment`"
                )
        if not self.question.strip() or not self.expects.strip():
            raise ValueError("an experiment needs a question and what is expected, both written before it runs")
        if isinstance(self.guards, str) and self.guards != "all":
            raise ValueError(f'guards = {self.guards!r}: give "all", or a tuple of measures')
        if not isinstance(self.guards, str):
            object.__setattr__(self, "guards", tuple(self.guards))

    def listed_settings(self) -> Iterator[Changes]:
        """The changes of each setting that is known beforehand; of a search, none."""
        yield from [{}] if isinstance(self.axes, Search) else self.axes.settings()
