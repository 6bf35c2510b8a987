"""Where a stage's folder is: stored under the digest of its key, with a link to it in the run folder.

    runs/.store/<stage>/<digest>/       what was made (`brine.common.content_store`); <digest>-2 is a training repeated
    runs/.store/<stage>/<digest>.lock   held by the process that makes it
    runs/.store/.runs/<digest>.json     a run folder with links into the store, for `brine store gc`
    runs/<name>/<stage>                 a relative link to the first

A folder that is no such link (of a run made before, copied with `cp -rL`, or moved to another disk and linked by hand)
is worked in as it is.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

from brine.common.content_store import lock_path
from brine.common.files import differences, digest, read_json, write_json

logger = logging.getLogger("brine.pipeline")

RUNS = ".runs"
"""In a store: a record of each run folder that has links into it."""


def link_target(folder: Path) -> Path:
    """Where a link leads, by its words alone."""
    return Path(os.path.normpath(folder.parent.resolve() / os.readlink(folder)))


def stored_target(folder: Path) -> Path | None:
    """The stored folder behind a stage's link; None for a real folder, another link, or nothing."""
    if not folder.is_symlink():
        return None
    target = link_target(folder)
    return target if lock_path(target).exists() else None


def link_to(folder: Path, target: Path, *, store: Path) -> None:
    """Make `folder` a relative link to a stored folder, and record the run as a user of the store."""
    # before there is a link, so that nothing that a run links to is taken for unneeded
    record_run(store, folder.parent)
    os.symlink(os.path.relpath(target.resolve(), folder.parent.resolve()), folder, target_is_directory=True)


def record_run(store: Path, run: Path) -> None:
    """Record a run folder as a user of a store."""
    record = store / RUNS / f"{digest(str(run.resolve()))}.json"
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {"run": str(run.resolve())})


def recorded_runs(store: Path) -> list[Path]:
    """The run folders that were recorded as users of a store, wherever they are or were."""
    found = [read_json(path) for path in sorted((store / RUNS).glob("*.json"))]
    return [Path(record["run"]) for record in found if isinstance(record, dict) and isinstance(record.get("run"), str)]


def check_links(run: Path) -> None:
    """Raise ValueError for a link of a run folder to a stored stage that is gone."""
    for folder in sorted(run.iterdir()):
        if folder.is_symlink() and not folder.exists() and link_target(folder).parent.name == folder.name:
            raise ValueError(
                f"{folder} links to {link_target(folder)}, which is gone: put it back (`cp -rL` copies a run with what "
                "its links lead to), or delete the link to make the stage again"
            )


def stage_key(config: Any, inputs: dict[str, str], revision: int) -> dict[str, Any]:
    """A stage's key; the first revision is not named, as it was not before there were others."""
    return {"config": config, "inputs": inputs} | ({"revision": revision} if revision != 1 else {})


def key_changes(begun: Any, key: dict[str, Any]) -> list[str]:
    """What changed from a stage's key as it was written to `key`."""
    first = {"revision": 1}
    return differences(first | begun if isinstance(begun, dict) else begun, first | key)


def only_revision_changed(begun: dict[str, Any], key: dict[str, Any]) -> bool:
    """Is the revision of the stage's code all that changed?"""
    changes = key_changes(begun, key)
    return bool(changes) and all(each.startswith("revision: ") for each in changes)


def allow_writing(folder: Path) -> None:
    """Give the files of an interrupted stage back their write bits, which a copy of a finished one lacks."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            found = os.lstat(path)
            # another name of a file may belong to a finished stage
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and not found.st_mode & stat.S_IWUSR:
                os.chmod(path, found.st_mode | stat.S_IWUSR)


def begun_key(folder: Path) -> dict[str, Any] | None:
    """The key with which a stage was begun in a folder, or None."""
    begun = read_json(folder / "stage.json")
    return begun if isinstance(begun, dict) else None
