"""One function fills every parameter, from one table.

The aim is a first loss of ln(V) and a stream whose size neither depth nor modality changes: all vectors enter with root
mean square 1, each matrix keeps the variance of its (normed) input, and the two matrices per block that write into the
stream are scaled down by the square root of their number (GPT-2's rule).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from brine.model.transformer import Transformer

HEAD_STD = 0.25  # standard deviation of a logit at the start, which adds HEAD_STD^2 / 2 = 0.03 to a first loss of ln(V)


@torch.no_grad()
def init_weights(model: Transformer, generator: torch.Generator | None = None) -> None:
    """Initialise every parameter of the model, in the order of `named_parameters`.

    parameter                          distribution      standard deviation, or value
    embed.tokens.weight                normal            1 / sqrt(E)        (times sqrt(E) on use: rms 1)
    embed.patches.*.norm_in.weight     constant          1
    embed.patches.*.norm_in.bias       constant          0
    embed.patches.*.proj.weight        normal            1 / sqrt(patch_dim)
    embed.patches.*.proj.bias          normal            0.1
    embed.patches.*.norm_out.weight    constant          1
    embed.patches.*.norm_out.bias      constant          0
    blocks.*.attn_norm.weight          constant          1
    blocks.*.attn.qkv.weight           normal            1 / sqrt(E)
    blocks.*.attn.q_norm.weight        constant          1
    blocks.*.attn.k_norm.weight        constant          1
    blocks.*.attn.out.weight           normal            1 / sqrt(H * D) / sqrt(2 * L)
    blocks.*.mlp_norm.weight           constant          1
    blocks.*.mlp.gate_up.weight        normal            1 / sqrt(E)
    blocks.*.mlp.down.weight           normal            1 / sqrt(M) / sqrt(2 * L)
    norm.weight                        constant          1, or 0.25 when embeddings are tied
    head.weight                        normal            0.25 / sqrt(E)

    Equal generators give equal weights on one machine, and on the ranks between which `fully_shard` has split a model
    the same ones: every rank draws each parameter whole, on the CPU, and keeps its part, so that no more than one is
    whole at a time. Raises ValueError for a parameter that the table lacks.
    """
    config = model.config
    residual = 1 / math.sqrt(2 * config.num_layers)
    constants = {
        "norm_in.weight": 1.0, "norm_in.bias": 0.0, "norm_out.weight": 1.0, "norm_out.bias": 0.0,
        "attn_norm.weight": 1.0, "q_norm.weight": 1.0, "k_norm.weight": 1.0, "mlp_norm.weight": 1.0,
        "norm.weight": HEAD_STD if config.tie_embeddings else 1.0,
    }  # fmt: skip
    gains = {
        "tokens.weight": 1.0, "proj.weight": 1.0, "qkv.weight": 1.0, "gate_up.weight": 1.0,
        "out.weight": residual, "down.weight": residual, "head.weight": HEAD_STD,
    }  # fmt: skip
    # a flat patch is all zeros after its norm: without a bias the norms after it would divide by nearly nothing, and
    # the gradient of a sequence of blank patches would be a thousand times that of any other
    spreads = {"proj.bias": 0.1}
    for name, parameter in model.named_parameters():
        key = ".".join(name.split(".")[-2:])
        if key in constants:
            parameter.fill_(constants[key])
        elif key in spreads:
            _draw(parameter, spreads[key], generator)
        elif key in gains:
            # every matrix is (out, in); the token table too has its width last
            _draw(parameter, gains[key] / math.sqrt(parameter.shape[-1]), generator)
        else:
            raise ValueError(f"no rule for the parameter {name}: add it to the table of init_weights")


def _draw(parameter: torch.Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill with normal numbers, float32 whatever the dtype; a part with its part of what the whole would get."""
    whole = torch.empty(parameter.shape).normal_(0.0, std, generator=generator).to(parameter.device, parameter.dtype)
    if hasattr(parameter, "placements"):
        # imported late: a single process needs no distributed tensors
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        # every rank has the same numbers, so none need be sent
        whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)
