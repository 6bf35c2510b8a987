"""What lies in the store of stages: which runs link to it, why two runs differ, and what nothing needs any more.

list_stages(root, runs)       every stored stage, its size, and the runs that link to it
explain(run_a, run_b)         stage by stage: the same, or the fields, inputs and revisions that differ
unneeded(root, runs)          stored stages that no run links to and that no linked one was made from
delete(root, runs, stages)    delete such stages, after another look under their locks
left_downloads(root)          what downloads that were killed or failed left; `delete_downloads` deletes it
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brine.common.content_store import DONE_FILE, STAGE_FILE, lock_path, try_lock, unlock
from brine.common.files import differences, read_json
from brine.common.remote.folder_store import DOWNLOADING
from brine.pipeline.stages.stage_backup import FILE_LIST, foreign_files
from brine.pipeline.stages.stage_folder import RUNS, recorded_runs

STAGE_ORDER = ("corpus", "encoded", "filtered", "small", "select", "large_salt", "large_baseline", "evaluate")
UNFINISHED_GRACE_S = 24 * 3600.0
"""An unfinished folder that was written to since then may be about to resume."""


@dataclass(frozen=True)
class StoredStage:
    """A folder of the store. digest: of its finished stage, as later stages name it among their inputs; "" while
    unfinished. runs: links to it, as RUN/STAGE, former ones too. num_bytes: of its files. foreign: files there that the
    stage did not make; None where nothing says which those are."""

    stage: str
    folder: Path
    digest: str
    inputs: frozenset[str]
    runs: tuple[str, ...]
    num_bytes: int
    changed: float
    foreign: tuple[str, ...] | None = ()

    @property
    def finished(self) -> bool:
        """Was it made to its end?"""
        return bool(self.digest)


def list_stages(root: Path, runs: Path) -> list[StoredStage]:
    """The stored stages under `root`, with the links of all runs below `runs`, and of those elsewhere that recorded
    themselves in the store, by stage and folder."""
    links: dict[Path, list[str]] = {}
    for link in _links(runs, root):
        name = link.relative_to(runs) if link.is_relative_to(runs) else link
        links.setdefault(link.resolve(), []).append(str(name))
    found = []
    for folder in sorted(root.glob("*/*")):
        if not folder.is_dir() or folder.name.startswith(".") or folder.parent.name.startswith("."):
            continue
        mark, begun = read_json(folder / DONE_FILE), read_json(folder / STAGE_FILE)
        inputs = (begun.get("inputs") if isinstance(begun, dict) else None) or {}
        size, changed = _size(folder)
        found.append(StoredStage(
            folder.parent.name, folder, (mark or {}).get("digest", folder.name) if isinstance(mark, dict) else "",
            frozenset(map(str, inputs.values())), tuple(sorted(links.get(folder.resolve(), ()))), size, changed,
            tuple(foreign_files(folder)) if (folder / FILE_LIST).exists() else None,
        ))  # fmt: skip
    order = {name: number for number, name in enumerate(STAGE_ORDER)}
    return sorted(found, key=lambda each: (order.get(each.stage, len(order)), each.stage, each.folder.name))


def _links(runs: Path, root: Path) -> Iterator[Path]:
    """Links into the store from anywhere below `runs` and from recorded runs; linked folders are not entered."""
    store = root.resolve()
    for folder in _folders(runs, root):
        # a running training makes and renames folders meanwhile
        with contextlib.suppress(FileNotFoundError):
            for path in folder.iterdir():
                if path.is_symlink() and path.resolve().is_relative_to(store):
                    yield path


def unreachable_runs(root: Path, runs: Path) -> list[Path]:
    """Recorded runs elsewhere whose links cannot be looked at now: not even the folder that held them is there, as
    where a disk is not mounted or the path belongs to another machine."""
    return [run for run in _runs_elsewhere(root, runs) if not run.parent.is_dir()]


def _runs_elsewhere(root: Path, runs: Path) -> list[Path]:
    return [run for run in recorded_runs(root) if not run.is_relative_to(runs.resolve())]


def _folders(runs: Path, root: Path) -> Iterator[Path]:
    """Every folder below `runs` and below recorded runs elsewhere, but the store; links are not followed."""
    store = root.resolve()
    for top in (runs, *_runs_elsewhere(root, runs)):
        for parent, folders, _ in os.walk(top):
            folders[:] = [name for name in folders if (Path(parent) / name).resolve() != store]
            yield Path(parent)


def _size(folder: Path) -> tuple[int, float]:
    """(bytes of a folder's files, time of the last change)."""
    total, changed = 0, 0.0
    with contextlib.suppress(FileNotFoundError):
        changed = folder.stat().st_mtime
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue
            total, changed = total + found.st_size, max(changed, found.st_mtime)
    return total, changed


def unneeded(root: Path, runs: Path, *, now: float | None = None) -> list[StoredStage]:
    """Stored stages that no run links to, and from which nothing that a run links to was made.

    Folders that another process holds, unfinished ones that were written to within a day, and those with files of
    somebody's (`with_foreign_files` has them) are left out. Raises ValueError where a recorded run cannot be looked at.
    """
    if lost := unreachable_runs(root, runs):
        raise ValueError(
            f"the run {lost[0]} has links into {root} and cannot be reached from here: mount its disk, work on its "
            f"machine, or delete its record below {root / RUNS} if it is gone for good"
        )
    return [stage for stage in _unlinked(root, runs, now=now) if not stage.foreign]


def with_foreign_files(root: Path, runs: Path, *, now: float | None = None) -> list[StoredStage]:
    """As `unneeded`, those that are kept because somebody put files there."""
    return [stage for stage in _unlinked(root, runs, now=now) if stage.foreign]


def _unlinked(
    root: Path, runs: Path, *, now: float | None, held: Container[Path] = ()
) -> list[StoredStage]:  # fmt: skip
    stages = list_stages(root, runs)
    by_digest: dict[str, list[StoredStage]] = {}
    for stage in stages:
        by_digest.setdefault(stage.digest, []).append(stage)
    # a stage of a run that lies in the run itself was made from stored ones too
    queue = [stage for stage in stages if stage.runs]
    needed = {stage.folder for stage in queue}
    wanted = set().union(*(stage.inputs for stage in queue), _inputs_of_runs(runs, root))
    while wanted:
        more = [stage for digest in wanted for stage in by_digest.get(digest, ()) if stage.folder not in needed]
        needed |= {stage.folder for stage in more}
        wanted = set().union(*(stage.inputs for stage in more))
    now = time.time() if now is None else now
    return [
        stage
        for stage in stages
        if stage.folder not in needed
        # what else is kept in a content store is not the pipeline's
        and stage.foreign is not None
        and (stage.finished or now - stage.changed > UNFINISHED_GRACE_S)
        and (stage.folder in held or not _is_held(stage.folder))
    ]


def _inputs_of_runs(runs: Path, root: Path) -> set[str]:
    """Inputs of the stages that lie in the runs themselves."""
    found: set[str] = set()
    for folder in _folders(runs, root):
        begun = read_json(folder / STAGE_FILE)
        if isinstance(begun, dict) and isinstance(begun.get("inputs"), dict):
            found |= set(map(str, begun["inputs"].values()))
    return found


def _is_held(folder: Path) -> bool:
    lock = lock_path(folder)
    if not lock.exists():
        return False
    handle = try_lock(lock)
    if handle is not None:
        unlock(handle)
    return handle is None


def delete(root: Path, runs: Path, stages: Iterable[StoredStage]) -> list[StoredStage]:
    """Delete stored stages that are unneeded still, under their locks; returns those that were deleted.

    A run links to a folder under its lock, so that whoever comes later finds none and makes it again."""
    held = {stage.folder: handle for stage in stages if (handle := try_lock(lock_path(stage.folder))) is not None}
    try:
        # this process's own locks do not count as another's
        still = {stage.folder: stage for stage in _unlinked(root, runs, now=float("inf"), held=held)}
        gone = [still[folder] for folder in held if folder in still and not still[folder].foreign]
        for stage in gone:
            # renamed first: a folder that is half deleted must not look finished
            deleted = stage.folder.with_name(f".{stage.folder.name}.deleted")
            shutil.rmtree(deleted, ignore_errors=True)
            os.rename(stage.folder, deleted)
            shutil.rmtree(deleted)
        for deleted in root.glob("*/.*.deleted"):
            # of a process that was killed
            shutil.rmtree(deleted, ignore_errors=True)
    finally:
        for handle in held.values():
            unlock(handle)
    return gone


def left_downloads(root: Path) -> list[StoredStage]:
    """Folders of downloads that nobody is at work on: of stages that were built since, or will be."""
    found = []
    for folder in sorted(root.glob(f"*/.*{DOWNLOADING}")):
        if folder.is_dir() and not folder.parent.name.startswith(".") and not _is_held(_downloaded(folder)):
            size, changed = _size(folder)
            found.append(StoredStage(folder.parent.name, folder, "", frozenset(), (), size, changed))
    return found


def delete_downloads(downloads: Iterable[StoredStage]) -> list[StoredStage]:
    """Delete what downloads left, each under the lock of its stage; returns those that were deleted."""
    gone = []
    for download in downloads:
        if (handle := try_lock(lock_path(_downloaded(download.folder)))) is None:
            continue
        try:
            if download.folder.is_dir():
                shutil.rmtree(download.folder)
                gone.append(download)
        finally:
            unlock(handle)
    return gone


def _downloaded(partial: Path) -> Path:
    """The folder of the stage that a folder of a download is to become."""
    return partial.with_name(partial.name.removeprefix(".").removesuffix(DOWNLOADING))


@dataclass(frozen=True)
class StageDifference:
    """A stage of two runs. state: "same", "differs", "same settings, other result" (as of trainings on two machines),
    "only in the first" or "only in the second"; changes: lines of what differs of its own; caused_by: earlier stages
    that differ."""

    stage: str
    state: str
    changes: tuple[str, ...] = ()
    caused_by: tuple[str, ...] = ()


def explain(first: Path, second: Path) -> list[StageDifference]:
    """What differs between two runs, stage by stage. Raises ValueError for a folder without stages."""
    keys = [_keys(run) for run in (first, second)]
    for run, found in zip((first, second), keys, strict=True):
        if not found:
            raise ValueError(f"{run} has no stages: give a run folder such as runs/demo")
    names = [name for name in STAGE_ORDER if any(name in found for found in keys)]
    names += sorted({*keys[0], *keys[1]} - set(names))
    result: list[StageDifference] = []
    differing: set[str] = set()
    for name in names:
        ours, theirs = (found.get(name) for found in keys)
        if ours is None or theirs is None:
            result.append(StageDifference(name, "only in the second" if ours is None else "only in the first"))
            continue
        changes = _changes(ours, theirs)
        names_of = [change.split(":")[0].removeprefix("inputs.") for change in changes]
        causes = tuple(sorted(set(names_of) & differing))
        own = tuple(change for change, cause in zip(changes, names_of, strict=True) if cause not in differing)
        state = "differs" if changes else "same"
        if not changes and (digests := {_digest(run, name) for run in (first, second)} - {""}) and len(digests) > 1:
            state = "same settings, other result"
        if state != "same":
            differing.add(name)
        result.append(StageDifference(name, state, own, causes))
    return result


def _keys(run: Path) -> dict[str, dict[str, Any]]:
    found = {path.parent.name: read_json(path) for path in sorted(run.glob(f"*/{STAGE_FILE}"))}
    return {name: key for name, key in found.items() if isinstance(key, dict) and ".old-" not in name}


def _digest(run: Path, name: str) -> str:
    mark = read_json(run / name / DONE_FILE)
    return str(mark.get("digest", "")) if isinstance(mark, dict) else ""


def _changes(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    known = {"revision": 1}
    return differences(known | ours, known | theirs)
