"""What a block keeps for the backward pass: everything, little, or next to nothing.

A block that keeps everything holds about 20 tensors of the stream's size. `checkpointing` trades that for computing
blocks again in the backward pass (Chen et al. 2016, 1604.06174):

    none        everything is kept
    selective   a block keeps what it was given, and the forward pass is done again but for the attention of global
                layers, whose out and lse are kept: its work grows with the square of the length, what it gives does not
    full        a block keeps what it was given, and nothing else
    offload     like selective, and what is kept waits in host memory for the backward pass, copied out and back beside
                what is computed (`training.offload`); on a CPU it is there anyway, so there it is selective

`checkpoint_layers` goes further: so many neighbouring local layers keep one input between them, and are gone through
once more to find what each was given. Where rows are long, local layers are the cheap ones; a global layer keeps its
own.

`mlp_tile` is apart from these: the second half of a block, its norm and MLP, runs over so many tokens at a time, and
each tile is computed again in the backward pass, so that its inner width, the widest tensor of all, never exists for a
whole row. A global layer that keeps its attention then keeps the stream between its halves as well.

All of it computes the same numbers as without: what is done again is the same code on the same inputs. Rows that lie
on several ranks are sent again where ring attention is done again; all ranks do so, in the same order.

The compiler takes a block whole, recomputation included; of a tiled one it takes the first half and the tile, since a
loop over tiles would be unrolled, and what is done again around them is done by autograd. Compiled, what attention
gave is kept by autograd, where offloading finds it; without the compiler a selective policy keeps it to itself, on the
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MethodType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from model.config import ModelConfig
from training.offload import Link, Offload, StreamLink

# dropout and other random numbers do not occur
_checkpoint = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
_stores: WeakKeyDictionary[nn.Module, Offload] = WeakKeyDictionary()


def checkpoint_blocks(model: nn.Module, mode: str, *, layers: int = 1) -> None:
    """Let each block keep what `mode` says, in place; names of parameters stay. Call it before blocks are compiled.

    layers: neighbouring local layers that keep one input between them.
    """
    if mode == "none":
        return
    if layers > 1:
        model.through = MethodType(_by_runs(type(model).through, layers), model)
    keeping = {"context_fn": partial(create_selective_checkpoint_contexts, kept_operations())}
    for layer, block in enumerate(model.blocks):
        options = keeping if mode in ("selective", "offload") and model.config.is_global(layer) else {}
        if options and is_tiled(block):
            block.attend = MethodType(_again(type(block).attend, **options), block)
        else:
            block.forward = MethodType(_again(type(block).forward, **options), block)


def local_runs(config: ModelConfig, every: Sequence[int], most: int) -> list[range]:
    """The layers `every` in order, neighbouring local ones together, up to `most`; global ones by themselves."""
    runs: list[range] = []
    for layer in every:
        last = runs[-1] if runs else range(0)
        if config.is_global(layer) or not last or len(last) == most or config.is_global(last[0]):
            runs.append(range(layer, layer + 1))
        else:
            runs[-1] = range(last.start, layer + 1)
    return runs


def kept_operations() -> list:
    """The attention operations whose results a global layer keeps; the one over ranks only where it was imported."""
    # importing it registers the op
    import kernels.attention.op  # noqa: F401

    operations = [torch.ops.brine.span_attention.default]
    if hasattr(torch.ops.brine, "ring_attention"):
        operations.append(torch.ops.brine.ring_attention.default)
    return operations


def tile_blocks(model: nn.Module, tile_tokens: int, *, compiled: bool) -> None:
    """Let the second half of each block run over `tile_tokens` tokens at a time, in place; 0 leaves it whole.

    compiled: compile the tiles' code; the loop over them stays outside of compiled code, which would unroll it.
    """
    if not tile_tokens:
        return
    for block in model.blocks:
        inner = type(block).feed
        if compiled:
            inner = torch.compile(inner, dynamic=False)
        block.feed = MethodType(_tiled(inner, tile_tokens), block)


def is_tiled(block: nn.Module) -> bool:
    """Does its second half run tile by tile?"""
    return "feed" in vars(block)


def offloading(model: nn.Module, mode: str, *, link: Link | None = None) -> AbstractContextManager:
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
        store = _stores[model] = Offload(link or StreamLink(device))
    config = model.config
    return store.hooks(lambda tensor: is_wide(tensor, config))


def is_wide(tensor: Tensor, config: ModelConfig) -> bool:
    """Is it the stream (B, T, E), or what attention gave (B, T, H, D)? All else is small or shared by all blocks."""
    return (tensor.dim() == 3 and tensor.shape[-1] == config.dim) or (
        tensor.dim() == 4 and tensor.shape[-2:] == (config.num_heads, config.head_dim)
    )


def _by_runs(through: Callable, layers: int) -> Callable:
    def checkpointed(self: nn.Module, every: Sequence[int], x: Tensor, *shared) -> Tensor:
        for run in local_runs(self.config, every, layers):
            x = _checkpoint(through, self, run, x, *shared) if len(run) > 1 else through(self, run, x, *shared)
        return x

    return checkpointed


def _again(forward: Callable, **options) -> Callable:
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
