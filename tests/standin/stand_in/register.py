"""Makes the device known to torch: its module `torch.standin`, what makes tensors from nothing, autocast, and the few
names of torch that C++ would have to serve.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.standin.stand_in.autocast import register_autocast
from tests.standin.stand_in.generator import Generator, default_generator, generator_for
from tests.standin.stand_in.memory import is_pinned, pin, pin_memory
from tests.standin.stand_in.names import NAME
from tests.standin.stand_in.tensor import StandIn, copy
from tests.standin.stand_in.waits import waited

aten = torch.ops.aten


class Module:
    """`torch.standin`."""

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def set_device(device) -> None:
        """There is one."""

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        default_generator.manual_seed(seed)

    manual_seed = manual_seed_all

    @staticmethod
    def get_rng_state(device=NAME) -> Tensor:
        return default_generator.get_state()

    @staticmethod
    def set_rng_state(state: Tensor, device=NAME) -> None:
        default_generator.set_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def synchronize(device=None) -> None:
        waited("synchronize")


def _factories() -> Iterator[str]:
    """Names of the operations that make a tensor from no tensor, `empty.memory_format` and the like."""
    for full in torch._C._dispatch_get_all_op_names():
        namespace, _, name = full.partition("::")
        if namespace != "aten" or "sparse" in name or "nested" in name or "quantized" in name or name.endswith("out"):
            continue
        overload = name.partition(".")[2]
        try:
            schema = torch._C._get_schema(full.partition(".")[0], overload)
        except RuntimeError:
            continue
        takes = any("Tensor" in str(argument.type) for argument in schema.arguments)
        gives = len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
        if gives and not takes and any(argument.name == "device" for argument in schema.arguments):
            yield name


def _make_factory(name: str):
    base, _, overload = name.partition(".")
    func = getattr(getattr(aten, base), overload or "default")
    # random numbers come from the device's generator, which another overload takes
    twin = "generator" if not overload else f"generator_with_{overload}" if overload == "names" else None
    if base == "randint" and overload == "low":
        twin = "low_generator"
    seeded = getattr(getattr(aten, base), twin, None) if twin and base.startswith("rand") else None

    def make(*args, **kwargs):
        kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
        if "generator" in kwargs:
            kwargs["generator"] = generator_for(kwargs["generator"])
        elif seeded is not None:
            return StandIn(seeded(*args, **kwargs, generator=default_generator, device="cpu"))
        return StandIn(func(*args, **kwargs, device="cpu"))

    return make


_libraries: list[torch.library.Library] = []


def register() -> None:
    """Make the device known to this process; twice is the same as once."""
    if _libraries:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)
    for name in _factories():
        library.impl(name, _make_factory(name), "PrivateUse1")
    # what C++ does to a tensor that it just made does not come by `__torch_dispatch__`
    library.impl("_copy_from", copy, "PrivateUse1")
    # autocast leaves all else as it is; torch has that for every device but this one
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.append(others)
    register_autocast(library)
    # a parameter that moves stays the object it was, as it does on its way to a card
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.Generator = Generator
    torch.Tensor.pin_memory, torch.Tensor.is_pinned = pin_memory, is_pinned
    empty = torch.empty

    def empty_or_pinned(*args, pin_memory: bool = False, **kwargs) -> Tensor:
        made = empty(*args, **kwargs)
        return pin(made) if pin_memory else made

    torch.empty = empty_or_pinned
