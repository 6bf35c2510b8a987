"""Which backend the fused loss takes: the one that was named, or for "auto" the first of a list that is fit for it.

Off a card "auto" is "chunked". On one it walks through candidates, the measured order of `table.json` where there is a
row for (compute capability, dtype, kind of loss), else `DEFAULT_ORDER`, and takes the first that is there, can express
the loss, and has passed its self-check on this card (`selfcheck.py`; at its first use, then remembered on disk).
"chunked" can do everything anywhere and ends every list. What was taken is logged once, with the reason, and can be
read from `kernels.choices()`.

Chosen is when the call runs: compiled code breaks here and asks.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from kernels import table
from kernels.announce import note
from kernels.linear_loss import chunked, liger, reference, selfcheck
from kernels.linear_loss.walk import Ask, Step
from kernels.verdicts import reset_verdicts, verdict

BACKENDS = ("auto", "reference", "chunked", "triton", "liger")
DEFAULT_ORDER = ("triton", "liger", "chunked")
TABLE = Path(__file__).parent / "table.json"
LOGGER = "kernels.linear_loss"
_modules: dict[str, ModuleType] = {"reference": reference, "chunked": chunked, "liger": liger}


def backend_for(ask: Ask, backend: str) -> str:
    """The name of what serves such a call. Raises ValueError where `backend` cannot do what is asked."""
    asked = backend != "auto"
    if asked:
        why = refusal(backend, ask)
        if why is not None:
            raise ValueError(why)
        chosen, reason = backend, "it was asked for"
    elif ask.device.type != "cuda":
        chosen, reason = "chunked", f"hidden is on {ask.device.type}: chunked, plain PyTorch"
    else:
        chosen, reason = _auto(ask)
    note(
        (LOGGER, ask.device, ask.kind, ask.dtype, chosen, asked),
        lambda: (f"linear loss on {ask.device}: {ask.kind}, {_name(ask.dtype)}", chosen, reason),
        logger=LOGGER,
        asked=asked,
    )
    return chosen


def step_of(backend: str) -> Step:
    """What "chunked" or "triton", once chosen, does between the matmuls."""
    return _modules[backend].chunk_loss


def refusal(backend: str, ask: Ask) -> str | None:
    """Why a backend cannot serve such a call, or None. It is loaded if it was not yet."""
    if backend not in _modules:
        try:
            # not at the top: triton is absent on some platforms, and slow to import
            _modules[backend] = importlib.import_module("kernels.linear_loss.triton_kernels")
        except ImportError as error:
            return f'backend "triton" needs the package triton ({error}); use "auto" or "chunked"'
    return _modules[backend].why_not(ask)


def candidates(capability: tuple[int, int], dtype: torch.dtype, kind: str) -> tuple[list[str], str]:
    """-> backends in the order in which "auto" tries them on such a card, and where that order comes from."""
    found = table.measured(TABLE, capability=capability, dtype=_name(dtype), kind=kind, dim=None)
    if found is None:
        return list(DEFAULT_ORDER), "of the default order"
    order, source = found
    return [*order, *(name for name in DEFAULT_ORDER if name not in order)], f"measured on {source}"


def write_measured(rows: list[dict[str, Any]]) -> None:
    """Put rows of `kernels.table.row_of` (dim None) into the committed table, for a benchmark that has timed the
    backends."""
    table.write_rows(TABLE, rows)


def reset() -> None:
    """Forget which backends are there and what they were found to be, for tests; what is on disk stays."""
    _modules.pop("triton", None)
    reset_verdicts()


def _auto(ask: Ask) -> tuple[str, str]:
    order, source = candidates(torch.cuda.get_device_capability(ask.device), ask.dtype, ask.kind)
    passed_over = []
    for name in order:
        why = refusal(name, ask)
        if why is None and name != "chunked":
            why = _check(name, ask)
        if why is None:
            proved = "" if name == "chunked" else ", and its self-check passed"
            return name, "; ".join([f"it is the first that serves {source}{proved}", *passed_over])
        passed_over.append(f"not {name}: {why}")
    raise AssertionError('"chunked" refuses nothing')


def _check(name: str, ask: Ask) -> str | None:
    """What the self-check says against a backend, run if nobody knows yet."""
    words = [ask.kind, _name(ask.dtype)] + ["token weights"] * ask.weighted + ["token losses"] * ask.token_loss
    words += ["deterministic"] * torch.are_deterministic_algorithms_enabled()
    return verdict(
        ("linear loss", name, *words),
        lambda: selfcheck.check(name, ask),
        device=ask.device,
        folder=Path(__file__).parent,
        logger=LOGGER,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
