"""The stage store at a URL (extra [remote]): finished stages go there and come back, none of their files twice.

    <url>/stages/<stage>/<digest>.folder.json    a finished stage, by `brine.common.remote.folder_store`
    <url>/runs/<name>.folder.json                the links of a run, as {stage: digest}

A stage is there whole or not at all, under the digest of its key, so equal keys are sent once whoever sends them. What
comes back is compared file by file with its SHA-256, its own mark `done` included, before it gets its name.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brine.common.content_store import DONE_FILE, ContentStore, file_lock, lock_path
from brine.common.files import file_digest, read_json
from brine.common.remote.folder_store import FolderStore, StoredFolder
from brine.common.remote.object_store import RemoteError, check_name

_DIGEST = re.compile(r"[0-9a-f]{8,64}(-[0-9]{1,9})?")
"""Name of a stage's folder; with a number, of a training that was repeated."""


@dataclass(frozen=True)
class TransferResult:
    """What a push or pull did."""

    stages: tuple[str, ...]
    """`stage/digest` of each stage of the run."""
    sent: int
    """Stages that were not there yet."""


def stages_of(run: Path, root: Path) -> dict[str, str]:
    """{name in the run: stage/digest} of the finished stages that a run folder links to in the store at `root`."""
    if not run.is_dir():
        raise RemoteError(f"{run} is no folder: give a run such as runs/demo")
    found = {}
    for path in sorted(run.iterdir()):
        target = Path(os.path.realpath(path))
        if path.is_symlink() and target.parent.parent == root.resolve() and (target / DONE_FILE).is_file():
            found[path.name] = f"{target.parent.name}/{target.name}"
    return found


def push(run: Path, root: Path, url: str, *, stopped: Callable[[], bool] = lambda: False) -> TransferResult:
    """Upload the finished stages of a run, then the list of them. stopped: see `FolderStore.upload`. Raises RemoteError
    where it has none, or the store fails."""
    stages, store = stages_of(run, root), FolderStore(url)
    if not stages:
        raise RemoteError(f"{run} links to no finished stage in {root}: train first, or give the run's store")
    sent = sum(upload_stage(store, root, place, stopped=stopped) for place in sorted(set(stages.values())))
    # a folder without files, whose list holds the links
    listed = {"stages": stages}
    store.put_list(f"runs/{run.name}", listed)
    return TransferResult(tuple(stages.values()), sent)


def upload_stage(store: FolderStore, root: Path, place: str, *, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Upload a finished stage if it is not there; returns whether it was not. stopped: see `FolderStore.upload`.

    Raises RemoteError where the store fails, and where it has the stage with another result, from which the later
    stages of this run were not made.
    """
    folder, stored = root / place, find_stage(store, place)
    if stored is None:
        store.upload(folder, f"stages/{place}", stopped=stopped)
        return True
    if stored.files[DONE_FILE][1] != file_digest(folder / DONE_FILE):
        with tempfile.TemporaryDirectory() as temporary:
            store.download(stored, Path(temporary) / "mark", paths=[DONE_FILE])
            marks = [read_json(each / DONE_FILE) or {} for each in (Path(temporary) / "mark", folder)]
        if marks[0].get("digest") != marks[1].get("digest"):
            raise RemoteError(
                f"{store.url} has {place} with another result, made elsewhere: upload this run to another URL"
            )
    return False


def find_stage(store: FolderStore, place: str) -> StoredFolder | None:
    """The list of a finished stage's files; None where the URL has none."""
    stored = store.find(f"stages/{place}")
    return stored if stored is not None and DONE_FILE in stored.files else None


def download_stage(store: FolderStore, stored: StoredFolder, folder: Path) -> None:
    """Download a finished stage to `folder`, which is not here and whose lock is held. Raises RemoteError where the
    store fails or an object is damaged."""
    store.download(stored, folder)
    ContentStore.finish(folder, read_json(folder / DONE_FILE) or {})


def pull(name: str, runs: Path, root: Path, url: str) -> TransferResult:
    """Download the stages of a run that are not here into the store at `root`, and link `runs/<name>` to them.

    Raises RemoteError where the URL has no such run, a stage is damaged, or the run folder here has another stage
    under one of the names, which stays.
    """
    store = FolderStore(url)
    listed = store.find(f"runs/{check_name(name)}")
    if listed is None:
        there = [each.removeprefix("runs/") for each in store.names("runs")]
        raise RemoteError(f"{url} has no run {name!r}: it has {', '.join(there[:10]) or 'none'}")
    stages = _checked(listed.extra.get("stages"), url)
    for link, place in stages.items():
        here = runs / name / link
        if os.path.lexists(here) and Path(os.path.realpath(here)) != (root / place).resolve():
            raise RemoteError(f"{here} is another stage than the one at {url}: move it away, or pull into other --runs")
    links: dict[str, list[Path]] = {}
    for link, place in stages.items():
        links.setdefault(place, []).append(runs / name / link)
    (runs / name).mkdir(parents=True, exist_ok=True)
    sent = sum(_pull_stage(store, root, place, links[place]) for place in sorted(links))
    return TransferResult(tuple(stages.values()), sent)


def _pull_stage(store: FolderStore, root: Path, place: str, links: list[Path]) -> bool:
    """Have a stage here, and link to it under its lock, so that it is not deleted between the two."""
    folder = root / place
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(lock_path(folder), what=place):
        is_new = not (folder / DONE_FILE).is_file()
        if is_new and folder.exists():
            raise RemoteError(f"{folder} is unfinished: let its run finish it, or move it away")
        if is_new:
            if (stored := find_stage(store, place)) is None:
                raise RemoteError(f"{store.url} has no finished stage {place}: push the run again")
            download_stage(store, stored, folder)
        for link in links:
            if not os.path.lexists(link):
                os.symlink(os.path.relpath(folder.resolve(), link.parent.resolve()), link)
    return is_new


def _checked(stages: object, url: str) -> dict[str, str]:
    """The links of a run, each a plain name and `stage/digest`. Raises RemoteError for anything else."""
    trouble = RemoteError(f"{url}: the run's list of stages is damaged ({json.dumps(stages)[:100]}): push it again")
    if not isinstance(stages, dict):
        raise trouble
    for link, place in stages.items():
        stage, _, key = place.partition("/") if isinstance(place, str) else ("", "", "")
        if "/" in check_name(link) or link.startswith(".") or "/" in check_name(stage) or not _DIGEST.fullmatch(key):
            raise trouble
    return stages
