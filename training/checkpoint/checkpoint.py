"""Checkpoints: a folder of safetensors and JSON that is complete or absent, and fits any number of ranks.

    checkpoints/step_00000400/shard-00001-model-00001-of-00001.safetensors    the parts that rank 0 wrote
                              state.json         step, next sequence, cost, ..., and the files' sizes and SHA-256

Tensors are `model/<parameter>` and `optimizer/<kind>/<parameter>/<key>`, written and read by
`torch.distributed.checkpoint`; a run saved on four ranks resumes on one, sharded or not. No pickle. A damaged
checkpoint is renamed to `.bad` and the one before it is used; one of another model is an error.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from brine.common.files import file_digest, read_json
from brine.common.renamed import older_format
from brine.inference.load import check_shapes
from brine.training.optimizer import Optimizer
from brine.training.parallel.distributed import World

STATE = "state.json"
MODEL, OPTIMIZER = "model/", "optimizer/"
STEPS = "step_" + "[0-9]" * 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names it and the remedy."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are missing, cut short or altered."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on the disk: its folder, the steps done, and what the loop put into `state.json`."""

    folder: Path
    step: int
    state: dict[str, Any]

    @property
    def scheduled(self) -> bool:
        """Made because its step was due, not because somebody stopped the run there."""
        return self.state.get("scheduled", True)

    @property
    def val_loss(self) -> float | None:
        """Held-out loss at its step, where it was measured there."""
        return self.state.get("val_loss")


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints under `folder`, oldest first; only those whose `state.json` is whole."""
    found = []
    for path in sorted(Path(folder).glob(STEPS)):
        state = read_json(path / STATE)
        if isinstance(state, dict) and "step" in state and "files" in state:
            found.append(Checkpoint(folder=path, step=state["step"], state=state))
    return found


def latest_checkpoint(
    folder: Path,
    *,
    on_event: Callable[..., None],
    world: World | None = None,
    wanted: Callable[[Checkpoint], bool] = lambda _: True,
) -> Checkpoint | None:
    """The newest undamaged checkpoint that is `wanted`, or None; all ranks call it and get the same.

    Damaged ones are reported as events `checkpoint_damaged` and renamed to `.bad`, so that nothing finds them again.
    """
    world = world or World()
    # rank 0's list, since it is about to change the folder
    for name in world.broadcast([path.name for path in sorted(Path(folder).glob(STEPS), reverse=True)]):
        path = Path(folder) / name
        try:
            found = check(path, world=world)
            if wanted(found):
                return found
        except DamagedCheckpointError as error:
            on_event("checkpoint_damaged", path=str(path), message=str(error))
            if world.is_main:
                bad = path.with_name(path.name + ".bad")
                shutil.rmtree(bad, ignore_errors=True)
                os.rename(path, bad)
    return None


def check(path: Path, *, world: World | None = None) -> Checkpoint:
    """Verify the files of one checkpoint against the sizes and hashes noted in it; ranks share the files.

    Raises DamagedCheckpointError naming the file, on every rank.
    """
    world, path = world or World(), Path(path)
    state = read_json(path / STATE)
    state = state if isinstance(state, dict) else {}
    if "row" in state and "format" not in state:
        raise CheckpointError(str(older_format(path, path.parents[1])))
    trouble = None if {"files", "step"} <= state.keys() else f"{path / STATE} is missing or not whole"
    if trouble is None:
        mine = sorted(state["files"].items())[world.rank :: world.size]
        trouble = next(filter(None, (_trouble(path / name, noted) for name, noted in mine)), None)
    troubles = [each for each in world.gather(trouble) if each]
    if troubles:
        raise DamagedCheckpointError(troubles[0])
    return Checkpoint(folder=path, step=state["step"], state=state)


def _trouble(path: Path, noted: dict) -> str | None:
    try:
        size = path.stat().st_size
    except OSError:
        return f"{path} is missing"
    if size != noted["bytes"]:
        return f"{path} is truncated: {size} bytes of {noted['bytes']}"
    if file_digest(path) != noted["sha256"]:
        return f"{path} was altered after it was written: its SHA-256 differs"
    return None


def load_checkpoint(checkpoint: Checkpoint, *, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Put a checkpoint's weights (and optimizer state) into `model` and `optimizer`, in place. All ranks call it.

    Raises CheckpointError where the shapes differ, DamagedCheckpointError where a file cannot be read.
    """
    _load(checkpoint.folder, model, optimizer, together=dist.is_initialized())


