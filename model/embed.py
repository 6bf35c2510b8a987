"""Tokens and patches in, one stream of vectors out: the whole of "native multimodal".

Text tokens are looked up, and a patch of an image, a slice of log-mel or a tubelet of video goes, flat,
through LayerNorm -> Linear -> LayerNorm into the slot that its document left for it. There is no encoder
and no convolution: packed ragged patches are then one plain matrix product, whatever the sizes of the
images, and everything else is learned by the transformer itself. "linear" drops the two norms.

Slots. The data package gives each patch the flat index of its slot in B * T, and pads the patches to a fixed number
per batch with slots at B * T. The stream is therefore built one row longer than it needs to be, patches are
copied in by index, and the extra row, where padding landed, is cut off. Shapes never depend on the data
(no masks, no nonzero), nothing reads back to the host, and the copy is deterministic both ways:
real slots are distinct, and padding's gradient is zero.

Patches arrive as they are stored, a byte a pixel, and become floats here, where the model is
(`floats`). Those that are padding become something finite (bytes of zero are -1) that nobody reads.

In training every embedder is called, if with no patches: ranks that hold a model between them exchange the gradients
of all embedders at once, and one that had none would keep the others waiting.

Scale. Every vector enters the stream with root mean square of about 1: the token table has standard
deviation 1 / sqrt(E) and is multiplied by sqrt(E), patches leave a LayerNorm. The factor also lets one
learning rate serve the table and the matrices under Adam.

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
    """Patches (N, dim) as floats, where they lie; uint8 pixels become x / 127.5 - 1, anything else stays as it is."""
    if patches.dtype != torch.uint8:
        return patches
    found = patches.to(torch.float32)
    # CUDA makes a division by a number of the host a product with its inverse, whose last bit may differ
    return found.div_(found.new_full((), 127.5)).sub_(1.0)


class PatchEmbedder(nn.Module):
    """Flat patches to vectors: LayerNorm -> Linear -> LayerNorm, or Linear alone.

    The LayerNorms run in fp32; their large epsilon keeps codec noise in a flat patch from becoming full contrast.
    """

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

        token_ids: (B, T) int. media: modality -> (patches (N, patch_dim), stored or float, slot (N,) int64 flat
        index into B * T; padding points at B * T). Returns (B, T, E). Raises ValueError for a modality or a patch
        length that the model does not have.
        """
        batch, length = token_ids.shape
        # one row more than needed: where padding slots land
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
