"""Recipes with several sources, a given tokenizer and given weights: keys by digest, refusals, resuming."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from brine.common.files import read_json, read_jsonl
from brine.data.corpus.consent import count_sources
from brine.data.corpus.store import EncodedCorpus
from brine.data.formats.corpus_source import CorpusSource
from brine.data.tokenizer import train_tokenizer
from brine.pipeline import run as train
from brine.pipeline import train_stage
from brine.pipeline.inputs.pinned import load_tokenizer, tokenizer_digest
from brine.pipeline.recipe import CorpusConfig, Recipe
from brine.pipeline.stages.stage_backup import ProtectedStageError
from brine.synth import SynthConfig
from brine.synth.config import SynthCounts
from tests.data.encode_here import Here
from tests.training.checkpoint.test_extend import recipe as parse_recipe
from tests.training.tiny_run import final_bytes

pytestmark = pytest.mark.slow

STAGE = "large_baseline"


def pages(folder: Path, topic: str, *, count: int = 16) -> Path:
    """A manifest of short pages, an eighth of them for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"id": f"d{number}", "kind": "page", "split": ("validation", *["train"] * 7)[number % 8],
         "content": [{"type": "text", "text": f"page {number} of a small book about {topic}"}]}
        for number in range(count)
    ]  # fmt: skip
    file = folder / "pages.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(autouse=True)
def nothing_but_training(monkeypatch, caplog):
    """Nothing is evaluated, and nothing decodes in a process of its own."""
    monkeypatch.setattr(train.evaluate_stage, "report", lambda run: None)
    monkeypatch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)
    caplog.set_level(logging.INFO, logger="brine")


@pytest.fixture
def sources(tmp_path) -> tuple[CorpusSource, CorpusSource]:
    return (
        CorpusSource("wiki", pages(tmp_path / "wiki", "numbers"), 2.0, "public"),
        CorpusSource("own", pages(tmp_path / "own", "birds").parent, consent="own"),
    )


def asked(steps: int = 4, *, large: dict | None = None, **corpus) -> Recipe:
    """A tiny run of one arm."""
    found = parse_recipe(Path("none"), steps)
    corpus = {"vocab_size": 267, **corpus}
    return dataclasses.replace(
        found, corpus=CorpusConfig(**corpus), large=dataclasses.replace(found.large, **(large or {}))
    )


def skipped(caplog) -> set[str]:
    lines = {line.partition(":")[0] for line in caplog.messages if line.endswith("unchanged, skipped")}
    caplog.clear()
    return lines


def test_a_run_over_two_sources(sources, tmp_path, caplog):
    """Both are trained on by their weights; each is an input by name; where they lie does not matter."""
    run = train.run_pipeline(asked(sources=sources), runs=tmp_path / "runs")
    corpus = EncodedCorpus.open(run / "encoded" / "store")
    assert corpus.consent_classes == {"wiki": "public", "own": "own"}
    assert {name: each["documents"] for name, each in count_sources(corpus).items()} == {"wiki": 16, "own": 16}
    begun = read_json(run / "encoded" / "stage.json")
    assert begun["inputs"].keys() == {"source wiki", "source own", "media"}
    settings = read_json(run / STAGE / "stage.json")["config"]
    assert settings["source_weights"] == {"wiki": 2.0} and "source_weights" not in begun["config"]
    assert str(tmp_path) not in json.dumps([begun, settings])
    skipped(caplog)
    # moved, and one of them given by another path of the same words
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "wiki", moved)
    again = (dataclasses.replace(sources[0], path=moved / "pages.jsonl"), sources[1])
    train.run_pipeline(asked(sources=again), runs=tmp_path / "runs")
    assert skipped(caplog) == {"encoded", STAGE}
    recorded = read_json(run / "recipe.json")["corpus"]["sources"]
    assert [each["consent"] for each in recorded] == ["public", "own"]


