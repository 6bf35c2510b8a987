"""The training loop: deterministic, resumable bit for bit, and able to roll back a bad step.

Everything that affects the weights is a pure function of the step (learning rate, soft-label weight, random seed) or
part of the checkpoint (weights, optimizer, next sequence, guard). A step that diverged is rolled back to the last
trusted checkpoint, and the sequences around it are skipped (`guard.py`). On a GPU loss and norm are read one step late
(`Runtime.reads_metrics_late`); metrics, validation and checkpoints wait for them. Does not build models or data.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brine.common.processes import StopSignal, TrainingInterrupted
from brine.kernels.selection.choice_log import backend_choices
from brine.model.device import without_compilation
from brine.salt.distill import Distillation
from brine.training.checkpoint import checkpoint as checkpoints
from brine.training.checkpoint.async_checkpoint import AsyncCheckpointer
from brine.training.checkpoint.checkpoint import Checkpoint, CheckpointError
from brine.training.checkpoint.init_from import InitialWeights
from brine.training.config import TrainConfig, learning_rate
from brine.training.gradients import FlatGradients, ShardedGradients
from brine.training.guard import DivergenceGuard
from brine.training.logging.compute_cost import CostAccounting
from brine.training.logging.metrics import MetricsSink
from brine.training.logging.profiling import StepProfiler
from brine.training.logging.progress import Progress
from brine.training.micro_batch import MicroBatchStream, PackedSequenceSource, micro_batches
from brine.training.optimizer import Optimizer
from brine.training.parallel.distributed import World, is_rank_failure
from brine.training.parallel.parallelize import is_sharded, parallelize
from brine.training.runtime import Runtime, compile_blocks
from brine.training.step import DeviceStepResult, StepMetrics, accumulate, clip

Validate = Callable[[nn.Module, int, Callable[[], bool]], dict[str, Any] | None]
"""validate(model, step, should_stop), in eval mode without gradients: numbers for the metrics, of which `loss` chooses
the best checkpoint; None, to be called again on resume, where should_stop() is true."""
SAVED = ("sequence_index", "tokens", "validated", "val_loss", "best")
"""Attributes of a trainer that its checkpoints hold under their names."""


@dataclass(frozen=True)
class _UnreadStep:
    """A step whose numbers were not read yet: its number from 0, its first global sequence, its learning rate."""

    number: int
    sequence_index: int
    rate: float
    result: DeviceStepResult


@dataclass(frozen=True)
class TrainResult:
    """The end of a finished training run: steps, next global sequence, tokens with padding, mean cross-entropy of the
    metrics' last window in nats per target token."""

    step: int
    sequence_index: int
    tokens: int
    loss: float
    checkpoint: Path
    compute_cost: CostAccounting


