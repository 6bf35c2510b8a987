"""Stages that run once, resume where they were interrupted, and run again when their settings or inputs change.

A stage whose `done` holds its key (settings that affect its result, input digests, revision of its code) is skipped;
one with the key in `stage.json` alone was interrupted, and its function is called again in its folder; one with another
key is done again. With a content store a stage's folder lies there, under the digest of its key, and the run holds a
relative link to it: another run with the same key links to it as well, or waits while it is being made, and what a
changed stage was before stays in the store. Without one, and for stages that are trained again (`rerun`) or extended,
the folder lies in the run (`stage_backup`). A `protected` stage that has made something is never replaced, nor is
anything that it was made from. With several ranks rank 0 decides and writes.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brine.common.content_store import ContentStore, lock_holder, try_lock, unlock
from brine.common.files import deciding, differences, digest, read_json, to_plain, write_json, write_text
from brine.common.renamed import require_current_names
from brine.pipeline import stage_backup as backup
from brine.pipeline.run_lock import acquire_lock, release_lock, wait_for
from brine.pipeline.stage_backup import DONE_FILE, FILE_LIST, STAGE_FILE, ProtectedStageError
from brine.training.parallel.distributed import World

logger = logging.getLogger("brine.pipeline")

RERUN_FILE = "redone.json"
"""In a folder that `rerun` has begun: the name of its predecessor."""
EXTENDING_PREFIX = ".extending_"
"""Before a stage's name: the folder in which it will continue with more steps."""
BUILD_TIMEOUT_S = 4 * 3600.0
LOCK_POLL_S = 0.5


@dataclass(frozen=True)
class PipelineStage:
    """One finished stage. digest: of its key and its result's fingerprint. result: what its function returned, plain
    JSON. skipped: nothing had to be done. wall_s: seconds of its last call; a record only."""

    name: str
    folder: Path
    digest: str
    result: dict[str, Any]
    skipped: bool
    wall_s: float


