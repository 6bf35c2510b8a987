"""More steps for a run that has ended, or is half done: from its last checkpoint before the decay, in a new folder.

What a run ends with is decided by its settings and its rows. If those of a longer run are the same up to some step, the
checkpoint of that step is one of the longer run too, and going on from there gives the weights that the longer run
would have had, bit for bit. Rates are compared for every step up to there; rows by whoever knows the plan (`train.py`).

The old folder is only read. Checkpoints are linked, not copied, where the disk can: nobody writes into a checkpoint.
`metrics.jsonl` is cut at the checkpoint's step when training goes on, as after any stop.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from training.checkpoint import Checkpoint, DamagedCheckpointError, check, list_checkpoints
from training.config import TrainConfig
from training.metrics import append_event, read_lines
from training.schedule import learning_rate

COPIED = ("metrics.jsonl", "events.jsonl", "ledger.json")


def check_longer(old: TrainConfig, new: TrainConfig) -> None:
    """Can the second run be one that goes on from the first? Both differ in num_steps only.

    Raises ValueError that names what stands against it, and the remedy.
    """
    if new.num_steps < old.num_steps:
        raise ValueError(f"num_steps = {new.num_steps} is fewer than the {old.num_steps} that were asked for before")
    check_schedule(old, new.num_steps)
    for step in range(min(old.decay_start, new.decay_start) if new.decay_start is not None else 0):
        if learning_rate(old, step) != learning_rate(new, step):
            raise ValueError(f"the learning rate of step {step} would not be what it was")
    if new.decay_start is None or new.decay_start < old.decay_start:
        raise ValueError("the longer run would decay earlier than the shorter one did")


def check_schedule(old: TrainConfig, num_steps: int) -> None:
    """Raise ValueError where the schedule of a run lets it never go on with more steps."""
    if old.decay_start is None:
        raise ValueError(
            f'schedule = "{old.schedule}" decays over all steps, so that one of {num_steps} steps differs from the '
            'warm-up on: give schedule "wsd" from the start of a run that may be extended'
        )


def checkpoint_to_extend(folder: Path, *, config: TrainConfig) -> Checkpoint:
    """The newest undamaged checkpoint of a stage from before its decay. Raises ValueError where there is none."""
    for found in reversed(list_checkpoints(folder / "checkpoints")):
        if found.step <= config.decay_start:
            try:
                return check(found.folder)
            except DamagedCheckpointError:
                continue
    raise ValueError(f"{folder / 'checkpoints'} holds no undamaged checkpoint of step {config.decay_start} or before")


def carry(old: Path, fresh: Path, *, checkpoint: Checkpoint, num_steps: int) -> None:
    """Fill a fresh folder with what training needs to go on from a checkpoint of the old one; num_steps: new number."""
    for found in list_checkpoints(old / "checkpoints"):
        if found.step <= checkpoint.step:
            shutil.copytree(found.folder, fresh / "checkpoints" / found.folder.name, copy_function=_link)
    for name in COPIED:
        if (old / name).exists():
            shutil.copyfile(old / name, fresh / name)
    if (old / "tensorboard").is_dir():
        shutil.copytree(old / "tensorboard", fresh / "tensorboard")
    append_event(fresh, "extended", step=checkpoint.step, num_steps=num_steps)


def was_extended(folder: Path) -> bool:
    """Whether a stage goes on from a shorter one."""
    return any(line.get("event") == "extended" for line in read_lines(folder / "events.jsonl"))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
