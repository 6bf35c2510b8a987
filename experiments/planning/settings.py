"""Settings of an experiment as recipes: changes by dotted names, seeds, budgets; all checked before anything runs.

What a recipe trains is compared by `trained_key`, the settings that reach a stage which is run: two settings with equal
keys are one, and an axis that changes no key has no effect.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from brine.common.files import deciding, digest, to_plain
from brine.experiments.experiment import Budget, Changes, Experiment, Grid, Listed, Uniform
from brine.experiments.planning.from_plain import from_plain
from brine.experiments.planning.frozen_inputs import SOURCES_FIELD, parse_sources, with_frozen_inputs
from brine.pipeline.inputs.sources import check_paths
from brine.pipeline.model_stages import model_stages_of, train_config_of
from brine.pipeline.recipe import MANIFEST_REQUIRED, Recipe
from brine.planner.estimate_run import sequence_flops

SEED_STEP = 1000
"""By which one seed of an experiment moves the recipe's seeds; the seeds of one recipe differ by less."""
REFUSED = {
    "name": "trials have names of their own",
    "seed": "seeds move together: give Seeds(screen=..., confirm=...)",
    "small.seed": "seeds move together: give Seeds(screen=..., confirm=...)",
    "large.seed": "seeds move together: give Seeds(screen=..., confirm=...)",
    "small.init_digest": "it follows from small.init_from",
    "large.init_digest": "it follows from large.init_from",
    "corpus.synth.seed": "trials are compared on the same documents, so the synthetic corpus keeps its seed",
    "runtime.num_threads": "threads change the last bits and are the same in all trials: give --threads",
}
"""Fields that are no axis, and why."""
DOCUMENT_FIELDS = ("source", "sources", "manifest", "synth")
"""Of `corpus`, those that decide which documents are held out. `tokenizer` and `vocab_size` are none of them: documents
are held out and chosen by id, and what is compared is bits per byte, and ratios of losses under one tokenizer."""
INIT_FROM, INIT_DIGEST = "init_from", "init_digest"


