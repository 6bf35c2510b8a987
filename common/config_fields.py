"""Which settings affect the result of a stage, and which only how it is logged, saved or sped up.

    log_every: int = operational(20)
    kd_fraction: float = affects_result_if(lambda salt: salt.kd_steps is None, 0.3)

A stage runs again, or raises an error where that would cost a trained model, when a setting that affects its result
changed. Every field does, unless it is declared otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

_DECIDES = "decides"
OPERATIONAL = {_DECIDES: lambda config: False}  # metadata of an operational field with other arguments than a default


def operational(default: Any) -> Any:
    """A field that does not affect the result: how often something is logged or saved, how many workers run."""
    return dataclasses.field(default=default, metadata=OPERATIONAL)


def affects_result_if(condition: Callable[[Any], bool], default: Any) -> Any:
    """A field that affects the result only where the condition holds for its configuration."""
    return dataclasses.field(default=default, metadata={_DECIDES: condition})


def check_values(config: Any, names: str, holds: Callable[[Any], bool], wanted: str) -> None:
    """Raise ValueError, such as `steps = 0 must be positive`, for the first of these fields that does not hold."""
    for name in names.split():
        if not holds(getattr(config, name)):
            raise ValueError(f"{name} = {getattr(config, name)} must {wanted}")


def affects_result(field: dataclasses.Field, config: Any) -> bool:
    """Does this field of `config` affect the result?"""
    condition = field.metadata.get(_DECIDES)
    return condition is None or bool(condition(config))
