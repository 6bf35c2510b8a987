"""The tensor of the stand-in, and what becomes of an operation that has one among its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tests.standin.stand_in.generator import generator_for
from tests.standin.stand_in.memory import is_pinned, pin
from tests.standin.stand_in.names import NAME
from tests.standin.stand_in.waits import waited

aten = torch.ops.aten

MIXED = "Expected all tensors to be on the same device, but found at least two devices, {} and cpu! (when calling {})"

# CUDA takes indices from the host for these
INDEXED = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"}
# a number of no dimensions may come from the host for these besides what is pointwise
SCALARS = {"fill", "fill_", "masked_fill", "masked_fill_", "where", "lerp", "lerp_"}
# the shape of the result hangs on values
DATA_SHAPED = {
    "nonzero", "masked_select", "argwhere", "nonzero_numpy", "unique_dim", "unique_consecutive", "_unique", "_unique2",
    "bincount", "equal", "is_nonzero", "_local_scalar_dense", "multinomial", "histc",
}  # fmt: skip


class StandIn(Tensor):
    """A tensor on the device "standin"; `held` is the CPU tensor with its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held: Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"StandIn({self.held!r})"

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)
        self.held = value.held

    def tolist(self) -> list:
        waited("tolist")
        return self.held.tolist()

    def numpy(self, **_):
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def __deepcopy__(self, memo):
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        copied.__dict__.update({name: value for name, value in vars(self).items() if name != "held"})
        return memo.setdefault(id(self), copied)

    def __reduce_ex__(self, protocol):
        raise NotImplementedError("the stand-in's tensors are not pickled: bring them to the host first")


def plain(value):
    """A value with the CPU tensors in place of the stand-in's."""
    if isinstance(value, StandIn):
        return value.held
    if isinstance(value, (list, tuple)):
        return type(value)(plain(one) for one in value)
    return value


def wrapped(value):
    """A result with the stand-in's tensors in place of the CPU's."""
    if isinstance(value, StandIn) or not isinstance(value, (Tensor, list, tuple)):
        return value
    if isinstance(value, Tensor):
        return StandIn(value)
    return type(value)(wrapped(one) for one in value)


# ---- one operation ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rule:
    """What is known of an operation from its schema alone."""

    name: str
    written: tuple[tuple[int, str], ...]
    """Place and name of the arguments that it writes."""
    returned: tuple[int | None, ...]
    """For each result the index in `written` of the argument that it is; None for a new tensor."""
    scalars: bool
    """Does CUDA take numbers of no dimensions from the host?"""
    random: int | None
    """Place of the generator among the arguments, -1 for one given by name only; None without."""


@cache
def rule_of(func) -> Rule:
    """The rule of an operation. Raises NotImplementedError for what the wrapper cannot follow."""
    schema, name = func._schema, func.overloadpacket.__name__
    if torch.Tag.inplace_view in func.tags or name in ("resize_", "set_", "resize_as_"):
        raise NotImplementedError(f"{func} gives a tensor another shape in place, which the stand-in does not follow")
    sets, written = [], []
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append((place, argument.name))
            sets.append(argument.alias_info.before_set)
    returned = tuple(
        sets.index(one.alias_info.before_set)
        if one.alias_info is not None and one.alias_info.is_write and one.alias_info.before_set in sets
        else None
        for one in schema.returns
    )
    random = [place for place, argument in enumerate(schema.arguments) if argument.name == "generator"]
    if random and schema.arguments[random[0]].kwarg_only:
        random = [-1]
    scalars = torch.Tag.pointwise in func.tags or name in SCALARS or name.startswith("_foreach_")
    return Rule(name, tuple(written), returned, scalars, random[0] if random else None)


