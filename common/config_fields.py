"""Which settings affect the result of a stage, and which only how it is logged, saved or sped up.

    log_every: int = operational(20)
    kd_fraction: float = affects_result_if(lambda salt: salt.kd_steps is None, 0.3)

A stage is done again, or refused where that would cost a trained model, when a setting that affects its result
changed. Every field does, unless it is declared otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

_DECIDES = "decides"
OPERATIONAL = {_DECIDES: lambda config: False}
"""Metadata of a field that decides nothing, where `operational` does not do."""


def operational(default: Any) -> Any:
    """A field that decides nothing of what comes out: how often something is told or kept, how many hands work."""
    return dataclasses.field(default=default, metadata=OPERATIONAL)


def affects_result_if(condition: Callable[[Any], bool], default: Any) -> Any:
    """A field that decides only where the condition holds for its configuration, and is not read elsewhere."""
    return dataclasses.field(default=default, metadata={_DECIDES: condition})


def affects_result(field: dataclasses.Field, config: Any) -> bool:
    """Does this field of `config` decide what comes out?"""
    condition = field.metadata.get(_DECIDES)
    return condition is None or bool(condition(config))
