"""What becomes of a stage's folder that is done anew, and what is said where it is not.

    moved_aside(folder)        a trained stage, whole, under the first free name of `<stage>.old-1`, `.old-2` ...
    discard(folder, own)       any other stage: what it made is deleted, what somebody put there is kept in one
    refusal, not_extended      the sentences of a command that leaves everything as it is

What a stage made is known by two lists: the names at the top of its folder that its function makes (`own`), and the
files below these at the time it was done (`made.json`). A file that is in neither is somebody's. Of a stage that was
cut off there is only the first list. Nothing here ever deletes a folder `.old-N`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from training.files import read_json, write_json

DONE, BEGUN, MADE = "done", "stage.json", "made.json"
EXPENSIVE = (DONE, "metrics.jsonl", "checkpoints/*", "model/*")
"""What shows that a precious stage has made something."""
ASIDE = ".old-"
"""Between a stage's name and a number: its folder as it was before the stage was done again."""
SHOWN = 12
"""Most differences that a refusal tells."""
Absent = Mapping[str, str]
_LEFTOVER = re.compile(r"\.old_(.+)_\d+")


class KeptError(ValueError):
    """What was asked for would replace something that took long to make; nothing was changed."""


def is_expensive(folder: Path) -> bool:
    """Has a precious stage made anything in its folder yet?"""
    return any(next(folder.glob(pattern), None) is not None for pattern in EXPENSIVE)


def has_weights(folder: Path) -> bool:
    """Are there weights or checkpoints in a stage's folder?"""
    return next(folder.glob("checkpoints/step_*"), None) is not None or any(folder.glob("model/*.safetensors"))


def aside_of(folder: Path) -> Path:
    """The first free one of `<stage>.old-1`, `.old-2` and so on."""
    number = 1
    while os.path.lexists(old := folder.with_name(f"{folder.name}{ASIDE}{number}")):
        number += 1
    return old


def moved_aside(folder: Path) -> Path:
    """Rename a stage's folder to the first free name; returns its new path."""
    old = aside_of(folder)
    os.rename(folder, old)
    return old


def made_in(folder: Path, own: Sequence[str]) -> list[str]:
    """Every file below those names of a folder, links not followed, as paths relative to it, sorted."""
    return sorted(path for path in _files(folder) if path.split("/")[0] in own)


def discard(folder: Path, own: Sequence[str]) -> Path | None:
    """Delete what a stage made in its folder, and the folder. What is somebody's is kept beside it; returns where."""
    made = read_json(folder / MADE)
    if not isinstance(made, list):
        # of a stage that was cut off every file below its names counts as its own
        made = made_in(folder, own)
        write_json(folder / MADE, made)
    old = folder.with_name(f".old_{folder.name}_{os.getpid()}")
    os.rename(folder, old)
    return _clear(old, folder, made)


def discard_leftovers(run: Path) -> None:
    """End what a killed process left half discarded in a run folder."""
    for old in sorted(run.glob(".old_*")):
        if (found := _LEFTOVER.fullmatch(old.name)) is None or not old.is_dir():
            continue
        made = read_json(old / MADE)
        # the list is gone only where all the rest was the line's own
        if isinstance(made, list):
            _clear(old, run / found[1], made)
        else:
            shutil.rmtree(old, ignore_errors=True)


def _clear(old: Path, folder: Path, made: list[Any]) -> Path | None:
    """Delete the files `made`, relative to `old`, and the line's own; what is left is renamed to go with `folder`."""
    known = {path for path in made if isinstance(path, str)}
    for path in _files(old):
        if path in known and not _is_of_the_line(path):
            (old / path).unlink(missing_ok=True)
    if all(map(_is_of_the_line, _files(old))):
        shutil.rmtree(old, ignore_errors=True)
        return None
    kept = aside_of(folder)
    os.rename(old, kept)
    for path in filter(_is_of_the_line, _files(kept)):
        (kept / path).unlink(missing_ok=True)
    for parent, _, _ in os.walk(kept, topdown=False):
        if not os.listdir(parent):
            os.rmdir(parent)
    return kept


def _is_of_the_line(path: str) -> bool:
    """Whether a file is one that the line itself writes into every stage's folder."""
    return path in (DONE, BEGUN, MADE) or re.fullmatch(r"\.(done|stage\.json|made\.json)\..+", path) is not None


def _files(folder: Path) -> list[str]:
    """Every file and link in a folder, relative to it, with slashes."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/") for name in files + links]
    return found


def refusal(
    names: Sequence[str],
    *,
    changes: list[str],
    folder: Path,
    redo: Iterable[str] = (),
    absent: Absent = MappingProxyType({}),
) -> str:
    """What is said where trained stages of a run folder would be done anew: what changed, and what can be done.

    redo: stages that are trained again anyway, which the way out must name too. absent: of stages that the command does
    not train, what makes it do so.
    """
    shown = "; ".join(changes[:SHOWN]) + (f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")
    which, are = " and ".join(names), "is" if len(names) == 1 else "are"
    return (
        f"{which} {are} trained already, or partly, with other settings or documents, and {are} kept ({shown}): give "
        "--name NEW for a run of its own, --extend where only the number of steps of a wsd schedule grew, or --redo "
        f"{_again(names, redo, folder)}{also(names, absent)}; the settings of before go on as ever"
    )


def not_extended(names: Sequence[str], reason: str, *, folder: Path, redo: Iterable[str] = ()) -> str:
    """What is said where trained stages cannot go on with more steps."""
    return (
        f"{' and '.join(names)} cannot be extended: {reason}. Everything is kept as it is; give --name NEW for a run "
        f"of its own, or --redo {_again(names, redo, folder)}"
    )


def also(names: Iterable[str], absent: Absent) -> str:
    """What must be given with --redo where some of these stages are not trained by the command."""
    missing = [name for name in names if name in absent]
    if not missing:
        return ""
    verb = "are" if len(missing) > 1 else "is"
    return f" (and {absent[missing[0]]}, without which {' and '.join(missing)} {verb} not trained)"


def _again(names: Sequence[str], redo: Iterable[str], folder: Path) -> str:
    """The stages to give with --redo, and what becomes of their folders."""
    every = [*(name for name in sorted(redo) if name not in names), *names]
    there = [name for name in every if is_expensive(folder / name)]
    renamed = ", ".join(f"{name} to {aside_of(folder / name).name}" for name in there)
    return f"{' '.join(every)} to train again (what is there is renamed: {renamed})"
