"""A finished training stage survives every field of a recipe that a user may change.

One tiny run is trained. Then each field of the recipe, found by walking its dataclasses, is changed in a command of its
own on that run's folder. Training, evaluation and the trial of a compiler are taken out, since what is asked is only
what the command does to the files.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest

from brine import train as command
from brine.common.config_fields import affects_result
from brine.common.files import to_plain
from brine.common.processes import TrainingInterrupted
from brine.data.config import EncodeConfig
from brine.evals.config import EvalConfig
from brine.model.config import ModelConfig
from brine.pipeline import run as train
from brine.pipeline import train_stage
from brine.pipeline.model_stages import CORPUS_DEPENDENT_FIELDS
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.pipeline.stages.stage_backup import ProtectedStageError
from brine.training.config import RuntimeConfig, TrainConfig
from brine.training.runtime import Runtime

pytestmark = pytest.mark.slow

TINY = ModelConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=16, window=16)
CANDIDATES = {
    str: ("linear", "cosine", "wsd", "adamw", "muon", "bfloat16", "float64", "cpu", "full", "selective", "reference",
          "chunked", "flex", "auto", "split", "drop", "validation", "other"),
    type(None): (Path("elsewhere"), 1, 0.5, (1, 2), (4, 2, 2)),
    tuple: ((), ("baseline",), ("salt",), ("exact_duplicates",), ("kind:captioned=2",), ("0:32",), (("text", 2.0),),
            (("image", 2.0),), (3,), (1, 2), (8, 8), (1, 0, 0, 0), (0.5, 0.5), (1.0, 1.0, 1.0)),
}  # fmt: skip


def recipe(**changes) -> Recipe:
    """A run of two steps on the manifest."""
    fields = {
        "name": "run",
        "corpus": CorpusConfig(vocab_size=267, encode=EncodeConfig()),
        "packing": PackingConfig(seq_len=64, image_budget=32, audio_budget=32, video_budget=32),
        "large": TrainConfig(
            model=TINY, num_steps=4, global_batch_size=2, micro_batch_size=2, warmup_steps=1, checkpoint_every=2
        ),
        "small": TrainConfig(model=TINY),
        "arms": ("baseline",),
        "evals": EvalConfig(documents_per_cell=2, transcripts_per_cell=1, validation_per_cell=2, seq_len=64,
                            bootstrap_resamples=100, max_new_tokens=1),
        "runtime": RuntimeConfig(compile=False, num_threads=1, device="cpu", dtype="float32", num_loader_workers=0,
                                 activation_checkpointing="full"),
    }  # fmt: skip
    return Recipe(**{**fields, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    """(runs, manifest) of a finished run."""
    folder = tmp_path_factory.mktemp("kept")
    manifest = folder / "manifest.jsonl"
    lines = [
        {"id": f"d{number}", "kind": "page", "split": ("validation", "test", *["train"] * 6)[number % 8],
         "content": [{"type": "text", "text": f"page {number} of a small book about numbers"}]}
        for number in range(24)
    ]  # fmt: skip
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # as in a group that shares its files
    before = os.umask(0o002)
    try:
        train.run_pipeline(at(recipe(), manifest), runs=folder / "runs")
    finally:
        os.umask(before)
    return folder / "runs", manifest


def at(value: Recipe, manifest: Path) -> Recipe:
    """The recipe on this manifest."""
    return dataclasses.replace(value, corpus=dataclasses.replace(value.corpus, manifest=manifest))


def leaves(value, path=()):
    """Every field of a dataclass that is no dataclass itself: (path, value)."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, (*path, field.name))
        else:
            yield (*path, field.name), inner