class StageStore:
    """The stages of one run folder. Use it as a context manager: inside, rank 0 holds the folder's lock.

    >>> with StageStore(Path("runs/demo")) as store:                                              # doctest: +SKIP
    ...     store.stage("encoded", encode_all, config=recipe.encode, inputs=["corpus"])
    """

    def __init__(
        self, folder: Path, *, world: World | None = None, rerun: Iterable[str] = (),
        untrained: Mapping[str, str] | None = None, content: ContentStore | None = None,
    ):  # fmt: skip
        """rerun: protected stages to do again, changed or not; their old folders are renamed. untrained: protected
        stages that this command does not train, with the option that makes it train them. content: where the stages'
        folders lie, shared with other runs; None: in `folder`."""
        self.folder, self.world, self.content = Path(folder), world or World(), content
        self.rerun, self.untrained = frozenset(rerun), untrained or {}
        self.done: dict[str, PipelineStage] = {}
        self.kept_stale: dict[str, str] = {}
        """Stages that were kept although something outside of the run changed, with the message about it."""
        self._lock: int | None = None

    def __enter__(self) -> "StageStore":
        if self.world.is_main:
            self._lock = acquire_lock(self.folder)
            for path in sorted(self.folder.glob(f"*/{STAGE_FILE}")):
                try:
                    require_current_names(read_json(path), path, convert=self.folder)
                except ValueError:
                    self.__exit__()
                    raise
            backup.finish_discards(self.folder)
            for fresh in self.folder.glob(f"{EXTENDING_PREFIX}*"):
                # interrupted between two renames
                stage = self.folder / fresh.name.removeprefix(EXTENDING_PREFIX)
                if (fresh / STAGE_FILE).exists() and not stage.exists():
                    os.rename(fresh, stage)
        # the others may look at the lock only once rank 0 holds it
        self.world.barrier()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            release_lock(self._lock)
            self._lock = None

    def stage(
        self, name: str, build: Callable[[Path], Mapping[str, Any] | None], *, config: Any = None,
        inputs: Iterable[str] | Mapping[str, str] = (), on_all_ranks: bool = False, protected: bool = False,
        keep_if_inputs_change: bool = False, output_names: Iterable[str] = (), revision: int = 1,
        extend: Callable[[Path, Path], None] | None = None,
    ) -> PipelineStage:  # fmt: skip
        """Do a stage, or find that it is done.

        build: called with the stage's folder (on_all_ranks: on every rank, not on rank 0 alone); must resume from what
        an interrupted call left there. What it returns (plain JSON, or None) is kept in the `done` mark; a
        `fingerprint` in it is part of the digest. inputs: names of earlier stages, or names with digests of anything
        else. protected: never discard what it made. keep_if_inputs_change: where only its inputs changed and a model
        was trained on it, it is kept, and reported in `kept_stale`. output_names: files and folders that `build` makes;
        others are kept when the stage is done again. revision: of `build`; raised where it makes other bytes of the
        same key. extend: called where a protected stage's configuration changed, with its folder and a fresh one; fills
        the fresh one with what `build` can resume from, or raises ValueError.

        Raises ValueError for an input that is no earlier stage and for a folder that holds something else,
        ProtectedStageError where something protected would be done again."""
        key = _key(config, self._digests(inputs), revision)
        folder, output_names = self.folder / name, tuple(output_names)
        mark = self._finished(folder, key)
        if mark is None and keep_if_inputs_change and (reason := self._stale_reason(name, key)):
            mark = read_json(folder / DONE_FILE)
            self.kept_stale[name] = reason
        skipped = mark is not None and not (protected and name in self.rerun)
        if on_all_ranks:
            # rank 0 may link to a finished folder before the others look
            skipped = self.world.broadcast(skipped)
        if name in self.kept_stale:
            logger.warning("%s: %s", name, self.kept_stale[name])
        elif skipped:
            logger.info("%s: unchanged, skipped", name)
        elif self.world.is_main:
            held, trouble = None, None
            try:
                held = self._claim(name, folder, key, on_all_ranks=on_all_ranks)
                skipped = self._prepare(
                    name, folder, key, protected=protected, output_names=output_names, extend=extend
                )
            except ValueError as error:
                trouble = error
            try:
                # ranks that take part must not start before the folder is theirs, nor wait where nothing comes
                if on_all_ranks:
                    self.world.broadcast({"skipped": skipped, "trouble": None if trouble is None else str(trouble)})
                if trouble is not None:
                    raise trouble
                if not skipped:
                    mark = self._build(name, folder, build, output_names=() if protected else output_names)
            finally:
                if held is not None:
                    unlock(held)
        else:
            if on_all_ranks:
                while (claim := self.world.broadcast(None)) is None:
                    pass
                if claim["trouble"]:
                    raise ValueError(claim["trouble"])
                skipped = claim["skipped"]
                if not skipped:
                    build(folder)
            wait_for(
                lambda: self._finished(folder, key) is not None, run_folder=self.folder, what=name,
                timeout_s=BUILD_TIMEOUT_S,
            )  # fmt: skip
            mark = self._finished(folder, key)
        return self._add(name, mark or self._finished(folder, key), skipped=skipped)

    def _claim(self, name: str, folder: Path, key: dict, *, on_all_ranks: bool) -> int | None:
        """Hold the lock of a stage's stored folder, after any other process; None where it lies in the run."""
        if not self._is_shared(name, folder, key):
            return None
        path = self.content.lock_path(self.content.path(name, key))
        start, told = time.monotonic(), False
        while (held := try_lock(path)) is None:
            if not told:
                logger.info("%s: %s is making the same; waiting for it", name, lock_holder(path))
                told = True
            if time.monotonic() - start > BUILD_TIMEOUT_S:
                raise ValueError(
                    f"{name}: waited {BUILD_TIMEOUT_S / 3600:.0f} h for {lock_holder(path)}: end it, or look at it"
                )
            time.sleep(LOCK_POLL_S)
            if on_all_ranks:
                # the others wait in a collective, which would time out
                self.world.broadcast(None)
        return held

    def _is_shared(self, name: str, folder: Path, key: dict) -> bool:
        """Does the folder of this stage lie in the content store? A stage that was begun in the run stays there."""
        if self.content is None or name in self.rerun:
            return False
        begun = read_json(folder / STAGE_FILE)
        return folder.is_symlink() or begun is None or bool(differences(begun, key))

    def reuse(self, name: str, *, config: Any = None, inputs: Iterable[str] = (), revision: int = 1) -> bool:
        """Take over a stage that is done with this key, without doing anything; else return False."""
        if not set(inputs) <= set(self.done):
            return False
        mark = self._finished(self.folder / name, _key(config, self._digests(inputs), revision))
        if mark is not None:
            self._add(name, mark, skipped=True)
        return mark is not None

    def begun(self, name: str) -> dict | None:
        """The key of a protected stage that has made something, or None."""
        begun = read_json(self.folder / name / STAGE_FILE)
        return begun if isinstance(begun, dict) and backup.is_protected(self.folder / name) else None

    def is_finished(self, name: str) -> bool:
        """Has a training stage made its weights? They are its last file but for the mark."""
        return (self.folder / name / DONE_FILE).exists() or any((self.folder / name).glob("model/*.safetensors"))

    def dependents_of(self, name: str) -> list[str]:
        """Stages with weights or checkpoints that were made from stage `name`, directly or through others."""
        inputs = {path.parent.name: _input_names(path) for path in sorted(self.folder.glob(f"*/{STAGE_FILE}"))}
        # a renamed folder is no stage any more
        inputs = {each: named for each, named in inputs.items() if backup.BACKUP_SUFFIX not in each}
        found, grown = {name}, True
        while grown:
            more = {each for each, named in inputs.items() if named & found} - found
            found, grown = found | more, bool(more)
        return [each for each in inputs if each in found - {name} and backup.has_weights(self.folder / each)]

    def _add(self, name: str, mark: dict[str, Any], *, skipped: bool) -> PipelineStage:
        folder = self.folder / name
        self.done[name] = PipelineStage(name, folder, mark["digest"], mark["result"], skipped, mark["wall_s"])
        return self.done[name]

    def _stale_reason(self, name: str, key: dict) -> str:
        """Why a stage whose inputs changed is kept; "" where it is not. The same on every rank."""
        folder = self.folder / name
        begun = read_json(folder / STAGE_FILE)
        if not isinstance(begun, dict) or not self._finished(folder, begun):
            return ""
        kept = [each for each in self.dependents_of(name) if each not in self.rerun]
        if not kept or differences(begun.get("config"), key["config"]):
            return ""
        old, new = begun.get("inputs") or {}, key["inputs"]
        changed = sorted(each for each in {*old, *new} if old.get(each) != new.get(each))
        names = " and ".join(kept)
        return (
            f"changed since ({', '.join(changed)}), and kept as it was, because {names} was trained on it; "
            "give --name NEW for a run on what is there now, or --rerun "
            f"{' '.join(kept)}{backup.untrained_note(self, kept)} to train again (old folders are renamed)"
        )

    def _build(self, name: str, folder: Path, build: Callable, *, output_names: tuple[str, ...]) -> dict[str, Any]:
        start = time.perf_counter()
        # as it was begun, perhaps by an earlier version: later stages know it by that name
        key = read_json(folder / STAGE_FILE)
        result = to_plain(build(folder) or {})
        mark = {"key": key, "digest": digest({"key": key, "fingerprint": result.get("fingerprint")})}
        mark |= {"result": result, "wall_s": round(time.perf_counter() - start, 3)}
        if output_names:
            write_json(folder / FILE_LIST, backup.files_of_stage(folder, output_names))
        if folder.is_symlink():
            ContentStore.finish(folder.resolve(), mark)
        else:
            write_json(folder / DONE_FILE, mark)
        logger.info("%s: done in %.1f s", name, mark["wall_s"])
        return mark

    def _prepare(
        self, name: str, folder: Path, key: dict, *, protected: bool, output_names: tuple[str, ...],
        extend: Callable | None,
    ) -> bool:  # fmt: skip
        """Make the folder ready for `build`; returns whether another run has made everything already."""
        if folder.is_symlink() and name not in self.rerun and self._finished(folder, key) is not None:
            return True
        begun = read_json(folder / STAGE_FILE)
        has_made, wants_rerun = backup.is_protected(folder), name in self.rerun
        rerun = protected and wants_rerun and has_made
        # a rerun that was interrupted resumes with the same command
        again = rerun and ((folder / DONE_FILE).exists() or not (folder / RERUN_FILE).exists())
        changes = [] if begun is None else differences(begun, key)
        old = None
        if begun is None:
            # what is written before a stage is begun
            first = (f".{STAGE_FILE}.", f".{RERUN_FILE}.")
            names = [path.name for path in folder.iterdir()] if folder.exists() and not folder.is_symlink() else []
            if any(name != RERUN_FILE and not name.startswith(first) for name in names):
                raise ValueError(
                    f"{folder} is not empty and holds no {STAGE_FILE}, so this pipeline did not make it: move it away, "
                    "or choose another run folder"
                )
        elif not changes and not again:
            logger.info("%s: was interrupted, resumes", name)
            if not wants_rerun:
                (folder / RERUN_FILE).unlink(missing_ok=True)
            # a done mark that exists all the same was not whole
            (folder / DONE_FILE).unlink(missing_ok=True)
            return False
        elif protected and has_made:
            if extend is not None and not wants_rerun and begun.get("inputs") == key["inputs"]:
                self._extend(name, folder, key, extend)
                return False
            if not wants_rerun:
                raise ProtectedStageError(backup.refusal_message(self, [name], changes))
            old = backup.move_to_backup(folder)
            why = f"because it changed: {backup.first_changes(changes)}" if changes else "as asked for"
            logger.info("%s: done again, %s; its old folder is kept as %s", name, why, old)
        else:
            if kept := [each for each in self.dependents_of(name) if each not in self.rerun]:
                raise ProtectedStageError(backup.refusal_message(self, kept, [f"{name}: {each}" for each in changes]))
            logger.info("%s: done again, because it changed: %s", name, backup.first_changes(changes))
            if folder.is_symlink():
                logger.info("%s: what it was before stays in %s", name, folder.resolve())
            elif others := backup.discard(folder, output_names):
                logger.warning("%s: files there that the pipeline did not make are kept in %s", name, others)
        if self._is_shared(name, folder, key):
            stored = self.content.path(name, key)
            stored.mkdir(parents=True, exist_ok=True)
            link_to(folder, stored)
            if self._finished(stored, key) is not None:
                logger.info("%s: made by another run, linked", name)
                return True
            if not differences(read_json(stored / STAGE_FILE), key):
                logger.info("%s: was begun by another run, resumes", name)
                return False
        folder.mkdir(parents=True, exist_ok=True)
        # before the key, without which the folder is not begun
        if rerun and old is not None:
            write_json(folder / RERUN_FILE, {"before": old.name})
        elif not wants_rerun:
            (folder / RERUN_FILE).unlink(missing_ok=True)
        write_json(folder / STAGE_FILE, deciding(key))
        return False

    def _extend(self, name: str, folder: Path, key: dict, extend: Callable[[Path, Path], None]) -> None:
        fresh = self.folder / f"{EXTENDING_PREFIX}{name}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            extend(folder, fresh)
        except ValueError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ProtectedStageError(backup.extension_refusal(self, name, str(error))) from error
        write_json(fresh / STAGE_FILE, deciding(key))
        old = backup.move_to_backup(folder)
        os.rename(fresh, folder)
        logger.info("%s: continues with more steps; its old folder is kept as %s", name, old)

    def _digests(self, inputs: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        if missing := [name for name in inputs if name not in self.done]:
            raise ValueError(f"input {missing[0]!r} is not an earlier stage of {self.folder}: run that stage first")
        return {name: self.done[name].digest for name in inputs}

    @staticmethod
    def _finished(folder: Path, key: dict) -> dict[str, Any] | None:
        mark = read_json(folder / DONE_FILE)
        return mark if isinstance(mark, dict) and not differences(mark.get("key"), key) else None


def _key(config: Any, inputs: dict[str, str], revision: int) -> dict[str, Any]:
    # the first revision is not named, as it was not before there were others
    return {"config": config, "inputs": inputs} | ({"revision": revision} if revision != 1 else {})


def link_to(link: Path, folder: Path) -> None:
    """Make or replace a relative link, in one rename."""
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}.{os.getpid()}.link")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(folder.resolve(), link.parent.resolve()))
    os.replace(fresh, link)


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


def _input_names(path: Path) -> set[str]:
    begun = read_json(path)
    inputs = begun.get("inputs") if isinstance(begun, dict) else None
    return set(inputs) if isinstance(inputs, dict) else set()