def apply_changes(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with fields set by dotted names, all at once. Raises ValueError naming a field that does not exist, a
    value of a wrong type, or what the recipe refuses."""
    plain = to_plain(recipe)
    for name, value in changes.items():
        *groups, last = name.split(".")
        inner: Any = plain
        for depth, group in enumerate(groups):
            inner = inner.get(group) if isinstance(inner, dict) else None
            if not isinstance(inner, dict):
                raise ValueError(f"axis {name}: {'.'.join(groups[: depth + 1])} is no group of a recipe's settings")
        if not isinstance(inner, dict) or last not in inner:
            near = difflib.get_close_matches(last, inner, n=1) if isinstance(inner, dict) else []
            meant = f" (did you mean {'.'.join([*groups, near[0]])}?)" if near else ""
            raise ValueError(f"axis {name}: a recipe has no such field{meant}: see `brine train RECIPE --help`")
        inner[last] = to_plain(parse_sources(value) if name == SOURCES_FIELD and _is_listed(value) else value)
        if last == INIT_FROM:
            # of the weights that were there before
            inner[INIT_DIGEST] = None
    try:
        return from_plain(Recipe, plain)
    except ValueError as error:
        shown = ", ".join(f"{name} = {value!r}" for name, value in changes.items())
        raise ValueError(f"setting {shown or 'base'}: {error}") from None


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe's training seeds moved together; seed 0 leaves them as they are."""
    move = SEED_STEP * seed
    models = {
        name: dataclasses.replace(getattr(recipe, name), seed=getattr(recipe, name).seed + move)
        for name in ("small", "large")
    }
    return dataclasses.replace(recipe, seed=recipe.seed + move, **models)


def trained_key(recipe: Recipe) -> dict[str, Any]:
    """The settings that affect what is trained and evaluated, name and threads left out; of stages that are run."""
    corpus = deciding(recipe.corpus)
    if not recipe.corpus.uses_synth:
        # nothing is made
        corpus.pop("synth"), corpus.pop("source")
    key: dict[str, Any] = {"corpus": corpus, "packing": recipe.packing, "seed": recipe.seed, "evals": recipe.evals}
    key |= {name: train_config_of(recipe, name) for name in model_stages_of(recipe)}
    if "salt" in recipe.arms:
        key["salt"] = recipe.salt
    return deciding(key | {"runtime": dataclasses.replace(recipe.runtime, num_threads=0)})


def recipe_digest(recipe: Recipe) -> str:
    """Sixteen hexadecimal digits of what the recipe trains."""
    return digest(trained_key(recipe))


def step_flops(recipe: Recipe) -> int:
    """FLOPs of one step of the large model, forward and backward, counted from shapes; its teacher is not counted."""
    resolved = recipe.resolved(recipe.corpus.vocab_size)
    return 3 * resolved.large.global_batch_size * sequence_flops(resolved, resolved.large.model)


def with_budget(recipe: Recipe, budget: Budget | None, *, fraction: float = 1.0) -> Recipe:
    """The recipe with the steps of the large model that the budget gives, or of this fraction of them.

    A fraction is a whole schedule: warm-up, and the decay of a schedule that counts it in steps, shrink with it. Raises
    ValueError where less than two steps would be left."""
    large = recipe.large
    steps: float = large.num_steps
    if budget is not None and budget.large_steps is not None:
        steps = budget.large_steps
    elif budget is not None and budget.large_flops is not None:
        steps = budget.large_flops / step_flops(recipe)
    steps = round(fraction * steps)
    if steps < 2:
        raise ValueError(f"the budget gives {steps} steps of the large model: raise it, or take a smaller model")
    changes: dict[str, Any] = {"num_steps": steps}
    if fraction != 1:
        changes["warmup_steps"] = min(round(fraction * large.warmup_steps), steps - 1)
        if large.decay_steps is not None:
            changes["decay_steps"] = max(1, round(fraction * large.decay_steps))
    try:
        return dataclasses.replace(recipe, large=dataclasses.replace(large, **changes))
    except ValueError as error:
        raise ValueError(f"the budget gives {steps} steps of the large model: {error}") from None


def budget_note(recipe: Recipe, budget: Budget | None) -> dict[str, Any]:
    """Steps and FLOPs of the large model, and by how much rounding to whole steps misses a budget of FLOPs."""
    steps, each = recipe.large.num_steps, step_flops(recipe)
    note: dict[str, Any] = {"large_steps": steps, "large_flops": steps * each}
    if budget is not None and budget.large_flops is not None:
        note["off_budget"] = round(steps * each / budget.large_flops - 1, 6)
    return note


def parse_recipe(plain: Mapping[str, Any]) -> Recipe:
    """A recipe from a plan. Raises ValueError where this version has other fields."""
    return from_plain(Recipe, plain)


def check_experiment(experiment: Experiment) -> list[tuple[Changes, Recipe]]:
    """Every setting with its recipe at the whole budget, equal ones once; of a search the base alone.

    Raises ValueError for an axis that is unknown, refused or without effect, a value of a wrong type, two budgets, or
    documents, weights or a tokenizer that are not there; nothing is built."""
    base, axes = experiment.base, experiment.axes
    if base.corpus.manifest == MANIFEST_REQUIRED:
        raise ValueError("the base recipe has no documents: give it a corpus.manifest")
    _check_fields(experiment)
    settings: dict[str, tuple[Changes, Recipe]] = {}
    listed = []
    for changes in experiment.listed_settings():
        recipe = whole_recipe(base, changes, experiment.budget)
        check_paths(recipe.corpus)
        listed.append((changes, recipe_digest(recipe)))
        settings.setdefault(recipe_digest(recipe), (changes, recipe))
    if isinstance(axes, Grid):
        for name, values in axes.values.items():
            if len(values) > 1 and not _has_effect(listed, name):
                raise ValueError(
                    f"axis {name} has no effect: its values {list(values)!r} train the same model; leave it out"
                )
    elif isinstance(axes, Listed) and len(axes.listed) > 1 and len(settings) == 1:
        raise ValueError(
            f"the settings differ in nothing that has an effect ({', '.join(axes.fields()) or 'no field'})"
        )
    elif not isinstance(axes, Listed):
        for name, values in axes.space.items():
            first, last = (values.low, values.high) if hasattr(values, "low") else (values.values[0], values.values[-1])
            first, last = (float(first), float(last)) if isinstance(values, Uniform) else (first, last)
            pair = [recipe_digest(whole_recipe(base, {name: value}, None)) for value in (first, last)]
            if pair[0] == pair[1]:
                raise ValueError(f"axis {name} has no effect: its values train the same model; leave it out")
        for fraction in axes.rungs:
            with_budget(base, experiment.budget, fraction=fraction)
    return list(settings.values())


def whole_recipe(base: Recipe, changes: Changes, budget: Budget | None, *, fraction: float = 1.0) -> Recipe:
    """A setting's recipe as a plan keeps it: with its changes, all that it takes from outside frozen, and the steps of
    the budget. Raises ValueError as these do."""
    # what a step costs depends on the size of a given tokenizer's vocabulary
    return with_budget(with_frozen_inputs(apply_changes(base, changes)), budget, fraction=fraction)


def _has_effect(listed: list[tuple[Changes, str]], name: str) -> bool:
    """Do two settings that differ in one axis alone train different models? listed: changes, and digest of a recipe."""
    digests: dict[str, set[str]] = {}
    for changes, found in listed:
        rest = digest({key: to_plain(value) for key, value in changes.items() if key != name})
        digests.setdefault(rest, set()).add(found)
    return any(len(found) > 1 for found in digests.values())


def _is_listed(value: Any) -> bool:
    """Are these several values, as from JSON or Python?"""
    return isinstance(value, (list, tuple)) and all(isinstance(each, (str, Mapping)) for each in value)


def _check_fields(experiment: Experiment) -> None:
    for name in experiment.axes.fields():
        if not isinstance(name, str):
            raise ValueError(f"axis {name!r}: give the dotted name of a recipe's field, such as 'large.learning_rate'")
        if name in REFUSED:
            raise ValueError(f"{name} is no axis: {REFUSED[name]}")
        if name == "evals" or name.startswith("evals."):
            raise ValueError(f"{name} is no axis: all trials are measured in the same way, on the same documents")
        if name == "large.num_steps" and experiment.budget is not None:
            raise ValueError("large.num_steps follows from the budget: give budget=None to make it an axis")
        if experiment.suite is None and name.split(".")[:2] in [["corpus", each] for each in DOCUMENT_FIELDS]:
            raise ValueError(
                f"axis {name} changes the documents, and so those of the runs' own evaluation: give a suite"
            )
