"""The decoder-only transformer: one stack for text, images, audio and video.

A block is the usual pre-norm pair with RMSNorm (1910.07467), grouped-query attention with a norm on queries and keys
(per head, before the rotation, so that no modality wins the softmax by growing its norms), SwiGLU (2002.05202), and no
biases. Local and global layers differ only in the `Spans` and rotary tables that a block is given, so that one compiled
block serves all layers. The residual stream, norms, rotations and the q/k norm are fp32; under bf16 autocast matrix
products and attention are bf16. There is no loss, no logits, no parallelism and no choice of precision here.

Hook points are `nn.Identity` modules with stable names; compilation removes those without a hook. For `blocks.{i}.`:

    name            shape            what
    embed_out       (B, T, E)        the stream before the first block (no prefix)
    resid_in        (B, T, E)        the stream as the block finds it
    attn.q          (B, T, H, D)     queries, after norm and rotary
    attn.k          (B, S, K, D)     keys likewise; with a cache S counts the new tokens only
    attn.v          (B, S, K, D)     values
    attn.mix        (B, T, H, D)     what each head read, before the output matrix
    attn_out        (B, T, E)        what attention adds to the stream
    resid_mid       (B, T, E)        the stream between attention and MLP
    mlp.act         (B, T, M)        silu(gate) * up: the neurons
    mlp_out         (B, T, E)        what the MLP adds to the stream
    resid_out       (B, T, E)        the stream as the block leaves it
    final_out       (B, T, E)        after the last norm: what the head reads (no prefix)

B batch, T tokens, S keys, E width, H query heads, K KV heads, D head dim, M MLP width, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from brine.kernels.attention import Spans, attention
from brine.model.config import ModelConfig
from brine.model.embed import Embedder
from brine.model.init import init_weights
from brine.model.inputs import Inputs
from brine.model.rotary import Rotary, Tables, rotate


class LayerCacheProtocol(Protocol):
    """Keys and values of one layer."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take in keys and values (B, T, K, D) of new tokens; returns all that attention may see."""


class Cache(Protocol):
    """Keys and values of the tokens before (`brine.inference.cache`)."""

    layers: Sequence[LayerCacheProtocol]

    def extend(self, segment: Tensor, block: Tensor) -> tuple[Spans, Spans]:
        """Take in the ids (B, T) int32 of new tokens; returns their spans for local and for global layers."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed and returned in fp32 (fp64 for an fp64 input)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim), any float dtype -> same shape, fp32 or fp64."""
        x = x if x.dtype == torch.float64 else x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Grouped-query attention with norms on q and k, and rotary positions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        self.backend = "auto"
        num_heads, num_kv_heads, head_dim = self.heads
        self.qkv = nn.Linear(config.dim, (num_heads + 2 * num_kv_heads) * head_dim, bias=False)
        self.q_norm = RMSNorm(head_dim, config.norm_eps)
        self.k_norm = RMSNorm(head_dim, config.norm_eps)
        self.out = nn.Linear(num_heads * head_dim, config.dim, bias=False)
        self.q, self.k, self.v, self.mix = nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity()

    def project(self, x: Tensor, tables: Tables) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, T, E), normed -> queries (B, T, H, D), keys and values (B, T, K, D)."""
        num_heads, num_kv_heads, head_dim = self.heads
        qkv = rearrange(self.qkv(x), "b t (heads d) -> b t heads d", d=head_dim)
        q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=2)
        q = self.q(rotate(self.q_norm(q), *tables).to(v.dtype))
        k = self.k(rotate(self.k_norm(k), *tables).to(v.dtype))
        return q, k, self.v(v)

    def forward(self, x: Tensor, tables: Tables, spans: Spans, cache: LayerCacheProtocol | None) -> Tensor:
        """x: (B, T, E), normed -> (B, T, E)."""
        q, k, v = self.project(x, tables)
        if cache is not None:
            k, v = cache.append(k, v)
        mix = self.mix(attention(q, k, v, spans, backend=self.backend))
        return self.out(rearrange(mix, "b t h d -> b t (h d)"))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), gate and up being the two halves of one matrix."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.dim, bias=False)
        self.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, E), normed -> (B, T, E)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.act(F.silu(gate) * up))


class Block(nn.Module):
    """One layer. Compile it with `block.compile()`, which leaves the names in a checkpoint as they are."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attn_norm = RMSNorm(config.dim, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)
        self.resid_in, self.attn_out, self.resid_mid = nn.Identity(), nn.Identity(), nn.Identity()
        self.mlp_out, self.resid_out = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, tables: Tables, spans: Spans, cache: LayerCacheProtocol | None = None) -> Tensor:
        """x: (B, T, E), the residual stream -> the stream after this layer."""
        return self.resid_out(self.mlp_half(self.attention_half(x, tables, spans, cache)))

    def attention_half(
        self, x: Tensor, tables: Tables, spans: Spans, cache: LayerCacheProtocol | None = None
    ) -> Tensor:
        """The first half, in which tokens see each other; as `forward`."""
        x = self.resid_in(x)
        return self.resid_mid(x + self.attn_out(self.attn(self.attn_norm(x), tables, spans, cache)))

    def mlp_half(self, x: Tensor) -> Tensor:
        """The second half, each token separately: (B, T, E) -> (B, T, E)."""
        return x + self.mlp_out(self.mlp(self.mlp_norm(x)))


