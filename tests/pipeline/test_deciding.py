"""Every field of a recipe decides what comes out or does not, and only those that do stand against going on.

`--large.log-every 5` on a run of a day was refused like another learning rate. What is asked here is what a command
finds before it does anything (`brine.pipeline.model_stages.check_trained_stages`): folders of trained stages are made
up from their keys.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from brine.common.config_fields import affects_result
from brine.common.files import deciding
from brine.data.config import EncodeConfig
from brine.evals.config import EvalConfig
from brine.model.config import ModelConfig
from brine.pipeline.model_stages import (
    check_trained_stages,
    model_stages_of,
    stage_inputs,
    stage_settings,
    train_config_of,
)
from brine.pipeline.recipe import PackingConfig, Recipe
from brine.pipeline.stages.stage_backup import ProtectedStageError
from brine.pipeline.stages.stage_store import StageStore
from brine.salt.config import SaltConfig
from brine.synth import SynthConfig
from brine.training.config import RuntimeConfig, TrainConfig
from brine.training.logging.metrics import append_event
from brine.training.runtime import Runtime
from tests.pipeline.test_protected_stages import changed, leaves

ASIDE = {
    TrainConfig: {"log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "max_rollbacks", "init_from"},
    PackingConfig: {"max_excluded_fraction"},
    SynthConfig: {"workers", "source"},
    EvalConfig: {"validation_per_cell", "max_report_mib"},
    Runtime: {
        "remote_checkpoints",
        "reasons",
        "activation_checkpointing",
        "ac_group_size",
        "mlp_tile_tokens",
        "num_loader_workers",
        "profile",
    },
    ModelConfig: set(),
    EncodeConfig: set(),
    SaltConfig: set(),
}
"""Fields that decide nothing of what comes out; whoever adds one says so in two places, of which this is the second."""
WHERE = {
    (TrainConfig, "decay_steps"): ({"schedule": "wsd"}, {"schedule": "cosine"}),
    (TrainConfig, "decay_fraction"): ({"schedule": "wsd"}, {"schedule": "wsd", "decay_steps": 3}),
    (TrainConfig, "init_optimizer"): ({"init_from": "runs/a"}, {}),
    (TrainConfig, "muon_momentum"): ({"optimizer": "muon"}, {"optimizer": "adamw"}),
    (TrainConfig, "spike_window"): ({"grad_norm_spike_factor": 3.0}, {}),
    (SaltConfig, "kd_fraction"): ({}, {"kd_steps": 4}),
    **{
        (SaltConfig, name): ({"selection": True}, {"selection": False})
        for name in (
            "selection_fraction",
            "selection_per_kind",
            "top_k",
            "min_learnable_tokens",
            "scoring_checkpoint_fraction",
        )
    },
    (Runtime, "num_threads"): ({"device": "cpu"}, {"device": "cuda"}),
}


@pytest.mark.parametrize("kind", ASIDE, ids=lambda kind: kind.__name__)
def test_what_decides_is_declared(kind):
    told = {each for config, each in WHERE if config is kind}
    always = {field.name for field in dataclasses.fields(kind) if affects_result(field, kind())}
    never = {field.name for field in dataclasses.fields(kind)} - always - told
    assert never == ASIDE[kind]


@pytest.mark.parametrize(("of", "settings"), WHERE.items(), ids=lambda value: str(value[-1]))
def test_what_decides_under_a_condition(of, settings):
    kind, name = of
    with_it, without = (name in deciding(kind(**values)) for values in settings)
    assert with_it and not without


RUNTIME = Runtime()


def recipe(**changes) -> Recipe:
    tiny = TrainConfig(model=ModelConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=16),
                       num_steps=20, global_batch_size=2, micro_batch_size=2, warmup_steps=1)  # fmt: skip
    fields = {"name": "run", "small": tiny, "large": tiny, "salt": SaltConfig(selection=True)}
    return Recipe(**{**fields, **changes})


def make_up(folder: Path, value: Recipe, *, names=None, half=(), key=deciding) -> None:
    """Stages as they lie there when they were trained, in as many bytes as it takes. half: those that were cut off."""
    for name in names or model_stages_of(value):
        stage = folder / name
        (stage / "checkpoints" / "step_00000004").mkdir(parents=True)
        settings = stage_settings(value, name, config=train_config_of(value, name), runtime=RUNTIME)
        begun = {
            "config": key(settings),
            "inputs": dict.fromkeys(stage_inputs(value, name, corpus_stages=["encoded"]), "digest"),
        }
        (stage / "stage.json").write_text(json.dumps(begun))
        if name not in half:
            (stage / "model").mkdir()
            (stage / "model" / "model.safetensors").write_bytes(b"weights")
            (stage / "done").write_text(json.dumps({"key": begun}))


def is_refused(folder: Path, value: Recipe, runtime: Runtime = RUNTIME, **options) -> bool:
    before = sorted(folder.rglob("*"))
    try:
        with StageStore(folder) as line:
            check_trained_stages(value, store=line, runtime=runtime, **options)
        return False
    except ProtectedStageError:
        return True
    finally:
        assert [path for path in sorted(folder.rglob("*")) if path.name != "lock"] == [
            path for path in before if path.name != "lock"
        ]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "half-finished"])
@pytest.mark.parametrize("part", ["small", "large", "packing", "salt", "seed"])
def test_changed_fields_that_decide_are_refused_and_others_are_not(tmp_path, part, finished):
    plainly = recipe()
    if finished:
        make_up(tmp_path, plainly)
    elif part == "small":
        make_up(tmp_path, plainly, names=["small"], half=["small"])
    else:
        make_up(tmp_path, plainly, names=["small", "large_salt"], half=["large_salt"])
    assert not is_refused(tmp_path, plainly)
    tried = 0
    for path, _ in leaves(plainly):
        if path[0] != part or path[1:] in {("model", "vocab_size"), *(("model", f"{name}_dim") for name in
                                                                      ("image", "audio", "video"))}:  # fmt: skip
            # these follow from the corpus
            continue
        if path[1:] in {("init_optimizer",), ("init_digest",)}:
            # these need given weights (test_sources.py)
            continue
        other, config = changed(plainly, path), plainly
        for name in path[:-1]:
            config = getattr(config, name)
        field = next(each for each in dataclasses.fields(config) if each.name == path[-1])
        assert is_refused(tmp_path, other) == affects_result(field, config), path
        tried += 1
    assert tried >= {"seed": 1, "salt": 9, "packing": 8}.get(part, 35)


@pytest.mark.parametrize(
    ("rerun", "lost", "refused"),
    [
        ((), (), False),
        (("small",), (), True),
        (("small", "large_salt"), (), False),
        (("large_salt",), (), False),
        (("large_baseline",), (), False),
        ((), ("small/done", "small/model/model.safetensors"), True),
        (("large_salt",), ("small/done", "small/model/model.safetensors"), False),
        # the mark alone, or weights that somebody took elsewhere: nothing is trained
        ((), ("small/done",), False),
        ((), ("small/model/model.safetensors",), False),
    ],
    ids=["nothing", "small", "both", "large", "baseline", "small-half-done", "small-half-done-large-too", "no-mark",
         "weights-moved"],
)  # fmt: skip
def test_what_stands_on_a_model_that_is_trained_again_is_refused_first(tmp_path, rerun, lost, refused):
    """`--rerun small` with the same settings gives other bits on another machine; it said so after hours of
    training."""
    make_up(tmp_path, recipe())
    for path in lost:
        (tmp_path / path).unlink()
    with StageStore(tmp_path, rerun=rerun) as line:
        if not refused:
            return check_trained_stages(recipe(), store=line, runtime=RUNTIME)
        with pytest.raises(ProtectedStageError) as told:
            check_trained_stages(recipe(), store=line, runtime=RUNTIME)
    assert "large_salt is trained already" in str(told.value) and "inputs.small: changed" in str(told.value)
    assert f"--rerun {' '.join((*rerun, 'large_salt'))} to train again" in str(told.value)


def changed_run(**steps):
    """The recipe with another seed of one model, or other numbers of steps."""
    return recipe(**{
        name: dataclasses.replace(getattr(recipe(), name), **({"seed": 7} if value == "seed" else {"num_steps": value}))
        for name, value in steps.items()
    })  # fmt: skip


@pytest.mark.parametrize("extend", [False, True], ids=["", "extend"])
@pytest.mark.parametrize(
    ("value", "rerun"),
    [
        (changed_run(small="seed"), ()),
        (changed_run(small="seed"), ("small",)),
        (changed_run(small="seed"), ("large_salt",)),
        (changed_run(large=30), ("large_baseline",)),
        (changed_run(large=30), ("large_salt",)),
        (changed_run(large=30, small="seed"), ("large_baseline",)),
        (recipe(seed=5), ("small",)),
    ],
    ids=["small", "small-redo-small", "small-redo-salt", "large-redo-baseline", "large-redo-salt", "both", "seed"],
)
def test_the_way_out_that_is_told_is_one(tmp_path, value, rerun, extend):
    """Each refusal named one stage, and following it led to the next refusal, and back."""
    make_up(tmp_path, recipe())
    with StageStore(tmp_path, rerun=rerun) as line, pytest.raises(ProtectedStageError) as told:
        check_trained_stages(value, store=line, runtime=RUNTIME, extend=extend)
    way = re.search(r"--rerun ([a-z_ ]+) to train again \(what is there is renamed: (.+?)\)", str(told.value))
    every = way[1].split()
    assert set(rerun) <= set(every)
    # the names that the folders will get
    assert way[2] == ", ".join(f"{name} to {name}.old-1" for name in every)
    with StageStore(tmp_path, rerun=every) as line:
        check_trained_stages(value, store=line, runtime=RUNTIME, extend=extend)


@pytest.mark.parametrize("kept", [["small.old-1"], ["small.old-1", "small.old-2", "large_salt.old-1"]], ids=len)
def test_the_names_that_folders_will_get_are_told(tmp_path, kept):
    make_up(tmp_path, recipe())
    for name in kept:
        (tmp_path / name).mkdir()
    with StageStore(tmp_path) as line, pytest.raises(ProtectedStageError) as told:
        check_trained_stages(changed_run(small="seed"), store=line, runtime=RUNTIME)
    for name in ("small", "large_salt"):
        number = sum(each.startswith(f"{name}.") for each in kept) + 1
        assert f"{name} to {name}.old-{number}" in str(told.value)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("salt", [SaltConfig(selection=True), SaltConfig(kd_fraction=0.3)], ids=["selection", "share"])
def test_what_no_setting_mends_is_told_first(tmp_path, schedule, salt):
    """--salt.kd-steps was offered, and refused because of the schedule once it was given."""
    large = dataclasses.replace(recipe().large, schedule=schedule)
    make_up(tmp_path, recipe(large=large, salt=salt))
    longer = recipe(large=dataclasses.replace(large, num_steps=30), salt=salt)
    with StageStore(tmp_path) as line, pytest.raises(ProtectedStageError, match=f'schedule = "{schedule}"') as told:
        check_trained_stages(longer, store=line, runtime=RUNTIME, extend=True)
    assert "kd-steps" not in str(told.value)


@pytest.mark.parametrize("half", [[], ["large_salt"]], ids=["finished", "half-finished"])
@pytest.mark.parametrize("schedule", ["linear", "wsd"])
def test_nothing_to_extend_is_told(tmp_path, caplog, schedule, half):
    value = recipe(large=dataclasses.replace(recipe().large, schedule=schedule))
    make_up(tmp_path, value, names=["small", "large_salt"], half=half)
    for extend in (False, True):
        with StageStore(tmp_path) as line:
            check_trained_stages(value, store=line, runtime=RUNTIME, extend=extend)
        assert ("nothing to extend" in caplog.text) == extend


@pytest.mark.parametrize("half", [[], ["large_salt"]], ids=["finished", "half-finished"])
def test_a_stage_that_is_being_extended_goes_on_without_a_word(tmp_path, caplog, half):
    """The command that was cut off, given again, was answered that there is nothing to extend."""
    value = recipe(large=dataclasses.replace(recipe().large, schedule="wsd"))
    make_up(tmp_path, value, names=["small", "large_salt"], half=half)
    append_event(tmp_path / "large_salt", "extended", step=4, num_steps=20)
    with StageStore(tmp_path) as line:
        check_trained_stages(value, store=line, runtime=RUNTIME, extend=True)
    assert ("nothing to extend" in caplog.text) == (not half)


def test_a_stage_that_the_recipe_does_not_train_cannot_be_redone(tmp_path):
    with (
        StageStore(tmp_path, rerun=["small"]) as line,
        pytest.raises(ValueError, match="--rerun small: this recipe trains large_b"),
    ):
        check_trained_stages(recipe(arms=("baseline",)), store=line, runtime=RUNTIME)


@pytest.mark.parametrize("field", dataclasses.fields(Runtime), ids=lambda field: field.name)
def test_of_the_machine_only_what_changes_bits_is_refused(tmp_path, field):
    other = {"device": "cuda", "dtype": "bfloat16", "attention_backend": "reference", "loss_backend": "chunked",
             "activation_checkpointing": "full", "profile": (1, 2), "reasons": {"a": "b"}}  # fmt: skip
    value = getattr(RUNTIME, field.name)
    value = other.get(field.name, not value if isinstance(value, bool) else value if value == () else 7)
    make_up(tmp_path, recipe())
    refused = is_refused(tmp_path, recipe(), dataclasses.replace(RUNTIME, **{field.name: value}))
    assert refused == (field.name not in ASIDE[Runtime])


def test_a_request_is_settled_into_what_is_compared():
    """What the user may ask of the machine either is part of `Runtime` or is about time, tracing or sharing work."""
    asked = {field.name for field in dataclasses.fields(RuntimeConfig)}
    assert asked - {field.name for field in dataclasses.fields(Runtime)} == {
        "context_parallel",
        "dp_shard",
        "timeout_s",
    }
