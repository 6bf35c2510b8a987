"""Whether a backend may be trusted on this GPU: self-checks, run at its first use by "auto" and remembered.

"auto" takes no backend on a GPU before it has computed small problems as the reference does. A pass is kept on disk,
under the GPU's name, the versions of all packages that take part and a digest of the sources; a failure is kept for
this process alone. A kernel that never ends cannot be stopped from here: a WARNING names it after `HANG_WARNING_S`.

    $XDG_CACHE_HOME/brine/selfcheck/<digest>.json        (~/.cache where XDG_CACHE_HOME is not set)
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "flash-attn", "flash-attn-3", "flash-attn-4", "nvidia-cutlass-dsl", "liger-kernel")
"""Whose versions a result holds for."""
HANG_WARNING_S = 120.0  # compiling included, a check takes some ten seconds at most
_check_results: dict[tuple, str | None] = {}
# one check at a time: several threads may meet the same backend for the first time
_lock = threading.RLock()


def self_check_result(
    key: tuple, check: Callable[[], str | None], *, device: torch.device, folder: Path, logger: str
) -> str | None:
    """What was wrong with a backend, None where it passed; a failure is logged once, as WARNING.

    key: operation, backend and whatever else the check depends on, beside the GPU and the versions. check: () -> what
    is wrong, or None; an exception is a failure too. folder: of the sources that a result holds for.
    Raises RuntimeError where a check would have to run while a CUDA graph is being captured.
    """
    known = (key, device)
    if known in _check_results:
        return _check_results[known]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f'"auto" has not checked {_words(key)} on {device} yet, and cannot while a CUDA graph is being captured: '
            "call the function once before capturing it, or name a backend"
        )
    with _lock:
        if known not in _check_results:
            _check_results[known] = _find(key, check, device, folder, logger)
    return _check_results[known]


def reset_check_results() -> None:
    """Forget the results of this process; those on disk stay."""
    _check_results.clear()


def cache_folder() -> Path:
    """Where passes are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brine" / "selfcheck"


def _find(key: tuple, check: Callable[[], str | None], device: torch.device, folder: Path, logger: str) -> str | None:
    facts = {"key": [str(part) for part in key], "gpu": gpu_name(device), "versions": versions()}
    facts["sources"] = digest_of(folder)
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    try:
        path = cache_folder() / f"{name}.json"
        if path.exists():
            return None
    except (OSError, RuntimeError):
        # no home folder, or one that cannot be read
        path = None
    logging.getLogger(logger).info("checking %s on %s", _words(key), facts["gpu"])
    watch = threading.Timer(HANG_WARNING_S, _warn_hang, (key, facts["gpu"], logger))
    watch.daemon = True
    watch.start()
    try:
        wrong = check()
    except Exception as error:
        wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    finally:
        watch.cancel()
    if wrong is not None:
        logging.getLogger(logger).warning(
            "%s failed its self-check on %s and is not taken by auto: %s", _words(key), facts["gpu"], wrong
        )
        return f"failed its self-check: {wrong}"
    if path is not None:
        _keep(path, facts)
    return None


def _warn_hang(key: tuple, gpu: str, logger: str) -> None:
    logging.getLogger(logger).warning(
        "the self-check of %s on %s has not ended after %.0f s: if the GPU is busy all the time, a kernel hangs; "
        "stop this process and name another backend",
        _words(key), gpu, HANG_WARNING_S,
    )  # fmt: skip


def _keep(path: Path, facts: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError:
        # a folder that cannot be written costs the next process a check
        return


def gpu_name(device: torch.device) -> str:
    """The GPU's name and compute capability, or the device type."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"


@lru_cache
def versions() -> dict[str, str]:
    """Of `PACKAGES`, as far as they are installed, and of CUDA."""
    found = {"cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@lru_cache
def digest_of(folder: Path) -> str:
    """Of the Python sources below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _words(key: tuple) -> str:
    operation, backend, *rest = key
    return f'{operation} backend "{backend}" ({", ".join(str(part) for part in rest)})'
