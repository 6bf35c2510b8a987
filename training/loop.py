"""The training loop: deterministic, resumable to the bit, and able to take back a bad step.

What a run ends with depends on its configuration, its rows and its runtime, and on nothing else: not on when it was
killed, how often it was started, or what the clock said. For that, everything that reaches the weights is either a pure
function of the step (learning rate, soft-label weight, random numbers: torch's generator is seeded anew at each
step) or part of the checkpoint (weights, optimiser, next row, guard). Sums that are only logged are kept in it too,
so the metrics of a killed run read like those of one that was not.

Order within a step: forward and backward, sum over ranks, verdict, update, line of metrics, validation, checkpoint,
stop. After a step whose loss or gradient is not finite (or spikes, if asked) the last good checkpoint is loaded, the
rows around the failing step are passed over, an event is written, and training goes on. A checkpoint is good when
enough clean steps followed it (`guard.py`).

On a device that computes while the host goes on, loss and norm are read one step late (`Runtime.reads_late`): the
verdict on a step falls after the next one was started, and a request to stop is seen then. Whatever leaves the loop
waits for it: no line, validation or checkpoint tells of a step that was not looked at. On a CPU there is nothing to
wait for, and a failing step is never applied.

Checkpoints are written while training goes on (`saver.py`); a roll-back waits for the one that is on its way.

What this file does not do: build models or data (they are given), schedule stages (`stages.py`), or decide how ranks
share rows and parameters (`parallel.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernels import choices
from salt.distill import Distillation
from training.checkpoint import Checkpoint, CheckpointError, drop_after, latest_checkpoint, load_checkpoint
from training.config import TrainConfig
from training.distributed import World, is_lost_touch
from training.gradients import GradientBuffer, ShardedGradients
from training.guard import Guard
from training.ledger import Ledger
from training.metrics import Sink, append_event
from training.micro_batch import micro_batches
from training.optimizer import Optimizer
from training.parallel import is_sharded, parallelize
from training.processes import Interrupted, Stop
from training.profiling import Profiler
from training.progress import Progress
from training.rows import RowSource, RowStream
from training.runtime import Runtime, compile_blocks
from training.saver import Saver
from training.schedule import learning_rate
from training.step import StepNumbers, StepResult, accumulate, clip

Validate = Callable[[nn.Module, int, Callable[[], bool]], dict[str, Any] | None]
"""Called as validate(model, step, should_stop), in eval mode without gradients; returns numbers for the metrics, of
which `loss` chooses the best checkpoint. Look at should_stop() now and then and return None to break off; it is then
called again on resume. Rank 0 calls it alone, or, where ranks hold a model between them, all do, in step."""


@dataclass(frozen=True)
class _Step:
    """A step that was computed."""

    number: int
    """Steps done before it."""
    row: int
    """Its first global row."""
    rate: float
    """Its learning rate."""
    result: StepResult


@dataclass(frozen=True)
class TrainResult:
    """What a finished training run came to."""

    step: int
    """Steps done."""
    row: int
    """Next global row."""
    tokens: int
    """Tokens gone through, padding included."""
    loss: float
    """Mean cross-entropy per target token over the last lines' window, nats."""
    checkpoint: Path
    """Folder of the last checkpoint."""
    ledger: Ledger
    """What it cost."""


