"""The command line of a run, with tyro and without: one and the same request."""

import dataclasses

import pytest

from recipes import launch
from recipes.overrides import options, override
from recipes.recipe import Recipe

LINES = (
    "demo",
    "demo --large.learning-rate 1e-3 --large.num-steps 70 --runs elsewhere",
    "long_1m --runtime.checkpointing full --runtime.checkpoint-layers 3 --runtime.profile 20 22",
    "demo --runtime.compile False --runtime.no-deterministic --arms baseline --dry-run",
    "demo --runtime.compile auto --corpus.manifest a/b --corpus.filters exact_duplicates text_quality",
    "demo --corpus.workbench.train.screenshot 48 4 0 0 --rows.length-schedule 0:256 0.5:512",
    "demo --rows.kind-weights text 2 page 0.5 --large.model.window None --evals.targets.image-gain None",
)


@pytest.mark.parametrize("line", LINES)
def test_without_tyro_a_request_is_the_same(line, monkeypatch):
    asked = launch.parse(line.split())
    monkeypatch.setattr(launch, "tyro", None)
    assert launch.parse(line.split()) == asked


def test_options_are_those_of_every_dataclass():
    known = options(launch.Launch(recipe=Recipe()), unnamed="recipe")
    for name in ("--runs", "--seed", "--large.model.num-layers", "--corpus.workbench.test.page", "--runtime.device"):
        assert name in known
    assert not [name for name in known if name.startswith("--recipe")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("demo --large.learningrate 1", "did you mean --large.learning-rate?"),
        ("demo --large.num-steps many", "--large.num-steps many"),
        ("demo --large.num-steps 1 2", "give one value"),
        ("demo --runtime.context 0", "context = 0"),
        ("demo --corpus.workbench.train.page 1 2", "give 4 values"),
    ],
)
def test_mistakes_are_told_without_tyro(line, said, monkeypatch, capsys):
    monkeypatch.setattr(launch, "tyro", None)
    with pytest.raises(SystemExit) as ended:
        launch.parse(line.split())
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_help_without_tyro_lists_the_options(monkeypatch, capsys):
    monkeypatch.setattr(launch, "tyro", None)
    with pytest.raises(SystemExit) as ended:
        launch.parse(["demo", "--help"])
    assert ended.value.code == 0 and "--large.num-steps" in capsys.readouterr().out


def test_fields_that_are_valid_together_are_set_together():
    @dataclasses.dataclass(frozen=True)
    class Pair:
        low: int = 0
        high: int = 1

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low above high")

    assert override(Pair(), ["--low", "5", "--high", "6"]) == Pair(5, 6)
