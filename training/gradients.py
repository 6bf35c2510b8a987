"""The gradients of one step: summed over micro-batches and ranks, measured, scaled.

The loss is a sum over target tokens, so gradients are summed, never averaged, and divided once by the number of
targets of the step. `FlatGradients` holds them as views of one flat tensor: one reduction for the norm, a few large
buckets between ranks. `ShardedGradients` is for FSDP2, whose hooks sum each block over the ranks and keep this rank's
part.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from brine.training.parallel.distributed import World

# 64 bytes of float32: gradients begin where vector loads like it
ALIGNMENT = 16


class Gradients(Protocol):
    """What the loop asks of either."""

    def zero(self) -> None:
        """Forget the last step's."""

    def before_backward(self, *, last: bool) -> None:
        """Say whether the backward pass that comes is the step's last."""

    def sum(self, world: World) -> None:
        """Sum over ranks what the backward passes have not summed yet."""

    def norm(self, world: World) -> Tensor:
        """Euclidean norm of the whole gradient, a float64 scalar, the same bits on all ranks; not finite where any
        entry is not."""

    def scale(self, factor: Tensor) -> None:
        """Multiply every gradient by `factor`, a scalar where the gradients are."""


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
            start = 0
            for member, size in zip(members, sizes, strict=True):
                member.grad = flat[start : start + member.numel()].view_as(member)
                start += size
            self.flats.append(flat)

    def zero(self) -> None:
        """Set every gradient to zero."""
        for flat in self.flats:
            flat.zero_()

    def before_backward(self, *, last: bool) -> None:
        """Nothing to prepare: ranks sum once, at the end."""

    def sum(self, world: World) -> None:
        """Sum over all ranks."""
        world.sum(self.flats)

    def norm(self, world: World | None = None) -> Tensor:
        """See `Gradients.norm`; every rank has the whole gradient and need not ask."""
        return torch.stack([torch.linalg.vector_norm(flat).double() for flat in self.flats]).norm()

    def scale(self, factor: Tensor) -> None:
        """Multiply every gradient by `factor`, a scalar where the gradients are."""
        for flat in self.flats:
            flat.mul_(factor)


class ShardedGradients:
    """The gradients of a model whose parameters are split over ranks: this rank's parts."""

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter]):
        self.model, self.parameters = model, list(parameters.values())

    def zero(self) -> None:
        """Let go of the gradients; the next backward pass makes them anew."""
        for parameter in self.parameters:
            parameter.grad = None

    def before_backward(self, *, last: bool) -> None:
        """Replicas of the shards sum once, in the last backward pass."""
        self.model.set_requires_all_reduce(last)

    def sum(self, world: World) -> None:
        """Nothing is left to sum: the backward passes did."""

    def norm(self, world: World) -> Tensor:
        """See `Gradients.norm`. All ranks take part."""
        squares = [part.double().square().sum() for part in self._parts()]
        # a rank without gradients joins the others' sum, on the device where theirs lie
        nothing = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        total = torch.stack([nothing, *squares]).sum().view(1)
        world.sum([total])
        # every replica counted the same shards
        return (total / (world.size // world.dp_shard)).sqrt().squeeze()

    def scale(self, factor: Tensor) -> None:
        """Multiply every gradient by `factor`, a scalar where the gradients are."""
        for part in self._parts():
            part.mul_(factor)

    def _parts(self) -> list[Tensor]:
        return [parameter.grad.to_local() for parameter in self.parameters if parameter.grad is not None]
