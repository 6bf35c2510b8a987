"""Which settings decide what comes out, and which only how it is told, kept or hurried.

    log_every: int = aside(20)
    kd_fraction: float = where(lambda salt: salt.kd_steps is None, 0.3)

A stage of the line is done again, or refused where that would cost a trained model, when a setting that decides its
outcome has changed. So every field of a configuration decides unless it says otherwise where it is declared: `aside`
where it never does, `where` where it does under a condition of its neighbours. A field that was forgotten is on the
safe side: it refuses too much, and never too little. `training.files` compares by this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

_DECIDES = "decides"
ASIDE = {_DECIDES: lambda config: False}
"""Metadata of a field that decides nothing, where `aside` does not do."""


def aside(default: Any) -> Any:
    """A field that decides nothing of what comes out: how often something is told or kept, how many hands work."""
    return dataclasses.field(default=default, metadata=ASIDE)


def where(condition: Callable[[Any], bool], default: Any) -> Any:
    """A field that decides only where the condition holds for its configuration, and is not read elsewhere."""
    return dataclasses.field(default=default, metadata={_DECIDES: condition})


def decides(field: dataclasses.Field, config: Any) -> bool:
    """Does this field of `config` decide what comes out?"""
    condition = field.metadata.get(_DECIDES)
    return condition is None or bool(condition(config))
