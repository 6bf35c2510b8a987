"""Folders of stages that are done again, and the messages of a command that is refused.

    move_to_backup(folder)      a trained stage, whole, under the first free name of `<stage>.old-1`, `.old-2` ...
    rename_link(folder)           a link to a stored stage: the link is renamed in this way, nothing is deleted
    discard(folder, names)      a folder in the run: the files that it made are deleted, other files in it are kept

A stage made the files under its `output_names` when it was done (`outputs.json`), or, where it was interrupted, all
under these names. Nothing here ever deletes a folder `.old-N`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brine.common.files import read_json, write_json, write_text
from brine.common.renamed import FORMER_FILES, current_file

if TYPE_CHECKING:
    from brine.pipeline.stages.stage_store import StageStore

DONE_FILE, STAGE_FILE, FILE_LIST = "done", "stage.json", "outputs.json"
PROTECTED_PATTERNS = (DONE_FILE, "metrics.jsonl", "checkpoints/*", "model/*")
"""Files that show that a protected stage has made something."""
BACKUP_SUFFIX = ".old-"
"""Between a stage's name and a number: its former folder."""
MAX_SHOWN_DIFFERENCES = 12
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
    return folder.rename(backup_path(folder))


def rename_link(link: Path) -> Path | None:
    """Rename the link of a changed stage as `move_to_backup` does, or remove it: where another former link leads to the
    same folder, or where the stage was interrupted and nobody put anything there. Returns its new path."""
    others = [each for each in link.parent.glob(f"{link.name}{BACKUP_SUFFIX}*") if each.is_symlink()]
    known = any(each.resolve() == link.resolve() for each in others)
    if known or not ((link / DONE_FILE).exists() or foreign_files(link)):
        link.unlink()
        return None
    return move_to_backup(link)


def foreign_files(folder: Path) -> list[str]:
    """Files in a stage's folder that the stage did not make: not in the list that it left when it was done, nor, until
    then, under the names of its outputs; all of them where neither is recorded."""
    made = read_json(current_file(folder / FILE_LIST))
    if isinstance(made, dict):
        made = files_of_stage(folder, made.get("names") or ())
    known = set(made) if isinstance(made, list) else set()
    return sorted(path for path in _files(folder) if path not in known and not _is_pipeline_file(path))


def files_of_stage(folder: Path, output_names: Sequence[str]) -> list[str]:
    """Every file below those names of a folder, links not followed, as paths relative to it, sorted."""
    return sorted(path for path in _files(folder) if path.split("/")[0] in output_names)


def discard(folder: Path, output_names: Sequence[str]) -> Path | None:
    """Delete the files that a stage made, and its folder. Returns the folder beside it with the others, or None."""
    made = read_json(current_file(folder / FILE_LIST))
    if not isinstance(made, list):
        made = files_of_stage(folder, output_names)
        write_json(folder / FILE_LIST, made)
    old = folder.with_name(f".old_{folder.name}_{os.getpid()}")
    os.rename(folder, old)
    return _clear(old, folder, made)


def finish_discards(run: Path) -> None:
    """Finish discarding what a killed process left half discarded."""
    for old in sorted(run.glob(".old_*")):
        if (found := _LEFTOVER.fullmatch(old.name)) is not None and old.is_dir():
            made = read_json(current_file(old / FILE_LIST))
            # without a list only files of the pipeline are left
            if isinstance(made, list):
                _clear(old, run / found[1], made)
            else:
                shutil.rmtree(old, ignore_errors=True)


def _clear(old: Path, folder: Path, made: list[Any]) -> Path | None:
    """Delete the files `made`, relative to `old`, and the pipeline's; the rest is renamed to stay beside `folder`."""
    for path in _files(old):
        if path in made and not _is_pipeline_file(path):
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
    return (
        path in (DONE_FILE, STAGE_FILE, FILE_LIST, FORMER_FILES[FILE_LIST])
        or re.fullmatch(r"\.(done|stage\.json|outputs\.json|made\.json)\..+", path) is not None
    )


def _files(folder: Path) -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/") for name in files + links]
    return found


def refusal_message(store: StageStore, names: Sequence[str], changes: list[str]) -> str:
    """The message where trained stages would be done again: what changed, and the user's options."""
    which, are = " and ".join(names), "is" if len(names) == 1 else "are"
    return (
        f"{which} {are} trained already, or partly, with other settings or documents, and {are} kept "
        f"({first_changes(changes, MAX_SHOWN_DIFFERENCES)}): give --name NEW for a separate run, --extend where only "
        f"the number of steps of a wsd schedule grew, or --rerun {_again(store, names)}{untrained_note(store, names)}; "
        "the previous settings resume it"
    )


def extension_refusal(store: StageStore, name: str, reason: str, *, also: Iterable[str] = ()) -> str:
    """The message where a trained stage cannot continue with more steps; also: others that are refused with it."""
    return (
        f"{name} cannot be extended: {reason}. Everything is kept as it is; give --name NEW for a separate run, or "
        f"--rerun {_again(store, [name], also)}"
    )


def untrained_note(store: StageStore, names: Iterable[str]) -> str:
    """What must be given with --rerun where some of these stages are not trained by the command."""
    missing = [name for name in names if name in store.untrained]
    return f" (and {store.untrained[missing[0]]}, which trains {' and '.join(missing)})" if missing else ""


def first_changes(changes: list[str], most: int = 4) -> str:
    """The first changes of a list, and how many more there are."""
    return "; ".join(changes[:most]) + (f"; and {len(changes) - most} more" if len(changes) > most else "")


def _again(store: StageStore, names: Sequence[str], also: Iterable[str] = ()) -> str:
    """The stages to give with --rerun, and the names that their folders will have."""
    every = [*sorted((store.rerun | set(also)) - set(names)), *names]
    there = [name for name in every if is_protected(store.folder / name)]
    renamed = ", ".join(f"{name} to {backup_path(store.folder / name).name}" for name in there)
    return f"{' '.join(every)} to train again (what is there is renamed: {renamed})"


@contextmanager
def restore_if_refused(paths: Iterable[Path]) -> Iterator[None]:
    """Restore small files that were written before a ProtectedStageError: a refused command leaves no trace."""
    before = {path: path.read_text(encoding="utf-8") if path.exists() else None for path in paths}
    try:
        yield
    except ProtectedStageError:
        for path, text in before.items():
            if text is not None:
                write_text(path, text)
        raise