def load_weights(folder: Path, *, model: nn.Module) -> None:
    """Copy a checkpoint's weights into `model`, whole and in place, whatever its dtype. Any rank may call it alone.

    Raises CheckpointError that names the first parameters which differ.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no weights: give the folder of a checkpoint")
    _load(folder, model, None, together=False)


def load_model_file(folder: Path, *, model: nn.Module) -> None:
    """Put the weights of a model folder into `model`, sharded or not, in place, whatever their dtype. All ranks call
    it. Raises CheckpointError where names or shapes differ, or the file cannot be read."""
    _load(folder, model, None, together=dist.is_initialized(), prefix="")


def tensors_of(model: nn.Module, optimizer: Optimizer | None, *, prefix: str = MODEL) -> dict[str, Tensor]:
    """Every tensor of a checkpoint under its name there; prefix: of the weights' names."""
    tensors = {prefix + name: value.detach() for name, value in model.named_parameters()}
    if optimizer is not None:
        tensors |= {OPTIMIZER + name: value for name, value in optimizer.state_tensors().items()}
    return tensors


def _load(folder: Path, model: nn.Module, optimizer: Optimizer | None, *, together: bool, prefix: str = MODEL) -> None:
    # imported late: it takes half a second
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
        sizes = {name: entry.size for name, entry in stored.items()}
        wanted = {prefix + name: value.shape for name, value in model.named_parameters()}
        found = {name: size for name, size in sizes.items() if name.startswith(prefix)}
        check_shapes(wanted, found, source=str(folder))
        if optimizer is not None:
            optimizer.prepare_state(
                {name.removeprefix(OPTIMIZER): size for name, size in sizes.items() if name.startswith(OPTIMIZER)}
            )
        with warnings.catch_warnings():
            # a single process is told that it is one
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors_of(model, optimizer, prefix=prefix), storage_reader=reader, no_dist=not together)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(
            f"{folder} cannot be read ({error}): one of its files is truncated or no safetensors file; delete the "
            "folder to use the checkpoint before it"
        ) from error
    except ValueError as error:
        raise CheckpointError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error


def prune_checkpoints(
    folder: Path, *, keep: int, keep_checkpoint_steps: Iterable[int] = (), good: int | None = None
) -> None:
    """Delete all checkpoints but the newest, the newest `keep` scheduled ones, the one with the lowest held-out loss,
    and those of `keep_checkpoint_steps`; also kept are the newest scheduled one of a step up to `good` and all after
    it, since each of them may yet turn out good. What a kill left incomplete is deleted too."""
    found = list_checkpoints(folder)
    scheduled = [one.step for one in found if one.scheduled]
    kept = {*keep_checkpoint_steps, *(one.step for one in found[-1:]), *scheduled[-keep:]}
    if good is not None:
        newest = max((step for step in scheduled if step <= good), default=0)
        kept |= {step for step in scheduled if step >= newest}
    if best := best_checkpoint(found):
        kept.add(best.step)
    for checkpoint in found:
        if checkpoint.step not in kept:
            _remove(checkpoint)
    for pattern in (".writing_*", ".replaced_*", ".pruned_*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def best_checkpoint(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest held-out loss, the earliest of equals; None where none was measured."""
    measured = [(one.val_loss, one) for one in checkpoints if one.val_loss is not None]
    return min(measured, key=lambda pair: pair[0], default=(0.0, None))[1]


def drop_after(folder: Path, *, step: int) -> None:
    """Delete the checkpoints of later steps than `step`, which were rolled back."""
    for checkpoint in list_checkpoints(folder):
        if checkpoint.step > step:
            _remove(checkpoint)


def _remove(checkpoint: Checkpoint) -> None:
    # a rename first, so that no reader meets half a checkpoint
    doomed = checkpoint.folder.with_name(f".pruned_{checkpoint.step:08d}_{os.getpid()}")
    os.rename(checkpoint.folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
