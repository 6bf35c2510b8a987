"""Which backend the fused loss takes: the named one, or for "auto" the first of a list that is fit for the call.

Without a GPU "auto" is "chunked". On one it goes through candidates, the measured order of `table.json` or else
`DEFAULT_ORDER`, and takes the first that can express the loss and has passed its self-check on this GPU; "chunked",
which can do everything, ends every list. The choice is made when the call runs: compiled code breaks here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from brine.kernels.linear_loss import chunked, liger, reference, selfcheck
from brine.kernels.linear_loss.autograd_function import ChunkLossFn, LossRequest
from brine.kernels.selection import measured_order as table
from brine.kernels.selection.choice_log import dtype_name, record_choice, take_first
from brine.kernels.selection.self_check import reset_check_results, self_check_result

BACKENDS = ("auto", "reference", "chunked", "triton", "liger")
DEFAULT_ORDER = ("triton", "liger", "chunked")
TABLE = Path(__file__).parent / "table.json"
LOGGER = "brine.kernels.linear_loss"
_modules: dict[str, ModuleType] = {"reference": reference, "chunked": chunked, "liger": liger}


def backend_for(request: LossRequest, backend: str, function: Callable | None = None) -> str:
    """The name of what serves a request. function: `linear_cross_entropy`. ValueError where `backend` cannot."""
    asked = backend != "auto"
    if asked:
        why = backend_refusal(backend, request)
        if why is not None:
            raise ValueError(why)
        chosen, reason = backend, "it was selected explicitly"
    elif request.device.type != "cuda":
        chosen, reason = "chunked", f"hidden is on {request.device.type}: chunked, plain PyTorch"
    else:
        chosen, reason = _auto(request, function)
    record_choice(
        (LOGGER, request.device, request.kind, request.dtype, chosen, asked),
        lambda: (f"linear loss on {request.device}: {request.kind}, {dtype_name(request.dtype)}", chosen, reason),
        logger=LOGGER,
        asked=asked,
    )
    return chosen


def chunk_loss_of(backend: str) -> ChunkLossFn:
    """What "chunked" or "triton", once chosen, does between the matmuls."""
    return _modules[backend].chunk_loss


def backend_refusal(backend: str, request: LossRequest) -> str | None:
    """Why a backend cannot serve a request, or None. It is loaded if it was not yet."""
    if backend not in _modules:
        try:
            # not at the top: triton is absent on some platforms, and slow to import
            _modules[backend] = importlib.import_module("brine.kernels.linear_loss.triton_kernels")
        except ImportError as error:
            return f'backend "triton" needs the package triton ({error}); use "auto" or "chunked"'
    return _modules[backend].unsupported_reason(request)


def candidates(capability: tuple[int, int], dtype: torch.dtype, kind: str) -> tuple[list[str], str]:
    """-> backends in the order in which "auto" tries them on such a GPU, and where that order comes from."""
    found = table.measured(TABLE, capability=capability, dtype=dtype_name(dtype), kind=kind, dim=None)
    if found is None:
        return list(DEFAULT_ORDER), "of the default order"
    order, source = found
    return [*order, *(name for name in DEFAULT_ORDER if name not in order)], f"measured on {source}"


def reset() -> None:
    """Forget which backends are there and their results, for tests; what is on disk stays."""
    _modules.pop("triton", None)
    reset_check_results()


def _auto(request: LossRequest, function: Callable | None) -> tuple[str, str]:
    order, source = candidates(torch.cuda.get_device_capability(request.device), request.dtype, request.kind)

    def refusal(name: str) -> str | None:
        return backend_refusal(name, request) or (None if name == "chunked" else _check(name, request, function))

    name, rejected = take_first(order, refusal)
    assert name is not None, '"chunked" refuses nothing'
    passed = "" if name == "chunked" else ", and its self-check passed"
    return name, "; ".join([f"it is the first supported backend {source}{passed}", *rejected])


def _check(name: str, request: LossRequest, function: Callable | None) -> str | None:
    words = [request.kind, dtype_name(request.dtype)]
    words += ["token weights"] * request.weighted + ["token losses"] * request.token_loss
    words += ["deterministic"] * torch.are_deterministic_algorithms_enabled()
    return self_check_result(
        ("linear loss", name, *words),
        lambda: selfcheck.check(name, request, function),
        device=request.device,
        folder=Path(__file__).parent,
        logger=LOGGER,
    )
