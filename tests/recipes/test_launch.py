"""The command line of a run: recipes by name and by file, fields overridden, mistakes."""

import functools
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from brine.data.formats.corpus_source import CorpusSource
from brine.recipes import launch, registry
from brine.recipes.demo import demo
from tests.paths import ROOT


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("demo --large.learning-rate 1e-3 --runs elsewhere",
         {"large.learning_rate": 1e-3, "large.num_steps": demo().large.num_steps}),
        ("long_1m --runtime.activation-checkpointing full --runtime.profile 20 22",
         {"runtime.activation_checkpointing": "full", "runtime.profile": (20, 22)}),
        ("demo --runtime.compile False --runtime.no-deterministic --arms baseline",
         {"runtime.compile": False, "runtime.deterministic": False, "arms": ("baseline",)}),
        ("demo --runtime.deterministic --salt.selection --salt.no-selection-per-kind",
         {"runtime.deterministic": True, "salt.selection": True, "salt.selection_per_kind": False}),
        ("demo --corpus.manifest a/b --corpus.filters exact_duplicates text_quality",
         {"corpus.manifest": Path("a/b"), "corpus.filters": ("exact_duplicates", "text_quality")}),
        ("demo --corpus.synth.train.screenshot 48 4 0 0 --packing.length-schedule 0:256 0.5:512",
         {"corpus.synth.train.screenshot": (48, 4, 0, 0), "packing.length_schedule": ("0:256", "0.5:512")}),
        ("real --corpus.sources synth wiki=a/b,weight=2,consent=public c=d,e --corpus.tokenizer runs/x",
         {"corpus.sources": (CorpusSource("synth"), CorpusSource("wiki", Path("a/b"), 2.0, "public"),
                             CorpusSource("c", Path("d,e"))), "corpus.tokenizer": "runs/x", "corpus.manifest": None}),
        ("demo --large.init-from champion --large.init-optimizer",
         {"large.init_from": "champion", "large.init_optimizer": True, "small.init_from": None}),
        ("demo --packing.mixture kind:text=2 kind:page=0.5 --large.model.window None",
         {"packing.mixture": ("kind:text=2", "kind:page=0.5"), "large.model.window": None}),
    ],
)  # fmt: skip
def test_options_override_fields(line, fields):
    recipe = launch.parse(line.split()).recipe
    for name, value in fields.items():
        assert functools.reduce(getattr, name.split("."), recipe) == value, name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("demo --large.learningrate 1", "(did you mean --large.learning-rate?); see --help"),
        ("demo --large.num-steps many", "--large.num-steps"),
        ("demo --runtime.context-parallel 0", "error: --runtime.context-parallel = 0"),
        ("demo --large.num-steps 10", "error: --large.warmup-steps = 30 leaves nothing of num_steps = 10"),
        ("demo --corpus.synth.train.page 1 2", "--corpus.synth.train.page"),
        # the names of other training codes
        ("demo --large.lr 1e-3", "(did you mean --large.learning-rate?); see --help"),
        ("demo --small.bs 4", "(did you mean --small.global-batch-size?); see --help"),
        ("demo --large.n_layer 4", "(did you mean --large.model.num-layers?); see --help"),
        ("demo --checkpoint.interval 4", "(did you mean --large.checkpoint-every?); see --help"),
        ("demo --training.seq_len 4", "(did you mean --packing.seq-len?); see --help"),
        ("demo --large.model.vocab-size 500", "follows from --corpus.vocab-size, which can be given"),
        ("demo --corpus.synth.source here", "follows from --corpus.source, which can be given"),
        ("demo --corpus.sources wiki", "error: corpus.sources: 'wiki' must read NAME=PATH, with"),
        ("demo --corpus.sources a=x,weight=two b=y", "error: corpus.sources: 'a=x,weight=two' has a weight that is no"),
        ("demo --corpus.sources a=x a=y", "corpus.sources: the name 'a' comes twice"),
        ("demo --corpus.sources a=x --corpus.manifest y", "corpus.sources and corpus.manifest exclude each other"),
        ("demo --corpus.source y --corpus.sources a=x", "no effect without the source `synth`"),
        ("demo --corpus.tokenizer x --corpus.vocab-size 300", "--corpus.vocab-size follows from --corpus.tokenizer x"),
        ("demo --large.init-optimizer", "--large.init-optimizer = True needs init_from"),
        ("demo --large.init-digest ab", "follows from --large.init-from"),
        ("demo --store s3://b/x", "error: --store = s3://b/x must be a folder of this machine: give the URL"),
        ("demo --runs s3://b/x", "to `brine train` as --remote-store"),
        ("demo --remote-store x", "error: --remote-store = 'x' must be a URL such as s3://bucket/prefix"),
        ("demo --runtime.attention-backend nonsense", "choose one of auto, reference, cpu"),
    ],
)
def test_mistakes_end_with_code_2_and_name_the_option(line, said, capsys):
    with pytest.raises(SystemExit) as ended:
        launch.parse(line.split())
    assert ended.value.code == 2 and said in capsys.readouterr().err