class Trainer:
    """Trains a model in place to `config.num_steps`, from the newest checkpoint under `folder` on.

    model: initialised, the same on every rank; or on the meta device, and then initialised from `config.seed` once its
    parameters are on their device. `initial` replaces these weights, and a checkpoint replaces those. folder: gets
    `checkpoints/`, `metrics.jsonl`, `events.jsonl` and `compute_cost.json`. runtime: from `resolve_runtime`, applied by
    `apply_runtime`. cost_category: `student` or `teacher_training`. kinds: names of the batch's kinds of document.
    on_step: called with the number of steps done after each."""

    def __init__(
        self, config: TrainConfig, *, model: Any, sequences: PackedSequenceSource, folder: Path, runtime: Runtime,
        name: str = "train", cost_category: str = "student", kinds: tuple[str, ...] = (),
        distillation: Distillation | None = None, validate: Validate | None = None, world: World | None = None,
        sinks: tuple[MetricsSink, ...] = (), quiet: bool = False, on_step: Callable[[int], None] | None = None,
        initial: InitialWeights | None = None,
    ):  # fmt: skip
        world, folder = world or World(), Path(folder)
        self.config, self.runtime, self.world, self.folder, self.model = config, runtime, world, folder, model
        self.cost_category, self.kinds, self.distillation = cost_category, tuple(kinds), distillation
        self.validate, self.on_step, self.initial = validate, on_step, initial
        num_batches = config.global_batch_size // (world.dp_size * config.micro_batch_size_on(world.dp_size))
        teacher: Any = None
        if distillation is not None:
            distillation.check(model)
            teacher = distillation.teacher.to(device=runtime.device, dtype=runtime.weight_dtype)
            teacher.attention_backend = runtime.attention_backend
            if runtime.compile:
                compile_blocks(teacher)
        parallelize(model, runtime=runtime, world=world, seed=config.seed)
        self.optimizer = Optimizer(model, config)
        parameters = self.optimizer.parameters
        self.gradients = ShardedGradients(model, parameters) if is_sharded(model) else FlatGradients(parameters)
        self._accumulate_batches = partial(
            accumulate, config=config, runtime=runtime, world=world, gradients=self.gradients, kinds=self.kinds,
            num_batches=num_batches, distillation=distillation,
        )  # fmt: skip
        self.guard = DivergenceGuard(config)
        self.compute_cost = CostAccounting()
        self.stream = MicroBatchStream(
            sequences, global_batch_size=config.global_batch_size, batches_per_step=num_batches,
            ready=partial(micro_batches, device=runtime.device, model=model, world=world, teacher=teacher),
        )  # fmt: skip
        self.progress = Progress(
            name, folder=folder, config=config, runtime=runtime, world=world, kinds=self.kinds, sinks=sinks, quiet=quiet
        )
        self.checkpoints = folder / "checkpoints"
        self.saver = AsyncCheckpointer(
            self.checkpoints, world=world, keep=config.keep_checkpoints, timeout_s=world.timeout_s,
            keep_checkpoint_steps=config.permanent_checkpoint_steps, remote=runtime.remote_checkpoints,
            on_event=self.progress.record.event,
        )  # fmt: skip
        self.profiler = StepProfiler(folder / "trace", runtime=runtime, rank=world.rank)
        self.step = self.sequence_index = self.tokens = 0
        # steps applied and not read yet; gradient norm of the last one read; when seconds were last accounted
        self.unread: list[_UnreadStep] = []
        self.norm, self.since = float("nan"), time.perf_counter()
        # held-out loss at this step, and the lowest so far
        self.validated = False
        self.val_loss: float | None = None
        self.best: float | None = None
        # the newest checkpoint, one that is being written included
        self.last: Checkpoint | None = None

    def run(self, stop: StopSignal | None = None) -> TrainResult:
        """Train to the last step.

        stop: an entered `StopSignal`; without one, one is made for the call (main thread only). Raises
        TrainingInterrupted when a signal asked to stop, after saving; TrainingDivergedError after too many rollbacks;
        CheckpointError where the folder holds another model.
        """
        try:
            with nullcontext(stop) if stop is not None else StopSignal() as stop:
                self._begin()
                # a stop may have left a validation out
                leave = self._validation_is_missing() and self._validate_and_save(stop)
                while self.step < self.config.num_steps and not leave:
                    leave = self._train_step(stop)
                last = self._end(stop if leave else None)
        finally:
            self.stream.close()
            self.saver.close()
            self.progress.close()
        return TrainResult(
            self.step, self.sequence_index, self.tokens, self.progress.last_loss, last.folder, self.compute_cost
        )

    def _begin(self) -> None:
        record, ranks = self.progress.record, self.world.size
        self.saver.download_if_none()
        found = checkpoints.latest_checkpoint(self.checkpoints, on_event=record.event, world=self.world)
        if found is not None:
            self._restore(found)
            dropped, index = record.truncate(self.step, validation=self.validated), self.sequence_index
            record.event("resumed", step=self.step, sequence_index=index, dropped_lines=dropped, world_size=ranks)
            self.progress.console.say(f"resumes from step {self.step}")
        else:
            record.truncate(-1)
            if self.initial is not None:
                self.initial.load(self.model, self.optimizer)
            begins_with = None if self.initial is None else self.initial.digest
            record.event("started", step=0, runtime=self.runtime, world_size=ranks, init_digest=begins_with)
            self._save(scheduled=True)
        self.progress.console.at(self.step)
        self._begin_window()

    def _begin_window(self) -> None:
        self.progress.pace.begin(step=self.step, tokens=self.tokens, flops=self.compute_cost.total_flops())

    def _train_step(self, stop: StopSignal) -> bool:
        """Run one step, which is applied or rolled back; returns whether all ranks should stop."""
        self.since = time.perf_counter()
        self.sequence_index = self.guard.next_sequence(self.sequence_index)
        # no generator state to save: the step's random numbers follow from its number, and differ between ranks
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 1_009 + self.world.rank)
        self.model.train()
        with self.profiler.step(self.step + 1):
            rate = learning_rate(self.config, self.step)
            done = _UnreadStep(self.step, self.sequence_index, rate, self._accumulate(stop))
            if self.runtime.reads_metrics_late:
                self._apply(done)
                # what is about to be reported or saved must have been read
                ready, self.unread = ([*self.unread, done], []) if self._writes_after_step() else (self.unread, [done])
                leave, well = self._check_steps(ready)
            else:
                leave, well = self._check_steps([done])
                if well:
                    self._apply(done)
        self._account_seconds()
        if leave and well:
            ready, self.unread = self.unread, []
            _, well = self._check_steps(ready)
        if not well:
            return leave
        self.progress.console.at(self.step)
        if self._is_due(self.config.log_every):
            distillation = self.distillation
            self.progress.log(
                step=self.step, sequence_index=self.sequence_index, tokens=self.tokens, grad_norm=self.norm, rate=rate,
                distill_weight=0.0 if distillation is None else distillation.distill_weight_at(self.step - 1),
                compute_cost=self.compute_cost,
            )  # fmt: skip
        leave = self._validate_and_save(stop, leave=leave)
        if self.on_step is not None:
            self.on_step(self.step)
        return leave

    def _accumulate(self, stop: StopSignal) -> DeviceStepResult:
        try:
            batches = self.stream.step(self.sequence_index)
            return self._accumulate_batches(self.model, batches, step=self.step, stop=stop.requested)
        except RuntimeError as error:
            # sharding and ring attention communicate from inside the model
            if self.world.size > 1 and is_rank_failure(error):
                raise self.world.rank_failed_error(error) from error
            raise

    def _apply(self, done: _UnreadStep) -> None:
        clip(self.gradients, grad_norm=done.result.grad_norm, limit=self.config.grad_clip)
        self.optimizer.step(done.rate)
        self.step += 1
        self.sequence_index += self.config.global_batch_size
        self.tokens += done.result.tokens
        self.validated, self.val_loss = False, None

    def _check_steps(self, steps: list[_UnreadStep]) -> tuple[bool, bool]:
        """Read steps, account for them, and accept them or roll back; (was a stop requested, were all good)."""
        leave = False
        for index, step in enumerate(steps):
            numbers = self._record_step_cost(step)
            leave = leave or numbers.stop
            loss, norm = numbers.step_sums.loss, numbers.grad_norm
            reason = self.guard.divergence_reason(loss=loss, objective=numbers.step_sums.objective, grad_norm=norm)
            if reason is not None:
                # the steps after it were computed with diverged weights, and cost as much
                for wasted in (*steps[index + 1 :], *self.unread):
                    self._record_step_cost(wasted)
                self.unread = []
                self._roll_back(reason, failed=step)
                return leave, False
            self.guard.accept(loss=loss, grad_norm=norm, targets=numbers.step_sums.num_targets)
            self.progress.window.sums += numbers.step_sums.sums
            self.norm = norm
        return leave, True

    def _record_step_cost(self, step: _UnreadStep) -> StepMetrics:
        """Account for a step, whether or not it counts, and record documents that failed to load; returns its
        numbers."""
        result = step.result
        numbers = result.read()
        self._account_seconds(teacher_s=numbers.teacher_s)
        self.compute_cost.add_cost(self.cost_category, flops=numbers.flops["student"])
        self.compute_cost.add_cost("teacher_forward", flops=numbers.flops["teacher_forward"])
        self.progress.pace.add(data_s=result.data_s, busy_s=numbers.busy_s)
        self.progress.load_failures(step.number, result.failures)
        return numbers

    def _account_seconds(self, *, teacher_s: float = 0.0) -> None:
        """Account for the time since the last call, `teacher_s` of it to the teacher."""
        spent = time.perf_counter() - self.since
        self.since += spent
        # a device's clock and the host's need not agree about one step
        teacher_s = min(teacher_s, spent)
        self.compute_cost.add_cost(self.cost_category, seconds=spent - teacher_s)
        self.compute_cost.add_cost("teacher_forward", seconds=teacher_s)

    def _is_due(self, every: int) -> bool:
        return self.step == self.config.num_steps or (every > 0 and self.step % every == 0)

    def _checkpoint_is_due(self) -> bool:
        return self._is_due(self.config.checkpoint_every) or self.step in self.config.permanent_checkpoint_steps

    def _writes_after_step(self) -> bool:
        validates = self.validate is not None and self._is_due(self.config.validate_every)
        return validates or self._checkpoint_is_due() or self._is_due(self.config.log_every)

    def _validation_is_missing(self) -> bool:
        due = self.validate is not None and self.step > 0 and self._is_due(self.config.validate_every)
        return due and not self.validated

    def _validate_and_save(self, stop: StopSignal, *, leave: bool = False) -> bool:
        """Validate and save where either is due; returns whether to stop, as `leave` or since a stop interrupted it."""
        if not leave and self._validation_is_missing():
            self._validate(stop)
            leave = not self.validated
        better = self.val_loss is not None and (self.best is None or self.val_loss < self.best)
        self.best = self.val_loss if better else self.best
        scheduled = better or self._checkpoint_is_due()
        if scheduled or leave:
            self._save(scheduled=scheduled)
        return leave

    def _validate(self, stop: StopSignal) -> None:
        """Measure the held-out loss; a stop leaves `validated` False."""
        assert self.validate is not None
        self.world.mark(f"validating step {self.step}")
        start = time.perf_counter()
        together, found = is_sharded(self.model), None
        if together or self.world.is_main:
            self.model.eval()
            # compiling each of its shapes costs more than it saves
            with torch.no_grad(), without_compilation():
                # ranks that compute together must also stop together
                asked = (lambda: any(self.world.gather(stop.requested))) if together else (lambda: stop.requested)
                found = self.validate(self.model, self.step, asked)
            self.model.train()
        self.progress.pace.pause(time.perf_counter() - start)
        self.validated, self.val_loss = self.world.broadcast((found is not None, (found or {}).get("loss")))
        if self.validated:
            self.progress.validation(step=self.step, found=found, flops=self.compute_cost.total_flops())

    def _save(self, *, scheduled: bool) -> Checkpoint:
        self.world.mark(f"saving step {self.step}")
        state = {
            **{name: getattr(self, name) for name in SAVED},
            **self.progress.state(),
            "guard": self.guard.state(),
            "compute_cost": self.compute_cost.to_dict(),
            "seed": self.config.seed,
            "scheduled": scheduled,
        }
        good = self.guard.trusted_until(self.step)
        path = self.saver.begin(step=self.step, model=self.model, optimizer=self.optimizer, state=state, good=good)
        if self.world.is_main:
            self.compute_cost.save(self.folder / "compute_cost.json")
        self.last = Checkpoint(folder=path, step=self.step, state=state)
        return self.last

    def _restore(self, checkpoint: Checkpoint) -> None:
        checkpoints.load_checkpoint(checkpoint, model=self.model, optimizer=self.optimizer)
        self.step, state = checkpoint.step, checkpoint.state
        for name in SAVED:
            setattr(self, name, state[name])
        self.progress.take(state)
        self.guard.take(state["guard"])
        self.compute_cost.take(state["compute_cost"])
        self.last = checkpoint

    def _roll_back(self, reason: str, *, failed: _UnreadStep) -> None:
        """Load the last trusted checkpoint and skip the sequences around the failed step; its cost remains accounted.

        Only scheduled checkpoints count: when somebody pressed Ctrl-C must not affect the weights.
        """
        self.saver.wait()
        good = self.guard.trusted_until(failed.number)
        found = checkpoints.latest_checkpoint(
            self.checkpoints, on_event=self.progress.record.event, world=self.world,
            wanted=lambda one: one.scheduled and one.step <= good,
        )  # fmt: skip
        if found is None:
            raise CheckpointError(
                f"step {failed.number}: {reason}, and {self.checkpoints} has no undamaged checkpoint up to "
                f"step {good}: begin in a new run folder"
            )
        skipped = self.guard.skip(
            checkpoint_sequence=found.state["sequence_index"], first_sequence=failed.sequence_index, reason=reason
        )
        windows, compute_cost = self.guard.skipped, self.compute_cost.to_dict()
        self._restore(found)
        self.guard.skipped = windows
        self.compute_cost.take(compute_cost)
        record = self.progress.record
        record.truncate(self.step)
        record.event(
            "rolled_back", reason=reason, step=failed.number, to_step=self.step, skipped_sequences=list(skipped)
        )
        where = f"back to step {self.step}, skipping sequences {skipped[0]} to {skipped[1]}"
        self.progress.console.say(f"step {failed.number}: {reason}; {where}")
        self.stream.close()
        self._begin_window()
        self.world.barrier()
        if self.world.is_main:
            checkpoints.drop_after(self.checkpoints, step=self.step)

    def _end(self, stop: StopSignal | None) -> Checkpoint:
        """Save the last step, unless it is saved, and record the end; raises TrainingInterrupted for a stop."""
        last = self.last
        if last is None or last.step != self.step:
            last = self._save(scheduled=stop is None)
        self.saver.wait()
        event, backends = self.progress.record.event, backend_choices()
        if stop is None:
            event("finished", step=self.step, sequence_index=self.sequence_index, backends=backends)
            return last
        event("interrupted", step=self.step, signal=stop.signal_name, backends=backends)
        raise TrainingInterrupted(
            f"stopped after step {self.step} of {self.config.num_steps}, saved; the same command resumes"
        )
