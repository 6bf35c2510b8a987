"""Which backend attention takes: the one that was named, or for "auto" the first of a list that is fit for the call.

On a CPU "auto" is "cpu". On a card it walks through candidates, the measured order of `table.json` where there is a row
for (compute capability, dtype, kind of mask, head dim), else `default_backend_order`, and takes the first that

    1. is there and can serve the call (`unsupported_reason` of its module says nothing), and
    2. has passed its self-check on this card (`selfcheck.py`; at its first use, then remembered on disk).

Where none is left the dense reference serves up to `MAX_DENSE_PAIRS` pairs of rows and keys, and above that the call is
refused, with what each candidate lacks: it would take T x S memory, which is gigabytes a head from 32k tokens on.
Tensors on other devices have the reference alone. What was taken is logged once, with the reason, and can be read from
`backend_choices()`.

A backend is a module with `unsupported_reason`, `forward` and `backward`, as in `reference.py`, and with
`unsupported_mask_reason` where more of a mask counts than its kind. All this runs inside of the op, at run time: a
compiled function chooses like any other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from brine.kernels.attention import reference, selfcheck
from brine.kernels.attention.cpu import launch as cpu_launch
from brine.kernels.attention.spans import kind_of
from brine.kernels.selection import measured_order as table
from brine.kernels.selection.choice_log import record_choice
from brine.kernels.selection.self_check import reset_check_results, self_check_result

BACKENDS = ("auto", "reference", "cpu", "triton", "gluon", "flex", "flash")
MAX_DENSE_PAIRS = 2048 * 2048
"""Rows times keys of a head up to which "auto" may fall back on the dense reference."""
TABLE = Path(__file__).parent / "table.json"
LOGGER = "brine.kernels.attention"
# loaded at their first use: they need packages that take seconds to import or are not everywhere
_LAZY = {"triton": "triton.launch", "gluon": "gluon.backend", "flex": "flex", "flash": "flash.backend"}
_modules: dict[str, ModuleType] = {"reference": reference, "cpu": cpu_launch}
_absent: dict[str, str] = {}


def backend_for(
    q: Tensor, k: Tensor, serial: int, *, sink: Tensor | None, backend: str, wide: bool = False
) -> ModuleType:
    """The module that serves q (B, T, H, D) over k (B, S, K, D) under the Spans with this serial.

    wide: its results are wanted in fp32, without having been rounded. Raises ValueError where `backend` cannot do what
    is asked, or "auto" knows nobody who can.
    """
    kind, asked = kind_of(serial), backend != "auto"
    if asked:
        why = backend_refusal(backend, q, k, serial, sink=sink)
        if why is not None:
            raise ValueError(why)
        chosen, reason = backend, "it was asked for"
    elif q.device.type == "cpu":
        chosen, reason = "cpu", "q is on the CPU: tiled flash attention over the spans"
    else:
        chosen, reason = _auto(q, k, serial, sink, wide)
    dim = q.shape[3]
    record_choice(
        (LOGGER, q.device, kind, q.dtype, dim, chosen, asked),
        lambda: (f"attention on {q.device}: {kind}, {_name(q.dtype)}, head dim {dim}", chosen, reason),
        logger=LOGGER,
        asked=asked,
    )
    return _modules[chosen]


def backend_refusal(backend: str, q: Tensor, k: Tensor, serial: int, *, sink: Tensor | None) -> str | None:
    """Why a backend cannot serve the call, or None. It is loaded if it was not yet."""
    absent = _load(backend)
    if absent is not None:
        return absent
    module = _modules[backend]
    why = module.unsupported_reason(q, k, kind=kind_of(serial), sink=sink)
    if why is None and hasattr(module, "unsupported_mask_reason"):
        why = module.unsupported_mask_reason(q, serial)
    return why


def candidates(
    capability: tuple[int, int], dtype: torch.dtype, kind: str, dim: int, package: Callable[[], str | None] = str
) -> tuple[list[str], str]:
    """-> backends in the order in which "auto" tries them on such a card, and where that order comes from.

    package: () -> which of the flash packages would serve the call. "flash/<package>" in the table is the time of that
    package, and no word on another. What was not measured comes last, but for "gluon": it stands before "triton", which
    was slower at all that both were timed at.
    """
    default = default_backend_order(dtype, kind)
    found = table.measured(TABLE, capability=capability, dtype=_name(dtype), kind=kind, dim=dim)
    if found is None:
        if capability[0] == 9 and "flash" in default and package() == "torch":
            # always there, and on an H200 behind ours wherever both were timed
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
    """Where nothing was measured.

    "flash" is first at what the packages are written for, ours serve every mask ("gluon" on Hopper alone), "flex"
    compiles one for every mask; fp64 has the reference alone. A mask that moves in place is read on the device, inside
    of CUDA graphs: only "triton" derives nothing from it on the host.
    """
    if dtype == torch.float64:
        return []
    if kind == "moving":
        return ["triton"]
    if dtype == torch.float32:
        return ["triton", "flex"]
    ours = ["gluon", "triton"]
    return [*ours, "flex", "flash"] if kind == "any" else ["flash", *ours, "flex"]


def write_measured_rows(rows: list[dict[str, Any]]) -> None:
    """Put rows of `brine.kernels.selection.measured_order.row_of` into the committed table, for a benchmark that has
    timed the backends."""
    table.write_rows(TABLE, rows)


def reset() -> None:
    """Forget which backends are there and what they were found to be, for tests; what is on disk stays."""
    _absent.clear()
    for name in _LAZY:
        _modules.pop(name, None)
    reset_check_results()


def _auto(q: Tensor, k: Tensor, serial: int, sink: Tensor | None, wide: bool) -> tuple[str, str]:
    """-> (backend, why) for tensors that are not on a CPU."""
    device, kind, rejected = q.device, kind_of(serial), []
    pairs = q.shape[1] * k.shape[1]
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        order, source = candidates(capability, q.dtype, kind, q.shape[3], lambda: _package(q, kind))
        for name in order:
            why = backend_refusal(name, q, k, serial, sink=sink) or _check(name, q, k, kind, sink, wide)
            if why is None:
                # backends that are several packages say which of them it is
                package = f" (by {_package(q, kind)})" if name == "flash" else ""
                reason = f"it is the first that serves {source}{package}, and its self-check passed"
                return name, "; ".join([reason, *rejected])
            rejected.append(f"not {name}: {why}")
        if q.dtype == torch.float64:
            rejected.append("no kernel computes in float64: use float32, bfloat16 or float16")
    else:
        rejected.append(f"there is no kernel for {device.type}")
    if pairs <= MAX_DENSE_PAIRS:
        return "reference", "; ".join([f"{q.shape[1]} x {k.shape[1]} pairs are few enough to be dense", *rejected])
    raise ValueError(
        f"no attention backend serves {q.shape[1]} rows over {k.shape[1]} keys (kind of mask {kind!r}, "
        f"{_name(q.dtype)}, head dim {q.shape[3]}) on {device}: {'; '.join(rejected)}. The dense reference would "
        "take rows x keys memory and is left to small sizes: mend one of these, or ask for "
        'backend="reference" if there is memory for it'
    )


def _check(name: str, q: Tensor, k: Tensor, kind: str, sink: Tensor | None, wide: bool) -> str | None:
    """What the self-check says against a backend, run if nobody knows yet."""
    dim, group = q.shape[3], q.shape[2] // k.shape[2]
    options = {"dtype": q.dtype, "kind": kind, "dim": dim, "group": group, "sink": sink is not None, "wide": wide}
    words = [f"{kind} masks", _name(q.dtype), f"head dim {dim}", f"{group} query heads a key head"]
    words += ["a sink"] * (sink is not None) + ["fp32 results"] * wide
    # kernels may have another way then, or none
    words += ["deterministic"] * torch.are_deterministic_algorithms_enabled()
    return self_check_result(
        ("attention", name, *words),
        lambda: selfcheck.check(_modules[name], device=q.device, **options),
        device=q.device,
        folder=Path(__file__).parent,
        logger=LOGGER,
    )


def _package(q: Tensor, kind: str) -> str | None:
    """Which package the backend "flash" is here."""
    if _load("flash") is not None or not hasattr(_modules["flash"], "package_for"):
        return None
    return _modules["flash"].package_for(q, kind)


def _load(backend: str) -> str | None:
    """Import a backend's module; -> what is missing, or None."""
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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
