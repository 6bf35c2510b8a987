"""Rotary positions over three axes (t, h, w), with interleaved frequencies, in fp32.

Text has t = h = w, a patch its position in time and on the image (M-RoPE, Wang et al., 2409.12191). Each of the D / 2
frequencies rotates with one axis, *interleaved* (t, h, w, t, h, w, ...), so that each axis has fast and slow ones; for
text this is the rotary embedding of Su et al. (2104.09864, eq. 34), exactly. Tables are made once per micro-batch
(`brine.model.inputs`) and shared by every layer.

At position 10^6 an fp32 product is off by 0.03 to 0.06 radians. So a position is split as 2048 a + b, both parts are
multiplied by constants computed in fp64 and kept as *turns* (angle / 2 pi), and whole turns are dropped before they are
added: the error stays under 1e-3 radians up to some millions of positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

from brine.model.config import ModelConfig

SPLIT = 2048.0
Tables = tuple[Tensor, Tensor]
"""cos and sin, each (B, T, 1, 2, D / 2) float32."""


def frequency_axes(sections: tuple[int, int, int]) -> list[int]:
    """The axis (0 t, 1 h, 2 w) of each of the D / 2 frequencies, fastest first: in turns until each has its number."""
    left = list(sections)
    axes: list[int] = []
    while len(axes) < sum(sections):
        for axis in range(3):
            if left[axis]:
                left[axis] -= 1
                axes.append(axis)
    return axes


@lru_cache(maxsize=64)
def constants(axes: tuple[int, ...], theta: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(axes, turns a position, turns a SPLIT of them), each (D / 2,), computed in fp64; cached per device."""
    if device.type != "cpu":
        which, per_step, per_split = constants(axes, theta, torch.device("cpu"))
        return which.to(device), per_step.to(device), per_split.to(device)
    index = torch.arange(len(axes), dtype=torch.float64)
    per_step = theta ** (-index / len(axes)) / (2 * math.pi)
    return torch.tensor(axes), per_step.float(), (per_step * SPLIT).frac().float()


class Rotary:
    """Makes the cos and sin tables of a batch; not an nn.Module, since it has no parameters and no state to save."""

    def __init__(self, config: ModelConfig):
        axes = tuple(frequency_axes(config.sections))
        self.keys = tuple((axes, theta) for theta in (config.rope_theta_local, config.rope_theta_global))
        """What the local and the global table depend on, besides positions; equal keys are equal tables."""

    def __call__(self, position: Tensor) -> tuple[Tables, Tables]:
        """position: (B, T, 3) float32 -> ((cos, sin), (cos, sin)), local first, each (B, T, 1, 2, D / 2) float32."""
        local, everywhere = self.tables(position, self.keys)
        return local, everywhere

    @staticmethod
    def tables(position: Tensor, keys: Sequence[tuple[tuple[int, ...], float]]) -> list[Tables]:
        """The tables of some keys, which have their axes in common; otherwise as in `__call__`."""
        axes, *_ = constants(*keys[0], position.device)
        # autocast has no say here: positions and angles stay fp32
        position = position.float()[..., axes]
        whole = torch.floor(position / SPLIT)
        rest = position - whole * SPLIT
        return [Rotary._table(whole, rest, *constants(*key, position.device)[1:]) for key in keys]

    @staticmethod
    def _table(whole: Tensor, rest: Tensor, per_step: Tensor, per_split: Tensor) -> Tables:
        angle = ((whole * per_split).frac() + (rest * per_step).frac()) * (2 * math.pi)
        cos, sin = angle.cos(), angle.sin()
        return torch.stack((cos, cos), dim=-2).unsqueeze(2), torch.stack((-sin, sin), dim=-2).unsqueeze(2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head by its token's position; number j of a head is paired with number j + D / 2.

    x: (B, T, H, D); cos, sin: (B, T, 1, 2, D / 2) from `Rotary`. Returns (B, T, H, D) in the wider of the dtypes.
    """
    pairs = rearrange(x, "... (pair half) -> ... pair half", pair=2)
    return rearrange(pairs * cos + pairs.flip(-2) * sin, "... pair half -> ... (pair half)")
