"""One model over many ranks: context parallelism, FSDP2, and the order in which a model is changed for the machine.

Every `context_parallel` neighbouring ranks share each sequence, and every `dp_shard` hold one copy of the parameters;
the two are independent, since gradients are summed over all ranks. `parallelize` applies, in this order: device and
dtype, activation checkpointing, compilation by block, sharding, weights of an empty model. No tensor, pipeline or
expert parallelism.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from brine.training.parallel.activations import checkpoint_blocks, tile_mlps
from brine.training.parallel.distributed import World
from brine.training.runtime import Runtime, compile_blocks


def init_parallel_groups(world: World, *, context_parallel: int = 1, dp_shard: int = 1, device: str = "cpu") -> World:
    """The same rank in a world where every `context_parallel` neighbours share sequences, every `dp_shard` parameters.

    All ranks call it, in the same order (`World.warm_up_group`). Raises ValueError where the ranks cannot be split
    so.
    """
    for name, ranks in (("context_parallel", context_parallel), ("dp_shard", dp_shard)):
        if ranks < 1 or world.size % ranks:
            raise ValueError(
                f"runtime.{name} = {ranks} does not divide the {world.size} ranks: start a multiple of it with torchrun"
            )
    if context_parallel == dp_shard == 1:
        return world
    # imported late: a single process needs no meshes
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    def make_mesh(ranks: int, *names: str, used: tuple[str, ...]) -> DeviceMesh:
        mesh = init_device_mesh(device, (world.size // ranks, ranks), mesh_dim_names=names)
        for name in used:
            world.warm_up_group(mesh.get_group(name), device=device)
        return mesh

    if context_parallel > 1:
        mesh = make_mesh(context_parallel, "replica", "context_parallel", used=("context_parallel",))
        group = mesh.get_group("context_parallel").group_name
        world = dataclasses.replace(world, context_parallel=context_parallel, context_parallel_group=group)
    if dp_shard > 1:
        axes = ("replicate", "dp_shard")
        world = dataclasses.replace(world, dp_shard=dp_shard, mesh=make_mesh(dp_shard, *axes, used=axes))
    return world


def parallelize(model: Any, *, runtime: Runtime, world: World, seed: int) -> None:
    """Prepare a model to train as `runtime` and `world` say, in place. seed: of the weights of an empty model."""
    empty = any(parameter.is_meta for parameter in model.parameters())
    model.to(device=None if empty else runtime.device, dtype=runtime.weight_dtype)
    model.attention_backend, model.loss_backend = runtime.attention_backend, runtime.loss_backend
    tile_mlps(model, runtime.mlp_tile_tokens, compiled=runtime.compile)
    checkpoint_blocks(model, runtime.activation_checkpointing, layers=runtime.ac_group_size)
    if runtime.compile:
        compile_blocks(model)
    if world.dp_shard > 1:
        shard_parameters(model, runtime=runtime, world=world)
    if empty:
        model.to_empty(device=runtime.device)
        model.init_weights(torch.Generator().manual_seed(seed))


def shard_parameters(model: Any, *, runtime: Runtime, world: World) -> None:
    """Split every parameter over the mesh's `dp_shard` ranks, in place: each block separately, then the rest together.

    Blocks are gathered in the precision of their matmuls, norms included; the token table, embedders, last norm and
    head in that of the weights. Gradients are summed in float32 (float64 for float64 weights). Embedders, head and last
    norm share a group, whose sum waits for all of its members: every embedder runs in each step on each rank, even when
    it has no patches.
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


def gather_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's whole weights by name, on rank 0; {} elsewhere where they are sharded. All ranks call it."""
    if not is_sharded(model):
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    found: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return found