def changed(value, path: tuple[str, ...]):
    """A copy with another value in one field, the first that the dataclasses accept; None where there is none."""
    old = value
    for name in path:
        old = getattr(old, name)
    if isinstance(old, bool):
        candidates = (not old,)
    elif isinstance(old, int | float):
        candidates = (old + 1, old * 2, old - 1, old / 2, old + 0.1, 0.5, old + 16, 2 * old + 2)
        candidates = [type(old)(each) for each in candidates]
    else:
        candidates = next(found for kind, found in CANDIDATES.items() if isinstance(old, kind))
    for candidate in candidates:
        if candidate == old:
            continue
        try:
            return with_field(value, path, candidate)
        except (ValueError, TypeError, AttributeError):
            continue
    return None


def with_field(value, path: tuple[str, ...], new):
    if len(path) == 1:
        return dataclasses.replace(value, **{path[0]: new})
    return dataclasses.replace(value, **{path[0]: with_field(getattr(value, path[0]), path[1:], new)})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, those behind links to stages too."""
    paths = [Path(parent) / name for parent, _, names in os.walk(folder, followlinks=True) for name in names]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_every_file_of_a_run_follows_the_umask(run):
    """Weights were written for the owner alone."""
    for parent, folders, names in os.walk(run[0] / "run", followlinks=True):
        for name in folders:
            assert (Path(parent) / name).stat().st_mode & 0o777 == 0o775, name
        for name in names:
            # files of a finished stage are read-only
            is_stored = Path(parent).resolve().is_relative_to(run[0].resolve() / ".store")
            assert (Path(parent) / name).stat().st_mode & 0o777 == (0o444 if is_stored else 0o664), name


def deciding_of(value: Recipe, path: tuple[str, ...]) -> bool:
    """Is this field known to decide what the large arm's model is, whatever the corpus and the machine?"""
    if path[0] not in ("large", "packing", "seed") or (path[1:2] == ("model",) and path[-1] in CORPUS_DEPENDENT_FIELDS):
        return False
    for name in path[:-1]:
        value = getattr(value, name)
    return affects_result(next(field for field in dataclasses.fields(value) if field.name == path[-1]), value)


class Trained(Exception):
    """Training would begin."""


@pytest.fixture(scope="module")
def half(run, tmp_path_factory) -> tuple[Path, Path]:
    """The same run as it was after two of its four steps."""
    runs = shutil.copytree(run[0], tmp_path_factory.mktemp("half") / "runs")
    stage = runs / "run" / "large_baseline"
    (stage / "done").unlink()
    shutil.rmtree(stage / "model")
    shutil.rmtree(stage / "checkpoints" / "step_00000004")
    return runs, run[1]


PARTS = [field.name for field in dataclasses.fields(Recipe) if field.name != "small"]


APART = {
    ("corpus", "manifest"),
    ("corpus", "sources"),
    ("large", "init_optimizer"),
    ("large", "init_digest"),
    ("runtime", "remote_checkpoints"),
}
"""Fields that exclude others or need them; test_sources.py and test_remote.py change them."""
HALF = ("corpus", "packing", "runtime")
"""Parts for a half-finished arm; of the others, and of `small`, test_deciding.py asks the same without a corpus."""


