"""Says once which backend an operation took and why, and keeps it for records.

The same choice at every layer and step is news only the first time: it is logged once, at level INFO, and
`backend_choices` has it for whoever writes a record of a run. An operation notes its choice where it runs, not where it
is traced, so compiled code is told of like any other.

    {"attention on cuda:0: causal, bfloat16, head dim 128": "flash", "linear loss on cuda:0: plain, bfloat16": "triton"}
"""

import logging
from collections.abc import Callable, Hashable

_announced: set[tuple[str, str]] = set()
_noted: set[Hashable] = set()
_chosen: dict[str, dict[str, str]] = {}


def announce(logger: str, choice: str) -> None:
    """Log `choice` at level INFO of `logger`, the first time that it is made in this process."""
    if (logger, choice) not in _announced:
        _announced.add((logger, choice))
        logging.getLogger(logger).info(choice)


def record_choice(key: Hashable, describe: Callable[[], tuple[str, str, str]], *, logger: str, asked: bool) -> None:
    """Keep what `describe` returns, and log it unless it was asked for; nothing where `key` was noted before.

    describe: () -> (for what, the backend, why), called the first time alone, as this stands in the way of every call.
    asked: the caller named the backend, and "auto" had nothing to choose.
    """
    if key in _noted:
        return
    what, backend, why = describe()
    _noted.add(key)
    _chosen.setdefault(what, {})[f"{backend} (asked for)" if asked else backend] = why
    if not asked:
        announce(logger, f"backend auto: {backend} for {what}, because {why}")


def backend_choices() -> dict[str, str]:
    """The backends that operations of this process have taken so far, by what for: operation, device, kind, dtype.

    One name, and "(asked for)" where it was not "auto" that chose it; several with commas between them where not every
    call took the same, in the order of their first use.
    """
    return {what: ", ".join(backends) for what, backends in sorted(_chosen.items())}


def describe_backend_choices() -> list[str]:
    """`backend_choices` in sentences, with the reasons: one line for each backend that was taken."""
    return [f"{what}: {name}, because {why}" for what, names in sorted(_chosen.items()) for name, why in names.items()]


def reset_backend_choices() -> None:
    """Forget what was chosen and said, so that the next calls are noted anew: for tests, and for a record that is to
    hold one part of a process only."""
    for kept in (_announced, _noted, _chosen):
        kept.clear()
