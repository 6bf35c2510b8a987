"""Records of earlier runs and of other documents: what is the same run, and what is refused."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from brine.common.config_fields import operational
from brine.common.files import deciding, differences, to_plain
from brine.common.processes import StopSignal, TrainingInterrupted
from brine.data.config import EncodeConfig
from brine.pipeline.model_stages import (
    check_same_documents,
)
from brine.pipeline.stages.stage_backup import ProtectedStageError
from brine.pipeline.stages.stage_store import StageStore
from brine.salt.config import SaltConfig, SelectionConfig
from brine.training.config import TrainConfig
from tests.pipeline.test_deciding import ASIDE, is_refused, make_up, recipe
from tests.pipeline.test_protected_stages import changed
from tests.training.tiny_run import events, final_bytes, timeless, tiny_config, tiny_train

ORIGINS = {
    "another folder": ({"manifest": "old"}, ("/b/m.jsonl", "new", None), "corpus.manifest: /a/m.jsonl -> /b/m.jsonl"),
    "moved": ({"manifest": "old"}, ("/b/m.jsonl", "old", None), ""),
    "changed": ({"manifest": "old"}, ("/a/m.jsonl", "new", None), ""),
    "a corpus that was built": (
        {"corpus": "x", "filter_log": "y"},
        ("/a/m.jsonl", "new", None),
        "a built corpus -> /a/m",
    ),
    "none after one": ({"manifest": "old"}, (None, "new", "/s"), "corpus.manifest: /a/m.jsonl -> the synthetic corpus"),
    "one after none": (
        {"corpus": "x"},
        ("/b/m.jsonl", "new", None),
        "corpus.manifest: the synthetic corpus -> /b/m.jsonl",
    ),
    "another source": ({"corpus": "x"}, (None, "new", "/t"), "corpus.source: /s -> /t"),
    "a source moved": ({"corpus": "x"}, (None, "source", "/t"), ""),
    "a source changed": ({"corpus": "x"}, (None, "new", "/s"), ""),
    "no source after one": ({"corpus": "x"}, (None, "new", None), "corpus.source: /s -> None"),
}


@pytest.mark.parametrize("rerun", [(), ("large_baseline",)], ids=["", "rerun"])
@pytest.mark.parametrize(("inputs", "now", "told"), ORIGINS.values(), ids=ORIGINS)
def test_other_documents_are_another_run(tmp_path, inputs, now, told, rerun):
    make_up(tmp_path, recipe(arms=("baseline",)))
    (tmp_path / "encoded/store").mkdir(parents=True)
    (tmp_path / "encoded/done").write_text("{}")
    (tmp_path / "encoded/stage.json").write_text(json.dumps({"inputs": inputs}))
    (tmp_path / "encoded/store/meta.json").write_text(json.dumps({"manifest": "/a/m.jsonl"}))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/stage.json").write_text(json.dumps({"inputs": {"source": "source"}}))
    (tmp_path / "recipe.json").write_text(json.dumps({"corpus": {"source": "/s"}}))
    path, digest, source = now
    with StageStore(tmp_path, rerun=rerun) as line:
        if told and not rerun:
            with pytest.raises(ProtectedStageError, match=re.escape(told)):
                check_same_documents(line, path and Path(path), digest=digest, source=source and Path(source))
        else:
            check_same_documents(line, path and Path(path), digest=digest, source=source and Path(source))


def before(settings):
    """The key of the same stage as it was written before: every field, in its own way."""
    settings = to_plain(settings)
    settings["packing"].pop("max_excluded_fraction")
    for name in (
        "reasons",
        "activation_checkpointing",
        "ac_group_size",
        "mlp_tile_tokens",
        "profile",
        "num_loader_workers",
    ):
        settings["runtime"].pop(name)
    if settings["train"]["schedule"] != "wsd":
        settings["train"].pop("decay_steps"), settings["train"].pop("decay_fraction")
    return settings


@pytest.mark.parametrize("schedule", ["linear", "wsd"])
def test_runs_of_before_are_found(tmp_path, schedule):
    large = dataclasses.replace(recipe().large, schedule=schedule, log_every=7)
    make_up(tmp_path, recipe(large=large), key=before)
    assert not is_refused(tmp_path, recipe(large=large))
    assert not is_refused(tmp_path, recipe(large=dataclasses.replace(large, log_every=5, keep_checkpoints=1)))
    assert is_refused(tmp_path, recipe(large=dataclasses.replace(large, weight_decay=0.2)))


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 3
    new: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    every: int = operational(10)
    inner: Inner = Inner()
    listed: list = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"rate": 0.1, "every": 3, "inner": {"size": 3}}, Settings(), []),
        ({}, Settings(every=4), []),
        ({"rate": 0.1}, Settings(inner=Inner(new=(5,))), ['inner: new, {"size": 3, "new": [5]}']),
        ({"rate": 0.1, "inner": {"size": 3}}, Settings(inner=Inner(new=(5,))), ["inner.new: new, [5]"]),
        ({"rate": 0.1, "gone": 4}, Settings(), ["gone: gone, was 4"]),
        ({"rate": 0.2, "every": 4}, Settings(), ["rate: 0.2 -> 0.1"]),
        ({"inner": 5}, Settings(), ['inner: 5 -> {"size": 3, "new": [1, 2]}']),
        (None, {"a": Inner(size=1)}, ['value: null -> {"a": {"size": 1, "new": [1, 2]}}']),
        ({}, Settings(listed=[1]), ["listed: new, [1]"]),
        ({"a": {"rate": 0.1}, "b": "x"}, {"a": Settings(), "b": "x"}, []),
        ({"a": 1}, {"a": 1, "b": 2}, ["b: new, 2"]),
    ],
    ids=["field-added", "empty", "added-deeper", "added-inside", "removed", "changed", "of-another-kind", "no-key",
         "of-a-factory", "in-a-mapping", "mapping"],
)  # fmt: skip
def test_differences_from_what_was_written(old, new, lines):
    assert differences(old, new) == lines


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EncodeConfig)])
def test_a_stage_is_done_though_its_configuration_gained_a_field(tmp_path, name):
    """As if the field were new: what was encoded without it is what its default does; another value is not."""
    built = []

    def build(folder):
        built.append(1)
        return {"fingerprint": "f"}

    def line(config):
        with StageStore(tmp_path) as line:
            first = line.stage("encoded", build, config={"encode": config, "vocab_size": 9})
            return first.digest, line.stage("after", build, inputs=["encoded"]).skipped

    digest, _ = line(EncodeConfig())
    for path in (tmp_path / "encoded" / "stage.json", tmp_path / "encoded" / "done"):
        value = json.loads(path.read_text())
        del value.get("key", value)["config"]["encode"][name]
        path.write_text(json.dumps(value))
    assert line(EncodeConfig()) == (digest, True) and len(built) == 2
    assert line(changed(EncodeConfig(), (name,)))[1] is False and len(built) == 4


def test_a_stage_that_goes_on_keeps_the_name_it_was_begun_under(tmp_path):
    """What stands on it knows it by that name, whatever version of the key it has."""
    for every, mark in ((10, True), (20, False), (30, True)):
        if not mark:
            (tmp_path / "first" / "done").unlink()
        with StageStore(tmp_path) as line:
            line.stage("first", lambda folder: {"fingerprint": "f"}, config=Settings(every=every))
            skipped = line.stage("second", lambda folder: None, inputs=["first"]).skipped
        assert skipped == (every > 10)


@pytest.mark.parametrize(
    ("changes", "again"),
    [({"kd_steps": 6}, False), ({"distill_weight": 0.5, "temperature": 2.0}, False), ({"top_k": 3}, True),
     ({"selection_fraction": 0.9}, True)],
    ids=["length", "soft-labels", "learnable", "share"],
)  # fmt: skip
@pytest.mark.parametrize("key", [to_plain, deciding], ids=["of-before", "of-now"])
def test_documents_are_chosen_again_only_where_the_choice_depends_on_it(changes, again, key):
    """Soft labels for 6 steps in place of 0.3 of 20, as `--extend` asks, had them chosen again, and so was refused."""
    salt = SaltConfig(selection=True)
    old = key(SelectionConfig.of(salt)) if key is deciding else to_plain(salt)
    assert bool(differences(old, SelectionConfig.of(dataclasses.replace(salt, **changes)))) == again


def stopped(folder):
    return events(folder, "interrupted")[0]["step"]


@pytest.mark.parametrize("stopped_at", [3, 9])
def test_a_run_that_goes_on_with_other_records_ends_in_the_same_bits(tmp_path, stopped_at):
    """Every field that is declared to decide nothing has another value after the stop."""
    first, then = tiny_config(), tiny_config(
        log_every=5, validate_every=2, checkpoint_every=3, keep_checkpoints=1, max_rollbacks=9
    )  # fmt: skip
    assert {name for name, value in to_plain(first).items() if to_plain(then)[name] != value} == ASIDE[TrainConfig]
    with StopSignal() as stop, pytest.raises(TrainingInterrupted):
        tiny_train(tmp_path / "a", config=first, stop=stop,
                   on_step=lambda step: step == stopped_at and stop.request("SIGTERM"))  # fmt: skip
    tiny_train(tmp_path / "a", config=then, validate=lambda model, step, should_stop: {"loss": 1.0 / step})
    tiny_train(tmp_path / "b", config=first)
    assert final_bytes(tmp_path / "a") == final_bytes(tmp_path / "b")
    steps, stop = (
        [line["step"] for line in timeless(tmp_path / "a") if "validation" not in line],
        stopped(tmp_path / "a"),
    )
    assert steps == [step for step in (3, 6, 9, 12) if step <= stop] + [step for step in (5, 10, 12) if step > stop]