@pytest.mark.slow
@pytest.mark.parametrize(("state", "part"), [*(("run", part) for part in PARTS), *(("half", part) for part in HALF)])
def test_a_stage_survives_every_changed_field(state, part, request, monkeypatch):
    """`demo --large.num-steps 430` on a finished run took its weights, metrics and checkpoints away. A run that is half
    done goes on where the field decides nothing of its model."""
    runs, manifest = request.getfixturevalue(state)

    def begins(config, **_):
        raise Trained

    def settled(config, *, folder):
        values = to_plain(config)
        return Runtime(**{name: values[name] for name in ("device", "dtype", "num_threads", "attention_backend",
                                                          "loss_backend", "deterministic") })  # fmt: skip

    monkeypatch.setattr(train_stage, "Trainer", begins)
    monkeypatch.setattr(train, "resolve_runtime", settled)
    # neither is about trained models
    monkeypatch.setattr(train.evaluate_stage, "report", lambda run: None)
    monkeypatch.setattr(train, "environment", lambda *_: {})
    plainly = recipe()
    stages = ("large_baseline", "encoded")
    before = {stage: contents(runs / "run" / stage) for stage in stages}
    refused, never = set(), set()
    for path, _ in leaves(plainly):
        if path[0] != part or path in APART:
            continue
        other = changed(plainly, path)
        if other is None:
            never.add(path)
            continue
        try:
            train.run_pipeline(other if other.corpus.source else at(other, manifest), runs=runs)
        except ProtectedStageError:
            refused.add(path)
        except Trained:
            # it goes on, or is a run or an arm of its own
            assert path in {("name",), ("arms",)} or (state == "half" and not deciding_of(plainly, path)), path
        except ValueError:
            # refused for another reason: no such folder, one rank only
            pass
        for stage in stages:
            assert contents(runs / "run" / stage) == before[stage], path
    assert not never, f"no other value was found for {never}"
    if part in ("large", "packing"):
        expected = {path for path, _ in leaves(plainly) if path[0] == part and deciding_of(plainly, path)}
        assert refused == expected - APART
    if part == "large":
        assert len(refused) > 30 and ("large", "num_steps") in refused and ("large", "model", "dim") in refused
    if part == "packing":
        assert len(refused) > 4


def test_the_command_leaves_with_two_and_tells_the_remedies(run, capsys, monkeypatch):
    """And the record of the run says what it said before."""
    runs, manifest = run
    before = contents(runs / "run")
    other = dataclasses.replace(at(recipe(), manifest), large=dataclasses.replace(recipe().large, num_steps=6))
    other = dataclasses.replace(other, runtime=dataclasses.replace(other.runtime, num_threads=0))
    launch = dataclasses.replace(command.parse(["real", "--corpus.manifest", "x", "--runs", str(runs)]), recipe=other)
    monkeypatch.setattr(command, "parse", lambda argv, prog: launch)
    assert command.main([]) == 2
    said = capsys.readouterr().err
    for words in ("config.train.num_steps: 4 -> 6", "--name NEW", "--extend", "--rerun large_baseline"):
        assert words in said
    assert contents(runs / "run").keys() == before.keys()
    assert all(text == before[name] for name, text in contents(runs / "run").items() if name != "lock")


@pytest.fixture()
def rewritten(run):
    """The manifest of the run, with other words in it for a while."""
    _, manifest = run
    before = manifest.read_text()
    manifest.write_text(before.replace("small book", "large book"))
    yield manifest
    manifest.write_text(before)


@pytest.mark.parametrize("done", [True, False], ids=["finished", "half-finished"])
def test_documents_of_another_place_are_refused(run, tmp_path, monkeypatch, done):
    """The run went on, or said that it was done, and its record named documents that it had never seen."""
    runs, manifest = run
    shutil.copytree(runs / "run", tmp_path / "runs" / "run")
    folder, other = tmp_path / "runs" / "run", tmp_path / "other.jsonl"
    if not done:
        (folder / "large_baseline" / "done").unlink()
    before = contents(folder)
    other.write_text(manifest.read_text().replace("small book", "large book"))
    monkeypatch.setattr(train_stage, "Trainer", mock.Mock(side_effect=TrainingInterrupted("here")))
    with pytest.raises(
        ProtectedStageError, match=rf"corpus.manifest: {manifest} -> {other}\): give --name NEW .* --rerun large_base"
    ):
        train.run_pipeline(at(recipe(), other), runs=tmp_path / "runs")
    with pytest.raises(ProtectedStageError, match=rf"corpus.manifest: {manifest} -> the synthetic corpus\)"):
        train.run_pipeline(at(recipe(), None), runs=tmp_path / "runs")
    after = contents(folder)
    assert {name: after[name] for name in before if name != "lock"} == {n: before[n] for n in before if n != "lock"}
    # the same documents may have been moved
    other.write_text(manifest.read_text())
    with contextlib.nullcontext() if done else pytest.raises(TrainingInterrupted):
        train.run_pipeline(at(recipe(), other), runs=tmp_path / "runs")


