"""Records and logs once which backend an operation took and why; `backend_choices` has it for records of a run.

An operation records its choice where it runs, not where it is traced, so compiled code is covered too.

    {"attention on cuda:0: causal, bfloat16, head dim 128": "flash", "linear loss on cuda:0: plain, bfloat16": "triton"}
"""

import logging
from collections.abc import Callable, Hashable, Iterable

import torch

_announced: set[tuple[str, str]] = set()
_noted: set[Hashable] = set()
_chosen: dict[str, dict[str, str]] = {}


def announce(logger: str, choice: str) -> None:
    """Log `choice` at level INFO of `logger`, the first time that it is made in this process."""
    if (logger, choice) not in _announced:
        _announced.add((logger, choice))
        logging.getLogger(logger).info(choice)


def record_choice(key: Hashable, describe: Callable[[], tuple[str, str, str]], *, logger: str, asked: bool) -> None:
    """Keep `describe()` = (purpose, backend, reason) once per `key`; logged unless the caller `asked` for it."""
    if key in _noted:
        return
    what, backend, why = describe()
    _noted.add(key)
    _chosen.setdefault(what, {})[f"{backend} (asked for)" if asked else backend] = why
    if not asked:
        announce(logger, f"backend auto: {backend} for {what}, because {why}")


def backend_choices() -> dict[str, str]:
    """The backends taken so far, in order of first use, commas between, those named marked "(asked for)"."""
    return {what: ", ".join(backends) for what, backends in sorted(_chosen.items())}


def describe_backend_choices() -> list[str]:
    """`backend_choices` with the reasons, a line for each backend."""
    return [f"{what}: {name}, because {why}" for what, names in sorted(_chosen.items()) for name, why in names.items()]


def reset_backend_choices() -> None:
    """Forget what was chosen and logged: for tests, and for a record of one part of a process."""
    for kept in (_announced, _noted, _chosen):
        kept.clear()


def take_first(names: Iterable[str], refusal: Callable[[str], str | None]) -> tuple[str | None, list[str]]:
    """-> the first backend without a refusal, None for none, and the refusals of those before it."""
    rejected: list[str] = []
    for name in names:
        why = refusal(name)
        if why is None:
            return name, rejected
        rejected.append(f"not {name}: {why}")
    return None, rejected


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")
