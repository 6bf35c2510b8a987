"""One optimiser step: forward and backward over its micro-batches, the sum over ranks, the update.

The loss is summed, never averaged, until all ranks' sums are in one place; only then is the gradient divided by
the number of targets of the whole step. Padding, media slots and uneven documents make the number of targets differ
between micro-batches and ranks, and a mean of means would weigh targets unequally.

What is logged is the plain cross-entropy of the hard labels, whatever was trained on: summed per context (which
medium a target follows: none, image, audio, video) and per kind of document, with counts, in float64; and what the rows
were made of, in tokens: text, each medium, padding. These sums, the stop flag and the FLOPs travel to the other ranks
in one small vector.

B batch, T tokens, N = B T, K kinds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data.document import MODALITIES
from data.sequence import CONTEXT
from kernels import linear_cross_entropy
from salt.cost import TRAINING_PASSES, batch_flops
from salt.distill import Distillation
from training.activations import offloading
from training.config import TrainConfig
from training.context import share_rows
from training.distributed import World
from training.gradients import Gradients
from training.runtime import Runtime

if TYPE_CHECKING:
    from data.batch import Batch


MIXTURE = ("text", *MODALITIES, "padding")
"""What the tokens of rows are."""


@dataclass
class Tally:
    """Sums over the target tokens of some steps; all float64, so that adding up micro-batches loses nothing."""

    kinds: tuple[str, ...] = ()
    """Names of the kinds of document."""
    sums: Tensor = field(default=None)
    """(2 + 2 * (contexts + kinds) + 5,) objective, targets, then loss and count of each context and each kind, then
    tokens of each part of MIXTURE."""

    def __post_init__(self):
        size = 2 + 2 * (len(CONTEXT) + len(self.kinds)) + len(MIXTURE)
        if self.sums is None:
            self.sums = torch.zeros(size, dtype=torch.float64)
        elif len(self.sums) == size - len(MIXTURE):
            # a checkpoint of before the mixture was counted
            self.sums = torch.cat([self.sums, torch.zeros(len(MIXTURE), dtype=torch.float64)])

    def add_batch(self, batch: Batch, *, objective: Tensor, token_loss: Tensor) -> None:
        """Add one micro-batch; token_loss (N,), 0 where there is no target."""
        target = batch.labels.flatten() >= 0
        parts = [objective.detach().double().view(1), target.sum().double().view(1)]
        for ids, size in ((batch.context, len(CONTEXT)), (batch.kind, len(self.kinds))):
            member = ids.flatten()[None] == torch.arange(size, device=ids.device)[:, None]
            member = (member & target).double()
            parts += [member @ token_loss.double(), member.sum(1)]
        parts.append(mixture_of(batch))
        self.sums += torch.cat(parts).cpu()

    @property
    def num_targets(self) -> int:
        """Target tokens."""
        return int(self.sums[1])

    @property
    def loss(self) -> float:
        """Mean cross-entropy per target token, nats; 0 without targets."""
        return float(self.sums[2 : 2 + len(CONTEXT)].sum()) / max(1, self.num_targets)

    @property
    def objective(self) -> float:
        """Mean per target token of what was differentiated, soft labels and z-loss included; 0 without targets."""
        return float(self.sums[0]) / max(1, self.num_targets)

    def to_dict(self) -> dict[str, Any]:
        """`loss`, `objective`, `targets`, `context` and `kind`: means with counts; `mixture`: tokens by modality.

        What did not occur is left out.
        """
        return {
            "loss": self.loss,
            "objective": self.objective,
            "targets": self.num_targets,
            "context": self._means(2, CONTEXT),
            "kind": self._means(2 + 2 * len(CONTEXT), self.kinds),
            "mixture": {
                name: int(tokens)
                for name, tokens in zip(MIXTURE, self.sums[-len(MIXTURE) :].tolist(), strict=True)
                if tokens
            },
        }

    def _means(self, start: int, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
        loss, count = self.sums[start : start + 2 * len(names)].view(2, -1).tolist()
        return {
            name: {"loss": loss[i] / count[i], "targets": int(count[i])} for i, name in enumerate(names) if count[i]
        }


def mixture_of(batch: Batch) -> Tensor:
    """(5,) float64 tokens of a batch that are text (boundaries of media included), image, audio, video and padding."""
    size = batch.token_ids.numel()
    # patches that pad the batch point past its last slot
    media = [
        (batch.media[name][1] < size).sum() if name in batch.media else torch.zeros((), device=batch.token_ids.device)
        for name in MODALITIES
    ]
    padding = (batch.document < 0).sum()
    text = size - padding - sum(media)
    return torch.stack([part.double() for part in (text, *media, padding)])


@dataclass
class StepResult:
    """What one step came to, over all ranks."""

    tally: Tally
    """Its sums."""
    grad_norm: float
    """Norm of the mean gradient before clipping."""
    stop: bool
    """Was any rank asked to stop?"""
    flops: dict[str, int]
    """FLOPs by account: `student` (forward and backward) and `teacher_forward`."""
    tokens: int
    """Tokens gone through, padding included."""
    teacher_s: float
    """Seconds of this rank in the teacher's forward pass."""
    data_s: float
    """Seconds of this rank waiting for batches."""
    busy_s: float
    """Seconds of this rank from the first batch until it waits for the others' sums, waiting for data not counted."""
    failures: tuple[tuple[int, str], ...] = ()
    """(document, reason) of this rank's documents that could not be loaded and became padding."""