def help_of(words, capsys):
    with pytest.raises(SystemExit) as ended:
        launch.parse([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_of_a_recipe_lists_the_options_that_have_an_effect(capsys):
    demo_help, real_help = (help_of([name], capsys) for name in ("demo", "real"))
    assert all(option in demo_help for option in ("--large.num-steps", "--small.num-steps", "--salt.kd-fraction"))
    for option in ("--large.model.vocab-size", "image-dim", "--corpus.synth.source"):
        assert option not in demo_help
    # no teacher, and no synthetic corpus, whose decoding processes are also those of the documents
    assert "--large.num-steps" in real_help and "--corpus.synth.workers" in real_help
    for option in ("--small.", "--salt.", "--corpus.synth.train", "--corpus.source "):
        assert option not in real_help


def test_help_without_a_recipe_is_a_page(capsys):
    page = help_of([], capsys)
    assert page.count("\n") < 80
    assert all(part in page for part in (*registry.RECIPES, "--large.*", "--runtime.*", "--dry-run", "--rerun"))


def test_options_that_are_not_listed_are_still_taken():
    words = ["real", "--corpus.manifest", "mine", "--arms", "salt", "baseline", "--salt.kd-fraction", "0.5"]
    recipe = launch.parse(words).recipe
    assert recipe.salt.kd_fraction == 0.5 and recipe.large == registry.RECIPES["real"]().large


def test_every_other_name_stands_for_an_option(capsys):
    known, names = help_of(["demo"], capsys), " ".join(launch.OTHER_NAMES.values()).split()
    assert len(names) == len(set(names))
    for option in launch.OTHER_NAMES:
        assert f"--{option} " in known or f"--large.{option} " in known, option


@pytest.mark.slow
@pytest.mark.parametrize("words", [["brine"], ["brine", "train", "demo", "--help"]], ids=["list", "help"])
def test_a_reader_that_goes_ends_a_command_quietly(words):
    """`brine | head` once printed a traceback of BrokenPipeError."""
    line = " ".join([sys.executable, "-m", *words])
    done = subprocess.run(
        ["bash", "-c", f"{line} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")


OWN = """
import dataclasses
import importlib.metadata
from brine.recipes.demo import demo


def _scaled(base, steps):
    return dataclasses.replace(base, large=dataclasses.replace(base.large, num_steps=steps))


def {name}():
    return _scaled(dataclasses.replace(demo(), name="own"), 77)
"""


@pytest.mark.parametrize("name", ["my_recipe", "another_name"], ids=["named-like-the-file", "the-only-one"])
def test_a_recipe_of_a_file(name, tmp_path):
    path = tmp_path / "my_recipe.py"
    path.write_text(OWN.format(name=name))
    launched = launch.parse([str(path), "--large.learning-rate", "1e-4"])
    assert (launched.recipe.name, launched.recipe.large.num_steps) == ("own", 77)
    assert launched.recipe.large.learning_rate == 1e-4


def test_of_several_functions_the_one_named_like_the_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(name="mine") + "\n\ndef other():\n    return mine()\n")
    assert launch.parse([str(path)]).recipe.name == "own"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN.format(name="one") + "\n\ndef two():\n    return one()\n", "define one called mine that returns a Recipe"),
        ("x = 1\n", "holds no function"),
        ("def mine():\n    return 5\n", "returns int: a recipe's function returns a Recipe"),
        (None, "does not exist"),
        ("def mine(:\n", "mine.py fails on import, with SyntaxError"),
        ("import nothing_of_this_name\n", "fails on import, with ModuleNotFoundError"),
        ("def mine():\n    return 1 + None\n", "fails, with TypeError"),
    ],
    ids=["two", "none", "no-recipe", "no-file", "syntax", "import", "type"],
)
def test_mistakes_in_a_recipe_of_a_file(text, said, tmp_path, capsys):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        launch.parse([str(path)])
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["real"], ["real", "--dry-run"]], ids=["run", "dry-run"])
def test_a_recipe_without_documents_names_the_option(words, capsys):
    """Its default was once a path outside of the repository."""
    with pytest.raises(SystemExit) as ended:
        launch.parse(words)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "give --corpus.manifest PATH" in told and told.count("\n") == 1
    assert launch.parse([*words, "--corpus.manifest", "mine"]).recipe.name == "real"


def test_recipes_of_installed_packages_are_found_by_name(monkeypatch, capsys):
    entry = importlib.metadata.EntryPoint("theirs", "brine.recipes.long_1m:long_1m", "brine.recipes")
    monkeypatch.setattr(registry, "plugins", lambda group: {"theirs": entry})
    assert launch.parse(["theirs"]).recipe.name == "long_1m"
    with pytest.raises(SystemExit):
        launch.parse(["nobodys"])
    assert (
        "choose one of demo, quick, real, synth, base, needle, long_cpu, long_1m, theirs, or" in capsys.readouterr().err
    )


def test_own_recipes_are_entry_points_too():
    import tomllib

    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["brine.recipes"]
    assert named == {name: f"{make.__module__}:{make.__name__}" for name, make in registry.RECIPES.items()}
