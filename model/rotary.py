"""Rotary positions over three axes (t, h, w), with interleaved frequencies, in fp32.

Every token has a position (t, h, w): text has t = h = w, a patch its place in time and on the
image. Each of the D / 2 rotary frequencies turns with one axis. The axes are *interleaved*
(t, h, w, t, h, w, ...), so that each axis owns fast and slow frequencies alike; in contiguous
sections one axis would be blind to near neighbours and another to distant ones. For text, where
all three agree, this is ordinary one-dimensional rotary embedding (Su et al., 2104.09864, eq. 34),
exactly. The idea of three axes is M-RoPE (Wang et al., 2409.12191).

Precision. cos and sin are made once per micro-batch (`brine.model.inputs`), for the local and for the global base,
and shared by every layer. Nothing here is ever bf16: at position 1000 bf16 steps by 4. Even fp32 is not enough for a
plain product: at position 10^6 the angle of the fastest frequency is rounded by 0.03 to 0.06 radians. So a position is
split as 2048 a + b, both parts are turned by constants that were computed in fp64 and kept as *turns* (angle / 2 pi),
whole turns are dropped before they are added, and the error stays under 1e-3 radians up to some millions of positions.

Layout of the pairs: number j of a head is paired with number j + D / 2 (the half-split layout), which keeps
both halves contiguous. `rotate` takes the tables as (B, T, 1, 2, D / 2), so that a head is
x * cos + swap(x) * sin, two multiplications and one addition.

What this does not do: no scaling of positions for longer contexts (a longer `rope_theta_global` serves).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from brine.model.config import ModelConfig

SPLIT = 2048.0
Tables = tuple[Tensor, Tensor]
"""cos and sin, each (B, T, 1, 2, D / 2) float32."""


def frequency_axes(sections: tuple[int, int, int]) -> list[int]:
    """The axis (0 t, 1 h, 2 w) of each of the D / 2 frequencies, fastest first.

    Deals t, h, w in turn; an axis that has its share is passed over, so the tail (the slowest) belongs to
    the axis with the largest share, by default t.
    """
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
    """(axes, turns a position, turns a SPLIT of them), each (D / 2,), computed in fp64; copied to a device once for all
    models that turn alike."""
    if device.type != "cpu":
        which, per_step, per_split = constants(axes, theta, torch.device("cpu"))
        return which.to(device), per_step.to(device), per_split.to(device)
    index = torch.arange(len(axes), dtype=torch.float64)
    per_step = theta ** (-index / len(axes)) / (2 * math.pi)
    return torch.tensor(axes), per_step.float(), (per_step * SPLIT).frac().float()


class Rotary:
    """Makes the cos and sin tables of a batch from its positions.

    Holds two constants per frequency; it has no parameters and no state, so it is not an nn.Module and adds nothing to
    a checkpoint.
    """

    def __init__(self, config: ModelConfig):
        axes = tuple(frequency_axes(config.sections))
        self.keys = tuple((axes, theta) for theta in (config.rope_theta_local, config.rope_theta_global))
        """What the local and the global table depend on, besides positions; equal keys are equal tables."""

    def __call__(self, position: Tensor) -> tuple[Tables, Tables]:
        """Tables for local and for global layers.

        position: (B, T, 3) float32, (t, h, w), fractions allowed.
        Returns ((cos, sin), (cos, sin)), local first, each (B, T, 1, 2, D / 2) float32.
        """
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
    """Turn each head by its token's position.

    x: (B, T, H, D); cos, sin: (B, T, 1, 2, D / 2) from `Rotary`. Returns (B, T, H, D) in the wider of the dtypes
    (fp32 for a bf16 x).
    """
    pairs = x.unflatten(-1, (2, -1))
    return (pairs * cos + pairs.flip(-2) * sin).flatten(-2)
