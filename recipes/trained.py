"""The training stages of a recipe: their names, what decides what they end with, and whether that has changed.

A trained model is named by its settings and by the stages that it was made from. `check_kept` compares these with what
a run folder holds before anything is done, so that a command which would have to train a finished model again is
refused at once, in a second, and not after the corpus was made anew. What cannot be known yet, the digests of stages
that this command is about to do, is compared when the stage is reached (`training.stages`).
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from data.mixture import Mixture
from recipes.recipe import TRAINED, Recipe
from training.aside import BEGUN, DONE, KeptError, not_extended, refusal
from training.config import TrainConfig
from training.extend import check_longer, check_schedule, was_extended
from training.files import differences, read_json
from training.runtime import Runtime
from training.stages import Line

logger = logging.getLogger("brine.line")

STORE = "store"
"""The corpus, in the folder of the encoded stage."""
FOLLOWING = ("vocab_size", "image_dim", "audio_dim", "video_dim")
"""Fields of a model that follow from the corpus."""


def trained_names(recipe: Recipe) -> list[str]:
    """The training stages of this recipe, in order."""
    asked = {"small": "salt", "large_salt": "salt", "large_baseline": "baseline"}
    return [name for name in TRAINED if asked[name] in recipe.arms]


def absent_names(recipe: Recipe) -> dict[str, str]:
    """The training stages that this recipe leaves out, with the option that makes it train them."""
    return {name: "--arms baseline salt" for name in TRAINED if name not in trained_names(recipe)}


def check_origin(line: Line, path: Path | None, *, digest: str, source: Path | None = None) -> None:
    """Refuse to train on other documents under the name of a run; a later state of the same ones is told elsewhere.

    path: of the documents, None for those that the workbench makes from `source`. digest: of their manifest, or of the
    source; both may have been moved. Raises KeptError; all ranks call it.
    """
    folder, trouble = line.folder / "encoded", None
    begun = (read_json(folder / BEGUN) or {}).get("inputs") or {}
    before = (read_json(folder / STORE / "meta.json") or {}).get("manifest", "")
    if "rounds" in begun:
        before, is_other = "a built corpus", True
    elif "manifest" in begun:
        is_other = path is None or (begun["manifest"] != digest and before != str(path.resolve()))
    else:
        before, is_other = "the workbench", "corpus" in begun and path is not None
    changes = [f"corpus.manifest: {before} -> {'the workbench' if path is None else path}"]
    if path is None and not is_other:
        made = (read_json(line.folder / "corpus" / BEGUN) or {}).get("inputs") or {}
        before = ((read_json(line.folder / "recipe.json") or {}).get("corpus") or {}).get("source")
        is_other = made.get("source", digest) != digest and before != (source and str(source))
        changes = [f"corpus.source: {before} -> {source}"]
    if line.world.is_main and is_other and (folder / DONE).exists():
        kept = [name for name in line.standing_on("encoded") if name not in line.redo]
        if kept:
            trouble = refusal(kept, changes=changes, redo=line.redo, folder=line.folder, absent=line.absent)
    if trouble := line.world.broadcast(trouble):
        raise KeptError(trouble)


def config_of(recipe: Recipe, name: str) -> TrainConfig:
    """A training stage's run; where documents are selected the small model's early checkpoint is kept."""
    if name != "small":
        return recipe.large
    small = recipe.small
    keep = (recipe.salt.early_step_of(small.num_steps),) if recipe.salt.selection else ()
    return dataclasses.replace(small, keep_at=(*small.keep_at, *keep))


def settings_of(recipe: Recipe, name: str, *, config: TrainConfig, runtime: Runtime) -> dict[str, Any]:
    """A training stage's configuration; its deciding fields (`data.deciding`) name the stage beside its inputs."""
    settings = {"train": config, "rows": recipe.rows, "seed": recipe.seed, "runtime": runtime}
    return {**settings, "salt": recipe.salt} if name == "large_salt" else settings


def inputs_of(recipe: Recipe, name: str, *, origin: list[str]) -> list[str]:
    """Names of the stages that a training stage is made from; origin: those of the documents."""
    if name != "large_salt":
        return origin
    return [*origin, "small"] + (["select"] if recipe.salt.selection else [])


