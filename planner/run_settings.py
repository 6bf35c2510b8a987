"""One way to run one model: the settings on which memory and time of a rank depend, and the model's parameter
counts."""

from dataclasses import dataclass
from functools import cache

from brine.model.config import ModelConfig
from brine.model.flops import block_matrices
from brine.training.parallel.activations import ac_groups_of

FP32_BYTES = 4
"""Bytes of the stream, norms, weights, gradients and optimizer: float32."""


@dataclass(frozen=True)
class RunSettings:
    """One way to run one model: what a rank's memory depends on."""

    model: ModelConfig
    seq_len: int
    micro_batch_size: int = 1
    """Sequences of one forward pass; `context_parallel` ranks share them."""
    ranks: int = 1
    context_parallel: int = 1
    dp_shard: int = 1
    activation_checkpointing: str = "none"
    ac_group_size: int = 1
    mlp_tile_tokens: int = 0
    dtype: str = "bfloat16"
    """"bfloat16" (autocast over float32 weights) or "float32"."""
    device: str = "cuda"
    compiled: bool = False
    """Are the blocks compiled? See `FUSED`."""
    attention_backend: str = "auto"
    """As `brine.kernels.attention` names it; "auto" may take "flash" on a GPU, and is counted so."""
    optimizer: str = "adamw"
    patches: tuple[tuple[str, int], ...] = ()
    """(modality, maximum patches per sequence)."""
    accumulates_gradients: bool = False
    """Are gradients of an earlier forward pass of the step held? If not, those of sharded parameters come block by
    block, while saved activations are freed."""

    @property
    def num_tokens(self) -> int:
        """N, tokens of this rank in one forward pass."""
        return self.micro_batch_size * -(-self.seq_len // self.context_parallel)

    @property
    def tile_tokens(self) -> int:
        """Tokens of a sequence that an MLP takes at a time on this rank; 0 where a tile would hold them all."""
        return self.mlp_tile_tokens if self.mlp_tile_tokens < self.num_tokens // self.micro_batch_size else 0

    @property
    def low(self) -> int:
        """Bytes of a number in matmuls and attention."""
        return 2 if self.dtype == "bfloat16" else FP32_BYTES

    @property
    def mode(self) -> str:
        """`activation_checkpointing` as it is carried out: on a CPU there is nothing to offload to."""
        mode = self.activation_checkpointing
        return "selective" if mode == "offload" and self.device == "cpu" else mode

    @property
    def ac_groups(self) -> tuple[range, ...]:
        """Layers that share one checkpoint."""
        return _ac_groups(self.model, self.ac_group_size)


@cache
def _ac_groups(config: ModelConfig, layers: int) -> tuple[range, ...]:
    return tuple(ac_groups_of(config, range(config.num_layers), layers))


def block_parameters(config: ModelConfig) -> int:
    """Parameters of a block: its matrices, two norms of the residual stream, those of queries and keys."""
    return block_matrices(config) + 2 * config.dim + 2 * config.head_dim


def outer_parameters(config: ModelConfig) -> int:
    """Parameters outside of blocks: the token table, embedders, last norm and head."""
    tables = config.vocab_size * config.dim * (1 if config.tie_embeddings else 2)
    normed = config.embedder == "ln_linear_ln"
    embedders = sum(
        size * config.dim + config.dim + (2 * size + 2 * config.dim if normed else 0)
        for size in config.patch_dims.values()
    )
    return tables + embedders + config.dim


def num_parameters(config: ModelConfig) -> int:
    """All parameters."""
    return config.num_layers * block_parameters(config) + outer_parameters(config)
