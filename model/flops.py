"""Floating-point operations of a forward pass, counted from the config.

A multiply-add is two operations: two per parameter and token for matrices; four per query head, head dimension and
visible (query, key) pair for attention, inside spans alone. Norms, rotations, softmax and the table look-up are left
out, as is usual (2001.08361, section 2.1). Training costs three forwards, since the backward has two matmuls for each.
"""

from __future__ import annotations

from collections.abc import Mapping

from brine.model.config import ModelConfig


def block_matrices(config: ModelConfig) -> int:
    """Elements of the four matrices of a block."""
    heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return config.dim * (2 * heads + 2 * keys + 3 * config.mlp_dim)


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that every token is multiplied with: the blocks' four matrices and the head (tied or not)."""
    return config.num_layers * block_matrices(config) + config.vocab_size * config.dim


def num_causal_pairs(seq_len: int, window: int | None = None) -> int:
    """Visible (query, key) pairs of one causal sequence with an optional sliding window."""
    visible = seq_len if window is None else min(window, seq_len)
    return visible * (visible + 1) // 2 + (seq_len - visible) * visible


def forward_flops(
    config: ModelConfig,
    *,
    num_tokens: int,
    local_pairs: int,
    global_pairs: int,
    num_patches: Mapping[str, int] | None = None,
) -> int:
    """Operations of one forward pass with its head.

    num_tokens: padding included if it was computed; local_pairs, global_pairs: `Spans.area()` of the two layer types;
    num_patches: modality -> patches embedded.
    """
    num_global = config.num_global_layers
    area = (config.num_layers - num_global) * local_pairs + num_global * global_pairs
    patches = sum(count * config.patch_dims[name] * config.dim for name, count in (num_patches or {}).items())
    return 2 * matrix_parameters(config) * num_tokens + 4 * config.num_heads * config.head_dim * area + 2 * patches