def dispatch(func, args: tuple, kwargs: dict):
    """Run one operation that has a stand-in tensor among its arguments."""
    if func.namespace not in ("aten", "prims"):
        return custom(func, args, kwargs)
    rule = rule_of(func)
    name = rule.name
    target = kwargs.get("device")
    target = None if target is None else torch.device(target)
    if name in ("copy_", "_copy_from"):
        source, place = (args[1], args[0]) if name == "copy_" else args[:2]
        return copy(source, place, *args[2:], **kwargs)
    if name == "_to_copy" and target is not None and target.type == "cpu":
        return to_host(args[0], kwargs)
    if name == "record_stream":
        return None

    check(func, rule, args, kwargs)
    if name in DATA_SHAPED or needs_values(name, args, kwargs):
        waited(name)
    # another process' memory, or the host's pinned memory: never on the device
    pinned = kwargs.get("pin_memory")
    given = {key: plain(value) for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if target is not None:
        given["device"] = "cpu"
    args_held = [plain(one) for one in args]
    if rule.random is not None:
        if rule.random < 0:
            given["generator"] = generator_for(given.get("generator"))
        elif rule.random < len(args_held):
            args_held[rule.random] = generator_for(args_held[rule.random])
        else:
            given["generator"] = generator_for(given.get("generator"))
    shapes = [shape_of(one) for one in written_of(rule, args, kwargs)]
    results = func(*args_held, **given)
    places = written_of(rule, args, kwargs)
    if any(before is not None and before != shape_of(plain(one)) for before, one in zip(shapes, places, strict=True)):
        raise NotImplementedError(f"{func} gave its output another shape, which the stand-in does not follow")
    if target is not None and target.type == "cpu":
        return pin(results) if pinned else results
    if not any(index is not None for index in rule.returned):
        return wrapped(results)
    if len(rule.returned) == 1:
        return places[rule.returned[0]]
    return tuple(
        wrapped(result) if index is None else places[index]
        for result, index in zip(results, rule.returned, strict=True)
    )


def custom(func, args: tuple, kwargs: dict):
    """The body of an operation made by `torch.library.custom_op`, with the stand-in's tensors; it checks for itself."""
    from torch._library.custom_ops import _maybe_get_opdef

    made = _maybe_get_opdef(func)
    if made is None:
        raise NotImplementedError(f"the stand-in knows no body of {func}")
    return made._init_fn(*args, **kwargs)


def written_of(rule: Rule, args: tuple, kwargs: dict) -> list:
    """The arguments that an operation writes."""
    return [args[place] if place < len(args) else kwargs.get(name) for place, name in rule.written]


def shape_of(value):
    """Shape and stride of a tensor; None for anything else."""
    return (value.shape, value.stride()) if isinstance(value, Tensor) else None


def check(func, rule: Rule, args: tuple, kwargs: dict) -> None:
    """Raise RuntimeError for a tensor of the host that CUDA would not take."""
    for place, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor):
            tensors = (value,)
        elif isinstance(value, (list, tuple)):
            tensors = value
        else:
            continue
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or isinstance(tensor, StandIn):
                continue
            if rule.name in INDEXED and place in (1, "indices"):
                waited(rule.name, "upload")
                continue
            is_text_like = any(place in one for one in rule.written)
            taken = rule.scalars or (rule.name in INDEXED and place == 2)
            if tensor.dim() == 0 and taken and not is_text_like and not writes_host(rule, args):
                continue
            raise RuntimeError(MIXED.format(torch.device(NAME, 0), func))


def writes_host(rule: Rule, args: tuple) -> bool:
    """Would an operation in place write a tensor of the host?"""
    return any(
        place < len(args) and isinstance(args[place], Tensor) and not isinstance(args[place], StandIn)
        for place, _ in rule.written
    )


def needs_values(name: str, args: tuple, kwargs: dict) -> bool:
    """Does the host need to see values: masks as indices, lengths to repeat by?"""
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name not in INDEXED:
        return False
    masks = [one for one in args[1] if isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8)]
    if not masks:
        return False
    # a single number written through masks is a masked fill
    fills = name.startswith(("index_put", "_index_put", "_unsafe_index_put")) and args[2].numel() == 1
    return not (fills and len(masks) == sum(one is not None for one in args[1]))


def copy(source: Tensor, place: Tensor, non_blocking: bool = False) -> Tensor:
    """place <- source, either of which lies on the device."""
    if not isinstance(place, StandIn):
        if not (non_blocking and is_pinned(place)):
            waited("copy_")
        place.copy_(source.held)
        return place
    if not isinstance(source, StandIn) and source.dim() > 0 and not non_blocking:
        waited("copy_", "upload")
    place.held.copy_(plain(source))
    return place


def to_host(tensor: StandIn, kwargs: dict) -> Tensor:
    """A copy in host memory, pinned where it is not waited for, as torch does it."""
    given = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
    found = aten._to_copy.default(tensor.held, **given)
    if kwargs.get("non_blocking"):
        return pin(found)
    waited("_to_copy")
    return found
