"""Configurations from plain JSON, by the types of their fields: the way back from `brine.common.files.to_plain`.

A value of a wrong type is refused with the field's dotted name; nothing is guessed from strings. An int stands for a
float, a string for a path, a list for a tuple, as JSON writes them.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_field_types = cache(typing.get_type_hints)


def from_plain(hint: Any, value: Any, *, where: str = "") -> Any:
    """`value`, plain JSON, as an instance of the type `hint`: a dataclass, scalar, path, tuple, list, dict, or a union
    of them. where: dotted name for messages. Raises ValueError naming the field that is unknown or has a wrong type,
    or with the message of the dataclass that refuses it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return from_plain(inner[0], value, where=where)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(hint, inner, value, where)
    if origin is typing.Literal:
        if value in inner:
            return value
        raise _wrong(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where)
    if hint is tuple or origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(hint, value, where)
        if not inner or inner[-1] is Ellipsis:
            return tuple(from_plain(inner[0] if inner else Any, item, where=where) for item in value)
        if len(value) != len(inner):
            raise _wrong(hint, value, where)
        return tuple(from_plain(kind, item, where=where) for kind, item in zip(inner, value, strict=True))
    if hint is list or origin is list:
        if not isinstance(value, (list, tuple)):
            raise _wrong(hint, value, where)
        return [from_plain(inner[0] if inner else Any, item, where=where) for item in value]
    if hint is dict or origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(hint, value, where)
        kind = inner[1] if inner else Any
        return {key: from_plain(kind, item, where=f"{where}.{key}") for key, item in value.items()}
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if value is None and hint in (None, types.NoneType):
        return None
    # bool is an int to Python
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise _wrong(hint, value, where)


def _one_of(hint: Any, kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    nested = None
    # an exact type comes before one that converts
    for kind in sorted(kinds, key=lambda kind: type(value) is not kind):
        try:
            return from_plain(kind, value, where=where)
        except ValueError as error:
            nested = error if dataclasses.is_dataclass(kind) and isinstance(value, Mapping) else nested
    raise nested or _wrong(hint, value, where)


def _dataclass(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, hint):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(hint, value, where)
    kinds, known = _field_types(hint), {field.name: field for field in dataclasses.fields(hint) if field.init}
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"{where}{'.' if where else ''}{unknown[0]} is not a field of {hint.__name__}")
    given = {
        name: from_plain(kinds[name], item, where=f"{where}.{name}" if where else name) for name, item in value.items()
    }
    try:
        return hint(**given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def _wrong(hint: Any, value: Any, where: str) -> ValueError:
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
    return ValueError(f"{where or 'value'} = {value!r} is {type(value).__name__}: give {name}")
