"""What becomes of the folder of a stage that is done anew, and the messages of a command that is refused.

    move_to_backup(folder)      a trained stage, whole, under the first free name of `<stage>.old-1`, `.old-2` ...
    discard(folder, names)      any other stage: its own files are deleted, other files in the folder are kept

A stage's own files are those under its `output_names` when it was done (`made.json`), or of a stage that was cut off
all under these names. Nothing here ever deletes a folder `.old-N`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from brine.common.files import read_json, write_json

DONE_FILE, STAGE_FILE, FILE_LIST = "done", "stage.json", "made.json"
PROTECTED_PATTERNS = (DONE_FILE, "metrics.jsonl", "checkpoints/*", "model/*")
"""Files that show that a protected stage has made something."""
BACKUP_SUFFIX = ".old-"
"""Between a stage's name and a number: its folder as it was before the stage was done again."""
MAX_SHOWN_DIFFERENCES = 12
"""Most differences that a refusal names."""
UntrainedStages = Mapping[str, str]
_LEFTOVER = re.compile(r"\.old_(.+)_\d+")


class ProtectedStageError(ValueError):
    """The command would replace something that took long to make; nothing was changed."""


def is_protected(folder: Path) -> bool:
    """Has a protected stage made anything in its folder yet?"""
    return any(next(folder.glob(pattern), None) is not None for pattern in PROTECTED_PATTERNS)


def has_weights(folder: Path) -> bool:
    """Are there weights or checkpoints in a stage's folder?"""
    return next(folder.glob("checkpoints/step_*"), None) is not None or any(folder.glob("model/*.safetensors"))


def backup_path(folder: Path) -> Path:
    """The first free one of `<stage>.old-1`, `.old-2` and so on."""
    number = 1
    while os.path.lexists(old := folder.with_name(f"{folder.name}{BACKUP_SUFFIX}{number}")):
        number += 1
    return old


def move_to_backup(folder: Path) -> Path:
    """Rename a stage's folder to the first free name; returns its new path."""
    old = backup_path(folder)
    os.rename(folder, old)
    return old


def files_of_stage(folder: Path, output_names: Sequence[str]) -> list[str]:
    """Every file below those names of a folder, links not followed, as paths relative to it, sorted."""
    return sorted(path for path in _files(folder) if path.split("/")[0] in output_names)


def discard(folder: Path, output_names: Sequence[str]) -> Path | None:
    """Delete a stage's own files, and its folder. Returns the folder beside it that keeps the others, or None."""
    made = read_json(folder / FILE_LIST)
    if not isinstance(made, list):
        made = files_of_stage(folder, output_names)
        write_json(folder / FILE_LIST, made)
    old = folder.with_name(f".old_{folder.name}_{os.getpid()}")
    os.rename(folder, old)
    return _clear(old, folder, made)


def finish_discards(run: Path) -> None:
    """Finish discarding what a killed process left half discarded."""
    for old in sorted(run.glob(".old_*")):
        if (found := _LEFTOVER.fullmatch(old.name)) is None or not old.is_dir():
            continue
        made = read_json(old / FILE_LIST)
        # the list is gone only where all that is left was the pipeline's own
        if isinstance(made, list):
            _clear(old, run / found[1], made)
        else:
            shutil.rmtree(old, ignore_errors=True)


def _clear(old: Path, folder: Path, made: list[Any]) -> Path | None:
    """Delete the files `made`, relative to `old`, and the pipeline's own; what is left is renamed to go with
    `folder`."""
    known = {path for path in made if isinstance(path, str)}
    for path in _files(old):
        if path in known and not _is_pipeline_file(path):
            (old / path).unlink(missing_ok=True)
    if all(map(_is_pipeline_file, _files(old))):
        shutil.rmtree(old, ignore_errors=True)
        return None
    kept = backup_path(folder)
    os.rename(old, kept)
    for path in filter(_is_pipeline_file, _files(kept)):
        (kept / path).unlink(missing_ok=True)
    for parent, _, _ in os.walk(kept, topdown=False):
        if not os.listdir(parent):
            os.rmdir(parent)
    return kept


def _is_pipeline_file(path: str) -> bool:
    """Is this a file that the pipeline writes into every stage's folder?"""
    return (
        path in (DONE_FILE, STAGE_FILE, FILE_LIST)
        or re.fullmatch(r"\.(done|stage\.json|made\.json)\..+", path) is not None
    )


def _files(folder: Path) -> list[str]:
    """Every file and link in a folder, relative to it, with slashes."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/") for name in files + links]
    return found


def refusal_message(
    names: Sequence[str],
    *,
    changes: list[str],
    folder: Path,
    rerun: Iterable[str] = (),
    untrained: UntrainedStages = MappingProxyType({}),
) -> str:
    """The message where trained stages would be done anew: what changed, and the options of the user.

    rerun: stages that are trained again anyway, which the remedy must name too. untrained: stages that the command does
    not train, with the option that makes it train them.
    """
    shown = "; ".join(changes[:MAX_SHOWN_DIFFERENCES]) + (
        f"; and {len(changes) - MAX_SHOWN_DIFFERENCES} more" if len(changes) > MAX_SHOWN_DIFFERENCES else ""
    )
    which, are = " and ".join(names), "is" if len(names) == 1 else "are"
    return (
        f"{which} {are} trained already, or partly, with other settings or documents, and {are} kept ({shown}): give "
        "--name NEW for a run of its own, --extend where only the number of steps of a wsd schedule grew, or --rerun "
        f"{_again(names, rerun, folder)}{also(names, untrained)}; the previous settings resume it"
    )


def extension_refusal(names: Sequence[str], reason: str, *, folder: Path, rerun: Iterable[str] = ()) -> str:
    """The message where trained stages cannot continue with more steps."""
    return (
        f"{' and '.join(names)} cannot be extended: {reason}. Everything is kept as it is; give --name NEW for a run "
        f"of its own, or --rerun {_again(names, rerun, folder)}"
    )


def also(names: Iterable[str], untrained: UntrainedStages) -> str:
    """What must be given with --rerun where some of these stages are not trained by the command."""
    missing = [name for name in names if name in untrained]
    if not missing:
        return ""
    verb = "are" if len(missing) > 1 else "is"
    return f" (and {untrained[missing[0]]}, without which {' and '.join(missing)} {verb} not trained)"


def _again(names: Sequence[str], rerun: Iterable[str], folder: Path) -> str:
    """The stages to give with --rerun, and what becomes of their folders."""
    every = [*(name for name in sorted(rerun) if name not in names), *names]
    there = [name for name in every if is_protected(folder / name)]
    renamed = ", ".join(f"{name} to {backup_path(folder / name).name}" for name in there)
    return f"{' '.join(every)} to train again (what is there is renamed: {renamed})"
