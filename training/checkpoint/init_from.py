"""Training that begins with given weights: those of a run, a stage, a model folder, or one checkpoint.

`find_initial_weights` says what a path means, and a digest by which the stage's key knows the weights wherever they
lie. `check_fits` compares names and shapes before anything is built. `InitialWeights.load` reads them on every rank
into parameters that may be sharded already, so that any number of ranks begins with the same bits. The optimizer is
fresh unless `init_optimizer`: then weights and optimizer state are those of the stage's newest checkpoint, or of the
checkpoint that is named, AdamW's count of steps for its bias correction included. The learning rate's schedule begins
anew in either case.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from brine.common.files import file_digest, read_json
from brine.inference.load import CONFIG, TOKENIZER, WEIGHTS, find_model_folder, shape_differences
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from brine.training.checkpoint.checkpoint import (
    MODEL,
    OPTIMIZER,
    STATE,
    Checkpoint,
    CheckpointError,
    check,
    list_checkpoints,
    load_checkpoint,
    load_model_file,
)
from brine.training.config import TrainConfig
from brine.training.optimizer import Optimizer, parameter_groups

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class InitialWeights:
    """Weights to begin with. digest: of the files; equal for copies of them. config, tokenizer: of their model, None
    where they lie beside no model. checkpoint: what is read instead of a model folder."""

    folder: Path
    digest: str
    config: ModelConfig | None
    tokenizer: Path | None
    checkpoint: Checkpoint | None = None
    keep_optimizer: bool = False

    def load(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put the weights (and the optimizer state, where it is kept) into a model that is ready to train, in place.
        All ranks call it. Raises CheckpointError where names or shapes differ or a file cannot be read."""
        if self.checkpoint is None:
            load_model_file(self.folder, model=model)
        else:
            load_checkpoint(self.checkpoint, model=model, optimizer=optimizer if self.keep_optimizer else None)

    def shapes(self) -> Shapes:
        """Shapes of the stored tensors: weights by name, optimizer state as `optimizer/KIND/NAME/KEY`."""
        if self.checkpoint is None:
            return _shapes_in(self.folder / WEIGHTS)
        # imported late: it takes half a second
        import torch.distributed.checkpoint as dcp

        stored: dict[str, Any] = dcp.HuggingFaceStorageReader(str(self.folder)).read_metadata().state_dict_metadata
        return {name.removeprefix(MODEL): tuple(entry.size) for name, entry in stored.items()}


def find_initial_weights(path: Path, *, init_optimizer: bool = False) -> InitialWeights:
    """What a path of `init_from` means. Rank 0 alone calls it; it reads all of the weights, to know their digest.

    Raises ValueError, in one sentence with the remedy, where there are no weights, a checkpoint is damaged, or no
    optimizer state was kept.
    """
    if (path / STATE).is_file():
        found = _checked(path)
        stage = path.parents[1]
        return InitialWeights(
            path, _digest_of(found), _config_of(stage), _tokenizer_of(stage), found, keep_optimizer=init_optimizer
        )
    folder = find_model_folder(path)
    config, tokenizer = _config_of(folder.parent, folder), folder / TOKENIZER
    if not init_optimizer:
        return InitialWeights(folder, file_digest(folder / WEIGHTS), config, tokenizer)
    kept = list_checkpoints(folder.parent / "checkpoints")
    steps = ((read_json(folder.parent / "done") or {}).get("result") or {}).get("step")
    if not kept or (steps is not None and kept[-1].step != steps):
        raise ValueError(
            f"{folder.parent} kept no checkpoint of its last step, so that its optimizer state is gone: leave out "
            "init_optimizer, or name a checkpoint (STAGE/checkpoints/step_...)"
        )
    found = _checked(kept[-1].folder)
    return InitialWeights(found.folder, _digest_of(found), config, tokenizer, found, keep_optimizer=True)


def check_fits(initial: InitialWeights, config: TrainConfig, *, name: str, given: str) -> None:
    """Raise ValueError that names the first differences, with both shapes, where the weights (or the optimizer state)
    are not those of the model that `config` trains. name: "large" or "small". given: what `init_from` was."""
    model = Transformer(config.model, on_meta_device=True)
    parameters = dict(model.named_parameters())
    stored = initial.shapes()
    weights = {key: shape for key, shape in stored.items() if not key.startswith(OPTIMIZER)}
    wrong = shape_differences({key: tuple(value.shape) for key, value in parameters.items()}, weights)
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{name}.init_from = {given}: its weights are of another shape ({'; '.join(wrong[:3])}{more}): give "
            f"--{name}.model.* as that model has them, or another run"
        )
    if not initial.keep_optimizer:
        return
    groups = parameter_groups(parameters, config)
    muon = {id(value) for value in groups["muon"]["params"]}
    wanted = {f"{'muon' if id(value) in muon else 'adamw'}/{key}" for key, value in parameters.items()}
    kept = {key.removeprefix(OPTIMIZER).rpartition("/")[0] for key in stored if key.startswith(OPTIMIZER)}
    if wanted != kept:
        what = f"is of other optimizers ({', '.join(sorted({each.partition('/')[0] for each in kept}))})"
        raise ValueError(
            f"{name}.init_optimizer: the optimizer state of {initial.folder} {what if kept else 'is empty'}, and "
            f"optimizer = {config.optimizer!r} is asked for: leave out init_optimizer, or give the optimizer that it "
            "was trained with"
        )


def differing_settings(initial: InitialWeights, config: ModelConfig) -> list[str]:
    """Settings of the model that leave all shapes as they are and differ: `window: 64 -> 128`."""
    if initial.config is None:
        return []
    old, new = initial.config.to_dict(), config.to_dict()
    return [f"{key}: {old.get(key)} -> {new[key]}" for key in new if old.get(key) != new[key]]


def _checked(path: Path) -> Checkpoint:
    try:
        return check(path)
    except CheckpointError as error:
        raise ValueError(f"{error}; give another checkpoint, or the run's model") from None


def _digest_of(checkpoint: Checkpoint) -> str:
    """Of the noted SHA-256 of a checkpoint's files, which `check` has compared with the files."""
    files: Mapping[str, Any] = checkpoint.state["files"]
    noted = json.dumps(sorted((name, each["sha256"]) for name, each in files.items()))
    return hashlib.sha256(noted.encode()).hexdigest()


def _config_of(stage: Path, folder: Path | None = None) -> ModelConfig | None:
    found = read_json((folder or stage / "model") / CONFIG)
    begun = read_json(stage / "stage.json")
    model = found.get("model") if isinstance(found, dict) else None
    if model is None and isinstance(begun, dict):
        model = ((begun.get("config") or {}).get("train") or {}).get("model")
    try:
        return None if model is None else ModelConfig.from_dict(model)
    except (ValueError, TypeError):
        return None


def _tokenizer_of(stage: Path) -> Path | None:
    """The tokenizer of a stage: its model's, its run's, or that of the built corpus which its run was trained on."""
    recipe = read_json(stage.parent / "recipe.json")
    manifest = (recipe.get("corpus") or {}).get("manifest") if isinstance(recipe, dict) else None
    places = [stage / "model", stage.parent / "encoded" / "store", *([Path(manifest)] if manifest else [])]
    return next((place / TOKENIZER for place in places if (place / TOKENIZER).is_file()), None)


def _shapes_in(file: Path) -> Shapes:
    try:
        with safe_open(file, framework="pt") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}): save it again") from None
