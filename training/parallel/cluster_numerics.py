"""Numerical multi-rank vs single-rank checks of `brine check-cluster`.

    ring_errors(world, device)         attention over sequences that all ranks share, with its gradients
    sharding_errors(world, device)     gradients of a small model whose parameters are sharded over all ranks

Each returns the error as a message, or None. Every rank samples the same problem from one seed. On CPUs all is float64
and agrees to `TOLERANCE`; on GPUs errors may be `MAX_ERROR_RATIO` those of one rank in the same precision. B batch, T
tokens, H query heads, K KV heads, D head dim.
"""

from typing import Any

import torch
from torch import Tensor

from brine.kernels.attention import Spans, attention
from brine.kernels.context_parallel.layout import ContextLayout, ShardedSpans
from brine.kernels.context_parallel.sharding import zigzag
from brine.kernels.linear_loss import linear_cross_entropy
from brine.model.config import ModelConfig
from brine.model.inputs import Inputs
from brine.model.transformer import Transformer
from brine.training.gradients import FlatGradients, ShardedGradients
from brine.training.parallel.activations import checkpoint_blocks
from brine.training.parallel.distributed import World
from brine.training.parallel.parallelize import shard_parameters
from brine.training.runtime import Runtime

TOLERANCE = 1e-10
MAX_ERROR_RATIO = 2.0
TOKENS, HEADS, KEY_HEADS, DIM = 384, 4, 2, 64
SHAPE = ModelConfig(
    vocab_size=96, dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=96, window=24,
    global_every=2, image_dim=12, audio_dim=8, video_dim=10,
)  # fmt: skip


def ring_errors(world: World, device: str) -> str | None:
    """Two masks: one document over all ranks, and packed documents with a window, where some ranks exchange nothing."""
    chunk = max(1, TOKENS // (8 * world.size))
    document = torch.arange(TOKENS) // 50
    masks = {
        "one document": Spans.packed(torch.zeros(2, TOKENS, dtype=torch.int64)),
        "windows": Spans.packed(document.expand(2, -1).contiguous(), window=30),
    }
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, TOKENS, heads, DIM, generator=generator, dtype=torch.float64)
             for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]  # fmt: skip
    chunk_ranks = torch.from_numpy(zigzag(-(-TOKENS // chunk), world.size))
    layout = ContextLayout(
        chunk_ranks, chunk, TOKENS, world.rank % world.context_parallel, world.size, world.context_parallel_group
    )
    # whatever is wrong here, the other ranks continue with the next check
    troubles = []
    for name, spans in masks.items():
        sharded = (ShardedSpans.shard(spans, layout) if world.size > 1 else spans).to(device)
        truth = _attended([x.to(device) for x in given], spans.to(device), backend="reference")
        for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float64,):
            inputs = [x.to(device=device, dtype=dtype) for x in given]
            alone = _attended(inputs, spans.to(device))
            together = _attended([layout.shard(x) for x in inputs], sharded)
            for what, found, single, right in zip(("out", "dq", "dk", "dv"), together, alone, truth, strict=True):
                trouble = _compare(found, layout.shard(single), layout.shard(right))
                if trouble:
                    troubles.append(f"{what} of {name}, {str(dtype).removeprefix('torch.')}: {trouble}")
    return ", ".join(troubles) or None


def sharding_errors(world: World, device: str) -> str | None:
    """Norm of the gradient, and each rank's part of every parameter's, of sequences that differ between ranks."""
    troubles = []
    for name in ("float32", "bfloat16") if device == "cuda" else ("float64",):
        runtime = Runtime(device=device, dtype=name)
        truth = _whole(world, Runtime(device=device, dtype="float64"))
        alone = _whole(world, runtime)
        model = _model(runtime)
        if world.size > 1:
            shard_parameters(model, runtime=runtime, world=world)
        parameters: dict[str, Any] = dict(model.named_parameters())
        gradients = ShardedGradients(model, parameters) if world.size > 1 else FlatGradients(parameters)
        gradients.before_backward(last=True)
        _loss(model, world.rank, runtime).backward()
        gradients.sum(world)
        for key, parameter in parameters.items():
            found = parameter.grad.full_tensor() if world.size > 1 else parameter.grad
            trouble = _compare(found, alone[key], truth[key])
            if trouble:
                troubles.append(f"gradient of {key}, {name}: {trouble}")
        whole = torch.stack([gradient.double().norm() for gradient in alone.values()]).norm()
        norm = gradients.norm(world)
        if not torch.isclose(norm, whole, rtol=1e-9 if name == "float64" else 2e-2, atol=0.0):
            troubles.append(f"the gradient's norm in {name} is {norm:.6g}, and {whole:.6g} on one rank")
    return ", ".join(troubles) or None


def _attended(inputs: list[Tensor], spans: Spans, **options) -> list[Tensor]:
    q, k, v = leaves = [x.detach().clone().requires_grad_() for x in inputs[:-1]]
    out: Any = attention(q, k, v, spans, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[-1])]


def _model(runtime: Runtime) -> Transformer:
    model = Transformer(SHAPE, generator=torch.Generator().manual_seed(0))
    model = model.to(device=runtime.device, dtype=runtime.weight_dtype)
    checkpoint_blocks(model, "selective")
    return model


def _loss(model: Transformer, rank: int, runtime: Runtime) -> Tensor:
    generator = torch.Generator().manual_seed(1 + rank)
    token_ids, labels = torch.randint(SHAPE.vocab_size, (2, 2, 48), generator=generator).to(runtime.device)
    position = torch.arange(48.0, device=runtime.device).view(1, 48, 1).expand(2, 48, 3).contiguous()
    document = torch.zeros(2, 48, dtype=torch.int32, device=runtime.device)
    # without patches: embedders still take part in every rank's sums
    size = token_ids.numel()
    media = {
        name: (torch.zeros(1, dim, dtype=runtime.weight_dtype, device=runtime.device),
               torch.full((1,), size, device=runtime.device))
        for name, dim in SHAPE.patch_dims.items()
    }  # fmt: skip
    with runtime.autocast():
        hidden = model(Inputs(token_ids, position, document, torch.zeros_like(document), media))
        loss: Any = linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, labels.flatten())
    return loss


def _whole(world: World, runtime: Runtime) -> dict[str, Tensor]:
    """The gradient of all ranks' sequences on a model that is not sharded."""
    model = _model(runtime)
    for rank in range(world.size):
        _loss(model, rank, runtime).backward()
    grads: dict[str, Any] = {name: parameter.grad for name, parameter in model.named_parameters()}
    return grads


def _compare(found: Tensor, alone: Tensor, truth: Tensor) -> str | None:
    if found.shape != truth.shape or not bool(found.isfinite().all()):
        return "not finite, or of another shape"
    if not truth.numel():
        return None
    error, single = (float((x.double() - truth.double()).norm()) for x in (found, alone))
    size = float(truth.double().norm())
    bound = TOLERANCE * size + 1e-12 if found.dtype == torch.float64 else MAX_ERROR_RATIO * single + 1e-6 * size + 1e-12
    return None if error <= bound else f"error {error:.3g}, bound {bound:.3g} (one rank {single:.3g}, norm {size:.3g})"
