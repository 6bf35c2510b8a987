"""Tokens and patches in, one stream of vectors out: the whole of "native multimodal", without an encoder.

Text tokens are looked up; a flat patch of an image, of log-mel or of a video tubelet goes through LayerNorm, Linear and
LayerNorm ("linear" drops the norms) to its media token. Padding patches have the flat index B * T, so the stream is
built one token longer and cut: shapes never depend on the data, no device sync, deterministic in both directions. In
training every embedder runs, even without patches, since ranks exchange the gradients of all of them. Vectors enter
with root mean square of about 1: the token table has standard deviation 1 / sqrt(E) and is multiplied by sqrt(E).

E model width, V vocabulary, B batch, T tokens, N patches of one modality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brine.model.config import MODALITIES, ModelConfig


def floats(patches: Tensor) -> Tensor:
    """Patches (N, dim) as floats on their device; uint8 pixels become x / 127.5 - 1, others stay as they are."""
    if patches.dtype != torch.uint8:
        return patches
    found = patches.to(torch.float32)
    # CUDA makes a division by a number of the host a product with its inverse, whose last bit may differ
    return found.div_(found.new_full((), 127.5)).sub_(1.0)


class PatchEmbedder(nn.Module):
    """Flat patches to vectors: LayerNorm -> Linear -> LayerNorm, or Linear alone. The norms run in fp32."""

    def __init__(self, patch_dim: int, dim: int, *, kind: str, eps: float):
        super().__init__()
        normed = kind == "ln_linear_ln"
        self.norm_in = nn.LayerNorm(patch_dim, eps=eps) if normed else nn.Identity()
        self.proj = nn.Linear(patch_dim, dim)
        self.norm_out = nn.LayerNorm(dim, eps=eps) if normed else nn.Identity()

    def forward(self, patches: Tensor) -> Tensor:
        """patches: (N, patch_dim), stored or float -> (N, E) in the dtype of the parameters."""
        dtype = self.proj.weight.dtype
        return self.norm_out(self.proj(self.norm_in(floats(patches).to(dtype))).to(dtype))


class Embedder(nn.Module):
    """The token table and one patch embedder per modality."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.scale = math.sqrt(config.dim)
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        embedders = {
            name: PatchEmbedder(dim, config.dim, kind=config.embedder, eps=config.patch_norm_eps)
            for name, dim in config.patch_dims.items()
        }
        # torch does not type what a ModuleDict holds
        self.patches = cast("Mapping[str, PatchEmbedder]", nn.ModuleDict(embedders))

    def forward(self, token_ids: Tensor, media: Mapping[str, tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """The stream before the first block.

        token_ids: (B, T) int. media: modality -> (patches (N, patch_dim), stored or float, flat index (N,) int64 into
        B * T; padding points at B * T). Returns (B, T, E). Raises ValueError for an unknown modality or patch length.
        """
        batch, length = token_ids.shape
        # one token more than needed, for padding
        stream = self.tokens(F.pad(token_ids.flatten(), (0, 1))) * self.scale
        media = media or {}
        if unknown := sorted(set(media) - set(self.patches)):
            raise ValueError(f"media has an unknown modality {unknown[0]!r}: the model knows {', '.join(MODALITIES)}")
        for name, embedder in self.patches.items():
            if name not in media and not torch.is_grad_enabled():
                continue
            patches, media_index = media[name] if name in media else self._no_patches(name)
            if patches.shape[-1] != embedder.proj.in_features:
                raise ValueError(
                    f"{name} patches have {patches.shape[-1]} numbers, the model wants {embedder.proj.in_features}: "
                    f"set {name}_dim of the model to the patch length of the encode config"
                )
            stream = stream.index_copy(0, media_index, embedder(patches).to(stream.dtype))
        return stream[:-1].view(batch, length, -1)

    def _no_patches(self, name: str) -> tuple[Tensor, Tensor]:
        weight = self.patches[name].proj.weight
        return weight.new_empty(0, weight.shape[1]), weight.new_empty(0, dtype=torch.int64)
