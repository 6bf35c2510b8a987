"""AdamW, or Muon for the matrices of the blocks, with a state of named tensors.

AdamW (Loshchilov & Hutter 2019) is the default. With `optimizer="muon"` matrices inside the blocks are updated by
`torch.optim.Muon` (Jordan 2024), scaled to AdamW's update size so that one learning rate serves both (Liu et al.
2025); embeddings, embedders, norms and head stay with AdamW. Weight decay is decoupled and applies to matrices only.
Muon iterates in bfloat16: repeatable, but not exact across different numbers of ranks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brine.training.config import TrainConfig


class Optimizer:
    """The optimizers of one model behind one interface.

    Raises ValueError when Muon is asked for and this torch has none, or the model has no `blocks`.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        groups = parameter_groups(self.parameters, config)
        self.members: dict[str, torch.optim.Optimizer] = {}
        adamw = [group for name, group in groups.items() if name != "muon" and group["params"]]
        if adamw:
            self.members["adamw"] = torch.optim.AdamW(
                adamw, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.adam_eps, fused=True
            )
        if groups["muon"]["params"]:
            if not hasattr(torch.optim, "Muon"):
                raise ValueError(f"torch {torch.__version__} has no Muon: install torch >= 2.9 or use adamw")
            self.members["muon"] = torch.optim.Muon(
                groups["muon"]["params"], lr=config.learning_rate, weight_decay=config.weight_decay,
                momentum=config.muon_momentum, adjust_lr_fn="match_rms_adamw",
            )  # fmt: skip
        elif config.optimizer == "muon":
            raise ValueError("optimizer = 'muon' found no matrices under `blocks`: use adamw for this model")

    def step(self, learning_rate: float) -> None:
        """Apply the gradients at this learning rate."""
        for member in self.members.values():
            for group in member.param_groups:
                group["lr"] = learning_rate
            member.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state as `adamw/<parameter>/exp_avg` and the like; empty before the first step."""
        return {
            f"{kind}/{name}/{key}": value
            for kind, member in self.members.items()
            for name, parameter in self.parameters.items()
            for key, value in member.state.get(parameter, {}).items()
        }

    def prepare_state(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Allocate a saved state, named as `state_tensors` names it, for a checkpoint to be read into.

        Raises ValueError naming a tensor that belongs to another optimizer or another model.
        """
        for member in self.members.values():
            member.state.clear()
        for full_name, shape in shapes.items():
            kind, _, rest = full_name.partition("/")
            name, _, key = rest.rpartition("/")
            if kind not in self.members or name not in self.parameters:
                raise ValueError(
                    f"the optimizer state holds {full_name}, which does not match this run: it was saved with another "
                    "optimizer or model; restore that setting, or begin in a new run folder"
                )
            parameter = self.parameters[name]
            if key != "step" and tuple(shape) != tuple(parameter.shape):
                raise ValueError(
                    f"the optimizer state's {full_name} has shape {tuple(shape)}, the parameter has "
                    f"{tuple(parameter.shape)}: it belongs to another model; begin in a new run folder"
                )
            # the fused AdamW keeps its count on the parameter's device
            value = torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter.detach())
            self.members[kind].state[parameter][key] = value


def parameter_groups(parameters: dict[str, nn.Parameter], config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Sort parameters into "decay" (matrices), "no_decay" (norms, biases, scalars) and "muon" (block matrices)."""
    groups: dict[str, dict[str, Any]] = {
        name: {"params": [], "weight_decay": 0.0 if name == "no_decay" else config.weight_decay}
        for name in ("decay", "no_decay", "muon")
    }
    for name, parameter in parameters.items():
        uses_muon = config.optimizer == "muon" and name.startswith("blocks.") and parameter.ndim == 2
        groups["muon" if uses_muon else "decay" if parameter.ndim >= 2 else "no_decay"]["params"].append(parameter)
    return groups
