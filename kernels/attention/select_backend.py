"""Which backend attention takes: the named one, or for "auto" the first of a list that is fit for the call.

On a CPU "auto" is "cpu". On a GPU it goes through candidates, the measured order of `table.json` or else
`default_backend_order`, and takes the first that can serve the call (`unsupported_reason`) and has passed its
self-check on this GPU. Where none is left the dense reference serves up to `MAX_DENSE_PAIRS`, and above that the call
raises an error with what each candidate lacks. A backend is a module with `unsupported_reason`, `forward` and
`backward`, as in `reference.py`, and with `unsupported_mask_reason` where more than a mask's kind counts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from brine.kernels.attention import reference, selfcheck
from brine.kernels.attention.cpu import launch as cpu_launch
from brine.kernels.attention.spans import AttentionRequest
from brine.kernels.selection import measured_order as table
from brine.kernels.selection.choice_log import dtype_name, record_choice, take_first
from brine.kernels.selection.self_check import reset_check_results, self_check_result

BACKENDS = ("auto", "reference", "cpu", "triton", "gluon", "flex", "flash")
MAX_DENSE_PAIRS = 2048 * 2048  # (query, key) pairs of a head up to which "auto" may fall back on the dense reference
TABLE = Path(__file__).parent / "table.json"
LOGGER = "brine.kernels.attention"
# loaded at their first use: they need packages that take seconds to import or are not everywhere
_LAZY = {"triton": "triton.launch", "gluon": "gluon.backend", "flex": "flex", "flash": "flash.backend"}
_modules: dict[str, ModuleType] = {"reference": reference, "cpu": cpu_launch}
_absent: dict[str, str] = {}


def backend_for(q: Tensor, k: Tensor, request: AttentionRequest, backend: str) -> ModuleType:
    """The module that serves q (B, T, H, D) over k (B, S, K, D). ValueError where none, or not `backend`, can."""
    kind, asked, dim = request.mask.kind, backend != "auto", q.shape[3]
    if asked:
        why = backend_refusal(backend, q, k, request)
        if why is not None:
            raise ValueError(why)
        chosen, reason = backend, "it was selected explicitly"
    elif q.device.type == "cpu":
        chosen, reason = "cpu", "q is on the CPU: tiled flash attention over the spans"
    else:
        chosen, reason = _auto(q, k, request)
    record_choice(
        (LOGGER, q.device, kind, q.dtype, dim, chosen, asked),
        lambda: (f"attention on {q.device}: {kind}, {dtype_name(q.dtype)}, head dim {dim}", chosen, reason),
        logger=LOGGER,
        asked=asked,
    )
    return _modules[chosen]


def backend_refusal(backend: str, q: Tensor, k: Tensor, request: AttentionRequest) -> str | None:
    """Why a backend cannot serve the request, or None. It is loaded if it was not yet."""
    absent = _load(backend)
    if absent is not None:
        return absent
    module = _modules[backend]
    why = module.unsupported_reason(q, k, kind=request.mask.kind, sink=request.sink)
    if why is None and hasattr(module, "unsupported_mask_reason"):
        why = module.unsupported_mask_reason(q, request.mask)
    return why


def candidates(
    capability: tuple[int, int], dtype: torch.dtype, kind: str, dim: int, package: Callable[[], str | None] = str
) -> tuple[list[str], str]:
    """-> backends in the order in which "auto" tries them on such a GPU, and where that order comes from.

    package: () -> which of the flash packages would serve the call; "flash/<package>" in the table is its time alone.
    What was not measured comes last, but for "gluon", which comes before "triton", slower wherever both were timed.
    """
    default = default_backend_order(dtype, kind)
    found = table.measured(TABLE, capability=capability, dtype=dtype_name(dtype), kind=kind, dim=dim)
    if found is None:
        if capability[0] == 9 and "flash" in default and package() == "torch":
            # always there, and on an H200 behind Brine's kernels wherever both were timed
            default.sort(key=lambda name: {"flash": 1, "flex": 2}.get(name, 0))
        return default, "of the default order"
    times, source = found
    here = package() if any("/" in name for name in times) else None
    order = [name.partition("/")[0] for name in times if name.partition("/")[2] in ("", here)]
    order += [name for name in default if name not in order]
    if "gluon" in default and "gluon" not in times:
        order.remove("gluon")
        order.insert(order.index("triton"), "gluon")
    return order, f"measured on {source}"


def default_backend_order(dtype: torch.dtype, kind: str) -> list[str]:
    """Where nothing was measured. Only "triton" derives nothing on the host from a mask that moves in place."""
    if dtype == torch.float64:
        return []
    if kind == "moving":
        return ["triton"]
    if dtype == torch.float32:
        return ["triton", "flex"]
    ours = ["gluon", "triton"]
    return [*ours, "flex", "flash"] if kind == "any" else ["flash", *ours, "flex"]


def reset() -> None:
    """Forget which backends are there and their results, for tests; what is on disk stays."""
    _absent.clear()
    for name in _LAZY:
        _modules.pop(name, None)
    reset_check_results()


def _auto(q: Tensor, k: Tensor, request: AttentionRequest) -> tuple[str, str]:
    """-> (backend, reason) for tensors that are not on a CPU."""
    device, kind, dtype = q.device, request.mask.kind, dtype_name(q.dtype)
    rejected = [f"there is no kernel for {device.type}"]
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        order, source = candidates(capability, q.dtype, kind, q.shape[3], lambda: _package(q, kind))
        name, rejected = take_first(
            order, lambda name: backend_refusal(name, q, k, request) or _check(name, q, k, request)
        )
        if name is not None:
            # backends that are several packages say which of them it is
            package = f" (by {_package(q, kind)})" if name == "flash" else ""
            reason = f"it is the first supported backend {source}{package}, and its self-check passed"
            return name, "; ".join([reason, *rejected])
        if q.dtype == torch.float64:
            rejected.append("no kernel computes in float64: use float32, bfloat16 or float16")
    if q.shape[1] * k.shape[1] <= MAX_DENSE_PAIRS:
        return "reference", "; ".join([f"{q.shape[1]} x {k.shape[1]} pairs are few enough to be dense", *rejected])
    raise ValueError(
        f"no attention backend serves {q.shape[1]} queries over {k.shape[1]} keys (mask type {kind!r}, {dtype}, "
        f"head dim {q.shape[3]}) on {device}: {'; '.join(rejected)}. The dense reference would take queries x keys "
        'memory: change one of these, or name backend="reference" if there is memory for it'
    )


def _check(name: str, q: Tensor, k: Tensor, request: AttentionRequest) -> str | None:
    dim, group, kind = q.shape[3], q.shape[2] // k.shape[2], request.mask.kind
    sink, partial = request.sink is not None, request.partial
    words = [f"{kind} masks", dtype_name(q.dtype), f"head dim {dim}", f"{group} query heads per KV head"]
    words += ["a sink"] * sink + ["fp32 results"] * partial
    # kernels may take another path then, or have none
    words += ["deterministic"] * torch.are_deterministic_algorithms_enabled()

    def check() -> str | None:
        return selfcheck.check(
            _modules[name], device=q.device, dtype=q.dtype, kind=kind, dim=dim, group=group, sink=sink, partial=partial
        )

    return self_check_result(
        ("attention", name, *words),
        check,
        device=q.device,
        folder=Path(__file__).parent,
        logger=LOGGER,
    )


def _package(q: Tensor, kind: str) -> str | None:
    if _load("flash") is not None or not hasattr(_modules["flash"], "package_for"):
        return None
    return _modules["flash"].package_for(q, kind)


def check_backend(name: str) -> None:
    """Import a backend by its name; ValueError for one unknown, without its package, or not a backend."""
    why = None if name == "auto" else _load(name)
    if why is None and "." in name:
        lacks = [part for part in ("unsupported_reason", "forward", "backward") if not hasattr(_modules[name], part)]
        why = f'backend "{name}" has no function {lacks[0]}' if lacks else None
    if why is not None:
        raise ValueError(f"{why}; the backends are {', '.join(BACKENDS)}, or a module's name with a dot")


def _load(backend: str) -> str | None:
    if backend in _modules:
        return None
    if backend not in _absent:
        try:
            name = backend if "." in backend else f"brine.kernels.attention.{_LAZY[backend]}"
            _modules[backend] = importlib.import_module(name)
            return None
        except ImportError as error:
            what = f'backend "{backend}" needs a package that is not here ({error}); use backend="auto"'
        except Exception as error:
            what = f'backend "{backend}" cannot be imported ({type(error).__name__}: {error}); use backend="auto"'
        _absent[backend] = what
    return _absent[backend]
