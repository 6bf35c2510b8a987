"""The teacher of a round: its small model, or a trained one, pinned by the digest of its weights.

runs/<line>/round_01/teacher.json    which model it is; a round that was killed goes on with this one
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brine.common.files import file_digest, read_json, write_json
from brine.experiments.rounds.line import RoundLine
from brine.inference.load import WEIGHTS, LoadedModel, find_model_folder, load
from brine.inference.registered import CHAMPION, resolve_registered
from brine.registry.registry import Registry
from brine.training.runtime import apply_runtime, resolve_runtime

TEACHER_FILE, SMALL = "teacher.json", "small"


def find_teacher(line: RoundLine, folder: Path, train_small: Callable[[], Path]) -> tuple[LoadedModel, dict[str, Any]]:
    """The teacher of the round in `folder`, and {"name", "weights"}. train_small: trains the small model, returns its
    run. Raises ValueError for a model that is not there, or that changed since the round began.
    """
    path = folder / TEACHER_FILE
    pinned = read_json(path)
    if not isinstance(pinned, dict):
        # written first: a champion that comes meanwhile teaches the next round
        pinned = _choose(line)
        write_json(path, pinned)
    runtime = resolve_runtime(dataclasses.replace(line.base.runtime, num_threads=line.threads))
    if pinned["name"] == SMALL:
        model = train_small()
    else:
        apply_runtime(runtime)
        model = Path(pinned["folder"])
    loaded = load(model, device=runtime.device)
    weights = file_digest(loaded.folder / WEIGHTS)
    if pinned["weights"] not in (None, weights):
        raise ValueError(
            f"the teacher {pinned['name']} of this round was {pinned['weights'][:12]}, and {loaded.folder} now holds "
            f"{weights[:12]}: put it back"
        )
    return loaded, {"name": pinned["name"], "weights": weights}


def _choose(line: RoundLine) -> dict[str, Any]:
    """{"name", "folder", "weights"} of the model that is to teach; the small one is known by its training."""
    small = {"name": SMALL, "folder": None, "weights": None}
    if line.teacher is None:
        return small
    if line.teacher == CHAMPION:
        assert line.registry is not None
        registry = Registry(line.registry)
        if registry.champion is None:
            return small
        folder = registry.folder_of(registry.champion)
    else:
        folder = resolve_registered(line.teacher, root=line.registry)
    model = find_model_folder(folder).absolute()
    return {"name": line.teacher, "folder": str(model), "weights": file_digest(model / WEIGHTS)}
