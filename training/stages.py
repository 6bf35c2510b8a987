"""The line: stages that are done once, go on where they were cut off, and are done again when their cause changes.

    runs/<name>/lock                  flock of the one process that works here, with its pid
    runs/<name>/<stage>/stage.json    key of the stage that was begun here: settings that decide, and input hashes
    runs/<name>/<stage>/done          the same key, and what the stage gave; written last, in one rename

A stage is named by what decides its outcome: those fields of its resolved configuration that do (`data.deciding`), and
the digests of its inputs. If `done` holds the same key the stage is skipped. A key that an earlier version wrote counts
as the same where it differs in fields that do not decide, or lacks fields that have their defaults. If only
`stage.json` has the key, the stage was cut off: its function is called again in the folder as it lies, and goes on from
whatever it left there (training from its last checkpoint). If the key differs, the folder is taken away and the stage
is done anew, and the log says which setting or input changed. A stage's own digest covers its key and the `fingerprint`
its function may return (a hash of what it made), so a change travels down the line by itself. What the line did not
make in such a folder, somebody's notes, is kept (`training.aside`).

What took long to make is never taken away. A stage that is `precious` and has begun to make something (weights, a
checkpoint, metrics) is refused where its key differs, `KeptError`, with the fields that changed and what can be done.
Nor is anything done anew that such a stage stands on: what a trained model has seen stays as long as the model does.
Documents that change under a run are told with each command, and the run goes on with what it made of them before
(`stays`), finished or not.
Where the user asks for it by name (`redo`), the old folder, finished or not, is renamed to `<stage>.old-1`, the next
to `.old-2`, and nothing here ever deletes these. What such a command has begun and did not end goes on with the same
command, and after any other command begins anew with it.

With several ranks rank 0 decides and writes. A stage that all ranks work on (`everywhere`) is called on each; for
others the rest wait for the `done` mark. What this file does not do: run stages in parallel, or guess which files a
function reads; inputs are named by the caller.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.aside import (
    ASIDE,
    BEGUN,
    DONE,
    MADE,
    Absent,
    KeptError,
    also,
    discard,
    discard_leftovers,
    has_weights,
    is_expensive,
    made_in,
    moved_aside,
    not_extended,
    refusal,
)
from training.distributed import LOCK_NAME, World, wait_for
from training.files import deciding, differences, digest, plain, read_json, write_json, write_text

logger = logging.getLogger("brine.line")

REDONE = "redone.json"
"""In a folder that `redo` has begun: what became of the one before."""
FRESH = ".extending_"
"""Before a stage's name: the folder in which it will go on with more steps."""
BUILD_TIMEOUT_S = 4 * 3600.0
ORPHAN_GRACE_S = 10.0


class RunLockedError(ValueError):
    """Another process works in the run folder."""


@dataclass(frozen=True)
class Stage:
    """One finished stage."""

    name: str
    """Its name, and its folder's."""
    folder: Path
    """Where its outcome lies."""
    digest: str
    """Names its outcome: key and fingerprint."""
    result: dict[str, Any]
    """What its function returned, plain JSON."""
    skipped: bool
    """True when nothing had to be done."""
    wall_s: float
    """Seconds that its (last) call took; a record only."""


