"""Recipes by name, from entry points of installed packages (group `brine.recipes`), Brine's included, or from a file.

A recipe is a function without parameters that returns a `Recipe`, often another one with some fields replaced.
`find_function` finds other things that are such functions in the same way.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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

__all__ = ["RECIPES", "CorpusConfig", "PackingConfig", "Recipe", "find_function", "find_recipe", "recipe_names"]

RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (demo, quick, real, synth, base, needle, long_cpu, long_1m)
}
"""Brine's own recipes; the first is the default."""


def recipe_names() -> list[str]:
    return list(dict.fromkeys([*RECIPES, *plugins("brine.recipes")]))


def find_recipe(name: str) -> Callable[[], Recipe]:
    """The recipe of a name, or of a Python file (its namesake function or its only one). Raises ValueError for none."""
    return find_function(name, group="brine.recipes", known=RECIPES, what="recipe", returns="a Recipe")


def find_function(
    name: str, *, group: str, known: Mapping[str, Callable[[], Any]], what: str, returns: str
) -> Callable[[], Any]:
    """A function without parameters by name: one of `known`, an entry point of `group`, or of a Python file its
    namesake function or its only one. what, returns: words for messages. Raises ValueError for none."""
    if name.endswith(".py"):
        return _function_of_file(Path(name), what=what, returns=returns)
    if name in known:
        return known[name]
    if entry := plugins(group).get(name):
        return load_plugin(entry)
    names = list(dict.fromkeys([*known, *plugins(group)]))
    near = difflib.get_close_matches(name, names, n=1)
    choices = f"choose one of {', '.join(names)}, or the path" if names else "give the path"
    raise ValueError(f"unknown {what} {name!r}{f' (did you mean {near[0]}?)' if near else ''}: {choices} of a .py file")


def _function_of_file(path: Path, *, what: str, returns: str) -> Callable[[], Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the path of {_owned(what)} file")
    spec = importlib.util.spec_from_file_location(f"brine_{what}_{path.stem}", path)
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
        raise ValueError(f"{path} holds {found}: define one called {path.stem} that returns {returns}")
    return next(iter(makers.values()))


def _owned(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}'s"