def test_a_weight_decides_training_and_not_the_corpus(sources, tmp_path, caplog):
    runs = tmp_path / "runs"
    train.run_pipeline(asked(sources=sources), runs=runs)
    skipped(caplog)
    lighter = (dataclasses.replace(sources[0], weight=1.0), sources[1])
    with pytest.raises(ProtectedStageError, match=r"config\.source_weights: gone"):
        train.run_pipeline(asked(sources=lighter), runs=runs)
    train.run_pipeline(asked(sources=lighter), runs=runs, rerun=(STAGE,))
    assert skipped(caplog) == {"encoded"}


def test_a_changed_source_is_named(sources, tmp_path, caplog):
    runs = tmp_path / "runs"
    train.run_pipeline(asked(sources=sources), runs=runs)
    pages(tmp_path / "own", "trees")
    train.run_pipeline(asked(sources=sources), runs=runs)
    assert "encoded: changed since (source own), and kept as it was" in caplog.text
    # other words at another path are other documents
    elsewhere = (dataclasses.replace(sources[0], path=pages(tmp_path / "else", "stones")), sources[1])
    with pytest.raises(ProtectedStageError, match=r"source wiki: .*wiki/pages\.jsonl -> .*else/pages\.jsonl"):
        train.run_pipeline(asked(sources=elsewhere), runs=runs)
    with pytest.raises(ProtectedStageError, match=r"corpus\.sources: own is gone"):
        train.run_pipeline(asked(sources=sources[:1]), runs=runs)
    with pytest.raises(ProtectedStageError, match=r"corpus\.sources: more is new"):
        train.run_pipeline(asked(sources=(*sources, CorpusSource("more", tmp_path / "else"))), runs=runs)


@pytest.mark.parametrize("several", [False, True], ids=["manifest", "sources"])
def test_a_changed_copy_elsewhere_is_still_the_run_s_own(sources, tmp_path, caplog, several):
    """A run that links to what another one encoded from the first copy was refused once its own copy changed."""
    runs, copy = tmp_path / "runs", tmp_path / "copy"

    def corpus(folder: Path) -> dict:
        return {"sources": (CorpusSource("wiki", folder / "pages.jsonl"),)} if several else {
            "manifest": folder / "pages.jsonl"}  # fmt: skip

    train.run_pipeline(asked(**corpus(tmp_path / "wiki")), runs=runs)
    shutil.copytree(tmp_path / "wiki", copy)
    other = dataclasses.replace(asked(5, **corpus(copy)), name="other")
    train.run_pipeline(other, runs=runs)
    assert (runs / "other/encoded").resolve() == (runs / "run/encoded").resolve()
    pages(copy, "trees")
    train.run_pipeline(other, runs=runs)
    assert "encoded: changed since" in caplog.text and (runs / "other" / STAGE / "done").exists()
    # what the first copy says now is another run's matter
    pages(tmp_path / "wiki", "stones")
    with pytest.raises(ProtectedStageError, match=r"copy/pages\.jsonl -> .*wiki/pages\.jsonl"):
        train.run_pipeline(dataclasses.replace(other, corpus=asked(**corpus(tmp_path / "wiki")).corpus), runs=runs)


def test_a_manifest_and_sources_do_not_replace_each_other(sources, tmp_path):
    runs, sources = tmp_path / "runs", (dataclasses.replace(sources[0], weight=1.0), sources[1])
    train.run_pipeline(asked(sources=sources), runs=runs)
    with pytest.raises(ProtectedStageError, match=r"config\.sources: gone"):
        train.run_pipeline(asked(manifest=sources[0].path), runs=runs)
    shutil.rmtree(runs)
    train.run_pipeline(asked(manifest=sources[0].path), runs=runs)
    with pytest.raises(ProtectedStageError, match=r"corpus\.sources: wiki is new"):
        train.run_pipeline(asked(sources=sources), runs=runs)


