"""What a training run is (`TrainConfig`) and what it runs on (`RuntimeConfig`).

The two are apart because they answer to different people. `TrainConfig` is the experiment: the model, the rows of
each step, the optimiser, the schedule; two runs with the same one and the same data are the same experiment.
`RuntimeConfig` is the machine: threads, precision, compiled or not. Its fields may say "auto", and
`runtime.resolve_runtime` settles them once per run folder, since a number of threads or a precision that changed
between two starts of one run would change the weights' last bits.

Counting: a *row* is one packed sequence of the plan; a *step* is one optimiser update over `rows_per_step` rows, all
ranks together; a *micro-batch* is what one rank sends through the model at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data.deciding import aside, where
from data.sequence import CONTEXT
from kernels import ATTENTION_BACKENDS, LOSS_BACKENDS
from model.config import ModelConfig

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("linear", "cosine", "wsd")
DTYPES = ("auto", "bfloat16", "float32", "float64")
DEVICES = ("auto", "cpu", "cuda")
CHECKPOINTING = ("none", "selective", "full", "offload")


@dataclass(frozen=True)
class TrainConfig:
    """One training run: model, budget, optimiser, schedule, and how often it saves and speaks.

    Raises ValueError, telling the remedy, for a combination that cannot be trained.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the transformer."""
    num_steps: int = 1000
    """Optimiser steps in all; the learning rate has decayed to its end at the last one."""
    rows_per_step: int = 16
    """Rows of one step over all ranks together."""
    micro_rows: int = 16
    """Rows that one rank sends through the model at once; smaller saves memory, and costs a little speed."""
    optimizer: str = "adamw"
    """"adamw", or "muon": Muon for the matrices of the blocks, AdamW for embeddings, embedders, norms and head."""
    learning_rate: float = 3e-3
    """Peak learning rate. Muon's updates are scaled to AdamW's size, so one value serves both optimisers."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    schedule: str = "linear"
    """After the warm-up: "linear" or "cosine" decay over all steps that are left, or "wsd": the peak up to the last
    steps, and a decay over these, so that a run can go on with more steps (`--extend`)."""
    decay_steps: int | None = where(lambda train: train.schedule == "wsd", None)
    """Steps of the decay where schedule is "wsd"; None: decay_fraction of all steps."""
    decay_fraction: float = where(lambda train: train.schedule == "wsd" and train.decay_steps is None, 0.2)
    """Steps of the decay as a fraction of num_steps where schedule is "wsd" and decay_steps is not given."""
    final_lr_fraction: float = 0.05
    """Learning rate of the last step, as a fraction of the peak."""
    weight_decay: float = 0.1
    """Decoupled decay per step and unit of learning rate; matrices only, never norms and biases."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.95
    """AdamW's memory of the squared gradient."""
    adam_eps: float = 1e-8
    """AdamW's guard against division by zero."""
    muon_momentum: float = where(lambda train: train.optimizer == "muon", 0.95)
    """Muon's (Nesterov) momentum."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient, mean over target tokens; 0 turns clipping off."""
    z_loss: float = 0.0
    """Weight of the squared log-partition, which keeps logits from drifting; 1e-4 is usual for large models."""
    context_weights: tuple[tuple[str, float], ...] = ()
    """Weights of targets in the objective by the medium that they follow ("none", "image", "audio", "video"), as (name,
    weight) pairs; those not named weigh 1. What is reported is never weighted."""
    checkpoint_every: int = aside(200)
    """Steps between two checkpoints; a kill loses at most this many steps. Nothing but where a roll-back goes back to
    depends on it."""
    keep_checkpoints: int = aside(2)
    """Newest checkpoints to keep on the disk; beside them stay the one with the lowest held-out loss, and the newest
    that a roll-back would trust (`clean_steps`)."""
    keep_at: tuple[int, ...] = ()
    """Steps whose checkpoints are made and kept for good, such as the early one that SALT's selection scores with."""
    log_every: int = aside(20)
    """Steps between two lines of metrics and console."""
    validate_every: int = aside(0)
    """Steps between two validations; 0: only after the last step."""
    spike_sigma: float = 0.0
    """A step whose loss lies this many standard deviations above the last `spike_window` is rolled back; 0: never.
    A loss or gradient that is not finite always is."""
    explosion_factor: float = 0.0
    """A step whose gradient is this many times as long as the median of the last `spike_window` is rolled back; 0:
    never."""
    spike_window: int = where(lambda train: train.spike_sigma or train.explosion_factor, 128)
    """Steps over which mean and deviation of the loss, and the median norm, are taken."""
    clean_steps: int = 8
    """Steps without fault that must follow a checkpoint before a roll-back trusts it: what goes wrong shows late."""
    skip_steps: int = 8
    """After a roll-back the rows of so many steps, the failing one last, are passed over."""
    max_rollbacks: int = aside(3)
    """Roll-backs in one run before training gives up."""
    seed: int = 0
    """Seed of the initial weights and of anything random within a step."""

    def __post_init__(self):
        object.__setattr__(self, "keep_at", tuple(self.keep_at))
        for name in ("num_steps", "rows_per_step", "micro_rows", "checkpoint_every", "keep_checkpoints", "log_every",
                     "spike_window", "skip_steps", "learning_rate"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")
        for name in ("warmup_steps", "weight_decay", "grad_clip", "z_loss", "validate_every", "spike_sigma",
                     "explosion_factor", "clean_steps", "max_rollbacks", "adam_eps"):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")
        for name in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1)")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer = {self.optimizer!r} is unknown: choose one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule = {self.schedule!r} is unknown: choose one of {', '.join(SCHEDULES)}")
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction = {self.decay_fraction} must lie in (0, 1]")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps = {self.decay_steps}: give at least 1, or None to use decay_fraction")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError(f"final_lr_fraction = {self.final_lr_fraction} must lie in [0, 1]")
        for name, weight in self.context_weights:
            if name not in CONTEXT or not 0 <= weight < float("inf"):
                raise ValueError(
                    f"context_weights holds {name!r} with weight {weight}: name one of {', '.join(CONTEXT)}, "
                    "with a weight of 0 or more"
                )
        if self.warmup_steps >= self.num_steps and self.num_steps > 1:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} leaves nothing of num_steps = {self.num_steps}: "
                "warm up for fewer steps or train for more"
            )
        if self.decay_start is not None and self.decay_start < self.warmup_steps:
            raise ValueError(
                f"num_steps = {self.num_steps} has no room for warmup_steps = {self.warmup_steps} and a decay of "
                f"{self.num_steps - self.decay_start} steps: train for more, or lower decay_steps or decay_fraction"
            )
        if self.rows_per_step % self.micro_rows:
            raise ValueError(
                f"rows_per_step = {self.rows_per_step} is no multiple of micro_rows = {self.micro_rows}: "
                "a step is a whole number of forward passes"
            )

    @property
    def decay_start(self) -> int | None:
        """Steps that are done when the decay of "wsd" begins; None for schedules that decay all along."""
        if self.schedule != "wsd":
            return None
        steps = max(1, round(self.decay_fraction * self.num_steps)) if self.decay_steps is None else self.decay_steps
        return self.num_steps - steps

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """Steps whose checkpoints are made and kept for good: `keep_at`, and that from which a run can be extended."""
        return self.keep_at if self.decay_start is None else (*self.keep_at, self.decay_start)

    def micro_rows_on(self, world_size: int) -> int:
        """Rows of one forward pass on one rank when `world_size` ranks share a step.

        Raises ValueError where the rows of a step cannot be shared evenly.
        """
        if self.rows_per_step % world_size:
            raise ValueError(
                f"rows_per_step = {self.rows_per_step} cannot be shared by {world_size} ranks: "
                "choose a multiple of the number of ranks"
            )
        share = self.rows_per_step // world_size
        rows = min(self.micro_rows, share)
        if share % rows:
            raise ValueError(
                f"micro_rows = {self.micro_rows} does not divide a rank's share of {share} rows "
                f"({self.rows_per_step} over {world_size} ranks): choose a divisor of it"
            )
        return rows


