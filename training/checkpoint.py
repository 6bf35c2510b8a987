"""Checkpoints: a folder of safetensors and JSON that is complete or absent.

    checkpoints/step_00000400/model.safetensors       every parameter, by name
                              optimizer.safetensors   the optimiser's tensors, by `kind/parameter/key`
                              state.json              step, next row, ledger, and the two files' sizes and SHA-256

The folder is written under a name that no reader looks at, each file is flushed to the disk, `state.json` comes last,
and one `rename` makes it a checkpoint. A reader therefore finds whole folders only; sizes and hashes catch what
a rename cannot: a disk that was full, a file that somebody cut. A damaged checkpoint is set aside (`.bad`) and the one
before it serves, which costs steps but not the run. A checkpoint of *another shape* is never skipped over: that is a
mistake in the command, and the message says so.

No pickle: safetensors cannot run code. Every rank reads, only rank 0 writes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.load import load_weights as copy_weights
from training.files import file_digest, read_json, sync_folder, write_json
from training.optimizer import Optimizer

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names it and the remedy."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are missing, cut short or altered."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on the disk."""

    folder: Path
    """Its folder, `step_########`."""
    step: int
    """Optimiser steps done."""
    state: dict[str, Any]
    """Everything in `state.json` that the loop put there."""

    @property
    def planned(self) -> bool:
        """Made because its step was due, not because somebody stopped the run there."""
        return self.state.get("planned", True)


def save_checkpoint(folder: Path, *, step: int, model: nn.Module, optimizer: Optimizer, state: dict) -> Path:
    """Write the checkpoint of `step` into `folder` (the run's `checkpoints/`) and return its path.

    An older checkpoint of the same step is replaced. Raises CheckpointError when the disk does not take it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:08d}"
    temporary = folder / f".writing_{step:08d}_{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file(_on_cpu(dict(model.named_parameters())), temporary / MODEL)
        save_file(_on_cpu(optimizer.state_tensors()), temporary / OPTIMIZER)
        files = {}
        for name in (MODEL, OPTIMIZER):
            with open(temporary / name, "rb") as file:
                os.fsync(file.fileno())
            files[name] = {"bytes": (temporary / name).stat().st_size, "sha256": file_digest(temporary / name)}
        write_json(temporary / STATE, {**state, "step": step, "files": files})
        if target.exists():
            # rename cannot replace a folder that holds files
            old = folder / f".replaced_{step:08d}_{os.getpid()}"
            os.rename(target, old)
            os.rename(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written under {folder} ({error}): free some space or choose "
            "another run folder; the checkpoint before it is untouched"
        ) from error
    sync_folder(folder)
    return target


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints under `folder`, oldest first; only those whose `state.json` is whole."""
    found = []
    for path in sorted(Path(folder).glob("step_" + "[0-9]" * 8)):
        state = read_json(path / STATE)
        if isinstance(state, dict) and "step" in state and "files" in state:
            found.append(Checkpoint(folder=path, step=state["step"], state=state))
    return found


def latest_checkpoint(folder: Path, *, on_event: Callable[..., None], may_move: bool = True) -> Checkpoint | None:
    """The newest undamaged checkpoint, or None.

    Damaged ones are reported as events `checkpoint_damaged` and, with `may_move`, renamed to `.bad` so that
    nothing finds them again.
    """
    for path in sorted(Path(folder).glob("step_" + "[0-9]" * 8), reverse=True):
        try:
            return check(path)
        except DamagedCheckpointError as error:
            on_event("checkpoint_damaged", path=str(path), message=str(error))
            if may_move:
                bad = path.with_name(path.name + ".bad")
                shutil.rmtree(bad, ignore_errors=True)
                os.rename(path, bad)
    return None


def check(path: Path) -> Checkpoint:
    """Verify the files of one checkpoint against the sizes and hashes noted in it.

    Raises DamagedCheckpointError naming the file.
    """
    path = Path(path)
    state = read_json(path / STATE)
    if not isinstance(state, dict) or "files" not in state or "step" not in state:
        raise DamagedCheckpointError(f"{path / STATE} is missing or not whole")
    for name, noted in state["files"].items():
        try:
            size = (path / name).stat().st_size
        except OSError as error:
            raise DamagedCheckpointError(f"{path / name} is missing") from error
        if size != noted["bytes"]:
            raise DamagedCheckpointError(f"{path / name} is truncated: {size} bytes of {noted['bytes']}")
        if file_digest(path / name) != noted["sha256"]:
            raise DamagedCheckpointError(f"{path / name} was altered after it was written: its SHA-256 differs")
    return Checkpoint(folder=path, step=state["step"], state=state)


def load_checkpoint(checkpoint: Checkpoint, *, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Put a checkpoint's weights (and optimiser state) into `model` and `optimizer`, in place.

    Raises CheckpointError where the shapes differ, DamagedCheckpointError where a file cannot be read.
    """
    load_weights(checkpoint.folder, model=model)
    if optimizer is not None:
        try:
            optimizer.load_state_tensors(_read(checkpoint.folder / OPTIMIZER))
        except DamagedCheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.folder}: {error}") from error


def load_weights(folder: Path, *, model: nn.Module) -> None:
    """Copy `model.safetensors` of a checkpoint or model folder into `model`, in place, whatever its dtype.

    Raises CheckpointError that names the first parameters which differ.
    """
    folder = Path(folder)
    if not (folder / MODEL).is_file():
        raise CheckpointError(f"{folder} holds no {MODEL}: give the folder of a checkpoint or of a model")
    tensors = _read(folder / MODEL)
    try:
        copy_weights(model, tensors, source=str(folder))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def prune_checkpoints(folder: Path, *, keep: int, keep_at: Iterable[int] = ()) -> None:
    """Delete all but the newest checkpoint, the newest `keep` planned ones and those of the steps `keep_at`; also what
    a kill left half made."""
    folder = Path(folder)
    found = list_checkpoints(folder)
    kept = {*keep_at, *(one.step for one in found[-1:]), *[one.step for one in found if one.planned][-keep:]}
    for checkpoint in found:
        if checkpoint.step not in kept:
            _remove(checkpoint)
    for pattern in (".writing_*", ".replaced_*", ".pruned_*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def drop_after(folder: Path, *, step: int) -> None:
    """Delete the checkpoints of later steps than `step`, which belong to a path that was taken back."""
    for checkpoint in list_checkpoints(folder):
        if checkpoint.step > step:
            _remove(checkpoint)


def _remove(checkpoint: Checkpoint) -> None:
    # a rename first, so that no reader meets half a checkpoint
    doomed = checkpoint.folder.with_name(f".pruned_{checkpoint.step:08d}_{os.getpid()}")
    os.rename(checkpoint.folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(
            f"{path} cannot be read ({error}): it is truncated or not a safetensors file; delete its folder, "
            "and the checkpoint before it serves"
        ) from error


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
