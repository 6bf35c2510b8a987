"""What a training run is (`TrainConfig`) and what it runs on (`RuntimeConfig`).

`TrainConfig` is the experiment: two runs with the same one and the same data are the same experiment. `RuntimeConfig`
is the machine: threads, precision, compilation. Its "auto" fields are resolved once per run folder
(`runtime.resolve_runtime`), since threads and precision change the weights' last bits. A step is one optimizer update
over `global_batch_size` packed sequences of all ranks; a micro-batch is what one rank passes through the model.
"""

import math
from dataclasses import dataclass, field

from brine.common.config_fields import affects_result_if, check_values, operational
from brine.common.remote.object_store import is_url
from brine.data.sequence import MODALITY_CONTEXTS
from brine.kernels.attention import ATTENTION_BACKENDS
from brine.kernels.linear_loss import LOSS_BACKENDS
from brine.model.config import ModelConfig

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("linear", "cosine", "wsd")
DTYPES = ("auto", "bfloat16", "float32", "float64")
DEVICES = ("auto", "cpu", "cuda")
ACTIVATION_CHECKPOINTING_MODES = ("none", "selective", "full", "offload")


@dataclass(frozen=True)
class TrainConfig:
    """One training run: model, budget, optimizer, schedule, and how often it saves and logs.

    Raises ValueError with the remedy for a combination that cannot be trained.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the transformer."""
    num_steps: int = 1000
    """Total optimizer steps; the learning-rate decay ends at the last one."""
    global_batch_size: int = 16
    """Packed sequences per optimizer step, summed over all ranks."""
    micro_batch_size: int = 16
    """Packed sequences per forward pass and rank; smaller values save memory and are slightly slower."""
    optimizer: str = "adamw"
    """"adamw", or "muon": Muon for the matrices of the blocks, AdamW for embeddings, embedders, norms and head."""
    learning_rate: float = 3e-3
    """Peak learning rate. Muon's updates are scaled to AdamW's size, so one value serves both optimizers."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    schedule: str = "linear"
    """Learning-rate schedule after warmup: "linear" or "cosine" decay over all remaining steps, or "wsd"
    (warmup-stable-decay: the peak, then a decay over the last steps), whose runs can be extended (`--extend`)."""
    decay_steps: int | None = affects_result_if(lambda train: train.schedule == "wsd", None)
    """Decay steps if schedule is "wsd"; None: decay_fraction of all steps."""
    decay_fraction: float = affects_result_if(lambda train: train.schedule == "wsd" and train.decay_steps is None, 0.2)
    """Decay steps as a fraction of num_steps, if schedule is "wsd" and decay_steps is not given."""
    final_lr_fraction: float = 0.05
    """Learning rate of the last step, as a fraction of the peak."""
    weight_decay: float = 0.1
    """Decoupled weight decay, multiplied by the learning rate; applied to matrices only, not to norms and biases."""
    beta1: float = 0.9
    """AdamW beta1 (decay rate of the gradient's moving average)."""
    beta2: float = 0.95
    """AdamW beta2 (decay rate of the squared gradient's moving average)."""
    adam_eps: float = 1e-8
    """AdamW epsilon."""
    muon_momentum: float = affects_result_if(lambda train: train.optimizer == "muon", 0.95)
    """Muon's (Nesterov) momentum."""
    grad_clip: float = 1.0
    """Gradient clipping: maximum global norm of the gradient (mean over target tokens); 0 disables clipping."""
    z_loss: float = 0.0
    """Weight of the squared log-partition, which keeps logits from drifting; 1e-4 is usual for large models."""
    modality_context_weights: tuple[tuple[str, float], ...] = ()
    """Loss weight of target tokens by the modality of the preceding media ("none", "image", "audio", "video"), as
    (name, weight) pairs; default weight 1. Reported losses are never weighted."""
    checkpoint_every: int = operational(200)
    """Save a checkpoint every this many steps, the most that a kill loses. Does not affect the weights, except through
    how far a rollback goes."""
    keep_checkpoints: int = operational(2)
    """Newest checkpoints to keep, besides the one with the lowest held-out loss and the newest that a rollback would
    trust (`rollback_margin_steps`)."""
    keep_checkpoint_steps: tuple[int, ...] = ()
    """Steps whose checkpoints are never pruned, such as the early one that SALT's selection scores with."""
    log_every: int = operational(20)
    """Log metrics every this many steps, to file and console."""
    validate_every: int = operational(0)
    """Validate every this many steps; 0: only after the last step."""
    loss_spike_sigma: float = 0.0
    """Roll back when the loss exceeds the mean of the last `spike_window` steps by this many standard deviations; 0
    disables. Non-finite losses and gradients always roll back."""
    grad_norm_spike_factor: float = 0.0
    """Roll back when the gradient norm exceeds this many times the median of the last `spike_window` steps; 0
    disables."""
    spike_window: int = affects_result_if(lambda train: train.loss_spike_sigma or train.grad_norm_spike_factor, 128)
    """Steps over which the loss's mean and standard deviation, and the median gradient norm, are computed."""
    rollback_margin_steps: int = 8
    """Roll back only to checkpoints followed by at least this many good steps, because divergence shows late."""
    rollback_skip_steps: int = 8
    """Steps whose sequences are skipped after a rollback, the failing one last."""
    max_rollbacks: int = operational(3)
    """Maximum number of rollbacks per run."""
    seed: int = 0
    """Seed of the initial weights and of anything random within a step."""
    init_from: str | None = operational(None)
    """Weights to begin with instead of random ones: a run, a stage, a model folder, a checkpoint, or a model of a
    registry ("champion", or a digest). Of the same shape and tokenizer (`corpus.tokenizer`)."""
    init_optimizer: bool = affects_result_if(lambda train: train.init_from is not None, False)
    """With `init_from`: continue with the optimizer state that the checkpoint kept; else the optimizer begins fresh."""
    init_digest: str | None = None
    """Digest of the weights of `init_from`, by which they are known wherever they lie; it follows from them."""

    def __post_init__(self):
        object.__setattr__(self, "keep_checkpoint_steps", tuple(self.keep_checkpoint_steps))
        positive = (
            "num_steps global_batch_size micro_batch_size checkpoint_every keep_checkpoints log_every spike_window"
        )
        check_values(self, f"{positive} rollback_skip_steps learning_rate", lambda value: value > 0, "be positive")
        counts = "warmup_steps validate_every max_rollbacks rollback_margin_steps"
        weights = "weight_decay grad_clip z_loss loss_spike_sigma adam_eps grad_norm_spike_factor"
        check_values(self, f"{counts} {weights}", lambda value: value >= 0, "not be negative")
        check_values(self, "beta1 beta2 muon_momentum", lambda value: 0 <= value < 1, "lie in [0, 1)")
        check_values(self, "decay_fraction", lambda value: 0 < value <= 1, "lie in (0, 1]")
        check_values(self, "final_lr_fraction", lambda value: 0 <= value <= 1, "lie in [0, 1]")
        _check_choices(self, optimizer=OPTIMIZERS, schedule=SCHEDULES)
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps = {self.decay_steps}: give at least 1, or None to use decay_fraction")
        object.__setattr__(self, "init_from", None if self.init_from is None else str(self.init_from))
        if self.init_from is None and (self.init_optimizer or self.init_digest is not None):
            given = "init_optimizer" if self.init_optimizer else "init_digest"
            raise ValueError(f"{given} = {getattr(self, given)} needs init_from: give the weights to begin with")
        for name, weight in self.modality_context_weights:
            if name not in MODALITY_CONTEXTS or not 0 <= weight < float("inf"):
                raise ValueError(
                    f"modality_context_weights holds {name!r} with weight {weight}: name one of "
                    f"{', '.join(MODALITY_CONTEXTS)}, with a weight of 0 or more"
                )
        if self.warmup_steps >= self.num_steps and self.num_steps > 1:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} leaves nothing of num_steps = {self.num_steps}: "
                "warm up for fewer steps or train for more"
            )
        if self.decay_start is not None and self.decay_start < self.warmup_steps:
            raise ValueError(
                f"num_steps = {self.num_steps} is too small for warmup_steps = {self.warmup_steps} and a decay of "
                f"{self.num_steps - self.decay_start} steps: train for more, or lower decay_steps or decay_fraction"
            )
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size = {self.global_batch_size} is not a multiple of micro_batch_size = "
                f"{self.micro_batch_size}: a step is a whole number of forward passes"
            )

    @property
    def decay_start(self) -> int | None:
        """Steps that are done when the decay of "wsd" begins; None for schedules that decay all along."""
        if self.schedule != "wsd":
            return None
        steps = max(1, round(self.decay_fraction * self.num_steps)) if self.decay_steps is None else self.decay_steps
        return self.num_steps - steps

    @property
    def permanent_checkpoint_steps(self) -> tuple[int, ...]:
        """`keep_checkpoint_steps`, and the step from which a run can be extended."""
        extendable = () if self.decay_start is None else (self.decay_start,)
        return (*self.keep_checkpoint_steps, *extendable)

    def micro_batch_size_on(self, world_size: int) -> int:
        """Sequences of one forward pass on one rank when `world_size` ranks share a step.

        Raises ValueError where the sequences of a step cannot be shared evenly.
        """
        if self.global_batch_size % world_size:
            raise ValueError(
                f"global_batch_size = {self.global_batch_size} cannot be shared by {world_size} ranks: "
                "choose a multiple of the number of ranks"
            )
        share = self.global_batch_size // world_size
        micro = min(self.micro_batch_size, share)
        if share % micro:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} does not divide a rank's share of {share} sequences "
                f"({self.global_batch_size} over {world_size} ranks): choose a divisor of it"
            )
        return micro


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of `step`, counted from 0, a pure function of it. Under "wsd" (MiniCPM, Hu et al. 2024, section 4)
    a run can be extended from before its decay, which is 1 - sqrt(progress) (Haegele et al. 2024, section 4).
    Steps 0 .. warmup_steps - 1 rise as (step + 1) / warmup_steps. The decay runs from the peak at step `warmup_steps`
    ("wsd": at the step before `decay_start`) to `final_lr_fraction` of it at step `num_steps - 1`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay_start is not None:
        if step < config.decay_start:
            return config.learning_rate
        left = 1.0 - math.sqrt(min(1.0, (step - config.decay_start + 1) / (config.num_steps - config.decay_start)))
    else:
        span = config.num_steps - 1 - config.warmup_steps
        progress = min(1.0, (step - config.warmup_steps) / span) if span > 0 else 0.0
        left = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left)