def check_kept(recipe: Recipe, *, line: Line, runtime: Runtime, extend: bool = False) -> None:
    """Refuse before anything is done what would have to train a model again. All ranks call it.

    extend: a stage may go on with more steps, where it can. Vocabulary and widths follow from the corpus, and are left
    to the stages that make it. What stands on a model that will be trained again counts as changed: another machine or
    number of ranks gives other bits. Raises KeptError, and ValueError where `line.redo` names another recipe's stage.
    """
    names = trained_names(recipe)
    if unknown := sorted(line.redo - set(names)):
        raise ValueError(f"--redo {unknown[0]}: this recipe trains {', '.join(names)}, by its arms")
    changed: dict[str, list[str]] = {}
    again: set[str] = set()
    for name in names:
        begun = line.begun(name)
        if begun is None:
            continue
        if found := _changes(recipe, name, begun, changed={*changed, *again}, runtime=runtime):
            changed[name] = found
        if name in line.redo or not line.has_ended(name):
            again.add(name)
    refused = [name for name in changed if name not in line.redo]
    trouble = None
    redo = [name for name in names if name in line.redo]
    if refused and extend:
        for name in refused:
            try:
                begun = line.begun(name)["config"]
                if lost := [each for each in changed[name] if each.startswith("inputs.")]:
                    raise ValueError(f"it would be made from something else ({'; '.join(lost)})")
                check_longer(shorter(recipe, name, begun=begun, changes=changed[name]), config_of(recipe, name))
            except ValueError as error:
                trouble = not_extended([name], str(error), redo=[*redo, *refused], folder=line.folder)
                break
    elif refused:
        changes = list(dict.fromkeys(each for name in refused for each in changed[name]))
        trouble = refusal(refused, changes=changes, redo=redo, folder=line.folder, absent=line.absent)
    elif (
        extend
        and line.world.is_main
        and not any(was_extended(line.folder / name) and not line.has_ended(name) for name in names)
    ):
        logger.warning(
            "--extend: no stage is asked for more steps than it was before, so that there is nothing to extend; give "
            "more, such as --large.num-steps %d",
            2 * recipe.large.num_steps,
        )
    # one rank decides, and all leave
    if trouble := line.world.broadcast(trouble):
        raise KeptError(trouble)


def _changes(recipe: Recipe, name: str, begun: dict, *, changed: set[str], runtime: Runtime) -> list[str]:
    """What differs from the key that a stage was begun with; changed: stages before it that may not be the same."""
    config, settings, inputs = config_of(recipe, name), begun.get("config"), begun.get("inputs")
    if not isinstance(settings, dict) or not isinstance(inputs, dict) or "train" not in settings:
        return []
    kept = {field: value for field, value in settings["train"].get("model", {}).items() if field in FOLLOWING}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **kept))
    found = differences(settings, settings_of(recipe, name, config=config, runtime=runtime), name="config")
    origin = ["encoded", "filtered"] if recipe.corpus.filters else ["encoded"]
    asked = set(inputs_of(recipe, name, origin=origin))
    found += [f"inputs.{each}: new" for each in sorted(asked - set(inputs))]
    found += [f"inputs.{each}: gone" for each in sorted(set(inputs) - asked)]
    return found + [f"inputs.{each}: changed" for each in sorted(asked & set(inputs) & changed)]


def shorter(recipe: Recipe, name: str, *, begun: dict[str, Any], changes: list[str]) -> TrainConfig:
    """The run that a stage was begun with, where it differs from the recipe's in nothing but its number of steps.

    begun: its configuration; changes: where that differs. Raises ValueError that names what else changed, and the
    settings by which rows or soft labels depend on the number of steps.
    """
    config = config_of(recipe, name)
    old = dataclasses.replace(config, num_steps=begun["train"]["num_steps"])
    # first what no other setting mends, and last what one does
    check_schedule(dataclasses.replace(old, schedule=begun["train"].get("schedule", old.schedule)), config.num_steps)
    allowed = ["config.train.num_steps: "]
    if name == "large_salt":
        allowed += ["config.salt.kd_steps: ", "config.salt.kd_fraction: "]
    if others := [each for each in changes if not each.startswith(tuple(allowed))]:
        raise ValueError(f"more than the number of steps changed ({'; '.join(others)})")
    if not Mixture.parse(recipe.rows.mixture).constant:
        raise ValueError("rows.mixture changes along the run, so that other rows would have come first")
    if len(recipe.rows.length_schedule) > 1:
        raise ValueError("rows.length_schedule follows the progress of the run, so that lengths would have grown later")
    if name == "large_salt":
        kept = begun["salt"]
        before = round(kept["kd_fraction"] * old.num_steps) if kept["kd_steps"] is None else kept["kd_steps"]
        if min(before, old.num_steps) != recipe.salt.kd_steps_of(config.num_steps):
            raise ValueError(
                f"the small model helped for {before} steps and would for {recipe.salt.kd_steps_of(config.num_steps)}: "
                f"give --salt.kd-steps {before}"
            )
    return old