def accumulate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    step: int,
    config: TrainConfig,
    runtime: Runtime,
    world: World,
    gradients: Gradients,
    num_batches: int,
    kinds: tuple[str, ...],
    distillation: Distillation | None,
    stop: bool,
) -> StepResult:
    """Leave the mean gradient of the step's targets, over all ranks, in `gradients`; nothing is updated.

    batches: this rank's `num_batches` micro-batches.
    Raises RankLostError when another rank has ended.
    """
    gradients.zero()
    tally = Tally(kinds)
    soft = distillation.weight_at(step) if distillation is not None else 0.0
    student_flops = teacher_flops = tokens = 0
    teacher_s = data_s = 0.0
    failures: list[tuple[int, str]] = []
    began = waiting = time.perf_counter()
    world.mark(f"waiting for rows of step {step + 1}")
    for number, batch in enumerate(batches, 1):
        batch = to_device(batch, runtime.device)
        data_s += time.perf_counter() - waiting
        world.mark(f"computing step {step + 1}")
        whole, options, teacher_options = batch, {}, {}
        if world.context > 1:
            share = share_rows(batch, world, model)
            batch, options = share.batch, {"spans": share.spans()}
            if soft:
                seen = distillation.teacher.spans(whole.segment, whole.block)
                teacher_options = {"spans": share.spans(seen)}
        # of ranks that share rows the first bills them
        bills = world.rank % world.context == 0
        failures += getattr(whole, "failures", ()) if bills else ()
        tokens += batch.token_ids.numel()
        student_flops += bills * TRAINING_PASSES * batch_flops(model, whole)
        help_from: dict[str, Any] = {}
        with runtime.autocast():
            if soft:
                start = time.perf_counter()
                help_from = {
                    "teacher_hidden": distillation.hidden(batch, **teacher_options),
                    "teacher_weight": distillation.head_weight,
                    "distill_weight": soft,
                    "temperature": distillation.temperature,
                }
                teacher_flops += bills * batch_flops(distillation.teacher, whole)
                teacher_s += time.perf_counter() - start
            with offloading(model, runtime.checkpointing):
                hidden = model(batch.token_ids, batch.position, batch.segment, batch.block, batch.media, **options)
            objective, token_loss = linear_cross_entropy(
                hidden.flatten(0, 1),
                model.head_weight,
                batch.labels.flatten(),
                token_weight=token_weights(batch, config),
                z_loss=config.z_loss,
                return_token_loss=True,
                **help_from,
            )
            # whole streams, which nothing needs any more
            del hidden, help_from
        gradients.before_backward(last=number == num_batches)
        objective.backward()
        tally.add_batch(batch, objective=objective, token_loss=token_loss)
        waiting = time.perf_counter()
        if number < num_batches:
            world.mark(f"waiting for rows of step {step + 1}")

    busy_s = time.perf_counter() - began - data_s
    world.mark(f"in the sum of step {step + 1}")
    # one small vector for all that ranks must agree on; float64 holds these counts exactly
    extra = torch.tensor([float(stop), student_flops, teacher_flops, tokens], dtype=torch.float64)
    shared = torch.cat([tally.sums, extra]).to(runtime.device)
    world.sum([shared])
    gradients.sum(world)
    shared = shared.cpu()
    tally.sums = shared[: -len(extra)]
    stopped, student_flops, teacher_flops, tokens = shared[-len(extra) :].tolist()
    gradients.scale(1.0 / max(1, tally.num_targets))
    return StepResult(
        tally=tally,
        grad_norm=float(gradients.norm(world)),
        stop=stopped > 0,
        flops={"student": int(student_flops), "teacher_forward": int(teacher_flops)},
        tokens=int(tokens),
        teacher_s=teacher_s,
        data_s=data_s,
        busy_s=busy_s,
        failures=tuple(failures),
    )


def token_weights(batch: Batch, config: TrainConfig) -> Tensor | None:
    """(B T,) weight of each target in the objective, by the medium that it follows; None where all weigh 1."""
    if not config.context_weights:
        return None
    named = dict(config.context_weights)
    table = torch.tensor([named.get(name, 1.0) for name in CONTEXT], device=batch.context.device)
    return table[batch.context.flatten().long()]


def clip(gradients: Gradients, *, grad_norm: float, limit: float) -> None:
    """Scale the gradient down to the norm `limit` where it is longer; 0 means no limit."""
    if limit and grad_norm > limit:
        gradients.scale(limit / grad_norm)


def to_device(batch: Batch, device: str) -> Batch:
    """The same batch with its tensors on the device."""
    return batch if device == "cpu" else batch.to(device)