@dataclass(frozen=True)
class RuntimeConfig:
    """How a run uses the hardware; "auto" fields are resolved once per run folder by `resolve_runtime`."""

    compile: bool | str = "auto"
    """Compile each block: True, False, or "auto" (only where a C++ compiler works)."""
    dtype: str = "auto"
    """"bfloat16" (autocast over float32 weights), "float32", "float64" (for tests), or "auto" (bfloat16 if the
    hardware supports it natively, else float32)."""
    device: str = "auto"
    """"cpu", "cuda", or "auto" (CUDA if available)."""
    num_threads: int = 0
    """Total CPU threads of all ranks on this machine; 0: as many as this process may use."""
    context_parallel: int = 1
    """Context-parallel degree: number of consecutive ranks that split each sequence (ring attention)."""
    dp_shard: int = 1
    """FSDP degree: number of consecutive ranks over which parameters, gradients and optimizer state are sharded."""
    activation_checkpointing: str = "none"
    """Activation checkpointing: "none"; "selective" (recompute all but global attention); "full" (recompute the block);
    "offload" (selective, with saved activations in host memory)."""
    ac_group_size: int = 1
    """Number of consecutive local layers per activation checkpoint."""
    timeout_s: float = 1800.0
    """Seconds that a rank waits for the others in a collective before it reports where each was last seen."""
    profile: tuple[int, int] | None = None
    """First and last step (counted from 1) to record with torch's profiler, into `trace/` of the stage's folder."""
    mlp_tile_tokens: int = 0
    """Run norm and MLP in tiles of this many tokens, each recomputed; 0 disables tiling."""
    attention_backend: str = "auto"
    """Attention backend: "auto", "reference", "cpu", "triton", "gluon", "flex" or "flash"
    (kernels/attention/README.md). Not stored in saved models."""
    loss_backend: str = "auto"
    """Backend of the fused output head and loss: "auto", "reference", "chunked", "triton" or "liger"
    (kernels/linear_loss/README.md)."""
    num_loader_workers: int | str = "auto"
    """Processes per rank that make batches while the model computes; "auto": none on a CPU, where they would slow
    training down, a few per GPU."""
    deterministic: bool = True
    """Use deterministic algorithms only, so that a resumed run is bit-identical."""
    remote_checkpoints: str | None = operational(None)
    """URL (s3://..., extra [remote]) to which each finished checkpoint is uploaded while training continues, and from
    which a stage resumes where its folder has none."""

    def __post_init__(self):
        if self.remote_checkpoints is not None and not is_url(self.remote_checkpoints):
            raise ValueError(f"remote_checkpoints = {self.remote_checkpoints!r}: give a URL such as s3://bucket/folder")
        # the command line gives strings
        if isinstance(self.compile, str) and self.compile.lower() in ("true", "false"):
            object.__setattr__(self, "compile", self.compile.lower() == "true")
        if isinstance(self.num_loader_workers, str) and self.num_loader_workers.isdigit():
            object.__setattr__(self, "num_loader_workers", int(self.num_loader_workers))
        if self.compile not in (True, False, "auto"):
            raise ValueError(f"compile = {self.compile!r}: give true, false or auto")
        workers = self.num_loader_workers
        if workers != "auto" and not (isinstance(workers, int) and workers >= 0):
            raise ValueError(f"num_loader_workers = {workers!r}: give a number of processes, 0 for none, or auto")
        _check_choices(
            self, dtype=DTYPES, device=DEVICES, activation_checkpointing=ACTIVATION_CHECKPOINTING_MODES,
            loss_backend=LOSS_BACKENDS,
        )  # fmt: skip
        # a name with a dot is a module, imported when first used
        if "." not in self.attention_backend:
            _check_choices(self, attention_backend=ATTENTION_BACKENDS)
        remedies = {
            "context_parallel": (1, "1 for whole sequences, or the ranks that share one"),
            "dp_shard": (1, "1 for whole models, or the ranks that share one"),
            "ac_group_size": (1, "1, or the number of layers that share one checkpoint"),
            "mlp_tile_tokens": (0, "a number of tokens, or 0 for whole sequences"),
            "num_threads": (0, "1 or more, or 0 for all that may be used"),
        }
        for name, (least, remedy) in remedies.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: give {remedy}")
        check_values(self, "timeout_s", lambda value: value > 0, "be positive")
        if self.ac_group_size > 1 and self.activation_checkpointing == "none":
            raise ValueError(
                f"ac_group_size = {self.ac_group_size} with activation_checkpointing = 'none', where every layer "
                "keeps everything: choose selective, full or offload"
            )
        if self.profile is not None:
            object.__setattr__(self, "profile", tuple(self.profile))
            if len(self.profile) != 2 or not 1 <= self.profile[0] <= self.profile[1]:
                raise ValueError(f"profile = {self.profile}: give the first and the last step, counted from 1")


def _check_choices(config: TrainConfig | RuntimeConfig, **choices: tuple[str, ...]) -> None:
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} = {getattr(config, name)!r} is unknown: choose one of {', '.join(known)}")
