"""AdamW, or Muon for the matrices of the blocks, with a state that is nothing but named tensors.

AdamW (Loshchilov & Hutter 2019) serves every parameter by default. With `optimizer="muon"` the two-dimensional
weights inside the blocks go to `torch.optim.Muon` (Jordan 2024), whose update is the orthogonalised momentum, scaled
by 0.2 sqrt(max(rows, columns)) so that it is as large as AdamW's and one learning rate serves both (Liu et al. 2025,
"Muon is scalable for LLM training"). Embeddings, embedders, norms and the head stay with AdamW: they are lookups or
ends of the network, where orthogonality means nothing.

Weight decay is decoupled and falls on matrices only. Muon's Newton-Schulz iteration runs in bfloat16 whatever the
weights are, so its runs are repeatable but not exact to float32 across different numbers of ranks.

`GradientBuffer` lays every gradient into one flat tensor: a parameter that a step did not touch has gradient zero
instead of none, the norm is one reduction, and ranks exchange a few large buckets instead of many small tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config import TrainConfig

# 64 bytes of float32: gradients begin where vector loads like it
ALIGNMENT = 16


class GradientBuffer:
    """All gradients of a model as views of one flat tensor per dtype.

    Cost: as many bytes as the parameters, held for the whole run (autograd would hold them too).
    """

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self.flats: list[Tensor] = []
        groups: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in parameters.values():
            groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for (dtype, device), members in groups.items():
            sizes = [-(-member.numel() // ALIGNMENT) * ALIGNMENT for member in members]
            flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
            start = 0
            for member, size in zip(members, sizes, strict=True):
                member.grad = flat[start : start + member.numel()].view_as(member)
                start += size
            self.flats.append(flat)

    def zero(self) -> None:
        """Set every gradient to zero."""
        for flat in self.flats:
            flat.zero_()

    def norm(self) -> Tensor:
        """Euclidean norm of the whole gradient, a scalar; not finite where any entry is not."""
        return torch.stack([torch.linalg.vector_norm(flat).double() for flat in self.flats]).norm()

    def scale(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        for flat in self.flats:
            flat.mul_(factor)


class Optimizer:
    """The optimisers of one model behind one face.

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
                groups["muon"]["params"],
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.muon_momentum,
                adjust_lr_fn="match_rms_adamw",
            )
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
        tensors = {}
        for kind, member in self.members.items():
            for name, parameter in self.parameters.items():
                for key, value in member.state.get(parameter, {}).items():
                    tensors[f"{kind}/{name}/{key}"] = value
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state_tensors` gave.

        Raises ValueError naming a tensor that belongs to another optimiser or another model.
        """
        for member in self.members.values():
            member.state.clear()
        for full_name, value in tensors.items():
            kind, _, rest = full_name.partition("/")
            name, _, key = rest.rpartition("/")
            if kind not in self.members or name not in self.parameters:
                raise ValueError(
                    f"the optimiser state holds {full_name}, which this run has no use for: it was saved with another "
                    "optimizer or model; restore that setting, or begin in a new run folder"
                )
            parameter = self.parameters[name]
            if key != "step" and value.shape != parameter.shape:
                raise ValueError(
                    f"the optimiser state's {full_name} has shape {tuple(value.shape)}, the parameter has "
                    f"{tuple(parameter.shape)}: it belongs to another model; begin in a new run folder"
                )
            self.members[kind].state[parameter][key] = value.to(parameter.device).clone()


def parameter_groups(parameters: dict[str, nn.Parameter], config: TrainConfig) -> dict[str, dict]:
    """Sort parameters into "decay" (matrices), "no_decay" (norms, biases, scalars) and "muon" (block matrices)."""
    groups = {
        "decay": {"params": [], "weight_decay": config.weight_decay},
        "no_decay": {"params": [], "weight_decay": 0.0},
        "muon": {"params": [], "weight_decay": config.weight_decay},
    }
    for name, parameter in parameters.items():
        if config.optimizer == "muon" and name.startswith("blocks.") and parameter.ndim == 2:
            groups["muon"]["params"].append(parameter)
        elif parameter.ndim >= 2:
            groups["decay"]["params"].append(parameter)
        else:
            groups["no_decay"]["params"].append(parameter)
    return groups
