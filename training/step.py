"""One optimizer step: forward and backward over its micro-batches, sums over ranks, gradient clipping.

The loss is summed over all ranks, then divided by the number of targets of the step: a mean of means would weigh
targets unequally. Logged is the plain cross-entropy of the hard labels, by the modality that a target follows and by
kind of document, in float64. These sums, the stop flag and FLOPs travel in one small vector. Nothing here syncs with
the device (`DeviceStepResult`). B batch, T tokens, N = B T, K kinds.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from brine.data.batch import Batch
from brine.data.document import MODALITIES
from brine.data.sequence import MODALITY_CONTEXTS
from brine.kernels.linear_loss import linear_cross_entropy
from brine.model.embed import floats
from brine.salt.distill import Distillation
from brine.training.config import TrainConfig
from brine.training.gradients import Gradients
from brine.training.logging.profiling import PhaseTimer, PhaseTimes
from brine.training.micro_batch import MicroBatch
from brine.training.parallel.activations import offloading
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime

MIXTURE = ("text", *MODALITIES, "padding")


class StepSums:
    """Sums over the target tokens of some steps; all float64, so that adding up micro-batches loses nothing."""

    def __init__(self, kinds: tuple[str, ...] = (), sums: Tensor | None = None):
        """sums: (2 + 2 * (contexts + kinds) + 5,) objective, targets, then loss and count of each modality context and
        each kind of document, then tokens of each part of MIXTURE; None: zeros."""
        self.kinds = kinds
        size = 2 + 2 * (len(MODALITY_CONTEXTS) + len(kinds)) + len(MIXTURE)
        self.sums = torch.zeros(size, dtype=torch.float64) if sums is None else sums

    def add_batch(self, batch: Batch, *, objective: Tensor, token_loss: Tensor) -> None:
        """Add the losses of one micro-batch; token_loss (N,), 0 where there is no target. The mixture is counted on the
        host (`accumulate`)."""
        target = batch.labels.flatten() >= 0
        parts = [objective.detach().double().view(1), target.sum().double().view(1)]
        for ids, size in ((batch.modality_context, len(MODALITY_CONTEXTS)), (batch.kind, len(self.kinds))):
            member = ids.flatten()[None] == torch.arange(size, device=ids.device)[:, None]
            member = (member & target).double()
            parts += [member @ token_loss.double(), member.sum(1)]
        self.sums[: -len(MIXTURE)] += torch.cat(parts)

    @property
    def num_targets(self) -> int:
        """Target tokens."""
        return int(self.sums[1])

    @property
    def loss(self) -> float:
        """Mean cross-entropy per target token, nats; 0 without targets."""
        return float(self.sums[2 : 2 + len(MODALITY_CONTEXTS)].sum()) / max(1, self.num_targets)

    @property
    def objective(self) -> float:
        """Mean per target token of what was differentiated, soft labels and z-loss included; 0 without targets."""
        return float(self.sums[0]) / max(1, self.num_targets)

    def to_dict(self) -> dict[str, Any]:
        """`loss`, `objective`, `targets`, `modality_context` and `kind`: means with counts; `mixture`: tokens by
        modality. What did not occur is left out."""
        mixture = zip(MIXTURE, self.sums[-len(MIXTURE) :].tolist(), strict=True)
        return {
            "loss": self.loss,
            "objective": self.objective,
            "targets": self.num_targets,
            "modality_context": self._means(2, MODALITY_CONTEXTS),
            "kind": self._means(2 + 2 * len(MODALITY_CONTEXTS), self.kinds),
            "mixture": {name: int(tokens) for name, tokens in mixture if tokens},
        }

    def _means(self, start: int, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
        loss, count = self.sums[start : start + 2 * len(names)].view(2, -1).tolist()
        return {
            name: {"loss": loss[i] / count[i], "targets": int(count[i])} for i, name in enumerate(names) if count[i]
        }


@dataclass(frozen=True)
class StepMetrics:
    """The numbers of one step, over all ranks, on the host.

    grad_norm: of the mean gradient before clipping. stop: was any rank asked to? flops: by category. teacher_s, busy_s:
    seconds of this rank's device in the teacher's forward pass, and at work without waiting for data or ranks."""

    step_sums: StepSums
    grad_norm: float
    stop: bool
    flops: dict[str, int]
    teacher_s: float
    busy_s: float


class DeviceStepResult:
    """One step, as its device has it; `read` brings it to the host."""

    def __init__(
        self, shared: Tensor, grad_norm: Tensor, *, kinds: tuple[str, ...], tokens: int, times: PhaseTimes,
        data_s: float, failures: tuple[tuple[int, str], ...] = (),
    ):  # fmt: skip
        """shared: (n,) float64, sums over all ranks: those of `StepSums`, then stop flags, FLOPs of student and of
        teacher. grad_norm: () float64. tokens: of all ranks, padding included. data_s: seconds of this rank waiting for
        micro-batches. failures: (document, reason) of this rank's documents that could not be loaded."""
        self.kinds, self.grad_norm, self.tokens = kinds, grad_norm, tokens
        self.data_s, self.failures = data_s, failures
        self._times, self._arrived = times, None
        self._copy = torch.cat([shared, grad_norm.view(1)])
        if shared.device.type == "cuda":
            # on its way while the next step is computed
            pinned = torch.empty(self._copy.shape, dtype=self._copy.dtype, pin_memory=True)
            self._copy = pinned.copy_(self._copy, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> StepMetrics:
        """The numbers; waits for the device where the step is still being computed."""
        if self._arrived is not None:
            self._arrived.synchronize()
        *sums, stop, student, teacher, grad_norm = self._copy.tolist()
        times = self._times.read()
        return StepMetrics(
            StepSums(self.kinds, torch.tensor(sums, dtype=torch.float64)), grad_norm, stop > 0,
            {"student": int(student), "teacher_forward": int(teacher)}, times.get("teacher", 0.0),
            times.get("compute", 0.0),
        )  # fmt: skip


def accumulate(
    model: Any, batches: Iterable[MicroBatch], *, step: int, config: TrainConfig, runtime: Runtime, world: World,
    gradients: Gradients, num_batches: int, kinds: tuple[str, ...], distillation: Distillation | None, stop: bool,
) -> DeviceStepResult:  # fmt: skip
    """Leave the mean gradient of the step's targets, over all ranks, in `gradients`; nothing is updated.

    batches: this rank's `num_batches` micro-batches, on the device (`brine.training.micro_batch`). Raises
    RankFailedError when another rank has ended.
    """
    gradients.zero()
    step_sums, mixture = StepSums(kinds), dict.fromkeys(MIXTURE, 0)
    # made there: a copy from the host would wait for the step before
    step_sums.sums = torch.zeros_like(step_sums.sums, device=runtime.device)
    distill_weight = distillation.distill_weight_at(step) if distillation is not None else 0.0
    student_flops = teacher_flops = tokens = 0
    data_s, clock = 0.0, PhaseTimer(runtime.device)
    failures: list[tuple[int, str]] = []
    waiting = time.perf_counter()
    world.mark(f"waiting for sequences of step {step + 1}")
    for number, micro_batch in enumerate(batches, 1):
        data_s += time.perf_counter() - waiting
        world.mark(f"computing step {step + 1}")
        batch = micro_batch.batch
        tokens += world.dp_size * micro_batch.tokens
        student_flops += micro_batch.student_flops
        teacher_flops += micro_batch.teacher_flops if distill_weight else 0
        failures += micro_batch.failures
        for name, count in batch.mixture.items():
            mixture[name] += count
        teacher_inputs: dict[str, Any] = {}
        with clock("compute"):
            # once for student and teacher
            media = {name: (floats(patches), index) for name, (patches, index) in batch.inputs.media.items()}
            inputs = batch.inputs.with_media(media)
            with runtime.autocast():
                if distillation is not None and distill_weight:
                    with clock("teacher"):
                        teacher_inputs["teacher_hidden"] = distillation.hidden(inputs)
                    teacher_inputs |= {
                        "teacher_weight": distillation.head_weight,
                        "distill_weight": distill_weight,
                        "temperature": distillation.temperature,
                    }
                with offloading(model, runtime.activation_checkpointing):
                    hidden = model(inputs)
                objective, token_loss = linear_cross_entropy(
                    hidden.flatten(0, 1),
                    model.head_weight,
                    batch.labels.flatten(),
                    token_weight=token_weights(batch, config),
                    z_loss=config.z_loss,
                    # counted on the host, so that the device is not asked
                    targets=batch.target_index,
                    backend=runtime.loss_backend,
                    return_token_loss=True,
                    **teacher_inputs,
                )
                # hidden states of the whole batch, which nothing needs any more
                del hidden, teacher_inputs, inputs, media
            gradients.before_backward(last=number == num_batches)
            objective.backward()
            step_sums.add_batch(batch, objective=objective, token_loss=token_loss)
        waiting = time.perf_counter()
        if number < num_batches:
            world.mark(f"waiting for sequences of step {step + 1}")

    world.mark(f"in the all-reduce of step {step + 1}")
    # one small vector for all that ranks must agree on; float64 holds these counts exactly
    counted = [*mixture.values(), stop, student_flops, teacher_flops]
    shared = torch.cat([step_sums.sums[: -len(MIXTURE)], _upload(counted, step_sums.sums.device)])
    world.sum([shared])
    gradients.sum(world)
    gradients.scale(1.0 / shared[1].clamp(min=1.0))
    return DeviceStepResult(
        shared, gradients.norm(world), kinds=kinds, tokens=tokens, times=clock.take(), data_s=data_s,
        failures=tuple(failures),
    )  # fmt: skip


def _upload(numbers: Iterable[float], device: torch.device) -> Tensor:
    host = torch.tensor(list(numbers), dtype=torch.float64)
    return host.pin_memory().to(device, non_blocking=True) if device.type != "cpu" else host


def clip(gradients: Gradients, *, grad_norm: Tensor, limit: float) -> None:
    """Scale the gradient down to the norm `limit` where it is longer; 0 means no limit."""
    if limit:
        gradients.scale(torch.where(grad_norm > limit, limit / grad_norm, 1.0))


def token_weights(batch: Batch, config: TrainConfig) -> Tensor | None:
    """(B T,) weight of each target in the objective, by the modality that it follows; None where all weigh 1."""
    if not config.modality_context_weights:
        return None
    context = batch.modality_context
    return _weight_table(config.modality_context_weights, context.device)[context.flatten().long()]


@lru_cache
def _weight_table(weights: tuple[tuple[str, float], ...], device: torch.device) -> Tensor:
    """(contexts,) float32: kept, since a copy from the host waits for it."""
    named = dict(weights)
    return torch.tensor([named.get(name, 1.0) for name in MODALITY_CONTEXTS], device=device)
