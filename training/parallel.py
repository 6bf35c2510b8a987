"""One model over many ranks: who shares rows, who shares parameters, and what that does to the model.

    world = split_world(start_world(), context=4, shard=8)
    model = Transformer(config, empty=True)
    parallelize(model, runtime=runtime, world=world, seed=0)

Two questions with two answers, and each is a line of the ranks cut into equal neighbours:

    rows        replica x context     every `context` ranks hold a part of each row (`training.context`)
    parameters  replicate x shard     every `shard` ranks hold one copy of the model between them (FSDP2's fully_shard)

They are independent, since gradients are summed over all ranks whoever shares what: the usual mesh replicate x shard x
context is `shard = shard x context` here, and parameters that are split over fewer or more ranks than rows are as good.

`parallelize` is the only place that changes a model for the machine, in this order: device and dtype; recomputation,
so that the compiler sees it; compilation, block by block; sharding, whose hooks gather a block's parameters before it
runs; weights, for a model that was made without, so that no rank ever holds them all. They are those that a single
rank would have drawn.

What this file does not do: tensor, pipeline or expert parallelism.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from training.activations import checkpoint_blocks, tile_blocks
from training.distributed import World
from training.runtime import Runtime, compile_blocks


def split_world(world: World, *, context: int = 1, shard: int = 1, device: str = "cpu") -> World:
    """The same rank in a world where every `context` neighbours share rows, and every `shard` parameters.

    All ranks call it, in the same order, and meet once in each group that is made (`World.meet`). Raises ValueError
    where the ranks cannot be split so.
    """
    for name, ranks in (("context", context), ("shard", shard)):
        if ranks < 1 or world.size % ranks:
            raise ValueError(
                f"runtime.{name} = {ranks} does not divide the {world.size} ranks: start a multiple of it with torchrun"
            )
    if context == shard == 1:
        return world
    # imported late: a single process needs no meshes
    from torch.distributed.device_mesh import init_device_mesh

    group, mesh = "", None
    if context > 1:
        rows = init_device_mesh(device, (world.size // context, context), mesh_dim_names=("replica", "context"))
        world.meet(rows.get_group("context"), device=device)
        group = rows.get_group("context").group_name
    if shard > 1:
        mesh = init_device_mesh(device, (world.size // shard, shard), mesh_dim_names=("replicate", "shard"))
        for name in mesh.mesh_dim_names:
            world.meet(mesh.get_group(name), device=device)
    return dataclasses.replace(world, context=context, context_group=group, shard=shard, mesh=mesh)


def parallelize(model: nn.Module, *, runtime: Runtime, world: World, seed: int) -> None:
    """Make a model one that trains as `runtime` and `world` say; in place. seed: of the weights of an empty model."""
    empty = any(parameter.is_meta for parameter in model.parameters())
    model.to(device=None if empty else runtime.device, dtype=runtime.weight_dtype)
    model.attention_backend, model.loss_backend = runtime.attention_backend, runtime.loss_backend
    tile_blocks(model, runtime.mlp_tile, compiled=runtime.compile)
    checkpoint_blocks(model, runtime.checkpointing, layers=runtime.checkpoint_layers)
    if runtime.compile:
        compile_blocks(model)
    if world.shard > 1:
        shard_parameters(model, runtime=runtime, world=world)
    if empty:
        model.to_empty(device=runtime.device)
        model.init_weights(torch.Generator().manual_seed(seed))


def shard_parameters(model: nn.Module, *, runtime: Runtime, world: World) -> None:
    """Split every parameter over the mesh's `shard` ranks, in place: each block by itself, then the ends together.

    Blocks are gathered in the precision of their matrix products, norms included; the token table, embedders, last norm
    and head in that of the weights. Gradients are summed in float32 (float64 for float64 weights). Embedders, head and
    last norm share a group, whose sum waits for all of its members: each must take part in each step on each rank, if
    with no patches.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = torch.bfloat16 if runtime.dtype == "bfloat16" else None
    reduced = torch.float32 if half is not None else None
    inner = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=reduced, cast_forward_inputs=False)
    outer = MixedPrecisionPolicy(reduce_dtype=reduced, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=world.mesh, mp_policy=inner)
    # the head is read after the forward pass, so its group stays gathered until the backward pass is over
    fully_shard(model, mesh=world.mesh, mp_policy=outer, reshard_after_forward=False)
    for module in (*model.blocks, model):
        # sums, not means; gloo knows no division before the sum
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def is_sharded(model: nn.Module) -> bool:
    """Were the model's parameters split over ranks?"""
    return hasattr(model, "set_requires_all_reduce")


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's whole weights by name, on rank 0; {} elsewhere where they are sharded. All ranks call it."""
    if not is_sharded(model):
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