def test_the_way_out_names_what_the_command_does_not_train(run, rewritten, tmp_path, caplog):
    """--rerun small was told, and refused because the arms left it out."""
    runs, _ = run
    shutil.copytree(runs / "run", folder := tmp_path / "runs" / "run")
    (folder / "small" / "checkpoints" / "step_00000002").mkdir(parents=True)
    shutil.copy(folder / "large_baseline" / "stage.json", folder / "small")
    train.run_pipeline(at(recipe(), rewritten), runs=tmp_path / "runs")
    assert "--rerun large_baseline small (and --arms baseline salt, which trains small) to" in caplog.text


@pytest.mark.parametrize("done", [True, False], ids=["finished", "half-finished"])
def test_changed_documents_are_told_and_the_old_corpus_stays(run, rewritten, tmp_path, monkeypatch, caplog, done):
    """A half-finished run could not go on once a line was added; what a model was trained on is not taken away."""
    runs, _ = run
    shutil.copytree(runs / "run", tmp_path / "runs" / "run")
    folder = tmp_path / "runs" / "run"
    if not done:
        (folder / "large_baseline" / "done").unlink()
    before = contents(folder)
    monkeypatch.setattr(train_stage, "Trainer", went_on := mock.Mock(side_effect=TrainingInterrupted("here")))
    with caplog.at_level(logging.WARNING), contextlib.nullcontext() if done else pytest.raises(TrainingInterrupted):
        train.run_pipeline(at(recipe(), rewritten), runs=tmp_path / "runs")
    assert went_on.called is not done
    assert (
        "encoded: changed since (manifest), and kept as it was, because large_baseline was trained on it" in caplog.text
    )
    after = contents(folder)
    assert {
        name for name in before if name.startswith(("encoded", "large")) and after.get(name) != before[name]
    } == set()
    assert list(json.loads((folder / "kept_stale.json").read_text())) == ["encoded"]
    if done:
        assert "kept as it was, because large_baseline was trained on it" in (folder / "report.html").read_text()


def test_redo_takes_the_changed_documents(run, tmp_path, monkeypatch):
    """Asked for by name, the corpus is encoded again."""
    runs, manifest = run
    shutil.copytree(runs / "run", tmp_path / "runs" / "run")
    folder = tmp_path / "runs" / "run"
    more = tmp_path / "manifest.jsonl"
    more.write_text(manifest.read_text().replace("small book", "large book"))
    monkeypatch.setattr(train_stage, "Trainer", mock.Mock(side_effect=TrainingInterrupted("here")))
    old = json.loads((folder / "encoded" / "done").read_text())
    with pytest.raises(TrainingInterrupted):
        train.run_pipeline(at(recipe(), more), runs=tmp_path / "runs", rerun=("large_baseline",))
    assert json.loads((folder / "encoded" / "done").read_text())["digest"] != old["digest"]
    assert (folder / "large_baseline.old-1" / "done").exists()
    assert json.loads((folder / "kept_stale.json").read_text()) == {}


def test_weights_that_somebody_took_are_told_with_a_way_out(run, tmp_path, monkeypatch):
    """The remedy was to run train.py, which skipped the stage that was done."""
    runs, manifest = run
    shutil.copytree(runs / "run", tmp_path / "runs" / "run")
    folder = tmp_path / "runs" / "run"
    shutil.rmtree(folder / "large_baseline" / "model")
    # nobody asks for them as long as everything is done
    assert train.run_pipeline(at(recipe(), manifest), runs=tmp_path / "runs")
    (folder / "evaluate" / "done").unlink()
    with pytest.raises(ValueError, match=r"model has no weights any more: put them back, or give --rerun large_base"):
        train.run_pipeline(at(recipe(), manifest), runs=tmp_path / "runs")
    monkeypatch.setattr(train_stage, "Trainer", mock.Mock(side_effect=TrainingInterrupted("here")))
    with pytest.raises(TrainingInterrupted):
        train.run_pipeline(at(recipe(), manifest), runs=tmp_path / "runs", rerun=("large_baseline",))
