"""Options that commands share which run a model: device, precision, threads, and lists separated by commas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from brine.inference.registered import resolve_registered

if TYPE_CHECKING:
    import torch

_RUN = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1, metavar="RUN", instance_from_str=lambda args: resolve_registered(args[0]),
    is_instance=lambda value: isinstance(value, Path), str_from_instance=lambda value: [str(value)],
)  # fmt: skip
Run = Annotated[tyro.conf.Positional[Path], _RUN]
"""A path, or a registered model by name: `champion`, a digest of weights, or the beginning of one."""


def _comma_separated(kind: Callable[[str], Any], metavar: str, remedy: str) -> Any:
    def read(args: list[str]) -> tuple[Any, ...]:
        try:
            return tuple(kind(item.strip()) for item in args[0].split(",") if item.strip())
        except ValueError:
            raise ValueError(f"{args[0]!r}: give {remedy}") from None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=read, is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )  # fmt: skip


Integers = Annotated[tuple[int, ...], _comma_separated(int, "N,N", "whole numbers such as 2048,4096")]
Names = Annotated[tuple[str, ...], _comma_separated(str, "NAME,NAME", "names such as text,image")]


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Options of a command that runs a model."""

    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: a GPU if available."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype (matmuls, KV cache); auto: bfloat16 if the hardware supports it natively."""
    threads: int | None = None
    """CPU threads; as many as this process may use if not given."""

    def resolve(self) -> tuple[torch.device, torch.dtype | None]:
        """(device, compute_dtype); sets the number of CPU threads. Raises ValueError for an unknown device."""
        # imported late: commands that run no model take a second less
        import torch

        from brine.model.device import resolve_compute_dtype, resolve_device

        if self.threads is not None:
            torch.set_num_threads(positive("threads", self.threads))
        device = resolve_device(self.device)
        return device, resolve_compute_dtype(self.dtype, device)


def positive(name: str, value: int) -> int:
    """The value. Raises ValueError, naming the option, below 1."""
    if value < 1:
        raise ValueError(f"--{name} must be at least 1")
    return value
