"""Recipes by name, from entry points of installed packages (group `brine.recipes`), Brine's included, or from a file.

A recipe is a function without parameters that returns a `Recipe`, often another one with some fields replaced.
`make_by_name` makes other things that such functions return.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

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

__all__ = ["RECIPES", "CorpusConfig", "PackingConfig", "Recipe", "find_recipe", "make_by_name", "recipe_names"]
Made = TypeVar("Made")

RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (demo, quick, real, synth, base, needle, long_cpu, long_1m)
}
"""Brine's own recipes; the first is the default."""


def recipe_names() -> list[str]:
    return list(dict.fromkeys([*RECIPES, *plugins("brine.recipes")]))


def find_recipe(name: str) -> Callable[[], Recipe]:
    """The recipe of a name, or of a Python file (its namesake function or its only one). Raises ValueError for none."""
    return _find_function(name, group="brine.recipes", known=RECIPES, what="recipe", returns="a Recipe")


def make_by_name(name: str, kind: type[Made], *, group: str, what: str) -> tuple[str, Made]:
    """(name of the function, what it returned) of an entry point of `group` or of a Python file.

    kind: of what is returned. what: its word for messages. Raises ValueError for none, and with its message for a
    function that fails."""
    returns = f"{_article(kind.__name__)} {kind.__name__}"
    make = _find_function(name, group=group, known={}, what=what, returns=returns)
    try:
        found = make()
    except Exception as error:
        raise ValueError(f"the {what} {name} fails, with {type(error).__name__}: {error}") from error
    if not isinstance(found, kind):
        raise ValueError(f"{name} returns {type(found).__name__}: {_article(what)} {what}'s function returns {returns}")
    return make.__name__, found


def _find_function(
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
        raise ValueError(f"{path} does not exist: give the path of {_article(what)} {what}'s file")
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


def _article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" else "a"
