"""Configurations come back from plain JSON as they were, and wrong ones are refused by name."""

import json
from pathlib import Path

import pytest

from brine.common.files import to_plain
from brine.experiments.planning.from_plain import from_plain
from brine.pipeline.recipe import Recipe
from brine.recipes.registry import RECIPES
from brine.training.config import TrainConfig


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_come_back_from_json(name):
    recipe = RECIPES[name]()
    assert from_plain(Recipe, json.loads(json.dumps(to_plain(recipe)))) == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 1.5}, "large.num_steps = 1.5 is float: give int"),
        ({"num_steps": True}, "large.num_steps = True is bool: give int"),
        ({"learning_rate": "1e-3"}, "large.learning_rate = '1e-3' is str: give float"),
        ({"lr": 1}, "large.lr is not a field of TrainConfig"),
        ({"model": {"width": 3}}, "large.model.width is not a field of ModelConfig"),
        ({"num_steps": 0}, "large: num_steps = 0 must be positive"),
        ({"decay_steps": "all"}, "large.decay_steps = 'all' is str: give int | None"),
        ({"modality_context_weights": [["image"]]}, r"large.modality_context_weights = \['image'\] is list"),
    ],
)
def test_wrong_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        from_plain(TrainConfig, changes, where="large")


def test_unions_take_the_exact_type_first():
    assert from_plain(int | float, 3) == 3 and type(from_plain(float | int, 3)) is int
    assert from_plain(Path | None, None) is None and from_plain(Path | None, "a/b") == Path("a/b")
    assert from_plain(bool | str, "auto") == "auto" and from_plain(bool | str, True) is True
