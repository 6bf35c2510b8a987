"""What becomes of a stage that is not done: resumed, linked, made beside its former folder, or refused.

Nothing is changed here; `StageStore` does what a `StagePlan` says once it holds the lock of the stored folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brine.common.files import read_json
from brine.pipeline.stages import stage_backup as backup
from brine.pipeline.stages import stage_folder as links
from brine.pipeline.stages.stage_backup import DONE_FILE, STAGE_FILE, ProtectedStageError

if TYPE_CHECKING:
    from brine.pipeline.stages.stage_store import StageStore

logger = logging.getLogger("brine.pipeline")

RERUN_FILE = "redone.json"
"""In a folder of the run itself that `rerun` has begun: the name of its predecessor."""


@dataclass(frozen=True)
class StageRequest:
    """A stage as it is asked for; the fields are those of `StageStore.stage`."""

    name: str
    folder: Path
    key: dict[str, Any]
    protected: bool
    output_names: tuple[str, ...]
    extend: Callable[[Path, Path], None] | None


@dataclass(frozen=True)
class StagePlan:
    """Where a stage will be done. stored: in the content store, behind a link. replaces: what has the stage's name now
    gives it up, for the reason `why`. extends: what the stage continues from is made from there."""

    target: Path
    stored: bool
    replaces: bool = False
    why: str = ""
    extends: bool = False


def rerun_record(run: Path, name: str) -> Path:
    """The record in a run folder of the stored stage that `rerun` has begun: {"before": old link, "target": name}."""
    return run / f".rerun_{name}.json"


def plan_stage(stages: StageStore, request: StageRequest) -> StagePlan:
    """Where a stage will be done, and what becomes of what has its name now.

    Raises ProtectedStageError where that would replace something protected, ValueError for a folder that holds
    something else."""
    name, folder, key = request.name, request.folder, request.key
    begun, has_made = links.begun_key(folder), backup.is_protected(folder)
    wants_rerun, is_stored = name in stages.rerun, stages.content is not None
    place = stages.content.path(name, key) if stages.content is not None else folder
    record = read_json(rerun_record(stages.folder, name))
    rerun_target = place.with_name(str(record.get("target"))) if isinstance(record, dict) and is_stored else None
    present = links.stored_target(folder)
    if begun is None:
        if present is not None:
            return StagePlan(present, stored=True)
        if os.path.lexists(folder):
            # what is written before a stage of the run itself is begun
            first = (f".{STAGE_FILE}.", f".{RERUN_FILE}.")
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
            if any(each != RERUN_FILE and not each.startswith(first) for each in names):
                raise ValueError(
                    f"{folder} is not empty and holds no {STAGE_FILE}, so this pipeline did not make it: move it "
                    "away, or choose another run folder"
                )
            return StagePlan(folder, stored=False)
        return StagePlan(rerun_target if wants_rerun and rerun_target is not None else place, stored=is_stored)
    changes = links.key_changes(begun, key)
    was_begun = (folder / RERUN_FILE).exists() or (
        present is not None and present.name == getattr(rerun_target, "name", "")
    )
    # a rerun that was interrupted resumes with the same command
    again = request.protected and wants_rerun and has_made and ((folder / DONE_FILE).exists() or not was_begun)
    if not changes and not again:
        logger.info("%s: was interrupted, resumes", name)
        return StagePlan(present or folder, stored=present is not None)
    if not (request.protected and has_made):
        if kept := [each for each in stages.dependents_of(name) if each not in stages.rerun]:
            raise ProtectedStageError(backup.refusal_message(stages, kept, [f"{name}: {each}" for each in changes]))
        why = f"done again, because it changed: {backup.first_changes(changes)}"
        return StagePlan(place, stored=is_stored, replaces=True, why=why)
    if request.extend is not None and not wants_rerun and begun.get("inputs") == key["inputs"]:
        return StagePlan(place, stored=is_stored, replaces=True, why="continues with more steps", extends=True)
    if not wants_rerun:
        raise ProtectedStageError(backup.refusal_message(stages, [name], changes))
    why = f"because it changed: {backup.first_changes(changes)}" if changes else "as asked for"
    number, taken = 1, place
    while is_stored and not changes and taken.exists():
        number += 1
        taken = place.with_name(f"{place.name}-{number}")
    return StagePlan(taken, stored=is_stored, replaces=True, why=f"done again, {why}")
