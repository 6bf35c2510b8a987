"""Recipes by name, from entry points of installed packages (group `brine.recipes`), Brine's included, or from a file.

A recipe is a function without parameters that returns a `Recipe`, often another one with some fields replaced.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path

from brine.common.plugins import load_plugin, plugins
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.recipes.base import base
from brine.recipes.demo import demo
from brine.recipes.long_1m import long_1m
from brine.recipes.long_cpu import long_cpu
from brine.recipes.needle import needle
from brine.recipes.quick import quick
from brine.recipes.real import real
from brine.recipes.synth import synth

__all__ = ["RECIPES", "CorpusConfig", "PackingConfig", "Recipe", "find_recipe", "recipe_names"]

RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (demo, quick, real, synth, base, needle, long_cpu, long_1m)
}
"""Brine's own recipes; the first is the default."""


def recipe_names() -> list[str]:
    return list(dict.fromkeys([*RECIPES, *plugins("brine.recipes")]))


def find_recipe(name: str) -> Callable[[], Recipe]:
    """The recipe of a name, or of a Python file (its namesake function or its only one). Raises ValueError for none."""
    if name.endswith(".py"):
        return _recipe_of_file(Path(name))
    if name in RECIPES:
        return RECIPES[name]
    if entry := plugins("brine.recipes").get(name):
        return load_plugin(entry)
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    raise ValueError(
        f"unknown recipe {name!r}{f' (did you mean {near[0]}?)' if near else ''}: choose one of "
        f"{', '.join(recipe_names())}, or the path of a .py file"
    )


def _recipe_of_file(path: Path) -> Callable[[], Recipe]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the path of a recipe's file")
    spec = importlib.util.spec_from_file_location(f"brine_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} fails on import, with {type(error).__name__}: {error}") from error
    functions = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    # helpers take parameters
    makers = {name: value for name, value in functions.items() if not inspect.signature(value).parameters}
    if path.stem in makers:
        return makers[path.stem]
    if len(makers) != 1:
        found = f"{len(makers)} functions without parameters ({', '.join(makers)})" if makers else "no function"
        raise ValueError(f"{path} holds {found}: define one called {path.stem} that returns a Recipe")
    return next(iter(makers.values()))
