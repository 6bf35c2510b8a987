"""Resolves what a run uses of the machine, once: threads, precision, compilation, determinism.

Bit-identical weights need identical arithmetic, which depends on threads, precision and compilation. So "auto" is
resolved when a run folder is begun, written to its `runtime.json` with the reasons, and read from there afterwards.
Whether torch can compile is tried in a subprocess, since finding a compiler proves little; bfloat16 is used where
the hardware supports it natively.
"""

import logging
import os
import resource
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from brine.common.config_fields import OPERATIONAL, affects_result_if, operational
from brine.common.files import read_json, to_plain, write_json
from brine.common.processes import usable_cores
from brine.data.loader import default_loader_workers
from brine.kernels.attention.select_backend import check_backend
from brine.model.device import autocast, resolve_device, supports_bfloat16
from brine.training.config import RuntimeConfig
from brine.training.parallel.activations import has_tiled_mlp

logger = logging.getLogger("brine.runtime")

COMPILE_TIMEOUT_S = 180.0
PROBE = (
    "import torch; torch.set_num_threads(1); x = torch.arange(64.0, device={device!r});"
    "f = torch.compile(lambda x: {result}); print(float(f(x)[-1]))"
)
# on a CPU inductor needs a compiler, OpenMP, Python's headers, and permission to write and load a shared library; on a
# GPU any kernel needs all: Triton, a C compiler and Python's headers for its launcher, and the device
PROBED = {"cpu": "(x.sin() + 1).cumsum(0) * 2"}
ELSEWHERE: dict[str, dict[str, tuple[str, ...]]] = {
    "attention_backend": {"cpu": ("triton", "gluon", "flex", "flash"), "cuda": ("cpu",)},
    "loss_backend": {"cpu": ("triton", "liger")},
}
"""Backends that do not train on a device; Triton's interpreter is an exception (TRITON_INTERPRET)."""


