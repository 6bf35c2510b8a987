"""The gradients of one step: summed over micro-batches and ranks, measured, scaled.

The loss is a sum over target tokens, so gradients are summed, never averaged, and divided once by the number of
targets of the step. `FlatGradients` holds them as views of one flat tensor: one reduction for the norm, a few large
buckets between ranks. `ShardedGradients` is for FSDP2, whose hooks sum each block over the ranks and keep this rank's
part. Both have the same methods.
"""

from typing import Any

import torch
from torch import Tensor, nn

from brine.training.parallel.distributed import World

# 64 bytes of float32: gradients begin where vector loads like it
ALIGNMENT = 16


class FlatGradients:
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
            for member, part in zip(members, flat.split(sizes), strict=True):
                member.grad = part[: member.numel()].view_as(member)
            self.flats.append(flat)

    def zero(self) -> None:
        """Forget the last step's gradients."""
        for flat in self.flats:
            flat.zero_()

    def before_backward(self, *, last: bool) -> None:
        """Say whether the backward pass that comes is the step's last; nothing to prepare here."""

    def sum(self, world: World) -> None:
        """Sum over ranks what the backward passes have not summed yet."""
        world.sum(self.flats)

    def norm(self, world: World | None = None) -> Tensor:
        """Euclidean norm of the whole gradient: a float64 scalar, bit-identical on all ranks, not finite where any
        entry is not."""
        return torch.stack([torch.linalg.vector_norm(flat).double() for flat in self.flats]).norm()

    def scale(self, factor: Tensor) -> None:
        """Multiply every gradient by `factor`, a scalar on the gradients' device."""
        for flat in self.flats:
            flat.mul_(factor)


class ShardedGradients:
    """The gradients of a model whose parameters are split over ranks: this rank's parts."""

    def __init__(self, model: Any, parameters: dict[str, nn.Parameter]):
        self.model, self.parameters = model, list(parameters.values())

    def zero(self) -> None:
        """Free the gradients; the next backward pass makes them anew."""
        for parameter in self.parameters:
            parameter.grad = None

    def before_backward(self, *, last: bool) -> None:
        """Replicas of the shards sum once, in the last backward pass."""
        self.model.set_requires_all_reduce(last)

    def sum(self, world: World) -> None:
        """Nothing is left to sum: the backward passes did."""

    def norm(self, world: World) -> Tensor:
        """See `FlatGradients.norm`. All ranks take part."""
        squares = [part.double().square().sum() for part in self._parts()]
        # a rank without gradients joins the others' sum, on the device where theirs lie
        nothing = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        total = torch.stack([nothing, *squares]).sum().view(1)
        world.sum([total])
        # every replica counted the same shards
        return (total / (world.size // world.dp_shard)).sqrt().squeeze()

    def scale(self, factor: Tensor) -> None:
        """See `FlatGradients.scale`."""
        for part in self._parts():
            part.mul_(factor)

    def _parts(self) -> list[Tensor]:
        grads: list[Any] = [parameter.grad for parameter in self.parameters]
        return [grad.to_local() for grad in grads if grad is not None]


Gradients = FlatGradients | ShardedGradients
