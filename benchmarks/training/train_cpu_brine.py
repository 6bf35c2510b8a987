"""Our side of the training benchmark: the decoder and the training package's own step, as a child that takes turns.

A step is what `brine.training.trainer` does between two batches, with its own pieces: `accumulate` (forward under
autocast, the fused head and loss, backward, the sums that are logged, the gradient's norm), `clip`, and
`Optimizer.step`. Blocks are compiled one by one and deterministic algorithms are on, as in every run; the peer is not
required to do that. Not in it: loading data, checkpoints, the console.

The decoder has what the peer lacks, norms on queries and keys, and three patch embedders that see nothing here, kept as
small as can be. All layers see the whole document (`window=None`), so the masks are equal.

    python -m benchmarks.training.train_cpu_brine     started by train_cpu; speaks the protocol of harness/llama_peer.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.llama_peer import serve_training
from brine.data.batch import Batch
from brine.model.config import ModelConfig
from brine.model.inputs import Inputs
from brine.model.transformer import Transformer
from brine.training.config import TrainConfig
from brine.training.gradients import FlatGradients
from brine.training.micro_batch import micro_batches
from brine.training.optimizer import Optimizer
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime, apply_runtime, compile_blocks
from brine.training.step import accumulate, clip


class BrineTrainer:
    """The decoder of a given shape, one optimizer step at a time."""

    def __init__(self, spec: dict[str, Any]):
        batch_size = spec["batch_size"]
        self.config = TrainConfig(
            model=ModelConfig(**spec["shape"], window=None, image_dim=1, audio_dim=1, video_dim=1),
            global_batch_size=batch_size,
            micro_batch_size=batch_size,
            learning_rate=spec["learning_rate"],
            weight_decay=spec["weight_decay"],
            beta1=spec["betas"][0],
            beta2=spec["betas"][1],
            adam_eps=spec["eps"],
            grad_clip=spec["grad_clip"],
            seed=spec["seed"],
        )
        self.runtime = Runtime(dtype=spec["dtype"], compile=spec["compile"], num_threads=spec["threads"])
        apply_runtime(self.runtime)
        generator = torch.Generator().manual_seed(spec["seed"])
        self.model = Transformer(self.config.model, generator=generator).train()
        if spec["compile"]:
            compile_blocks(self.model)
        self.optimizer = Optimizer(self.model, self.config)
        self.gradients = FlatGradients(self.optimizer.parameters)
        self.world = World()
        self.parameters = self.model.num_parameters()
        self.versions = {"torch": torch.__version__}
        self.batches = torch.load(spec["batches"], weights_only=True)
        self.at = 0

    def case(self, name: str) -> str:
        """Take the batches of a case -> a note on what was taken."""
        self.case_batches, self.at = [as_batch(fields) for fields in self.batches[name]], 0
        return "spans made in every forward"

    def step(self) -> Tensor:
        """One optimizer step on the next batch -> mean loss of its targets."""
        batch = self.case_batches[self.at % len(self.case_batches)]
        result = accumulate(
            self.model,
            micro_batches([batch], device=self.runtime.device, model=self.model),
            step=self.at,
            config=self.config,
            runtime=self.runtime,
            world=self.world,
            gradients=self.gradients,
            num_batches=1,
            kinds=("text",),
            distillation=None,
            stop=False,
        )
        clip(self.gradients, grad_norm=result.grad_norm, limit=self.config.grad_clip)
        self.optimizer.step(self.config.learning_rate)
        self.at += 1
        return torch.tensor(result.read().step_sums.loss)


def as_batch(fields: dict[str, Tensor]) -> Batch:
    """The data package's batch of sequences of text. fields: token_ids, labels, document and position, each (B, T)."""
    tokens = fields["token_ids"]
    position = fields["position"].float()[..., None].expand(*tokens.shape, 3).contiguous()
    return Batch(
        Inputs(tokens, position, fields["document"], torch.zeros_like(fields["document"])),
        document=fields["document"],
        labels=fields["labels"],
        kind=torch.zeros(tokens.shape, dtype=torch.int16),
        modality_context=torch.zeros(tokens.shape, dtype=torch.uint8),
    )


if __name__ == "__main__":
    serve_training(BrineTrainer)
