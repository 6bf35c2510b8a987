"""Validation in the training loop: on rank 0 alone, or on all ranks together where parameters are sharded."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from brine.common.processes import StopSignal
from brine.training.parallel.distributed import World
from brine.training.parallel.parallelize import is_sharded
from brine.training.runtime import Runtime

Validate = Callable[[nn.Module, int, Callable[[], bool]], dict[str, Any] | None]
"""Called as validate(model, step, should_stop), in eval mode without gradients; returns numbers for the metrics, of
which `loss` chooses the best checkpoint. It should call should_stop() now and then and return None where it is true; it
is then called again on resume."""


def run_validation(
    validate: Validate, model: nn.Module, step: int, *, runtime: Runtime, world: World, stop: StopSignal
) -> dict[str, Any] | None:
    """The numbers of a validation, on the ranks that take part; None elsewhere, or where a stop interrupted it."""
    together = is_sharded(model)
    if not together and not world.is_main:
        return None

    def should_stop() -> bool:
        # ranks that compute together must also stop together
        return any(world.gather(stop.requested)) if together else stop.requested

    model.eval()
    # compiling each of its shapes costs more than it saves
    eager = torch.compiler.set_stance("force_eager") if runtime.compile else nullcontext()
    with torch.no_grad(), eager:
        found = validate(model, step, should_stop)
    model.train()
    return found
