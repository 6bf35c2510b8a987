"""The self-check of a loss backend on a GPU: small problems, losses and gradients, against the reference in fp64.

Two vocabularies, one divisible by 16 and one not, as kernels are compiled separately for them; several blocks of the
vocabulary and chunks of tokens, the last not full; a quarter of the tokens without target; and the request's token
weights, z-loss and soft labels. Losses, and each gradient vector, must be within `ROUNDINGS` roundings of the dtype, in
units of its length plus that of a mean vector.

Legend: N tokens, E width, V vocabulary, k soft labels per token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from brine.kernels.linear_loss.autograd_function import LossRequest

TOKENS, WIDTH, LISTED = 77, 32, 6
VOCABULARIES = (8208, 4099)
CHUNK = 29
ROUNDINGS = {torch.float32: (64.0, 256.0), torch.bfloat16: (4.0, 24.0), torch.float16: (4.0, 24.0)}
"""Allowed error of losses, and of gradients, in units of the dtype's rounding (half its eps): about three times what
"chunked" needs on a CPU."""


def check(backend: str, request: LossRequest, function: Callable | None) -> str | None:
    """What is wrong with a backend, or None. function: `linear_cross_entropy`, which asks. Waits for the device."""
    unit = torch.finfo(request.dtype).eps / 2
    # the caller may compute without gradients, or under autocast
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(request.device.type, enabled=False):
        for vocab_size in VOCABULARIES:
            inputs, options = problem(request, vocab_size)
            got = _results(function, inputs, backend=backend, chunk_tokens=CHUNK, **options)
            wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
            true = _results(function, wide, backend="reference", **options)
            for name, y in true.items():
                x = got[name].double()
                error, size = (x - y).norm(dim=-1), y.norm(dim=-1)
                worst = (error / (size + size.square().mean().sqrt())).max().item() / unit
                limit = ROUNDINGS[request.dtype][name.startswith("d_")]
                # written so that NaN fails
                if not worst <= limit:
                    return (
                        f"{name} is off by {worst:.3g} roundings of {request.dtype} where {limit:g} are allowed "
                        f"(vocabulary of {vocab_size})"
                    )
    return None


def problem(request: LossRequest, vocab_size: int) -> tuple[dict[str, Tensor], dict[str, float | bool]]:
    """-> the tensors of a call by name, and its numbers."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(request.device, request.dtype)

    labels = torch.randint(vocab_size, (TOKENS,), generator=draw)
    labels[::4] = -100
    tensors = {"hidden": normal(TOKENS, WIDTH), "weight": normal(vocab_size, WIDTH) * WIDTH**-0.5}
    tensors["labels"] = labels.to(request.device)
    if request.weighted:
        tensors["token_weight"] = torch.rand(TOKENS, generator=draw).to(request.device)
    options = {"return_token_loss": request.token_loss, "z_loss": 0.0 if request.kind == "plain" else 1e-2}
    if request.kind == "dense":
        tensors["teacher_hidden"], tensors["teacher_weight"] = normal(TOKENS, 16), normal(vocab_size, 16)
    if request.kind == "sparse":
        ids = torch.randint(vocab_size, (TOKENS, LISTED), generator=draw)
        # the label among the listed ids, and an id twice
        ids[::3, 0] = labels[::3].clamp(min=0)
        ids[1, 2] = ids[1, 1]
        probability = torch.rand(TOKENS, LISTED, generator=draw)
        tensors["soft_ids"] = ids.to(request.device)
        tensors["soft_probabilities"] = (0.8 * probability / probability.sum(1, keepdim=True)).to(request.device)
    if request.kind in ("dense", "sparse"):
        options |= {"distill_weight": 0.4, "temperature": 1.5}
    return tensors, options


def _results(function, tensors: dict[str, Tensor], **options) -> dict[str, Tensor]:
    leaves = [tensors[name].detach().requires_grad_() for name in ("hidden", "weight")]
    others = {name: x for name, x in tensors.items() if name not in ("hidden", "weight", "labels")}
    found = function(*leaves, tensors["labels"], **others, **options)
    loss, token_loss = found if options["return_token_loss"] else (found, None)
    d_hidden, d_weight = torch.autograd.grad(loss, leaves)
    results = {"the loss": loss.detach()[None], "d_hidden": d_hidden, "d_weight": d_weight}
    return results if token_loss is None else results | {"a token's loss": token_loss[:, None]}
