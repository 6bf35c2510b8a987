"""The training loop: deterministic, resumable to the bit, and able to take back a bad step.

What a run ends with depends on its configuration, its rows and its runtime, and on nothing else: not on when it was
killed, how often it was started, or what the clock said. For that, everything that reaches the weights is either a pure
function of the step (learning rate, soft-label weight, random numbers: torch's generator is seeded anew at each
step) or part of the checkpoint (weights, optimiser, next row, guard). Sums that are only logged are kept in it too,
so the metrics of a killed run read like those of one that was not.

Order within a step: forward and backward, sum over ranks, verdict, update, line of metrics, validation, checkpoint,
stop. A step whose loss or gradient is not finite (or spikes, if asked) is never applied: the last good checkpoint
is loaded, the rows around the failing step are passed over, an event is written, and training goes on.

What this file does not do: build models or data (they are given), schedule stages (`stages.py`), or spread work over
ranks (`distributed.py`: rows, `parallel.py`: parts of rows).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from salt.distill import Distillation
from training.checkpoint import (
    Checkpoint,
    check,
    drop_after,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from training.config import TrainConfig
from training.console import Console
from training.distributed import World
from training.guard import Guard
from training.ledger import Ledger
from training.metrics import Record, Sink, append_event
from training.optimizer import GradientBuffer, Optimizer
from training.pace import Pace
from training.processes import Interrupted, Stop
from training.rows import RowSource, RowStream
from training.runtime import Runtime, compile_blocks
from training.schedule import learning_rate
from training.step import Tally, accumulate, clip

Validate = Callable[[nn.Module, int, Callable[[], bool]], dict[str, Any] | None]
"""Called as validate(model, step, should_stop) on rank 0, in eval mode without gradients; returns numbers for the
metrics. Look at should_stop() now and then and return None to break off; it is then called again on resume."""


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
        model: initialised; the same on every rank. A checkpoint replaces its weights.
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
        self.micro_rows = config.micro_rows_on(world.replicas)
        self.model = model.to(device=runtime.device, dtype=runtime.weight_dtype)
        if distillation is not None:
            distillation.check(model)
            distillation.teacher.to(device=runtime.device, dtype=runtime.weight_dtype)
        if runtime.compile:
            compile_blocks(model)
            if distillation is not None:
                compile_blocks(distillation.teacher)
        self.optimizer = Optimizer(model, config)
        self.gradients = GradientBuffer(self.optimizer.parameters)
        self.guard = Guard(config)
        self.ledger = Ledger()
        self.stream = RowStream(
            rows,
            rows_per_step=config.rows_per_step,
            batches_per_step=config.rows_per_step // (world.replicas * self.micro_rows),
        )
        self.record = Record(folder if world.is_main else None, sinks=sinks)
        self.console = Console(name, num_steps=config.num_steps, quiet=quiet or not world.is_main)
        self.checkpoints = folder / "checkpoints"
        self.window = Tally(self.kinds)
        self.step = self.row = self.tokens = 0
        self.validated = False
        # the newest checkpoint, and the newest that was not made by a stop
        self.last: Checkpoint | None = None
        self.anchor: Checkpoint | None = None
        self.last_loss = float("nan")
        self.pace = Pace(
            runtime, num_steps=config.num_steps, world_size=world.size, peak_flops=0.0 if self.console.quiet else None
        )

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
            loss=self.last_loss,
            checkpoint=self.last.folder,
            ledger=self.ledger,
        )

    def _begin(self) -> None:
        found = None
        if self.checkpoints.exists():
            found = latest_checkpoint(self.checkpoints, on_event=self.record.event, may_move=self.world.is_main)
        # every rank has read the same folder before rank 0 changes it
        self.world.barrier()
        if found is not None:
            load_checkpoint(found, model=self.model, optimizer=self.optimizer)
            self._take(found)
            older = [one for one in list_checkpoints(self.checkpoints) if one.planned and one.step <= found.step]
            self.anchor = older[-1] if older else found
            dropped = self.record.truncate(self.step, validation=self.validated)
            self.record.event("resumed", step=self.step, row=self.row, dropped_lines=dropped)
            self.console.say(f"goes on from step {self.step}")
        else:
            self.record.truncate(-1)
            self.record.event("begun", step=0, runtime=self.runtime, world_size=self.world.size)
            self._save(planned=True)
        self.console.at(self.step)

    def _one_step(self, stop: Stop) -> bool:
        """One step, applied or taken back; returns whether all ranks should leave."""
        start = time.perf_counter()
        config = self.config
        self.row = self.guard.next_row(self.row)
        # no generator state to save: the step's random numbers follow from its number, and differ between ranks
        torch.manual_seed((config.seed * 1_000_003 + self.step) * 1_009 + self.world.rank)
        self.model.train()
        result = accumulate(
            self.model,
            self.stream.step(self.row),
            step=self.step,
            config=config,
            runtime=self.runtime,
            world=self.world,
            gradients=self.gradients,
            kinds=self.kinds,
            distillation=self.distillation,
            stop=stop.requested,
        )
        for document, why in result.failures:
            append_event(self.folder, "document_failed", step=self.step, document=document, reason=why)
        loss = result.tally.loss
        reason = self.guard.verdict(loss=loss, objective=result.tally.objective, grad_norm=result.grad_norm)
        if reason is None:
            rate = learning_rate(config, self.step)
            clip(self.gradients, grad_norm=result.grad_norm, limit=config.grad_clip)
            self.optimizer.step(rate)
            self.guard.accept(loss)
            self.step += 1
            self.row += config.rows_per_step
            self.tokens += result.tokens
            self.window.sums += result.tally.sums
        spent = time.perf_counter() - start
        self.ledger.bill(self.account, flops=result.flops["student"], seconds=spent - result.teacher_s)
        self.ledger.bill("teacher_forward", flops=result.flops["teacher_forward"], seconds=result.teacher_s)
        self.pace.data_s += result.data_s
        if reason is not None:
            self._roll_back(reason)
            return result.stop
        self.validated = False
        self.console.at(self.step)
        if self._due(config.log_every):
            self._log(result.grad_norm, rate)
        leave = result.stop or self._validation_broken_off(stop)
        planned = self._due(config.checkpoint_every) or self.step in config.keep_at
        if planned or leave:
            self._save(planned=planned)
        if self.on_step is not None:
            self.on_step(self.step)
        return leave

    def _due(self, every: int) -> bool:
        return self.step == self.config.num_steps or (every > 0 and self.step % every == 0)

    def _log(self, grad_norm: float, rate: float) -> None:
        flops = self.ledger.total_flops()
        numbers = self.window.to_dict()
        self.last_loss = numbers["loss"]
        status = self.pace.status(
            step=self.step, tokens=self.tokens, flops=flops, loss=self.last_loss, grad_norm=grad_norm,
            learning_rate=rate,
        )  # fmt: skip
        soft = self.distillation.weight_at(self.step - 1) if self.distillation is not None else 0.0
        self.record.metrics(
            {
                "step": self.step,
                "row": self.row,
                "tokens": self.tokens,
                **numbers,
                "grad_norm": grad_norm,
                "learning_rate": rate,
                "distill_weight": soft,
                "flops": {**self.ledger.flops, "total": flops},
                # all that a clock decides
                "time": {
                    "tokens_per_s": status.tokens_per_s,
                    "flops_per_s": self.pace.flops_per_s,
                    "mfu": status.mfu,
                    "memory_gib": status.memory_gib,
                    "data_wait": status.data_wait,
                    "seconds": self.ledger.total_seconds(),
                },
            }
        )
        self.console.status(status)
        self.window = Tally(self.kinds)
        self._begin_window()

    def _validation_broken_off(self, stop: Stop) -> bool:
        """Validate on rank 0 where this step is due and it has not been done; was it broken off by a stop?"""
        if self.validate is None or self.validated or self.step == 0 or not self._due(self.config.validate_every):
            return False
        if self.world.is_main:
            self._validate(stop)
        broken = torch.tensor([float(self.world.is_main and not self.validated)], device=self.runtime.device)
        self.world.sum([broken])
        self.validated = not broken.item()
        return not self.validated

    def _validate(self, stop: Stop) -> None:
        start = time.perf_counter()
        self.model.eval()
        # compiled code would be made anew for each of its shapes, which costs more than it saves
        eager = torch.compiler.set_stance("force_eager") if self.runtime.compile else nullcontext()
        with torch.no_grad(), eager:
            found = self.validate(self.model, self.step, lambda: stop.requested)
        self.model.train()
        if found is not None:
            self.record.metrics({"step": self.step, "validation": found, "flops": {"total": self.ledger.total_flops()}})
            self.validated = True
        self.pace.pause(time.perf_counter() - start)

    def _save(self, *, planned: bool) -> None:
        """Checkpoint on rank 0; the others wait, so that none runs ahead of a save that fails."""
        state = {**self._state(), "planned": planned}
        if self.world.is_main:
            path = save_checkpoint(
                self.checkpoints, step=self.step, model=self.model, optimizer=self.optimizer, state=state
            )
            prune_checkpoints(self.checkpoints, keep=self.config.keep_checkpoints, keep_at=self.config.keep_at)
            self.ledger.save(self.folder / "ledger.json")
        else:
            path = self.checkpoints / f"step_{self.step:08d}"
        self.last = Checkpoint(folder=path, step=self.step, state=state)
        if planned:
            self.anchor = self.last
        self.world.barrier()

    def _state(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "tokens": self.tokens,
            "validated": self.validated,
            "last_loss": self.last_loss if self.last_loss == self.last_loss else None,
            "window": self.window.sums.tolist(),
            "guard": self.guard.state(),
            "ledger": self.ledger.to_dict(),
            "seed": self.config.seed,
        }

    def _take(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.step, self.row, self.tokens = checkpoint.step, state["row"], state["tokens"]
        self.validated = state["validated"]
        self.last_loss = float("nan") if state["last_loss"] is None else state["last_loss"]
        self.window = Tally(self.kinds, torch.tensor(state["window"], dtype=torch.float64))
        self.guard.take(state["guard"])
        self.ledger.take(state["ledger"])
        self.last = checkpoint

    def _roll_back(self, reason: str) -> None:
        """Back to the last planned checkpoint, past the rows around the failing step. Its cost stays on the bill.

        Not to one that a stop left behind: where somebody pressed Ctrl-C must not decide what is learned.
        """
        failed_step, failed_row = self.step, self.row
        skipped = self.guard.skip(checkpoint_row=self.anchor.state["row"], first_row=failed_row, reason=reason)
        guard, ledger = self.guard.skipped, self.ledger.to_dict()
        found = check(self.anchor.folder)
        load_checkpoint(found, model=self.model, optimizer=self.optimizer)
        self._take(found)
        self.guard.skipped = guard
        self.ledger.take(ledger)
        self.record.truncate(self.step)
        self.record.event("rolled_back", reason=reason, step=failed_step, to_step=self.step, skipped_rows=list(skipped))
        self.console.say(
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
        self.record.event("interrupted", step=self.step, signal=stop.signal_name)
        raise Interrupted(f"stopped after step {self.step} of {self.config.num_steps}, saved; the same command goes on")

    def _settle(self) -> None:
        """The end: the last checkpoint says that everything was done, and the ledger lies beside it."""
        if self.last is None or self.last.step != self.step or self.last.state["validated"] != self.validated:
            self._save(planned=True)
        self.record.event("finished", step=self.step, row=self.row)

    def _begin_window(self) -> None:
        self.pace.begin(step=self.step, tokens=self.tokens, flops=self.ledger.total_flops())

    def close(self) -> None:
        self.stream.close()
        self.record.finish()
        self.console.close()
