"""Random numbers of the device."""

from __future__ import annotations

import weakref

import torch

from tests.standin.stand_in.names import NAME

_Generator = torch.Generator
_own: set[int] = set()


class StandInGenerator(_Generator):
    """A generator on the device. To C++ it is one of the CPU, and an operation gets it back as one: `_cdata` tells."""

    def __init__(self, device: torch.device | str = NAME):
        _own.add(self._cdata)
        weakref.finalize(self, _own.discard, self._cdata)

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


class _Generators(type):
    """`torch.Generator` that knows the device: `Generator("standin")` works, and isinstance as ever."""

    def __call__(cls, device: torch.device | str = "cpu"):
        return StandInGenerator() if torch.device(device).type == NAME else _Generator(device=device)

    def __instancecheck__(cls, value) -> bool:
        return isinstance(value, _Generator)


class Generator(metaclass=_Generators):
    """What stands for `torch.Generator` in this process."""


default_generator = StandInGenerator()


def generator_for(asked: _Generator | None) -> _Generator:
    """The generator of an operation on the device. Raises RuntimeError for one of the CPU, as a card does."""
    if asked is None:
        return default_generator
    if asked._cdata not in _own:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    return asked