class Transformer(nn.Module):
    """The model: embedders, blocks, final norm and head."""

    def __init__(self, config: ModelConfig, *, generator: torch.Generator | None = None, on_meta_device: bool = False):
        """Build and initialise (`brine.model.init`), from a generator or the global random state.

        on_meta_device: take no memory for parameters until they are sharded (`brine.training.parallel.parallelize`).
        """
        super().__init__()
        self.config = config
        with torch.device("meta") if on_meta_device else nullcontext():
            self.embed = Embedder(config)
            # torch does not type what a ModuleList holds
            self.blocks = cast("Sequence[Block]", nn.ModuleList(Block(config) for _ in range(config.num_layers)))
            self.norm = RMSNorm(config.dim, config.norm_eps)
            self.head = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.embed_out, self.final_out = nn.Identity(), nn.Identity()
        # what computes head and loss, a backend of `brine.kernels.linear_loss`; like attention's backend, never saved
        self.loss_backend = "auto"
        self.rotary = Rotary(config)
        if not on_meta_device:
            self.init_weights(generator)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter by the table of `brine.model.init.init_weights`."""
        init_weights(self, generator)

    @property
    def head_weight(self) -> Tensor:
        """(V, E): logits are hidden @ head_weight.T; the token table itself when embeddings are tied."""
        return self.embed.tokens.weight if self.head is None else self.head.weight

    @property
    def attention_backend(self) -> str:
        """Attention backend, as `brine.kernels.attention` names it; never saved."""
        return self.blocks[0].attn.backend

    @attention_backend.setter
    def attention_backend(self, name: str) -> None:
        for block in self.blocks:
            block.attn.backend = name

    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, inputs: Inputs, *, cache: Cache | None = None) -> Tensor:
        """Hidden states (B, T, E) after the last norm, fp32 (fp64 for an fp64 model).

        cache: keys and values of the tokens before these, which are added to it; a media block must come whole.
        Raises ValueError for an unknown modality and for a media block cut in two by the cache.
        """
        if cache is None:
            spans, tables = inputs.spans(self.config), inputs.tables(self.rotary)
            caches: Sequence[LayerCacheProtocol | None] = [None] * len(self.blocks)
        else:
            spans, tables = cache.extend(inputs.segment, inputs.block), self.rotary(inputs.position)
            caches = cache.layers
        x = self.embed_out(self.embed(inputs.token_ids, inputs.media))
        x = self.run_layers(range(len(self.blocks)), x, tables, spans, caches)
        return self.final_out(self.norm(x))

    def run_layers(
        self, layers: Sequence[int], x: Tensor, tables: tuple[Tables, Tables], spans: tuple[Spans, Spans],
        caches: Sequence[LayerCacheProtocol | None],
    ) -> Tensor:  # fmt: skip
        """The stream (B, T, E) after neighbouring layers. tables, spans: for local and for global ones."""
        for layer in layers:
            is_global = int(self.config.is_global(layer))
            x = self.blocks[layer](x, tables[is_global], spans[is_global], caches[layer])
        return x

    def prefill(self, inputs: Inputs, *, cache: Cache) -> None:
        """What `forward` leaves in the cache, without what it returns; errors as there.

        Of the last layer only keys and values are computed: where that is the only global layer, a context costs time
        in proportion to its length.
        """
        spans, tables = cache.extend(inputs.segment, inputs.block), self.rotary(inputs.position)
        *layers, last = range(len(self.blocks))
        x = self.run_layers(layers, self.embed(inputs.token_ids, inputs.media), tables, spans, cache.layers)
        end, is_global = self.blocks[last], int(self.config.is_global(last))
        _, k, v = end.attn.project(end.attn_norm(x), tables[is_global])
        cache.layers[last].append(k, v)