def test_a_schedule_of_a_source_is_a_curriculum_of_the_run(sources, tmp_path, monkeypatch):
    """ "source:own" from nothing to everything, as `packing.mixture` gives it."""
    plans = []

    def build(*args, **options):
        plans.append(keep(*args, **options))
        return plans[-1]

    keep = train_stage.build_plan
    monkeypatch.setattr(train_stage, "build_plan", build)
    pages(tmp_path / "wiki", "numbers", count=160)
    pages(tmp_path / "own", "birds", count=160)
    asked_for = asked(60, sources=sources)
    # sequences that are nearly full, since a schedule follows the tokens
    packing = dataclasses.replace(asked_for.packing, seq_len=320, mixture=("source:own=0:0,1:8", "source:wiki=0:4,1:0"))
    run = train.run_pipeline(dataclasses.replace(asked_for, packing=packing), runs=tmp_path / "runs")
    corpus, plan = EncodedCorpus.open(run / "encoded" / "store"), plans[0]
    own = np.array([source == "own" for source in corpus.sources])[corpus.source]
    found = [own[plan.slice(first, first + 30).document].mean() for first in range(0, len(plan), 30)]
    # the schedule, and the weight 2 of wiki on top of it
    expected = [8 * at / (8 * at + 2 * 4 * (1 - at)) for at in (0.125, 0.375, 0.625, 0.875)]
    assert found == pytest.approx(expected, abs=0.08)
    assert plan.info["mixture"]["corpus:wiki"] == [[0.0, 2.0]]


def test_a_given_tokenizer_is_known_by_its_content(sources, tmp_path, caplog):
    runs, manifest = tmp_path / "runs", sources[0].path
    tokenizer = train_tokenizer(["other words than these pages have, other words"], 290)
    tokenizer.save(tmp_path / "tokenizer.json")
    run = train.run_pipeline(asked(manifest=manifest, tokenizer=str(tmp_path / "tokenizer.json")), runs=runs)
    corpus = EncodedCorpus.open(run / "encoded" / "store")
    assert tokenizer_digest(corpus.tokenizer) == tokenizer_digest(tokenizer)
    begun = read_json(run / "encoded" / "stage.json")["config"]
    assert begun["tokenizer"] == tokenizer_digest(tokenizer) and begun["vocab_size"] == tokenizer.vocab_size
    assert read_json(run / STAGE / "stage.json")["config"]["train"]["model"]["vocab_size"] == tokenizer.vocab_size
    skipped(caplog)
    # the same one by other names: of the run, of its corpus, of its model, of a registry
    resolve = {"champion": run / STAGE / "model", "0123abcd": run}.__getitem__
    for named in (run, run / "encoded" / "store", run / STAGE, run / STAGE / "model", "champion", "0123abcd"):
        again = asked(manifest=manifest, tokenizer=str(named))
        train.run_pipeline(again, runs=runs, resolve_model=resolve)
        assert skipped(caplog) == {"encoded", STAGE}, named
    with pytest.raises(ProtectedStageError, match=r"config\.tokenizer"):
        train.run_pipeline(asked(manifest=manifest), runs=runs)