class Line:
    """The stages of one run folder. Use it as a context manager: inside, rank 0 holds the folder's lock.

    >>> with Line(Path("runs/demo")) as line:                                               # doctest: +SKIP
    ...     line.stage("encoded", encode_all, config=recipe.encode, inputs=["corpus"])
    """

    def __init__(
        self,
        folder: Path,
        *,
        world: World | None = None,
        build_timeout_s: float = BUILD_TIMEOUT_S,
        redo: Iterable[str] = (),
        absent: Absent | None = None,
    ):
        """redo: precious stages that are done again, changed or not; the old ones are renamed. absent: precious stages
        that this command does not do, with what would make it."""
        self.folder = Path(folder)
        self.redo, self.absent = frozenset(redo), absent or {}
        self.world = world or World()
        self.build_timeout_s = build_timeout_s
        self.done: dict[str, Stage] = {}
        self.stayed: dict[str, str] = {}
        """Stages that stayed as they were although something outside of the line changed, and what is told of them."""
        self._lock: int | None = None

    def __enter__(self) -> Line:
        if self.world.is_main:
            self._lock = acquire_lock(self.folder)
            discard_leftovers(self.folder)
            for fresh in self.folder.glob(f"{FRESH}*"):
                # cut off between two renames
                stage = self.folder / fresh.name.removeprefix(FRESH)
                if (fresh / BEGUN).exists() and not stage.exists():
                    os.rename(fresh, stage)
        # the others may look at the lock only once rank 0 holds it
        self.world.barrier()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            # unlock, not only close: a forked data worker may still hold a copy of the handle
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def stage(
        self,
        name: str,
        build: Callable[[Path], Mapping[str, Any] | None],
        *,
        config: Any = None,
        inputs: Iterable[str] | Mapping[str, str] = (),
        everywhere: bool = False,
        precious: bool = False,
        stays: bool = False,
        own: Iterable[str] = (),
        extend: Callable[[Path, Path], None] | None = None,
    ) -> Stage:
        """Do a stage, or find that it is done.

        Args:
            name: its name and folder.
            build: called with the stage's folder; must go on from what a cut-off call left there. What it returns
                (plain JSON, or None) is kept in the `done` mark; a `fingerprint` in it is part of the digest.
            config: a dataclass or plain value, fully resolved.
            inputs: names of earlier stages, or names with digests of anything else.
            everywhere: call `build` on every rank, not only on rank 0.
            precious: what it made is never taken away.
            stays: its folder holds all that later stages need. Where nothing but its inputs changed and a model was
                trained on it, it is left as it is, and told in `stayed`.
            own: names of the files and folders that `build` makes. What else there is when the stage is done anew is
                somebody's, and kept.
            extend: called where a precious stage's configuration changed, with its folder and a fresh one; fills the
                latter with what `build` can go on from, or raises ValueError. The old folder is renamed.

        Raises ValueError for an input that is no earlier stage and for a folder that holds something else, KeptError
        where something precious would be done anew.
        """
        key = {"config": config, "inputs": self._digests(inputs)}
        folder = self.folder / name
        mark = self._finished(folder, key)
        if mark is None and stays and (told := self._stays(name, key)):
            mark = read_json(folder / DONE)
            self.stayed[name] = told
        skipped = mark is not None and not (precious and name in self.redo)
        if name in self.stayed:
            logger.warning("%s: %s", name, self.stayed[name])
        elif skipped:
            logger.info("%s: unchanged, skipped", name)
        elif self.world.is_main:
            trouble = None
            try:
                self._prepare(name, folder, key, precious=precious, own=tuple(own), extend=extend)
            except ValueError as error:
                trouble = error
            # ranks that join in must not start before the folder is theirs, nor wait where nothing comes
            if everywhere:
                self.world.broadcast(None if trouble is None else str(trouble))
            if trouble is not None:
                raise trouble
            mark = self._build(name, folder, build, own=() if precious else tuple(own))
        else:
            if everywhere:
                if trouble := self.world.broadcast(None):
                    raise ValueError(trouble)
                build(folder)
            wait_for(
                lambda: self._finished(folder, key) is not None,
                run_folder=self.folder,
                what=name,
                timeout_s=self.build_timeout_s,
            )
            mark = self._finished(folder, key)
        stage = Stage(name, folder, mark["digest"], mark["result"], skipped, mark["wall_s"])
        self.done[name] = stage
        return stage

    def adopt(self, name: str, *, config: Any = None, inputs: Iterable[str] = ()) -> bool:
        """Take a stage that is done, with this key, as one of this line without doing anything; else False."""
        if not set(inputs) <= set(self.done):
            return False
        mark = self._finished(self.folder / name, {"config": config, "inputs": self._digests(inputs)})
        if mark is not None:
            self.done[name] = Stage(name, self.folder / name, mark["digest"], mark["result"], True, mark["wall_s"])
        return mark is not None

    def _stays(self, name: str, key: dict) -> str:
        """Why a stage whose inputs changed is left as it is; "" where it is not. Every rank finds the same."""
        folder = self.folder / name
        begun = read_json(folder / BEGUN)
        if not isinstance(begun, dict) or not self._finished(folder, begun):
            return ""
        if differences(begun.get("config"), key["config"]):
            return ""
        kept = [each for each in self.standing_on(name) if each not in self.redo]
        if not kept:
            return ""
        old, new = begun.get("inputs") or {}, key["inputs"]
        changed = sorted(each for each in {*old, *new} if old.get(each) != new.get(each))
        return (
            f"changed since ({', '.join(changed)}), and left as it was, because {' and '.join(kept)} saw it so; "
            f"give --name NEW for a run on what is there now, or --redo {' '.join(kept)}{also(kept, self.absent)} to "
            "train again (old folders are renamed)"
        )

    def _build(self, name: str, folder: Path, build: Callable, *, own: tuple[str, ...]) -> dict[str, Any]:
        start = time.perf_counter()
        # as it was begun, perhaps by an earlier version: what stands on this stage knows it by that name
        key = read_json(folder / BEGUN)
        result = plain(build(folder) or {})
        mark = {
            "key": key,
            "digest": digest({"key": key, "fingerprint": result.get("fingerprint")}),
            "result": result,
            "wall_s": round(time.perf_counter() - start, 3),
        }
        if own:
            write_json(folder / MADE, made_in(folder, own))
        write_json(folder / DONE, mark)
        logger.info("%s: done in %.1f s", name, mark["wall_s"])
        return mark

    def _prepare(
        self,
        name: str,
        folder: Path,
        key: dict,
        *,
        precious: bool,
        own: tuple[str, ...],
        extend: Callable[[Path, Path], None] | None,
    ) -> None:
        begun = read_json(folder / BEGUN)
        redo = precious and name in self.redo and is_expensive(folder)
        # what a command with `redo` left half done is what the same command goes on with
        again = redo and ((folder / DONE).exists() or not (folder / REDONE).exists())
        changes = [] if begun is None else differences(begun, key)
        if begun is not None and not changes and not again:
            logger.info("%s: was cut off, goes on", name)
            if name not in self.redo:
                (folder / REDONE).unlink(missing_ok=True)
            # a done mark that is here all the same was not whole
            (folder / DONE).unlink(missing_ok=True)
            return
        if begun is not None:
            shown = "; ".join(changes[:4]) + (f" and {len(changes) - 4} more" if len(changes) > 4 else "")
            if precious and is_expensive(folder):
                if extend is not None and name not in self.redo and begun.get("inputs") == key["inputs"]:
                    self._extend(name, folder, key, extend)
                    return
                if name not in self.redo:
                    raise KeptError(refusal([name], changes=changes, redo=self.redo, folder=self.folder))
                old = moved_aside(folder)
                why = f"because it changed: {shown}" if changes else "as asked for"
                logger.info("%s: done again, %s; what was there is kept in %s", name, why, old)
            else:
                if kept := [each for each in self.standing_on(name) if each not in self.redo]:
                    changes = [f"{name}: {change}" for change in changes]
                    raise KeptError(
                        refusal(kept, changes=changes, redo=self.redo, folder=self.folder, absent=self.absent)
                    )
                logger.info("%s: done again, because it changed: %s", name, shown)
                if kept := discard(folder, own):
                    logger.warning("%s: what the line did not make there is kept in %s", name, kept)
        elif folder.exists() and any(not _is_beginning(path) for path in folder.iterdir()):
            raise ValueError(
                f"{folder} is not empty and holds no {BEGUN}: it was not made by this line; move it away, "
                "or choose another run folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        # before the key, without which the folder is not begun
        if redo:
            write_json(folder / REDONE, {"before": old.name})
        elif name not in self.redo:
            (folder / REDONE).unlink(missing_ok=True)
        write_json(folder / BEGUN, deciding(key))

    def _extend(self, name: str, folder: Path, key: dict, extend: Callable[[Path, Path], None]) -> None:
        fresh = self.folder / f"{FRESH}{name}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            extend(folder, fresh)
        except ValueError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise KeptError(not_extended([name], str(error), redo=self.redo, folder=self.folder)) from error
        write_json(fresh / BEGUN, deciding(key))
        old = moved_aside(folder)
        os.rename(fresh, folder)
        logger.info("%s: goes on with more steps; what was there is kept in %s", name, old)

    def begun(self, name: str) -> dict | None:
        """The key of a precious stage that has made something, or None."""
        begun = read_json(self.folder / name / BEGUN)
        return begun if isinstance(begun, dict) and is_expensive(self.folder / name) else None

    def has_ended(self, name: str) -> bool:
        """Has a training stage come to its end? Its weights are the last that it makes, but for the mark."""
        return (self.folder / name / DONE).exists() or any((self.folder / name).glob("model/*.safetensors"))

    def standing_on(self, name: str) -> list[str]:
        """Stages with weights or checkpoints that were made from stage `name`, directly or by way of others."""
        inputs = {path.parent.name: _inputs(path) for path in sorted(self.folder.glob(f"*/{BEGUN}"))}
        # a folder that was moved aside is no stage any more
        inputs = {each: named for each, named in inputs.items() if ASIDE not in each}
        found, grown = {name}, True
        while grown:
            more = {each for each, named in inputs.items() if named & found} - found
            found, grown = found | more, bool(more)
        return [each for each in inputs if each in found - {name} and has_weights(self.folder / each)]

    def _digests(self, inputs: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        digests = {}
        for name in inputs:
            if name not in self.done:
                raise ValueError(f"input {name!r} is no earlier stage of {self.folder}: run that stage first")
            digests[name] = self.done[name].digest
        return digests

    @staticmethod
    def _finished(folder: Path, key: dict) -> dict[str, Any] | None:
        mark = read_json(folder / DONE)
        return mark if isinstance(mark, dict) and not differences(mark.get("key"), key) else None


def _is_beginning(path: Path) -> bool:
    """Whether a file is one that is written before a stage is begun."""
    return path.name == REDONE or path.name.startswith((f".{BEGUN}.", f".{REDONE}."))


@contextmanager
def unchanged_if_kept(paths: Iterable[Path]) -> Iterator[None]:
    """Small files that are written before a refusal are put back as they were: a refused command leaves no trace."""
    before = {path: path.read_text(encoding="utf-8") if path.exists() else None for path in paths}
    try:
        yield
    except KeptError:
        for path, text in before.items():
            if text is not None:
                write_text(path, text)
        raise


def _inputs(path: Path) -> set[str]:
    begun = read_json(path)
    inputs = begun.get("inputs") if isinstance(begun, dict) else None
    return set(inputs) if isinstance(inputs, dict) else set()


def acquire_lock(folder: Path) -> int:
    """Lock a run folder for this process and return the lock's file handle; closing it, or ending, lets go.

    Raises RunLockedError naming the process that holds it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ValueError(f"the run folder {folder} cannot be made or written ({error}): choose another") from error
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "an unknown process"
            # a killed run's data workers hold the lock for the moment they take to notice
            if not _has_ended(holder) or time.monotonic() - start > ORPHAN_GRACE_S:
                os.close(handle)
                raise RunLockedError(
                    f"{folder} is in use by {holder}: wait for it, end it, or choose another run folder"
                ) from None
            time.sleep(0.1)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


def _has_ended(holder: str) -> bool:
    words = holder.split()
    if len(words) != 4 or not words[1].isdecimal() or words[3] != socket.gethostname():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
