"""The command line of a run: which recipe, and which of its fields are overridden.

tyro makes options of the dataclasses' fields and help of their docstrings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from brine.common.command_line import one_line_errors
from brine.pipeline.recipe import MANIFEST_REQUIRED, MODEL_STAGES, Recipe
from brine.recipes.registry import RECIPES, find_recipe, recipe_names

FLATTENED = tyro.conf.arg(name="")
"""Annotation of a field whose options have no prefix."""


@dataclass(frozen=True)
class LaunchConfig:
    """Launch options, in addition to the recipe's fields."""

    recipe: Annotated[Recipe, FLATTENED]
    """The run."""
    runs: Path = Path("runs")
    """Folder that holds the run folders."""
    dry_run: bool = False
    """Print parameters, tokens and estimated time, then stop."""
    tracker: str | None = None
    """"tensorboard" also writes the metrics for TensorBoard."""
    extend: bool = False
    """Continue with more steps (`--large.num-steps MORE`) where a trained model's schedule is "wsd", from the beginning
    of its decay; its old folder is renamed to STAGE.old-1."""
    rerun: tuple[str, ...] = ()
    """Trained stages (small, large_salt, large_baseline) to train again, whether or not their settings changed; their
    old folders are renamed to STAGE.old-1, never deleted."""
    debug: bool = False
    """Show where an error came from, and log more."""

    def __post_init__(self):
        if self.tracker not in (None, "tensorboard"):
            raise ValueError(
                f'tracker = {self.tracker!r}: only "tensorboard" is known; metrics.jsonl is always written'
            )
        if unknown := [name for name in self.rerun if name not in MODEL_STAGES]:
            raise ValueError(f"rerun = {unknown[0]!r}: choose from {', '.join(MODEL_STAGES)}; other stages follow")


def parse(argv: list[str], *, prog: str = "train.py") -> LaunchConfig:
    """The request behind the arguments. The first is a recipe's name or the path of its file; `demo` where it is an
    option or absent.

    Exits with code 2 and a message for an unknown recipe, field or value, and with 0 after --help.
    """
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (next(iter(RECIPES)), argv)
    try:
        return _parse(name, find_recipe(name), rest, prog)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _parse(name: str, make: Callable[[], Recipe], rest: list[str], prog: str) -> LaunchConfig:
    recipe = make()
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{name} returns {type(recipe).__name__}: a recipe's function returns a Recipe")
    known = [f"  {key:<10} {make.__doc__.strip()}" for key, make in RECIPES.items()]
    recipes = "\n".join([*known, *(f"  {key}" for key in recipe_names() if key not in RECIPES)])
    description = f"Train recipe `{name}`. Usage: {prog} RECIPE [OPTIONS]. Recipes:\n\n{recipes}"
    launch = parse_options(LaunchConfig(recipe), rest, prog=f"{prog} {name}", description=description)
    if launch.recipe.corpus.manifest == MANIFEST_REQUIRED:
        raise ValueError(
            f"recipe {name} has no documents: give --corpus.manifest PATH, a folder, manifest, tar, Parquet file or "
            "built corpus"
        )
    return launch


def parse_options(default: Any, args: list[str], *, prog: str, description: str) -> Any:
    """A copy of a dataclass with a field `recipe`, whose options have no prefix, with the fields that `args` name.

    Raises ValueError in one line for an unknown option or a value that a dataclass refuses, SystemExit after --help.
    """
    with one_line_errors():
        return tyro.cli(type(default), default=default, args=args, prog=prog, description=description)