def test_a_tokenizer_that_cannot_be_is_refused_before_anything_is_made(sources, tmp_path):
    runs, manifest = tmp_path / "runs", sources[0].path
    (tmp_path / "tokenizer.json").write_text("{}")
    for named, said in (
        (tmp_path / "tokenizer.json", "corpus.tokenizer: .*not a tokenizer.json"),
        (tmp_path / "gone", "corpus.tokenizer: .*gone does not exist"),
        (tmp_path / "wiki", "corpus.tokenizer: .*wiki holds no finished model"),
        ("champion", "corpus.tokenizer: 'champion' is no path and no model of the registry runs/registry"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            train.run_pipeline(asked(manifest=manifest, tokenizer=str(named)), runs=runs)
        assert "\n" not in str(error.value) and not runs.exists()


def test_a_built_corpus_has_its_own_tokenizer(sources, tmp_path):
    runs = tmp_path / "runs"
    run = train.run_pipeline(asked(manifest=sources[0].path), runs=runs)
    built = tmp_path / "built"
    shutil.copytree(run / "encoded" / "store", built)
    recipe = dataclasses.replace(asked(manifest=built, tokenizer=str(run)), name="same")
    assert load_tokenizer(str(train.run_pipeline(recipe, runs=runs) / STAGE)).vocab_size == 267
    train_tokenizer(["other words, other words"], 290).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="was built with another one: leave it out"):
        train.run_pipeline(asked(manifest=built, tokenizer=str(tmp_path / "tokenizer.json")), runs=runs)


def weights(folder: Path, step: int) -> dict[str, bytes]:
    (file,) = (folder / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")
    return {name.removeprefix("model/"): value.numpy().tobytes() for name, value in load_file(file).items()
            if name.startswith("model/")}  # fmt: skip


def test_training_begins_with_the_weights_of_another_run(sources, tmp_path, caplog):
    """Its step 0 is their last; the key holds their digest; the same digest elsewhere is the same stage."""
    runs, manifest = tmp_path / "runs", sources[1].path
    old = train.run_pipeline(asked(manifest=sources[0].path), runs=runs)
    given = {"keep_checkpoint_steps": (0,), "init_from": old}
    new = dataclasses.replace(asked(manifest=manifest, tokenizer=str(old), large=given), name="new")
    run = train.run_pipeline(new, runs=runs)
    assert weights(run / STAGE, 0) == weights(old / STAGE, 4) != weights(run / STAGE, 4)
    settings = read_json(run / STAGE / "stage.json")["config"]["train"]
    assert "init_from" not in settings and len(settings["init_digest"]) == 64 and not settings["init_optimizer"]
    skipped(caplog)
    shutil.copytree(old / STAGE / "model", tmp_path / "copy")
    given["init_from"] = "champion"
    moved = dataclasses.replace(asked(manifest=manifest, tokenizer="champion", large=given), name="new")
    train.run_pipeline(moved, runs=runs, resolve_model={"champion": tmp_path / "copy"}.__getitem__)
    assert skipped(caplog) == {"encoded", STAGE}
    # other weights under the same name are another training
    with pytest.raises(ProtectedStageError, match=r"config\.train\.init_digest"):
        train.run_pipeline(moved, runs=runs, resolve_model={"champion": run / STAGE / "model"}.__getitem__)
    with pytest.raises(ProtectedStageError, match=r"config\.train\.init_digest"):
        train.run_pipeline(dataclasses.replace(new, large=dataclasses.replace(new.large, init_from=None)), runs=runs)


def test_a_kept_optimizer_and_a_resumed_continuation(sources, tmp_path, monkeypatch):
    runs, manifest = tmp_path / "runs", sources[0].path
    old = train.run_pipeline(asked(manifest=manifest), runs=runs)
    given = {"keep_checkpoint_steps": (0,), "init_from": old, "init_optimizer": True, "checkpoint_every": 1}
    new = asked(manifest=manifest, tokenizer=str(old), large=given)
    whole = train.run_pipeline(dataclasses.replace(new, name="whole"), runs=runs)
    first = dict(load_file(next((whole / STAGE / "checkpoints" / "step_00000000").glob("*.safetensors"))))
    steps = {float(value) for name, value in first.items() if name.startswith("optimizer/") and name.endswith("step")}
    assert steps == {4.0}

    class Killed(Exception):
        pass

    def fail(config, step, real=train_stage.Trainer._apply):
        if config.step == 2:
            raise Killed
        real(config, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train_stage.Trainer, "_apply", fail)
        # elsewhere, or it would find the stage made
        train.run_pipeline(new, runs=tmp_path / "killed")
    killed = train.run_pipeline(new, runs=tmp_path / "killed")
    assert [line["event"] for line in read_jsonl(killed / STAGE / "events.jsonl")][:2] == ["started", "resumed"]
    assert final_bytes(killed / STAGE) == final_bytes(whole / STAGE)


def test_both_arms_and_the_teacher_begin_with_given_weights(sources, tmp_path):
    runs, manifest = tmp_path / "runs", sources[0].path
    both = dataclasses.replace(asked(manifest=manifest), arms=("salt", "baseline"))
    old = train.run_pipeline(both, runs=runs)
    again = dataclasses.replace(
        both, name="new", corpus=dataclasses.replace(both.corpus, tokenizer=str(old)),
        small=dataclasses.replace(both.small, init_from=old / "small", keep_checkpoint_steps=(0,)),
        large=dataclasses.replace(both.large, init_from=old / "large_salt", keep_checkpoint_steps=(0,)),
    )  # fmt: skip
    run = train.run_pipeline(again, runs=runs)
    assert weights(run / "small", 0) == weights(old / "small", 3)
    assert weights(run / "large_salt", 0) == weights(run / "large_baseline", 0) == weights(old / "large_salt", 4)
    # an arm that is left out is still found
    train.run_pipeline(dataclasses.replace(again, arms=("baseline",)), runs=runs)


def test_weights_that_do_not_fit_are_refused_before_anything_is_made(sources, tmp_path):
    runs, manifest = tmp_path / "runs", sources[0].path
    old = train.run_pipeline(asked(manifest=manifest), runs=runs)
    train_tokenizer(["other words, other words"], 290).save(tmp_path / "tokenizer.json")
    wider = dataclasses.replace(asked().large.model, dim=32)
    for large, corpus, said in (
        ({"model": wider}, {}, r"large\.init_from = .*run: its weights are of another shape .*in the model"),
        ({}, {"tokenizer": str(tmp_path / "tokenizer.json")}, "trained with another tokenizer .* --corpus.tokenizer"),
        ({"init_from": tmp_path / "gone"}, {}, r"large\.init_from: .*gone does not exist"),
        ({"optimizer": "muon", "init_optimizer": True}, {"tokenizer": str(old)}, "is of other optimizers"),
    ):
        new = asked(manifest=manifest, large={"init_from": old, **large}, **corpus)
        with pytest.raises(ValueError, match=said) as error:
            train.run_pipeline(dataclasses.replace(new, name="new"), runs=runs)
        assert "\n" not in str(error.value) and not (runs / "new").exists()


def test_a_tokenizer_trained_anew_is_compared_once_it_is_there(sources, tmp_path, caplog):
    """It is refused with what to do; the same documents give the same one, which will do."""
    runs = tmp_path / "runs"
    old = train.run_pipeline(asked(manifest=sources[0].path, vocab_size=280), runs=runs)
    new = asked(manifest=sources[1].path, vocab_size=280, large={"init_from": old})
    with pytest.raises(ValueError, match=f"another tokenizer than that of the documents.*--corpus.tokenizer {old}"):
        train.run_pipeline(dataclasses.replace(new, name="new"), runs=runs)
    assert not (runs / "new" / STAGE).exists() and "a tokenizer is trained on the documents" in caplog.text
    same = asked(manifest=sources[0].path, vocab_size=280, large={"init_from": old})
    assert (train.run_pipeline(dataclasses.replace(same, name="same"), runs=runs) / STAGE / "done").exists()


def test_the_synthetic_corpus_and_own_documents(sources, tmp_path):
    """With `corpus.source` as its source tree."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(6):
        (tree / f"m{number}.py").write_text(
            "".join(f"def f{n}(x):\n    return x + {n * number}\n\n\n" for n in range(60))
        )
    counts = SynthCounts(text=12, package=0, screenshot=(0, 0, 0, 0), narration=(0, 0, 0, 0), recording=(0, 0, 0, 0),
                         page=(0, 0, 0, 0))  # fmt: skip
    few = dataclasses.replace(counts, text=2)
    synth = SynthConfig(train=counts, validation=few, test=few, workers=1, chunk_bytes=300)

    run = train.run_pipeline(
        asked(source=tree, sources=(CorpusSource("synth"), sources[1]), synth=synth), runs=tmp_path / "runs"
    )
    corpus = EncodedCorpus.open(run / "encoded" / "store")
    counts = count_sources(corpus)
    assert corpus.consent_classes == {"synth": "own", "own": "own"} and counts["own"]["documents"] == 16
    assert counts["synth"]["train_documents"] > 0
    assert read_json(run / "encoded" / "stage.json")["inputs"].keys() >= {"source synth", "source own"}
