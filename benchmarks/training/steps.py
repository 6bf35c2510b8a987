"""Training steps of a planner's case, as a run does them, on random sequences: what is measured against the plan.

steps = TrainStepRunner(case, world=world)
steps.step(random_batch(case, document_tokens=8192))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.training.train_cpu_brine import as_batch
from brine.data.batch import Batch
from brine.data.sequence import FIELDS
from brine.model.transformer import Transformer
from brine.planner.memory import RunSettings
from brine.training.config import TrainConfig
from brine.training.gradients import FlatGradients, ShardedGradients
from brine.training.micro_batch import MicroBatch, micro_batches
from brine.training.optimizer import Optimizer
from brine.training.parallel.distributed import World
from brine.training.parallel.parallelize import is_sharded, parallelize
from brine.training.runtime import Runtime
from brine.training.step import DeviceStepResult, accumulate, clip


class TrainStepRunner:
    """A model and what trains it, made as `case` says; one step at a time."""

    def __init__(self, case: RunSettings, *, world: World, seed: int = 0):
        self.world = world
        self.runtime = Runtime(
            device=case.device, dtype=case.dtype, compile=case.compiled,
            activation_checkpointing=case.activation_checkpointing, ac_group_size=case.ac_group_size,
            mlp_tile_tokens=case.mlp_tile_tokens, deterministic=False, attention_backend=case.attention_backend,
        )  # fmt: skip
        self.model = Transformer(case.model, on_meta_device=True).train()
        parallelize(self.model, runtime=self.runtime, world=world, seed=seed)
        self.config = TrainConfig(model=case.model, optimizer=case.optimizer)
        self.optimizer = Optimizer(self.model, self.config)
        parameters = self.optimizer.parameters
        self.gradients = (
            ShardedGradients(self.model, parameters) if is_sharded(self.model) else FlatGradients(parameters)
        )
        self.taken = 0

    def ready(self, batch: Batch) -> Iterable[MicroBatch]:
        """The batch as a step takes it."""
        return micro_batches([batch], device=self.runtime.device, model=self.model, world=self.world)

    def step(self, batch: Batch) -> DeviceStepResult:
        """Forward, backward, sums, the update."""
        result = accumulate(
            self.model, self.ready(batch), step=self.taken, config=self.config, runtime=self.runtime, world=self.world,
            gradients=self.gradients, num_batches=1, kinds=("text",), distillation=None, stop=False,
        )  # fmt: skip
        clip(self.gradients, grad_norm=result.grad_norm, limit=self.config.grad_clip)
        self.optimizer.step(1e-3)
        self.taken += 1
        return result


def random_batch(case: RunSettings, *, document_tokens: int = 0, seed: int = 0) -> Batch:
    """One micro-batch of random numbers in host memory: text, behind the case's patches (stored) at the front of each
    sequence; documents of so many tokens, 0: one to a sequence."""
    shape = case.micro_batch_size, case.seq_len
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, case.model.vocab_size, shape, generator=generator)
    position = torch.arange(case.seq_len)
    document = position // (document_tokens or case.seq_len)
    position = position - document * (document_tokens or case.seq_len)
    batch = as_batch({
        "token_ids": ids, "labels": ids, "document": document.int().expand(shape).contiguous(),
        "position": position.expand(shape),
    })  # fmt: skip
    media, first = {}, 0
    for name, count in case.patches:
        media_index = (torch.arange(first, first + count) + case.seq_len * torch.arange(shape[0])[:, None]).flatten()
        size, dtype = (len(media_index), case.model.patch_dims[name]), torch.from_numpy(np.empty(0, FIELDS[name])).dtype
        patches = torch.randn(size, generator=generator)
        media[name] = ((128 + 40 * patches).clamp(0, 255) if dtype == torch.uint8 else patches).to(dtype), media_index
        first += count
    return replace(batch, inputs=batch.inputs.with_media(media))