@dataclass(frozen=True)
class RuntimeConfig:
    """What a run asks of the machine; "auto" fields are settled by `runtime.resolve_runtime`."""

    compile: bool | str = "auto"
    """Compile each block: True, False, or "auto" (only where a C++ compiler works)."""
    dtype: str = "auto"
    """"bfloat16" (autocast over float32 weights), "float32", "float64" (for tests), or "auto" (bfloat16 where the
    hardware multiplies it, else float32)."""
    device: str = "auto"
    """"cpu", "cuda", or "auto" (cuda where there is one)."""
    num_threads: int = 0
    """CPU threads of all ranks on this machine together; 0: as many as this process may use."""
    context: int = 1
    """Neighbouring ranks that share each row, for rows too long for one (`training.context`)."""
    shard: int = 1
    """Neighbouring ranks that hold one copy of the model between them, for models too large for one (FSDP)."""
    checkpointing: str = "none"
    """What blocks compute again in the backward pass instead of keeping it: "none", "selective" (all but the attention
    of global layers), "full", or "offload" (selective, and what is kept waits in host memory)."""
    checkpoint_layers: int = 1
    """Neighbouring local layers that keep one input between them where blocks are computed again."""
    timeout_s: float = 1800.0
    """Seconds that a rank waits for the others in a sum before it gives up and says where each was last seen."""
    profile: tuple[int, int] | None = None
    """First and last step (counted from 1) to record with torch's profiler, into `trace/` of the stage's folder."""
    mlp_tile: int = 0
    """Tokens of a row that an MLP takes at a time, for rows whose inner width does not fit; 0: all of them."""
    attention_backend: str = "auto"
    """What computes attention: "auto", "reference", "cpu", "triton", "gluon", "flex" or "flash"
    (kernels/attention/README.md).
    It belongs to the machine: a saved model does not remember it."""
    loss_backend: str = "auto"
    """What computes the output head and the loss: "auto", "reference", "chunked", "triton" or "liger"
    (kernels/linear_loss/README.md)."""
    loader_workers: int | str = "auto"
    """Processes per rank that make batches while the model computes; "auto": none on a CPU, where they would take from
    training, a few beside a GPU."""
    deterministic: bool = True
    """Deterministic algorithms only, so that a resumed run ends with the same bits."""

    def __post_init__(self):
        if isinstance(self.compile, str) and self.compile.lower() in ("true", "false"):
            # a command line gives words
            object.__setattr__(self, "compile", self.compile.lower() == "true")
        if self.compile not in (True, False, "auto"):
            raise ValueError(f"compile = {self.compile!r}: give true, false or auto")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype = {self.dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
        if self.device not in DEVICES:
            raise ValueError(f"device = {self.device!r} is unknown: choose one of {', '.join(DEVICES)}")
        if self.context < 1:
            raise ValueError(f"context = {self.context}: give 1 for whole rows, or the ranks that share one")
        if self.shard < 1:
            raise ValueError(f"shard = {self.shard}: give 1 for whole models, or the ranks that share one")
        if self.checkpointing not in CHECKPOINTING:
            raise ValueError(f"checkpointing = {self.checkpointing!r}: choose one of {', '.join(CHECKPOINTING)}")
        if self.checkpoint_layers < 1:
            raise ValueError(f"checkpoint_layers = {self.checkpoint_layers}: give 1, or the layers that keep one input")
        if self.checkpoint_layers > 1 and self.checkpointing == "none":
            raise ValueError(
                f"checkpoint_layers = {self.checkpoint_layers} with checkpointing = 'none', where every layer keeps "
                "everything: choose checkpointing selective, full or offload"
            )
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s = {self.timeout_s} must be positive")
        if self.profile is not None:
            object.__setattr__(self, "profile", tuple(self.profile))
            if len(self.profile) != 2 or not 1 <= self.profile[0] <= self.profile[1]:
                raise ValueError(f"profile = {self.profile}: give the first and the last step, counted from 1")
        if self.mlp_tile < 0:
            raise ValueError(f"mlp_tile = {self.mlp_tile}: give a number of tokens, or 0 for whole rows")
        for name, known in (("attention_backend", ATTENTION_BACKENDS), ("loss_backend", LOSS_BACKENDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r} is unknown: choose one of {', '.join(known)}")
        if isinstance(self.loader_workers, str) and self.loader_workers.isdigit():
            # a command line gives words
            object.__setattr__(self, "loader_workers", int(self.loader_workers))
        workers = self.loader_workers
        if workers != "auto" and not (isinstance(workers, int) and workers >= 0):
            raise ValueError(f"loader_workers = {workers!r}: give a number of processes, 0 for none, or auto")
        if self.num_threads < 0:
            raise ValueError(f"num_threads = {self.num_threads}: give 1 or more, or 0 for all that may be used")
