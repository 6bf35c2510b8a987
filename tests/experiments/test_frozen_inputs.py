"""What a plan takes from outside is frozen: absolute paths, the model that "champion" means today, its digest.

A first look at weights imports torch's compiler, which takes seconds."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from brine.common.files import file_digest
from brine.data.config import EncodeConfig
from brine.data.formats.corpus_source import CorpusSource
from brine.data.tokenizer import train_tokenizer
from brine.experiments.experiment import Budget, Choice, Grid, Listed, Search, Seeds
from brine.experiments.planning.plan import load_plan
from brine.experiments.planning.settings import apply_changes, check_experiment, parse_recipe, step_flops
from brine.experiments.search import rung_trials
from brine.experiments.trials.trial import run_trial
from brine.inference.load import WEIGHTS, save_model
from brine.model.transformer import Transformer
from brine.pipeline.inputs.pinned import pin
from brine.recipes.quick import quick
from tests.experiments.tiny import tiny_experiment, tiny_recipe


def write_model(folder, source, *, value, texts=("red green blue",)):
    """A model folder with the shape of the tiny recipe's, all weights of one value."""
    tokenizer = train_tokenizer(list(texts), 280)
    model = Transformer(tiny_recipe(source).model(tiny_recipe(source).large.model, tokenizer.vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    save_model(folder, model, encode_config=EncodeConfig(), tokenizer=tokenizer)
    return folder


def register(root, folder):
    """Put a model into a registry as its champion."""
    target = root / "models" / file_digest(folder / WEIGHTS)
    shutil.copytree(folder, target)
    (root / "champion").unlink(missing_ok=True)
    (root / "champion").symlink_to(Path("models") / target.name)
    return target


@pytest.fixture
def registry(tmp_path, monkeypatch, source):
    """A registry with a champion; the folder in which the user plans."""
    monkeypatch.setenv("BRINE_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)
    register(tmp_path / "registry", write_model(tmp_path / "first", source, value=0.01))
    return tmp_path / "registry"


def with_tokenizer(source, named):
    base = tiny_recipe(source)
    return dataclasses.replace(base, corpus=dataclasses.replace(base.corpus, tokenizer=str(named)))


@pytest.mark.slow
def test_weights_are_an_axis_and_the_champion_is_the_one_of_today(registry, make_plan, source, tmp_path):
    first = (registry / "champion").resolve()
    write_model(tmp_path / "second", source, value=0.02)
    axes = Grid({"large.init_from": [None, "champion", "second"]})
    plan = make_plan(axes=axes, base=with_tokenizer(source, "champion"))
    recipes = [parse_recipe(trial.recipe) for trial in plan.trials]
    assert [recipe.large.init_from for recipe in recipes] == [None, str(first), str(tmp_path / "second")]
    assert [recipe.large.init_digest for recipe in recipes] == [
        None, first.name, file_digest(tmp_path / "second" / WEIGHTS)
    ]  # fmt: skip
    assert {recipe.corpus.tokenizer for recipe in recipes} == {str(first)}
    assert len({trial.digest for trial in plan.trials}) == 3
    assert plan.settings["02"]["label"] == "init_from=champion"
    # another champion tomorrow moves nothing that is planned
    later = register(registry, tmp_path / "second")
    again = load_plan(plan.folder)
    assert parse_recipe(again.trial("02-seed0").recipe).large.init_from == str(first) != str(later)
    assert pin(parse_recipe(again.trial("02-seed0").recipe))[1].initial["large"].digest == first.name
    # and a plan made now says that it would be another one
    with pytest.raises(ValueError, match=r"trial 02-seed0: other settings.*give it a new name"):
        make_plan(axes=axes, base=with_tokenizer(source, first))


@pytest.mark.slow
def test_a_trial_refuses_weights_that_are_not_those_of_its_plan(registry, make_plan, source, tmp_path):
    write_model(tmp_path / "mine", source, value=0.02)
    plan = make_plan(axes=Listed([{"large.init_from": "mine"}]), base=with_tokenizer(source, "mine"))
    write_model(tmp_path / "mine", source, value=0.03)
    with pytest.raises(ValueError, match=r"large\.init_from = .*mine: its weights are not those of before"):
        run_trial(plan, plan.trials[0])
    assert not (plan.trial_folder(plan.trials[0]) / "encoded").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("large.init_from", "nowhere", r"large\.init_from: nowhere does not exist"),
        ("large.init_from", "0123456789ab", r"large\.init_from: '0123456789ab' is no path and no model of"),
        ("corpus.tokenizer", "nowhere", r"corpus\.tokenizer: nowhere does not exist"),
        ("large.init_digest", "ab", r"large\.init_digest is no axis: it follows from large\.init_from"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_by_its_field(registry, source, field, value, message):
    with pytest.raises(ValueError, match=message):
        check_experiment(tiny_experiment(source, axes=Grid({field: [None, value]})))


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused_in_the_plan(registry, source):
    wider = {"large.init_from": "champion", "corpus.tokenizer": "champion", "large.model.mlp_dim": 96}
    with pytest.raises(ValueError, match=r"large\.init_from = .*: its weights are of another shape"):
        check_experiment(tiny_experiment(source, axes=Listed([{}, wider])))


@pytest.mark.slow
def test_other_weights_take_the_digest_of_the_former_with_them(registry, source):
    pinned = pin(apply_changes(with_tokenizer(source, "champion"), {"large.init_from": "champion"}))[0]
    assert pinned.large.init_digest is not None
    assert apply_changes(pinned, {"large.init_from": None}).large.init_digest is None
    assert apply_changes(pinned, {"large.init_from": "first"}).large.init_digest is None


@pytest.mark.slow
def test_a_search_over_weights_asks_for_those_of_its_plan(registry, make_plan, source, tmp_path):
    first = (registry / "champion").resolve()
    axes = Search({"large.init_from": Choice([None, "champion"])}, trials=2, rungs=(0.5, 1.0))
    plan = make_plan(axes=axes, base=with_tokenizer(source, "champion"), seeds=Seeds((0,)))
    values = plan.head["search"]["space"]["large.init_from"]["values"]
    assert values == [None, str(first)]
    register(registry, write_model(tmp_path / "second", source, value=0.02))
    (trial,) = rung_trials(plan, "t001", {"large.init_from": values[1]}, 0)
    assert parse_recipe(trial.recipe).large.init_digest == first.name


def test_sources_are_whole_paths_from_where_the_plan_was_made(registry, make_plan, source, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "wiki")
    shutil.copytree(source, tmp_path / "own")
    base = tiny_recipe(source)
    corpus = dataclasses.replace(base.corpus, manifest=None, sources=("wiki=wiki,weight=2", "own=own,consent=own"))
    axes = Grid({"packing.blank_fraction": [0.0, 0.1]})
    plan = make_plan(axes=axes, base=dataclasses.replace(base, corpus=corpus))
    for recipe in [parse_recipe(trial.recipe) for trial in plan.trials] + [parse_recipe(plan.head["base"])]:
        assert recipe.corpus.sources == (
            CorpusSource("wiki", tmp_path / "wiki", 2.0), CorpusSource("own", tmp_path / "own", consent="own")
        )  # fmt: skip
    # equal from elsewhere only if they are the same folders
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    with pytest.raises(ValueError, match=r"else/wiki does not exist"):
        make_plan("other", axes=axes, base=dataclasses.replace(base, corpus=corpus))
    # the synthetic corpus that no source names has no effect
    with pytest.raises(ValueError, match=r"axis corpus\.synth\.max_files"):
        check_experiment(tiny_experiment(
            source, base=parse_recipe(plan.head["base"]), axes=Grid({"corpus.synth.max_files": [3, 4]})
        ))  # fmt: skip


def test_paths_of_object_stores_and_of_the_home_folder(source, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(source, tmp_path / "texts")
    for given, whole in (("~/texts", tmp_path / "texts"), ("s3://bucket/texts", Path("s3://bucket/texts"))):
        base = tiny_recipe(Path(given))
        assert check_experiment(tiny_experiment(source, base=base))[0][1].corpus.manifest == whole


def test_sources_as_an_axis_are_short_forms_and_need_a_suite(source):
    changed = apply_changes(
        dataclasses.replace(quick(), corpus=dataclasses.replace(quick().corpus)),
        {"corpus.sources": ("wiki=texts,weight=2", "synth")},
    )
    assert [each.name for each in changed.corpus.sources] == ["wiki", "synth"]
    with pytest.raises(ValueError, match=r"must read NAME=PATH"):
        apply_changes(quick(), {"corpus.sources": ("texts",)})
    with pytest.raises(ValueError, match=r"corpus\.sources changes the documents.*give a suite"):
        check_experiment(tiny_experiment(source, axes=Grid({"corpus.sources": [("synth",), ("a=b",)]})))


def test_tokenizers_are_compared_and_a_budget_counts_their_size(registry, source):
    """Bits per byte, on the same documents; what a step costs follows from the size of the vocabulary."""
    small = train_tokenizer(["red"], 270)
    small.save(Path("small.json"))
    budget = Budget(large_flops=200.0 * step_flops(tiny_recipe(source)))
    axes = Grid({"corpus.tokenizer": [None, "small.json"]})
    (_, own), (_, given) = check_experiment(tiny_experiment(source, axes=axes, budget=budget))
    assert own.large.num_steps == 200 and given.corpus.vocab_size == small.vocab_size < own.corpus.vocab_size
    assert given.large.num_steps == round(200 * step_flops(own) / step_flops(given)) > 200
