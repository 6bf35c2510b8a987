"""`--a.b value` without tyro, for a machine that lacks it: the same options, without help texts.

    apply_overrides(LaunchConfig(demo()), ["--large.num-steps", "100", "--runtime.compile", "False"],
    flattened="recipe")

It knows the types of recipes: numbers, words, paths, booleans, None, tuples of these, dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

FLAG_ON, FLAG_OFF = "on", "off"


def apply_overrides(value: Any, words: list[str], *, flattened: str = "") -> Any:
    """A copy of a dataclass with the fields that the words name. flattened: a field whose options have no prefix.

    Raises ValueError for an unknown field, a value of the wrong kind, or what the dataclasses refuse.
    """
    known = list_options(value, flattened=flattened)
    tree: dict[str, Any] = {}
    at = 0
    while at < len(words):
        name = words[at]
        given = []
        at += 1
        while at < len(words) and not words[at].startswith("--"):
            given.append(words[at])
            at += 1
        name, _, joined = name.partition("=")
        given = [joined, *given] if joined else given
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.4)
            raise ValueError(f"unknown option {name}" + (f": did you mean {near[0]}?" if near else ""))
        path, hint = known[name]
        try:
            found = _convert(hint, given)
        except ValueError as error:
            raise ValueError(f"{name} {' '.join(given)}: {error}") from None
        inner = tree
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = found
    return _replaced(value, tree)


def list_options(value: Any, *, flattened: str = "") -> dict[str, tuple[tuple[str, ...], Any]]:
    """Every option of a dataclass: {"--large.num-steps": (("recipe", "large", "num_steps"), int)}."""
    found = {}
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            prefix = "--" if field.name == flattened else f"--{_dashed(field.name)}."
            for name, (path, hint) in list_options(inner).items():
                found[prefix + name.removeprefix("--")] = (field.name, *path), hint
        elif hints[field.name] is bool:
            # a flag that says the opposite of what stands there
            found[f"--{'no-' * inner}{_dashed(field.name)}"] = (field.name,), FLAG_OFF if inner else FLAG_ON
        else:
            found[f"--{_dashed(field.name)}"] = (field.name,), hints[field.name]
    return found


def _replaced(value: Any, tree: dict[str, Any]) -> Any:
    # all fields of one dataclass at once: some are only valid together
    changes = {
        name: _replaced(getattr(value, name), inner) if isinstance(inner, dict) else inner
        for name, inner in tree.items()
    }
    return dataclasses.replace(value, **changes) if changes else value


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _convert(hint: Any, words: list[str]) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if types.NoneType in inner and words == ["None"]:
            return None
        for one in inner:
            if one is not types.NoneType:
                try:
                    return _convert(one, words)
                except ValueError as error:
                    last = error
        raise last
    if origin is tuple:
        if len(inner) == 2 and inner[1] is ...:
            size = len(typing.get_args(inner[0])) or 1
            if len(words) % size:
                raise ValueError(f"give a multiple of {size} values")
            return tuple(_convert(inner[0], words[i : i + size]) for i in range(0, len(words), size))
        if len(words) != len(inner):
            raise ValueError(f"give {len(inner)} values")
        return tuple(_convert(one, [word]) for one, word in zip(inner, words, strict=True))
    if hint in (FLAG_ON, FLAG_OFF):
        if words:
            raise ValueError("this is a flag: give it no value")
        return hint == FLAG_ON
    if hint is bool:
        said = " ".join(words).lower()
        if said not in ("true", "false"):
            raise ValueError("give True or False")
        return said != "false"
    if len(words) != 1:
        raise ValueError("give one value")
    if hint in (int, float, str, Path):
        return hint(words[0])
    raise ValueError(f"fields of type {hint} take tyro: install it")
