"""The training stages of a recipe: their names, the settings that affect their results, and whether those changed.

`check_trained_stages` compares a recipe with a run folder first, so that a command which would have to
train a finished model again is refused within a second. Digests of stages that the command is about to do are compared
when the stage is reached (`brine.pipeline.stages.stage_store`).
"""

import dataclasses
from pathlib import Path
from typing import Any

from brine.common.files import differences, read_json
from brine.data.packing.mixture import Mixture
from brine.pipeline.inputs.locations import location_of, locations_before, recorded_corpus
from brine.pipeline.recipe import MODEL_STAGES, Recipe
from brine.pipeline.stages.stage_backup import (
    DONE_FILE,
    STAGE_FILE,
    ProtectedStageError,
    extension_refusal,
    refusal_message,
)
from brine.pipeline.stages.stage_store import StageStore, logger
from brine.salt.config import SelectionConfig
from brine.training.checkpoint.extend import check_extension, check_schedule, was_extended
from brine.training.config import TrainConfig
from brine.training.runtime import Runtime

STORE = "store"
"""The corpus, in the folder of the encoded stage."""
TRAIN_REVISION = 1
"""Of the code of the training stages: raise it where equal settings and inputs give other weights on one machine."""
SELECT_REVISION = 1
"""Likewise of `select`: where it would choose other documents."""
CORPUS_DEPENDENT_FIELDS = ("vocab_size", "image_dim", "audio_dim", "video_dim")


def model_stages_of(recipe: Recipe) -> list[str]:
    """The training stages of this recipe, in order."""
    asked = {"small": "salt", "large_salt": "salt", "large_baseline": "baseline"}
    return [name for name in MODEL_STAGES if asked[name] in recipe.arms]


def untrained_stages_of(recipe: Recipe) -> dict[str, str]:
    """The training stages that this recipe leaves out, with the option that makes it train them."""
    return {name: "--arms baseline salt" for name in MODEL_STAGES if name not in model_stages_of(recipe)}


def check_same_documents(store: StageStore, path: Path | None, *, digest: str, source: Path | None = None) -> None:
    """Refuse to train on other documents under the name of a run. All ranks call it; raises ProtectedStageError.

    path: of the documents, or their URL; None for a synthetic corpus made from `source`. digest: of their manifest, or
    of the source; both may have been moved, and what changed at the place where the run had them is theirs still.
    """
    folder, trouble = store.folder / "encoded", None
    begun = (read_json(folder / STAGE_FILE) or {}).get("inputs") or {}
    recorded, stored = recorded_corpus(store.folder), (read_json(folder / STORE / "meta.json") or {}).get("manifest")
    locations = locations_before(recorded.get("manifest"), stored)
    before = locations[0] if locations else ""
    if "filter_log" in begun:
        before, is_other = "a built corpus", True
    elif "manifest" in begun:
        is_other = path is None or (begun["manifest"] != digest and location_of(path) not in locations)
    else:
        before, is_other = "the synthetic corpus", "corpus" in begun and path is not None
    changes = [f"corpus.manifest: {before} -> {'the synthetic corpus' if path is None else path}"]
    if path is None and not is_other:
        made = (read_json(store.folder / "corpus" / STAGE_FILE) or {}).get("inputs") or {}
        before = recorded.get("source")
        same_place = before == source or (before and source and location_of(before) == location_of(source))
        is_other = made.get("source", digest) != digest and not same_place
        changes = [f"corpus.source: {before} -> {source}"]
    if store.world.is_main and is_other and (folder / DONE_FILE).exists():
        kept = [name for name in store.dependents_of("encoded") if name not in store.rerun]
        if kept:
            trouble = refusal_message(store, kept, changes)
    if trouble := store.world.broadcast(trouble):
        raise ProtectedStageError(trouble)


def train_config_of(recipe: Recipe, name: str) -> TrainConfig:
    """A training stage's run; where documents are selected the small model's early checkpoint is kept."""
    if name != "small":
        return recipe.large
    small = recipe.small
    keep = (recipe.salt.scoring_step(small.num_steps),) if recipe.salt.selection else ()
    return dataclasses.replace(small, keep_checkpoint_steps=(*small.keep_checkpoint_steps, *keep))


def stage_settings(recipe: Recipe, name: str, *, config: TrainConfig, runtime: Runtime) -> dict[str, Any]:
    """A training stage's configuration, which identifies the stage beside its inputs (`brine.common.config_fields`)."""
    settings = {"train": config, "packing": recipe.packing, "seed": recipe.seed, "runtime": runtime}
    if weights := recipe.corpus.source_weights:
        settings["source_weights"] = weights
    return {**settings, "salt": recipe.salt} if name == "large_salt" else settings


def stage_inputs(recipe: Recipe, name: str, *, corpus_stages: list[str]) -> list[str]:
    """Names of the stages that a training stage is made from; corpus_stages: those of the documents."""
    if name != "large_salt":
        return corpus_stages
    return [*corpus_stages, "small"] + (["select"] if recipe.salt.selection else [])


