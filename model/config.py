"""The shape of the transformer, as one frozen dataclass: a checkpoint's `config.json` holds exactly these fields.

Two models with equal configs have equal parameter names and shapes. Training, devices and precision belong to the
recipe; how an image becomes patches belongs to `brine.data.media`.

Layers come in groups of `global_every`: the last of each group, or of a model smaller than a group, is *global* (causal
over the whole document, a long rotary base), the others are *local* (a sliding window, bidirectional media blocks, a
short base).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

EMBEDDERS = ("ln_linear_ln", "linear")
MODALITIES = ("image", "audio", "video")


@dataclass(frozen=True)
class ModelConfig:
    """All that decides names, shapes and mathematics of the parameters. ValueError, with the remedy, for a misfit."""

    vocab_size: int = 512
    """V, number of token ids, special tokens included; a recipe's is set by the corpus."""
    dim: int = 256
    """E, width of the residual stream."""
    num_layers: int = 6
    """L, number of transformer blocks."""
    num_heads: int = 8
    """H, number of query heads."""
    num_kv_heads: int = 4
    """K, number of key/value heads; each serves H / K query heads (grouped-query attention)."""
    head_dim: int = 32
    """D, width of one head; H * D need not equal E."""
    mlp_dim: int = 768
    """M, inner width of the SwiGLU MLP (three E x M matrices)."""
    window: int | None = 256
    """Sliding window of local layers in tokens, query included; None: unlimited (media blocks stay bidirectional)."""
    global_every: int = 6
    """Every global_every-th layer is global; so is the last layer of a model with fewer layers."""
    rope_theta_local: float = 10_000.0
    """Rotary base of local layers: the longest wavelength is about 2 pi times this many positions."""
    rope_theta_global: float = 1_000_000.0
    """Rotary base of global layers."""
    rope_sections: tuple[int, int, int] | None = None
    """M-RoPE sections: numbers of the D / 2 frequencies for (t, h, w), interleaved until each axis has its number; the
    slowest belong to the axis with the most. None: 5/16 each for h and w, the rest for t."""
    embedder: str = "ln_linear_ln"
    """How a flat patch becomes a token: "ln_linear_ln" (LayerNorm, Linear, LayerNorm) or "linear"."""
    image_dim: int = 768
    """Values in one image patch (p * p * 3); a recipe sets it by `corpus.encode`, like the two that follow."""
    audio_dim: int = 256
    """Values in one audio token (mel frames per token * mel bins)."""
    video_dim: int = 1536
    """Values in one video tubelet patch (frames * p * p * 3)."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    patch_norm_eps: float = 1e-2
    """Epsilon of the patch LayerNorms; a small one would amplify codec noise in a flat patch to full contrast."""
    tie_embeddings: bool = False
    """Use the token embedding as the output head too."""

    def __post_init__(self):
        positive = ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim",
                    "global_every", "image_dim", "audio_dim", "video_dim",
                    "rope_theta_local", "rope_theta_global", "norm_eps", "patch_norm_eps")  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window = {self.window}: give at least 1 (a query sees itself), or None for no limit")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.num_kv_heads}: "
                "each key/value head must serve the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even: rotary positions rotate pairs of numbers")
        if self.embedder not in EMBEDDERS:
            raise ValueError(f"embedder = {self.embedder!r} is unknown: choose one of {', '.join(EMBEDDERS)}")
        if self.rope_sections is not None:
            sections = tuple(self.rope_sections)
            # a JSON file gives a list
            object.__setattr__(self, "rope_sections", sections)
            if len(sections) != 3 or min(sections) < 0 or sum(sections) != self.head_dim // 2:
                raise ValueError(
                    f"rope_sections = {sections}: give three counts (t, h, w) that add up to head_dim / 2 = "
                    f"{self.head_dim // 2}, or None"
                )

    @property
    def sections(self) -> tuple[int, int, int]:
        """Frequencies per axis (t, h, w), adding up to D / 2."""
        if self.rope_sections is not None:
            return self.rope_sections
        half = self.head_dim // 2
        side = half * 5 // 16
        return half - 2 * side, side, side

    @property
    def patch_dims(self) -> dict[str, int]:
        """Flat patch length of each modality, in the order image, audio, video."""
        return {"image": self.image_dim, "audio": self.audio_dim, "video": self.video_dim}

    def is_global(self, layer: int) -> bool:
        """Is this layer (counted from 0) causal over the whole document?"""
        return (layer + 1) % min(self.global_every, self.num_layers) == 0

    @property
    def num_global_layers(self) -> int:
        return self.num_layers // min(self.global_every, self.num_layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `ModelConfig.from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read what `to_dict` wrote. Raises ValueError naming fields that this version does not know."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"model config has unknown field {', '.join(unknown)}: it was written by another version; "
                f"known fields are {', '.join(sorted(known))}"
            )
        return cls(**values)