def train(
    config: TrainConfig,
    *,
    model: nn.Module,
    rows: RowSource,
    folder: Path,
    runtime: Runtime,
    name: str = "train",
    account: str = "student",
    kinds: tuple[str, ...] = (),
    distillation: Distillation | None = None,
    validate: Validate | None = None,
    world: World | None = None,
    stop: Stop | None = None,
    sinks: tuple[Sink, ...] = (),
    quiet: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train `model` in place to `config.num_steps`, going on from the newest checkpoint under `folder`.

    Args:
        model: initialised, the same on every rank; or empty, and then initialised from `config.seed` once its
            parameters are where they belong. A checkpoint replaces its weights.
        rows: the training rows, as batches of this rank.
        folder: gets `checkpoints/`, `metrics.jsonl`, `events.jsonl` and `ledger.json`.
        runtime: settled by `resolve_runtime` and applied by `apply_runtime`.
        name: for bar and lines.
        account: whom the model's own training is billed to: `student` or `teacher_training`.
        kinds: names of the batch's kinds of document.
        distillation: the small model's soft labels, or None.
        validate: see `Validate`.
        world: this rank among the others.
        stop: an entered `Stop`; without one, one is made for the call (main thread only).
        sinks: more readers of the metrics.
        on_step: called with the number of steps done after each (tests).

    Raises Interrupted when a signal asked to stop, after saving; TrainingDivergedError after too many roll-backs;
    CheckpointError where the folder holds another model.
    """
    run = _Run(
        config, model, rows, Path(folder), runtime, name, account, kinds, distillation, validate,
        world or World(), sinks, quiet, on_step,
    )  # fmt: skip
    try:
        if stop is not None:
            return run.go(stop)
        with Stop() as own_stop:
            return run.go(own_stop)
    finally:
        run.close()


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self, config, model, rows, folder, runtime, name, account, kinds, distillation, validate, world, sinks, quiet,
        on_step,
    ):  # fmt: skip
        self.config, self.runtime, self.world, self.folder = config, runtime, world, folder
        self.account, self.kinds, self.distillation = account, tuple(kinds), distillation
        self.validate, self.on_step = validate, on_step
        micro_rows = config.micro_rows_on(world.replicas)
        self.num_batches = config.rows_per_step // (world.replicas * micro_rows)
        self.model = model
        if distillation is not None:
            distillation.check(model)
            distillation.teacher.to(device=runtime.device, dtype=runtime.weight_dtype)
            distillation.teacher.attention_backend = runtime.attention_backend
            if runtime.compile:
                compile_blocks(distillation.teacher)
        parallelize(model, runtime=runtime, world=world, seed=config.seed)
        self.optimizer = Optimizer(model, config)
        parameters = self.optimizer.parameters
        self.gradients = ShardedGradients(model, parameters) if is_sharded(model) else GradientBuffer(parameters)
        self.guard = Guard(config)
        self.ledger = Ledger()
        self.stream = RowStream(
            rows, rows_per_step=config.rows_per_step, batches_per_step=self.num_batches,
            ready=partial(
                micro_batches, device=runtime.device, model=model, world=world,
                teacher=None if distillation is None else distillation.teacher,
            ),
        )  # fmt: skip
        self.progress = Progress(
            name, folder=folder, config=config, runtime=runtime, world=world, kinds=self.kinds, sinks=sinks, quiet=quiet
        )
        self.checkpoints = folder / "checkpoints"
        self.saver = Saver(
            self.checkpoints, world=world, keep=config.keep_checkpoints, keep_at=config.kept_steps,
            timeout_s=world.timeout_s,
        )  # fmt: skip
        self.profiler = Profiler(folder / "trace", runtime=runtime, rank=world.rank)
        self.step = self.row = self.tokens = 0
        # steps that were applied and not looked at yet; gradient norm of the last one that was; time billed until
        self.unread: list[_Step] = []
        self.failed = 0
        """Documents of this rank that could not be loaded."""
        self.norm = float("nan")
        self.since = time.perf_counter()
        self.validated = False
        # held-out loss at this step, and the lowest so far
        self.score: float | None = None
        self.best: float | None = None
        # the newest checkpoint; what is on its way counts
        self.last: Checkpoint | None = None

    def go(self, stop: Stop) -> TrainResult:
        """From the newest checkpoint (or the beginning) to the last step."""
        self._begin()
        self._begin_window()
        # a stop may have left a validation out
        leave = self._validation_broken_off(stop)
        while self.step < self.config.num_steps and not leave:
            leave = self._one_step(stop)
        if leave:
            self._leave(stop)
        self._settle()
        return TrainResult(
            step=self.step,
            row=self.row,
            tokens=self.tokens,
            loss=self.progress.last_loss,
            checkpoint=self.last.folder,
            ledger=self.ledger,
        )

    def _begin(self) -> None:
        record = self.progress.record
        found = latest_checkpoint(self.checkpoints, on_event=record.event, world=self.world)
        if found is not None:
            load_checkpoint(found, model=self.model, optimizer=self.optimizer)
            self._take(found)
            dropped = record.truncate(self.step, validation=self.validated)
            record.event(
                "resumed", step=self.step, row=self.row, dropped_lines=dropped, world_size=self.world.size
            )  # fmt: skip
            self.progress.console.say(f"goes on from step {self.step}")
        else:
            record.truncate(-1)
            record.event("begun", step=0, runtime=self.runtime, world_size=self.world.size)
            self._save(planned=True)
        self.progress.console.at(self.step)

    def _one_step(self, stop: Stop) -> bool:
        """One step, applied or taken back; returns whether all ranks should leave."""
        self.since = time.perf_counter()
        self.row = self.guard.next_row(self.row)
        # no generator state to save: the step's random numbers follow from its number, and differ between ranks
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 1_009 + self.world.rank)
        self.model.train()
        with self.profiler.step(self.step + 1):
            done = _Step(self.step, self.row, learning_rate(self.config, self.step), self._accumulate(stop))
            if self.runtime.reads_late:
                self._apply(done)
                # what is about to be told or kept must have been looked at
                outgoing = self._outgoing()
                ready, self.unread = ([*self.unread, done], []) if outgoing else (self.unread, [done])
                leave, well = self._look(ready)
            else:
                leave, well = self._look([done])
                if well:
                    self._apply(done)
        self._bill_seconds()
        if leave and well:
            ready, self.unread = self.unread, []
            _, well = self._look(ready)
        if not well:
            return leave
        self.progress.console.at(self.step)
        if self._due(self.config.log_every):
            soft = self.distillation.weight_at(self.step - 1) if self.distillation is not None else 0.0
            self.progress.log(
                step=self.step, row=self.row, tokens=self.tokens, grad_norm=self.norm, rate=done.rate, soft=soft,
                ledger=self.ledger,
            )  # fmt: skip
        leave = leave or self._validation_broken_off(stop)
        better = self.score is not None and (self.best is None or self.score < self.best)
        self.best = self.score if better else self.best
        planned = better or self._due(self.config.checkpoint_every) or self.step in self.config.kept_steps
        if planned or leave:
            self._save(planned=planned)
        if self.on_step is not None:
            self.on_step(self.step)
        return leave

    def _apply(self, done: _Step) -> None:
        """Change the weights."""
        clip(self.gradients, grad_norm=done.result.grad_norm, limit=self.config.grad_clip)
        self.optimizer.step(done.rate)
        self.step += 1
        self.row += self.config.rows_per_step
        self.tokens += done.result.tokens
        self.validated, self.score = False, None

    def _look(self, steps: list[_Step]) -> tuple[bool, bool]:
        """Read what steps came to, bill them, and count them or roll back; was a stop asked for, did all go well?"""
        leave = False
        for place, step in enumerate(steps):
            numbers = self._bill(step)
            leave = leave or numbers.stop
            loss, norm = numbers.tally.loss, numbers.grad_norm
            reason = self.guard.verdict(loss=loss, objective=numbers.tally.objective, grad_norm=norm)
            if reason is not None:
                # those behind it were computed with spoilt weights, and cost as much
                for wasted in (*steps[place + 1 :], *self.unread):
                    self._bill(wasted)
                self.unread = []
                self._roll_back(reason, failed=step)
                return leave, False
            self.guard.accept(loss=loss, grad_norm=norm, targets=numbers.tally.num_targets)
            self.progress.window.sums += numbers.tally.sums
            self.norm = norm
        return leave, True

    def _bill(self, step: _Step) -> StepNumbers:
        """Enter what a step cost, whether or not it counts, and what became of its documents; returns its numbers."""
        result = step.result
        numbers = result.read()
        self._bill_seconds(teacher_s=numbers.teacher_s)
        self.ledger.bill(self.account, flops=numbers.flops["student"])
        self.ledger.bill("teacher_forward", flops=numbers.flops["teacher_forward"])
        self.progress.pace.add(data_s=result.data_s, busy_s=numbers.busy_s)
        for document, why in result.failures:
            append_event(self.folder, "document_failed", step=step.number, document=document, reason=why)
        if result.failures and not self.failed:
            document, why = result.failures[0]
            self.progress.console.say(
                f"step {step.number}: document {document} cannot be loaded and is left out ({why}); all are in "
                "events.jsonl"
            )
        self.failed += len(result.failures)
        return numbers

    def _bill_seconds(self, *, teacher_s: float = 0.0) -> None:
        """Bill the time since this was last asked, the teacher's share of it to the teacher."""
        spent = time.perf_counter() - self.since
        self.since += spent
        # a device's clock and the host's need not agree about one step
        teacher_s = min(teacher_s, spent)
        self.ledger.bill(self.account, seconds=spent - teacher_s)
        self.ledger.bill("teacher_forward", seconds=teacher_s)

    def _outgoing(self) -> bool:
        """Will anything of the step that was just applied be written, or its weights be judged?"""
        validates = self.validate is not None and self._due(self.config.validate_every)
        saves = self._due(self.config.checkpoint_every) or self.step in self.config.kept_steps
        return validates or saves or self._due(self.config.log_every)

    def _accumulate(self, stop: Stop) -> StepResult:
        try:
            return accumulate(
                self.model,
                self.stream.step(self.row),
                step=self.step,
                config=self.config,
                runtime=self.runtime,
                world=self.world,
                gradients=self.gradients,
                num_batches=self.num_batches,
                kinds=self.kinds,
                distillation=self.distillation,
                stop=stop.requested,
            )
        except RuntimeError as error:
            # sharding and rings speak to other ranks from inside the model
            if self.world.size > 1 and is_lost_touch(error):
                raise self.world.lost(error) from error
            raise

    def _due(self, every: int) -> bool:
        return self.step == self.config.num_steps or (every > 0 and self.step % every == 0)

    def _validation_broken_off(self, stop: Stop) -> bool:
        """Validate where this step is due and it has not been done; was it broken off by a stop?"""
        if self.validate is None or self.validated or self.step == 0 or not self._due(self.config.validate_every):
            return False
        self.world.mark(f"validating step {self.step}")
        together = is_sharded(self.model)
        found = None
        if together or self.world.is_main:
            # ranks that compute in step must also stop in step
            should_stop = (lambda: any(self.world.gather(stop.requested))) if together else (lambda: stop.requested)
            start = time.perf_counter()
            self.model.eval()
            # compiled code would be made anew for each of its shapes, which costs more than it saves
            eager = torch.compiler.set_stance("force_eager") if self.runtime.compile else nullcontext()
            with torch.no_grad(), eager:
                found = self.validate(self.model, self.step, should_stop)
            self.model.train()
            self.progress.pace.pause(time.perf_counter() - start)
        # rank 0 says whether it is done, and how good it was
        self.validated, self.score = self.world.broadcast((found is not None, (found or {}).get("loss")))
        if self.validated:
            self.progress.validation(step=self.step, found=found, flops=self.ledger.total_flops())
        return not self.validated

    def _save(self, *, planned: bool) -> None:
        """Begin a checkpoint; the one before must be on the disk by now."""
        self.world.mark(f"saving step {self.step}")
        state = {**self._state(), "planned": planned}
        path = self.saver.begin(
            step=self.step, model=self.model, optimizer=self.optimizer, state=state,
            good=self.guard.good_until(self.step),
        )  # fmt: skip
        if self.world.is_main:
            self.ledger.save(self.folder / "ledger.json")
        self.last = Checkpoint(folder=path, step=self.step, state=state)

    def _state(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "tokens": self.tokens,
            "validated": self.validated,
            "score": self.score,
            "best": self.best,
            **self.progress.state(),
            "guard": self.guard.state(),
            "ledger": self.ledger.to_dict(),
            "seed": self.config.seed,
        }

    def _take(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.step, self.row, self.tokens = checkpoint.step, state["row"], state["tokens"]
        self.validated, self.score, self.best = state["validated"], state["score"], state["best"]
        self.progress.take(state)
        self.guard.take(state["guard"])
        self.ledger.take(state["ledger"])
        self.last = checkpoint

    def _roll_back(self, reason: str, *, failed: _Step) -> None:
        """Back to the last good checkpoint, past the rows around the failing step. Its cost stays on the bill.

        Not to one that a stop left behind: where somebody pressed Ctrl-C must not decide what is learned.
        """
        failed_step, failed_row = failed.number, failed.row
        self.saver.wait()
        good = self.guard.good_until(failed_step)
        found = latest_checkpoint(
            self.checkpoints,
            on_event=self.progress.record.event,
            world=self.world,
            wanted=lambda one: one.planned and one.step <= good,
        )
        if found is None:
            raise CheckpointError(
                f"step {failed_step}: {reason}, and {self.checkpoints} holds no undamaged checkpoint of step {good} or "
                "before to go back to: begin in a new run folder"
            )
        skipped = self.guard.skip(checkpoint_row=found.state["row"], first_row=failed_row, reason=reason)
        windows, ledger = self.guard.skipped, self.ledger.to_dict()
        load_checkpoint(found, model=self.model, optimizer=self.optimizer)
        self._take(found)
        self.guard.skipped = windows
        self.ledger.take(ledger)
        self.progress.record.truncate(self.step)
        self.progress.record.event(
            "rolled_back", reason=reason, step=failed_step, to_step=self.step, skipped_rows=list(skipped)
        )
        self.progress.console.say(
            f"step {failed_step}: {reason}; back to step {self.step}, passing over rows {skipped[0]} to {skipped[1]}"
        )
        self.stream.close()
        self._begin_window()
        self.world.barrier()
        if self.world.is_main:
            drop_after(self.checkpoints, step=self.step)

    def _leave(self, stop: Stop) -> None:
        if self.last is None or self.last.step != self.step:
            self._save(planned=False)
        self.saver.wait()
        self.progress.record.event("interrupted", step=self.step, signal=stop.signal_name, backends=choices())
        raise Interrupted(f"stopped after step {self.step} of {self.config.num_steps}, saved; the same command goes on")

    def _settle(self) -> None:
        """The end: the last checkpoint says that everything was done, and the ledger lies beside it."""
        if self.last is None or self.last.step != self.step or self.last.state["validated"] != self.validated:
            self._save(planned=True)
        self.saver.wait()
        self.progress.record.event("finished", step=self.step, row=self.row, backends=choices())

    def _begin_window(self) -> None:
        self.progress.pace.begin(step=self.step, tokens=self.tokens, flops=self.ledger.total_flops())

    def close(self) -> None:
        self.stream.close()
        self.saver.close()
        self.progress.close()
