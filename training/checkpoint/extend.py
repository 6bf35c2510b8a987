"""More steps for a run: from its last checkpoint before the decay, in a new folder.

Where learning rates and sequences of a longer run are the same up to a step, the checkpoint of that step belongs to
it too, and continuing from it gives the longer run's weights bit for bit. Rates are compared here, sequences by
`pipeline.train_stage`. The old folder is only read; checkpoints are linked where the disk can.
"""

import os
import shutil
from pathlib import Path

from brine.common.files import read_jsonl
from brine.training.checkpoint.checkpoint import Checkpoint, DamagedCheckpointError, check, list_checkpoints
from brine.training.config import TrainConfig, learning_rate
from brine.training.logging.metrics import append_event

COPIED = ("metrics.jsonl", "events.jsonl", "ledger.json")


def check_extension(old: TrainConfig, new: TrainConfig) -> None:
    """Can the second run continue from the first? Both differ in num_steps only.

    Raises ValueError with the reason why not, and the remedy.
    """
    if new.num_steps < old.num_steps:
        raise ValueError(f"num_steps = {new.num_steps} is fewer than the {old.num_steps} that were asked for before")
    check_schedule(old, new.num_steps)
    before, after = old.decay_start or 0, new.decay_start or 0
    for step in range(min(before, after)):
        if learning_rate(old, step) != learning_rate(new, step):
            raise ValueError(f"the learning rate of step {step} would not be what it was")
    if new.decay_start is None or after < before:
        raise ValueError("the longer run would decay earlier than the shorter one did")


def check_schedule(old: TrainConfig, num_steps: int) -> None:
    """Raise ValueError where the schedule of a run lets it never continue with more steps."""
    if old.decay_start is None:
        raise ValueError(
            f'schedule = "{old.schedule}" decays over all steps, so that one of {num_steps} steps differs from the '
            'warmup on: give schedule "wsd" from the start of a run that may be extended'
        )


def checkpoint_to_extend(folder: Path, *, config: TrainConfig) -> Checkpoint:
    """The newest undamaged checkpoint of a stage from before its decay. Raises ValueError where there is none."""
    for found in reversed(list_checkpoints(folder / "checkpoints")):
        if found.step <= (config.decay_start or 0):
            try:
                return check(found.folder)
            except DamagedCheckpointError:
                continue
    raise ValueError(f"{folder / 'checkpoints'} holds no undamaged checkpoint of step {config.decay_start} or before")


def link_checkpoints(old: Path, fresh: Path, *, checkpoint: Checkpoint, num_steps: int) -> None:
    """Fill a fresh folder with what training needs to continue from a checkpoint of the old one for `num_steps`."""
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
    """Whether a stage continues a shorter one."""
    return any(line.get("event") == "extended" for line in read_jsonl(folder / "events.jsonl"))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
