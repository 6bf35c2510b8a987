"""The self-check of a loss backend on a card: small problems, losses and gradients, against the reference.

Two vocabularies, one divisible by 16 and one not, as kernels are compiled apart for them; several blocks of words and
several chunks of tokens, the last of them not full; a quarter of the tokens without target; and whatever the call has
of token weights, z-loss and soft labels, dense or sparse.

The truth is the reference in fp64 on the same inputs. Losses, and each row of the gradients, must be within `ROUNDINGS`
roundings of the dtype of it, in units of a row's own length plus that of a mean row.

Legend: N tokens, E width, V vocabulary, k soft labels a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear_loss.walk import Ask

TOKENS, WIDTH, PLACES = 77, 32, 6
VOCABULARIES = (8208, 4099)
CHUNK = 29
ROUNDINGS = {torch.float32: (64.0, 256.0), torch.bfloat16: (4.0, 24.0), torch.float16: (4.0, 24.0)}
"""Allowed error of losses, and of gradients, in units of the dtype's rounding (half its eps): about three times what
"chunked" needs on a CPU."""


def check(backend: str, ask: Ask) -> str | None:
    """What is wrong with a backend for such a call, None where nothing is. Waits for the device."""
    # the facade asks for this check
    from kernels.linear_loss.api import linear_cross_entropy

    unit = torch.finfo(ask.dtype).eps / 2
    # the caller may compute without gradients, or under autocast
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(ask.device.type, enabled=False):
        for vocabulary in VOCABULARIES:
            inputs, options = problem(ask, vocabulary)
            got = _results(linear_cross_entropy, inputs, backend=backend, chunk_tokens=CHUNK, **options)
            wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
            true = _results(linear_cross_entropy, wide, backend="reference", **options)
            for name, y in true.items():
                x = got[name].double()
                error, size = (x - y).norm(dim=-1), y.norm(dim=-1)
                worst = (error / (size + size.square().mean().sqrt())).max().item() / unit
                limit = ROUNDINGS[ask.dtype][name.startswith("d_")]
                # written so that NaN fails
                if not worst <= limit:
                    return (
                        f"{name} is off by {worst:.3g} roundings of {ask.dtype} where {limit:g} are allowed "
                        f"({vocabulary} words)"
                    )
    return None


def problem(ask: Ask, vocabulary: int) -> tuple[dict[str, Tensor], dict[str, float | bool]]:
    """-> the tensors of a call by name, and its numbers."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(ask.device, ask.dtype)

    labels = torch.randint(vocabulary, (TOKENS,), generator=draw)
    labels[::4] = -100
    tensors = {"hidden": normal(TOKENS, WIDTH), "weight": normal(vocabulary, WIDTH) * WIDTH**-0.5}
    tensors["labels"] = labels.to(ask.device)
    if ask.weighted:
        tensors["token_weight"] = torch.rand(TOKENS, generator=draw).to(ask.device)
    options = {"return_token_loss": ask.token_loss, "z_loss": 0.0 if ask.kind == "plain" else 1e-2}
    if ask.kind == "dense":
        tensors["teacher_hidden"], tensors["teacher_weight"] = normal(TOKENS, 16), normal(vocabulary, 16)
    if ask.kind == "sparse":
        ids = torch.randint(vocabulary, (TOKENS, PLACES), generator=draw)
        # the label among the listed words, and a word twice
        ids[::3, 0] = labels[::3].clamp(min=0)
        ids[1, 2] = ids[1, 1]
        chance = torch.rand(TOKENS, PLACES, generator=draw)
        tensors["soft_ids"] = ids.to(ask.device)
        tensors["soft_probabilities"] = (0.8 * chance / chance.sum(1, keepdim=True)).to(ask.device)
    if ask.kind in ("dense", "sparse"):
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
