"""The outer line of the command: which recipe, which fields overridden, and what is said at the end.

tyro reads the recipe's dataclasses: their fields become options, their docstrings the help, and a mistyped option gets
the nearest one as advice. Nothing but this file imports it, and where it is not installed `recipes.overrides` takes its
place with the same options and fewer words.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

try:
    import tyro
except ImportError:
    tyro = None

from recipes import RECIPES
from recipes.overrides import options, override
from recipes.recipe import TRAINED, Recipe

# the recipe's fields are options without a prefix
_REACHED = {True: "reached", False: "missed", None: "not measured"}
_UNNAMED = tyro.conf.arg(name="") if tyro else ""


@dataclass(frozen=True)
class Launch:
    """How a recipe is run, beside the recipe itself."""

    recipe: Annotated[Recipe, _UNNAMED]
    """The run."""
    runs: Path = Path("runs")
    """Folder that holds the run folders."""
    dry_run: bool = False
    """Print parameters, tokens and the time to expect, then stop."""
    track: str | None = None
    """"tensorboard" writes the metrics for that viewer too."""
    extend: bool = False
    """Go on with more steps (`--large.num-steps MORE`) where a trained model's schedule is "wsd", from the beginning of
    its decay; what is there is renamed to STAGE.old-1."""
    redo: tuple[str, ...] = ()
    """Trained stages (small, large_salt, large_baseline) to train again where their settings changed or they are done;
    what is there is renamed to STAGE.old-1, never deleted."""
    debug: bool = False
    """Show where an error came from, and log more."""

    def __post_init__(self):
        if self.track not in (None, "tensorboard"):
            raise ValueError(f'track = {self.track!r}: only "tensorboard" is known; metrics.jsonl is always written')
        if unknown := [name for name in self.redo if name not in TRAINED]:
            raise ValueError(
                f"redo = {unknown[0]!r}: choose from {', '.join(TRAINED)}; other stages follow by themselves"
            )


def parse(argv: list[str], *, prog: str = "train.py") -> Launch:
    """The request behind the arguments; the first one names a recipe, `demo` where it is an option or absent.

    Exits with code 2 and a message for an unknown recipe, field or value, and with 0 after --help.
    """
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (next(iter(RECIPES)), argv)
    if name not in RECIPES:
        print(f"error: unknown recipe {name!r}: choose one of {', '.join(RECIPES)}", file=sys.stderr)
        raise SystemExit(2)
    if tyro is None:
        return _plainly(name, rest, prog)
    recipes = "\n".join(f"  {key:<10} {make.__doc__.strip().splitlines()[0]}" for key, make in RECIPES.items())
    try:
        return tyro.cli(
            Launch,
            default=Launch(recipe=RECIPES[name]()),
            args=rest,
            prog=f"{prog} {name}",
            description=f"Train by the recipe `{name}`, or another: train.py RECIPE [OPTIONS]\n\n{recipes}",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _plainly(name: str, rest: list[str], prog: str) -> Launch:
    """The same without tyro."""
    launch = Launch(recipe=RECIPES[name]())
    if "--help" in rest or "-h" in rest:
        print(f"usage: {prog} {name} [OPTIONS]; tyro, which is not installed, would explain these:")
        print("\n".join(f"  {option}" for option in options(launch, unnamed="recipe")))
        raise SystemExit(0)
    try:
        return override(launch, rest, unnamed="recipe")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def in_words(summary: dict) -> str:
    """The summary as a few aligned lines."""
    lines = [f"{'bits per byte of held-out text':<34}{_number(summary['bits_per_byte'])}"]
    for name, gain in summary["media_gain"].items():
        if gain["gain"] is not None:
            span = f"[{gain['low']:.3f}, {gain['high']:.3f}]"
            lines.append(f"{'gain from ' + name:<34}{gain['gain']:.3f} {span}")
    lines += [f"{name + ' character error rate':<34}{_number(rate)}" for name, rate in summary["cer"].items()]
    lines += [f"{'target ' + name:<34}{_REACHED[target['reached']]}" for name, target in
              summary["targets"].items()]  # fmt: skip
    lines.append(f"{'wall clock':<34}{summary['wall_s'] / 60:.1f} min, {summary['peak_rss_gib']} GiB at most")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