def selection_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that affect which documents are selected."""
    return {"salt": SelectionConfig.of(recipe.salt), "packing": recipe.packing}


def check_trained_stages(recipe: Recipe, *, store: StageStore, runtime: Runtime, extend: bool = False) -> None:
    """Refuse before anything is done what would have to train a model again. All ranks call it.

    extend: a stage may continue with more steps, where it can. Vocabulary and widths follow from the corpus, and are
    not compared here. A stage whose input will be trained again counts as changed: another machine or number of ranks
    gives other bits. Raises ProtectedStageError, and ValueError where `store.rerun` names another recipe's stage.
    """
    names = model_stages_of(recipe)
    if unknown := sorted(store.rerun - set(names)):
        raise ValueError(f"--rerun {unknown[0]}: this recipe trains {', '.join(names)}, by its arms")
    changed: dict[str, list[str]] = {}
    again: set[str] = set()
    for name in names:
        begun = store.begun(name)
        if begun is None:
            continue
        if found := _changes(recipe, name, begun, changed={*changed, *again}, runtime=runtime):
            changed[name] = found
        if name in store.rerun or not store.is_finished(name):
            again.add(name)
    refused = [name for name in changed if name not in store.rerun]
    trouble = None
    if refused and extend:
        for name in refused:
            try:
                if lost := [each for each in changed[name] if each.startswith("inputs.")]:
                    raise ValueError(f"it would be made from something else ({'; '.join(lost)})")
                begun = (store.begun(name) or {})["config"]
                before = config_before_extension(recipe, name, begun=begun, changes=changed[name])
                check_extension(before, train_config_of(recipe, name))
            except ValueError as error:
                trouble = extension_refusal(store, name, str(error), also=refused)
                break
    elif refused:
        changes = list(dict.fromkeys(each for name in refused for each in changed[name]))
        trouble = refusal_message(store, refused, changes)
    elif extend and not any(was_extended(store.folder / name) and not store.is_finished(name) for name in names):
        more = f"--large.num-steps {2 * recipe.large.num_steps}"
        (logger.warning if store.world.is_main else logger.debug)(
            "--extend: no stage has more steps than before, so there is nothing to extend; give more, such as %s", more
        )
    # rank 0 decides, and all ranks leave
    if trouble := store.world.broadcast(trouble):
        raise ProtectedStageError(trouble)


def _changes(recipe: Recipe, name: str, begun: dict, *, changed: set[str], runtime: Runtime) -> list[str]:
    """What differs from the key that a stage was begun with; changed: stages before it that may not be the same."""
    config, settings, inputs = train_config_of(recipe, name), begun.get("config"), begun.get("inputs")
    if not isinstance(settings, dict) or not isinstance(inputs, dict) or "train" not in settings:
        return []
    model = settings["train"].get("model", {})
    kept = {field: model[field] for field in CORPUS_DEPENDENT_FIELDS if field in model}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **kept))
    found = differences(settings, stage_settings(recipe, name, config=config, runtime=runtime), name="config")
    corpus_stages = ["encoded", "filtered"] if recipe.corpus.filters else ["encoded"]
    asked = set(stage_inputs(recipe, name, corpus_stages=corpus_stages))
    found += [f"inputs.{each}: new" for each in sorted(asked - set(inputs))]
    found += [f"inputs.{each}: gone" for each in sorted(set(inputs) - asked)]
    return found + [f"inputs.{each}: changed" for each in sorted(asked & set(inputs) & changed)]


def config_before_extension(recipe: Recipe, name: str, *, begun: dict[str, Any], changes: list[str]) -> TrainConfig:
    """The run that a stage was begun with, if it differs from the recipe's in its number of steps alone.

    begun: its configuration; changes: the differences. Raises ValueError that names what else changed, or a setting by
    which sequences or soft labels depend on the number of steps.
    """
    config = train_config_of(recipe, name)
    old = dataclasses.replace(config, num_steps=begun["train"]["num_steps"])
    # first what no setting can change, last what one can
    check_schedule(dataclasses.replace(old, schedule=begun["train"].get("schedule", old.schedule)), config.num_steps)
    allowed = ["config.train.num_steps: "]
    if name == "large_salt":
        allowed += ["config.salt.kd_steps: ", "config.salt.kd_fraction: "]
    if others := [each for each in changes if not each.startswith(tuple(allowed))]:
        raise ValueError(f"more than the number of steps changed ({'; '.join(others)})")
    if not Mixture.parse(recipe.packing.mixture).constant:
        raise ValueError("packing.mixture changes along the run, so that other sequences would have come first")
    if len(recipe.packing.length_schedule) > 1:
        raise ValueError("packing.length_schedule follows the run's progress, so that lengths would have grown later")
    if name == "large_salt":
        kept, now = begun["salt"], recipe.salt.num_kd_steps(config.num_steps)
        before = round(kept["kd_fraction"] * old.num_steps) if kept["kd_steps"] is None else kept["kd_steps"]
        if min(before, old.num_steps) != now:
            raise ValueError(f"the small model helped for {before} steps, not {now}: give --salt.kd-steps {before}")
    return old
