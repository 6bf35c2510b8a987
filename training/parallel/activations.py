"""Activation checkpointing (Chen et al. 2016): what a block keeps for the backward pass.

    none, full      everything; its input alone
    selective       its input; recomputed is all but the attention of global layers, whose out and lse are kept
    offload         like selective, with saved activations in host memory; not on a CPU

With `ac_group_size` neighbouring local layers share one checkpoint. With `mlp_tile_tokens` norm and MLP run over so
many tokens at a time, each tile recomputed. All of it computes the same numbers.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from brine.model.config import ModelConfig
from brine.training.parallel.offload import ActivationOffload, StreamCopyEngine

# dropout and other random numbers do not occur
_checkpoint = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
_stores: WeakKeyDictionary[nn.Module, ActivationOffload] = WeakKeyDictionary()


def checkpoint_blocks(model: Any, mode: str, *, layers: int = 1) -> None:
    """Let each block keep what `mode` says, in place; names of parameters stay. Call it before blocks are compiled.

    layers: neighbouring local layers that share one checkpoint.
    """
    if mode == "none":
        return
    if layers > 1:
        model.run_layers = MethodType(_checkpoint_groups(type(model).run_layers, layers), model)
    keeping = {"context_fn": partial(create_selective_checkpoint_contexts, saved_operations())}
    for layer, block in enumerate(model.blocks):
        options = keeping if mode in ("selective", "offload") and model.config.is_global(layer) else {}
        if options and has_tiled_mlp(block):
            block.attention_half = MethodType(_recomputed(type(block).attention_half, **options), block)
        else:
            block.forward = MethodType(_recomputed(type(block).forward, **options), block)


def ac_groups_of(config: ModelConfig, every: Sequence[int], most: int) -> list[range]:
    """The layers `every` in order, neighbouring local ones together, up to `most`; global ones separately."""
    runs: list[range] = []
    for layer in every:
        last = runs[-1] if runs else range(0)
        if config.is_global(layer) or not last or len(last) == most or config.is_global(last[0]):
            runs.append(range(layer, layer + 1))
        else:
            runs[-1] = range(last.start, layer + 1)
    return runs


def saved_operations() -> list:
    """The attention operations whose results a global layer keeps; the one over ranks only where it was imported."""
    # importing it registers the op
    import brine.kernels.attention.op  # noqa: F401

    operations = [torch.ops.brine.span_attention.default]
    if hasattr(torch.ops.brine, "ring_attention"):
        operations.append(torch.ops.brine.ring_attention.default)
    return operations


def tile_mlps(model: Any, tile_tokens: int, *, compiled: bool) -> None:
    """Let the second half of each block run over `tile_tokens` tokens at a time, in place; 0 leaves it whole.

    compiled: compile the tiles' code; the loop over them stays outside of compiled code, which would unroll it.
    """
    if not tile_tokens:
        return
    for block in model.blocks:
        inner = type(block).mlp_half
        if compiled:
            inner = torch.compile(inner, dynamic=False)
        block.mlp_half = MethodType(_tiled(inner, tile_tokens), block)


def has_tiled_mlp(block: nn.Module) -> bool:
    """Does its second half run tile by tile?"""
    return "mlp_half" in vars(block)


def offloading(model: Any, mode: str, *, link: StreamCopyEngine | None = None) -> AbstractContextManager:
    """Context of a forward pass in which what blocks keep goes to host memory until it is needed.

    link: what copies; by default a CUDA stream beside the model's, and on a host nothing is copied.
    """
    if mode != "offload":
        return nullcontext()
    store = _stores.get(model)
    if store is None or (link is not None and store.link is not link):
        device = model.head_weight.device
        if link is None and device.type != "cuda":
            return nullcontext()
        # kept with the model: each pass uses the memory of the one before
        store = _stores[model] = ActivationOffload(link or StreamCopyEngine(device))
    config = model.config
    return store.hooks(lambda tensor: is_large_activation(tensor, config))


def is_large_activation(tensor: Tensor, config: ModelConfig) -> bool:
    """Is it the stream (B, T, E), or what attention gave (B, T, H, D)? All else is small or shared by all blocks."""
    return (tensor.dim() == 3 and tensor.shape[-1] == config.dim) or (
        tensor.dim() == 4 and tensor.shape[-2:] == (config.num_heads, config.head_dim)
    )


def _checkpoint_groups(run_layers: Callable, layers: int) -> Callable:
    def checkpointed(self: Any, every: Sequence[int], x: Tensor, *shared) -> Tensor:
        for run in ac_groups_of(self.config, every, layers):
            x = _checkpoint(run_layers, self, run, x, *shared) if len(run) > 1 else run_layers(self, run, x, *shared)
        return x

    return checkpointed


def _recomputed(forward: Callable, **options) -> Callable:
    def checkpointed(self: nn.Module, *inputs):
        return _checkpoint(forward, self, *inputs, **options)

    return checkpointed


def _tiled(forward: Callable, tile_tokens: int) -> Callable:
    @torch.compiler.disable
    def tiled(self: nn.Module, x: Tensor) -> Tensor:
        if x.shape[1] <= tile_tokens:
            return forward(self, x)
        tiles = [_checkpoint(forward, self, tile) for tile in x.split(tile_tokens, dim=1)]
        return torch.cat(tiles, dim=1)

    return tiled
