"""Named runs: each is a function that returns a whole `Recipe`, often another one with some fields replaced."""

import sys

from recipes.demo import demo
from recipes.long_1m import long_1m
from recipes.long_cpu import long_cpu
from recipes.needle import needle
from recipes.real import real
from recipes.recipe import CorpusConfig, Recipe, RowsConfig
from recipes.workbench import workbench

RECIPES = {
    "demo": demo,
    "real": real,
    "workbench": workbench,
    "needle": needle,
    "long_cpu": long_cpu,
    "long_1m": long_1m,
}
"""Recipes by the name that the command line takes; the first is the default."""

__all__ = ["RECIPES", "CorpusConfig", "Recipe", "RowsConfig"]

if sys.argv[:1] == ["-m"]:
    # a module of this room is about to be run
    from data.as_command import only_commands

    only_commands(
        __name__,
        "none here; a recipe is run by train.py, such as python train.py demo",
    )