@dataclass(frozen=True)
class Runtime:
    """What a run really uses; part of the configuration of every training stage. What only recomputes, tiles or moves
    the same numbers does not affect the result; on a GPU neither do the host's threads."""

    device: str = "cpu"
    """"cpu" or "cuda"."""
    dtype: str = "float32"
    """"bfloat16" (autocast), "float32" or "float64"."""
    compile: bool = False
    """Are the blocks compiled?"""
    num_threads: int = affects_result_if(lambda runtime: runtime.device != "cuda", 1)
    """CPU threads of all ranks on this machine together."""
    deterministic: bool = True
    """Deterministic algorithms only."""
    activation_checkpointing: str = operational("none")
    """What blocks recompute in the backward pass (`brine.training.parallel.activations`)."""
    ac_group_size: int = operational(1)
    """Consecutive local layers per activation checkpoint."""
    mlp_tile_tokens: int = operational(0)
    """Tokens that an MLP takes at a time; 0: all."""
    attention_backend: str = "auto"
    """Attention backend (`brine.kernels.attention`)."""
    loss_backend: str = "auto"
    """Backend of the fused output head and loss (`brine.kernels.linear_loss.linear_cross_entropy`)."""
    num_loader_workers: int = operational(0)
    """Processes that make batches; 0: the training process itself."""
    profile: tuple[int, int] | None = operational(None)
    """First and last step to record (`brine.training.logging.profiling`)."""
    remote_checkpoints: str | None = operational(None)
    """URL to which checkpoints are uploaded (`brine.training.checkpoint.remote`)."""
    reasons: dict[str, str] = field(default_factory=dict, compare=False, hash=False, metadata=OPERATIONAL)
    """Why each choice was made, for the log."""

    @property
    def weight_dtype(self) -> torch.dtype:
        """Dtype of the weights: float64 when asked for, else float32."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def reads_metrics_late(self) -> bool:
        """Does the device compute asynchronously, so that a step's numbers are better read one step late?"""
        return self.device != "cpu"

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype of matmuls, in training and in every measurement of the run; None: that of the weights."""
        return torch.bfloat16 if self.dtype == "bfloat16" else None

    def autocast(self) -> AbstractContextManager:
        """Context of every forward pass: bfloat16 autocast, or none."""
        return autocast(self.device, self.compute_dtype)


def resolve_runtime(config: RuntimeConfig, *, folder: Path | None = None) -> Runtime:
    """Resolve the "auto" fields, log the choices, and keep them in `folder`/runtime.json.

    A folder whose `runtime.json` was resolved for the same request gives the same answer. Raises ValueError where the
    request cannot be met: no CUDA, bfloat16, compilation or kernels demanded where they do not work, or a run begun
    with compiled blocks on a machine that has lost its compiler.
    """
    path = None if folder is None else Path(folder) / "runtime.json"
    kept = read_json(path) if path is not None else None
    # where checkpoints go decides nothing that was resolved
    requested = {name: value for name, value in to_plain(config).items() if name != "remote_checkpoints"}
    if path is not None and kept is not None and kept.get("requested") == requested:
        runtime = replace(Runtime(**kept["resolved"]), remote_checkpoints=config.remote_checkpoints)
        _check_still_possible(runtime, path)
    else:
        device = resolve_device(config.device).type
        there = "no GPU found" if device == "cpu" else "a GPU was found"
        reasons = {"device": there if config.device == "auto" else "asked for"}
        check_backends(config, device)
        workers, local = config.num_loader_workers, max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        workers = default_loader_workers(device, local_world_size=local) if workers == "auto" else workers
        # what is not "auto" is used as it was asked for
        asked = {field.name: getattr(config, field.name) for field in fields(Runtime) if field.name != "reasons"}
        asked |= {
            "device": device,
            "dtype": _dtype(config, device, reasons),
            "compile": _compile(config, device, reasons),
            "num_threads": config.num_threads or usable_cores(),
            "num_loader_workers": workers,
        }
        runtime = Runtime(**asked, reasons=reasons)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"requested": requested, "resolved": to_plain(runtime)})
    for name, reason in runtime.reasons.items():
        logger.info("%s: %s (%s)", name, getattr(runtime, name), reason)
    return runtime


def apply_runtime(runtime: Runtime, *, local_world_size: int = 1) -> None:
    """Set torch's global switches: threads of this rank, deterministic algorithms, static shapes when compiling."""
    torch.set_num_threads(max(1, runtime.num_threads // local_world_size))
    if runtime.deterministic:
        # cuBLAS reads this when its first handle is made
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # filling every new tensor costs bandwidth and would hide, not cure, a read of unwritten memory
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010, not in torch's types
        if runtime.device == "cuda":
            torch.backends.cudnn.benchmark = False
    if runtime.compile:
        # imported late: it costs a second, and only compiled runs need it
        from torch._dynamo import config as dynamo_config

        # whether a size has changed before would otherwise decide which code runs, and a resumed run has seen less
        dynamo_config.automatic_dynamic_shapes = False


def compile_blocks(model: Any) -> None:
    """Compile each block in place with static shapes, of blocks with tiled MLPs the attention half. Parameters keep
    their names; twice is the same as once."""
    for block in getattr(model, "blocks", ()):
        if has_tiled_mlp(block):
            if not hasattr(block.attention_half, "_torchdynamo_orig_callable"):
                block.attention_half = torch.compile(block.attention_half, dynamic=False)
        elif getattr(block, "_compiled_call_impl", None) is None:
            block.compile(dynamic=False)


def compiler_works(device: str = "cpu", *, timeout_s: float = COMPILE_TIMEOUT_S) -> tuple[bool, str]:
    """Can torch compile for this device? Tries on it, in a subprocess. Returns the answer and its reason."""
    compiler = find_compiler(device)
    if compiler is None:
        return False, f"no {_language(device)} compiler was found"
    trial = f"a trial compilation for {device} with {compiler}"
    program = PROBE.format(device=device, result=PROBED.get(torch.device(device).type, "(x.sin() + 1) * 2"))
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"{trial} did not end in {timeout_s:.0f} s"
    except OSError as error:
        return False, f"a trial compilation could not be started: {error}"
    if done.returncode != 0:
        return False, f"{trial} failed: {_complaint(done.stderr)[:200]}"
    return True, f"{trial} worked"


def find_compiler(device: str = "cpu") -> str | None:
    """Path of the compiler that torch calls for this device: of C++ for a CPU, of C for the rest, where Triton makes
    the code and only its launchers are C. $CXX or $CC first, then the usual names."""
    variable, *names = ("CC", "gcc", "clang") if _language(device) == "C" else ("CXX", "g++", "clang++", "c++", "cl")
    for name in (os.environ.get(variable), *names):
        if name and (found := shutil.which(name)):
            return found
    return None


def _language(device: str) -> str:
    return "C++" if torch.device(device).type == "cpu" else "C"


def _complaint(stderr: str) -> str:
    """The line that says what was wrong; what follows it is often only advice on how to learn more."""
    lines = stderr.strip().splitlines() or ["no message"]
    for word in ("fatal error", "Error:"):
        if found := [line for line in lines if word in line]:
            return found[-1].strip()
    return lines[-1].strip()


def peak_memory_gib(device: str) -> float:
    """Peak memory so far, GiB: of the GPU there, else resident memory of this process."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else peak_resident_gib()


def peak_resident_gib(who: int = resource.RUSAGE_SELF) -> float:
    """Peak resident memory so far, GiB: of this process, or of its largest child (`resource.RUSAGE_CHILDREN`)."""
    # Linux counts KiB, macOS bytes
    return resource.getrusage(who).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def check_backends(config: RuntimeConfig, device: str) -> None:
    """Raises ValueError for kernels that never train on such a device or cannot be imported, before hours of data are
    made."""
    for field_name, elsewhere in ELSEWHERE.items():
        asked = getattr(config, field_name)
        # as Triton reads it
        interprets = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")
        if asked in elsewhere.get(device, ()) and not (interprets and asked == "triton" and device == "cpu"):
            needs = "a GPU, and this run is on the CPU" if device == "cpu" else "a CPU, and this run is on a GPU"
            option = f"--runtime.{field_name.replace('_', '-')}"
            raise ValueError(f"{option} {asked} trains on {needs}: leave the option out, or name another")
    check_backend(config.attention_backend)


def _dtype(config: RuntimeConfig, device: str, reasons: dict[str, str]) -> str:
    if config.dtype != "auto":
        reasons["dtype"] = "asked for"
        return config.dtype
    able, reasons["dtype"] = supports_bfloat16(device)
    return "bfloat16" if able else "float32"


def _compile(config: RuntimeConfig, device: str, reasons: dict[str, str]) -> bool:
    if config.compile is False:
        reasons["compile"] = "asked for"
        return False
    able, reasons["compile"] = compiler_works(device)
    if config.compile is True and not able:
        raise ValueError(
            f"compile = true, but {reasons['compile']}: install a {_language(device)} compiler (gcc or clang) and "
            "Python's headers, or use --runtime.compile auto"
        )
    return able


def _check_still_possible(runtime: Runtime, path: Path) -> None:
    if runtime.compile and find_compiler(runtime.device) is None:
        raise ValueError(
            f"{path} says that this run was begun with compiled blocks, but no {_language(runtime.device)} compiler is "
            "found now: install one, or pass --runtime.compile false, which runs the training stages again"
        )
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{path} says that this run was begun on a GPU, but torch sees none now: continue there, or pass "
            "--runtime.device cpu, which runs the training stages again"
        )
