"""Where a model runs and in what precision it multiplies: one answer for every command and every stage.

    device          where weights and inputs are; "auto" is the current CUDA device where there is one, else the CPU
    compute_dtype   dtype of matmuls, keys and values, by autocast; None is that of the weights

bfloat16 pays only if the hardware supports it natively (avx512_bf16, AMX or Arm's bf16; Ampere and later on CUDA).
"""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from brine.kernels.selection.choice_log import backend_choices

if TYPE_CHECKING:
    from brine.model.transformer import Transformer

COMPUTE_DTYPES = ("auto", "float32", "bfloat16")


def resolve_device(name: str = "auto") -> torch.device:
    """The device of "auto", "cpu", "cuda", "cuda:1", ...; ValueError for one torch does not know or cannot use here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = "give auto, cpu, cuda, or cuda:1 for a second GPU"
    try:
        with warnings.catch_warnings():
            # types of older versions of torch
            warnings.simplefilter("ignore")
            device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device = {name!r} is unknown: {there}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device = {name!r}, but torch sees no GPU: use cpu, or install its driver")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"device = {name!r}, but torch sees {torch.cuda.device_count()} GPUs, counted from 0")
    elif device.type == "cpu":
        if device.index is not None:
            raise ValueError(f"device = {name!r}, but processors have no number: {there}")
    elif not _computes(device):
        raise ValueError(f"device = {name!r}, but this torch cannot compute on it here: {there}")
    return device


def _computes(device: torch.device) -> bool:
    """Is a sum on it right? torch knows the names of many devices that it was not built for, and of "meta"."""
    try:
        return (torch.ones(2, device=device) + 1).sum().item() == 4
    except Exception:
        # whatever a backend that is absent raises: AssertionError, ImportError, NotImplementedError, ...
        return False


def device_of(model: Transformer) -> torch.device:
    """The device of a model's weights, which is where its inputs belong."""
    return model.head_weight.device


def native_dtype(device: torch.device | str) -> torch.dtype:
    """The fastest dtype of matmuls for training: bfloat16 if the hardware supports it natively."""
    return torch.bfloat16 if supports_bfloat16(device)[0] else torch.float32


def resolve_compute_dtype(name: str, device: torch.device | str) -> torch.dtype | None:
    """ "auto", "float32" or "bfloat16" as a `compute_dtype`. Raises ValueError for another name."""
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"dtype = {name!r} is unknown: choose one of {', '.join(COMPUTE_DTYPES)}")
    dtype = native_dtype(device) if name == "auto" else getattr(torch, name)
    return None if dtype == torch.float32 else dtype


def autocast(device: torch.device | str, compute_dtype: torch.dtype | None) -> AbstractContextManager:
    """Context in which matmuls have `compute_dtype`; nothing changes for None."""
    if compute_dtype is None:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=compute_dtype)


def without_compilation() -> AbstractContextManager:
    """Compiled blocks run as they are written, for shapes that hardly ever come twice.

    Where torch._dynamo is not loaded nothing is compiled, and loading it would take seconds.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def compute_info(model: Transformer, compute_dtype: torch.dtype | None) -> dict[str, Any]:
    """For records, JSON types: `device`, `compute_dtype`, and the `backends` taken in this process so far."""
    device = device_of(model)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    dtype = compute_dtype or model.head_weight.dtype
    return {"device": name, "compute_dtype": str(dtype).removeprefix("torch."), "backends": backend_choices()}


def supports_bfloat16(device: torch.device | str) -> tuple[bool, str]:
    """Does this hardware support bfloat16 natively? Returns the answer and its reason."""
    device = torch.device(device)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor}"
    if device.type != "cpu":
        return False, f"support of {device.type} is unknown"
    flags = _cpu_flags()
    for flag in ("amx_bf16", "avx512_bf16", "bf16"):
        if flag in flags:
            return True, f"the processor has {flag}"
    return False, "the processor has none of avx512_bf16, amx_bf16 and bf16"


def _cpu_flags() -> set[str]:
    flags = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                break
    except OSError:
        pass
    # where there is no /proc, torch may know
    for name, flag in (("_is_avx512_bf16_supported", "avx512_bf16"), ("_is_amx_tile_supported", "amx_bf16")):
        probe = getattr(torch.cpu, name, None)
        if not flags and probe is not None and probe():
            flags.add(flag)
    return flags
