"""Stages that run once, are shared between runs, resume where they were interrupted, and run again when their settings
or inputs change.

A stage's key (settings that affect its result, input digests, revision of its code) says where in the content store its
folder is; the run has a link to it (`stage_folder`). A stage whose `done` holds its key is skipped; where another run
has made it, or is making it, it is linked; one with the key in `stage.json` alone was interrupted, and its function is
called again in its folder; one with another key is a new stage, and the former link becomes `<stage>.old-N`. A stage
that was begun in the run itself (before there were stores, or without one) stays there. A `protected` stage that has
made something is never replaced unasked, nor is anything that it was made from (`stage_plan`). With several ranks
rank 0 decides and writes.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brine.common.content_store import ContentStore, lock_path, unlock, wait_for_lock
from brine.common.files import deciding, differences, digest, read_json, to_plain, write_json
from brine.common.renamed import require_current_names
from brine.pipeline.stages import stage_backup as backup
from brine.pipeline.stages import stage_folder as links
from brine.pipeline.stages.remote_stages import RemoteStages
from brine.pipeline.stages.run_lock import acquire_lock, refusals_named, wait_for
from brine.pipeline.stages.stage_backup import DONE_FILE, FILE_LIST, STAGE_FILE, ProtectedStageError
from brine.pipeline.stages.stage_plan import RERUN_FILE, StagePlan, StageRequest, plan_stage, rerun_record
from brine.training.parallel.distributed import World

logger = logging.getLogger("brine.pipeline")
EFFECTIVE_IDS = os.access in os.supports_effective_ids
"""Whether rights can be asked as the process has them now, not as it was started."""

EXTENDING_PREFIX = ".extending_"
"""Before the name of a stored folder, or of a stage of the run itself: what will continue with more steps."""
BUILD_TIMEOUT_S = 4 * 3600.0
"""How long other ranks wait for what rank 0 builds alone, and a run for what another run builds."""
TRAINING_TIMEOUT_S = 30 * 24 * 3600.0
"""How long a run waits for a stage that another run trains; that its process is alive is known from its lock."""


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
        remote: RemoteStages | None = None,
    ):  # fmt: skip
        """rerun: protected stages to do again, changed or not; their old folders are renamed. untrained: protected
        stages that this command does not train, with the option that makes it train them. content: where the stages'
        folders lie, shared with other runs; None: in `folder`. remote: where they also are, at a URL."""
        self.folder, self.world, self.content, self.remote = Path(folder), world or World(), content, remote
        self.rerun, self.untrained = frozenset(rerun), untrained or {}
        self.done: dict[str, PipelineStage] = {}
        self.kept_stale: dict[str, str] = {}
        """Stages that were kept although something outside of the run changed, with the message about it."""
        self._lock: int | None = None

    def __enter__(self) -> "StageStore":
        if self.world.is_main:
            self._lock = acquire_lock(self.folder)
            try:
                self._check_store()
                links.check_links(self.folder)
                for path in sorted(self.folder.glob(f"*/{STAGE_FILE}")):
                    require_current_names(read_json(path), path, convert=self.folder)
            except BaseException:
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

    def _check_store(self) -> None:
        """Raise ValueError for a content store in which nothing can be made."""
        if self.content is None:
            return
        root = self.content.root
        try:
            root.mkdir(parents=True, exist_ok=True)
            reason = "" if os.access(root, os.W_OK | os.X_OK, effective_ids=EFFECTIVE_IDS) else "Permission denied"
        except OSError as error:
            reason = str(error)
        if reason:
            raise ValueError(f"the store {root} cannot be made or written ({reason}): give another folder by --store")

    def __exit__(self, *_: object) -> None:
        if self.remote is not None:
            self.remote.stop()
        if self._lock is not None:
            unlock(self._lock)
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
        key = links.stage_key(config, self._digests(inputs), revision)
        folder = self.folder / name
        mark, reason = self._state(name, key, protected=protected, keep_if_inputs_change=keep_if_inputs_change)
        if on_all_ranks:
            # what rank 0 sees, since it may change the folder before another rank looks
            mark, reason = self.world.broadcast((mark, reason))
        skipped = mark is not None and (bool(reason) or not (protected and name in self.rerun))
        if reason:
            self.kept_stale[name] = reason
            logger.warning("%s: %s", name, reason)
        elif skipped:
            logger.info("%s: unchanged, skipped", name)
        elif self.world.is_main:
            request = StageRequest(name, folder, key, protected, tuple(output_names), extend)
            mark, skipped = self._make(request, build, on_all_ranks=on_all_ranks)
        else:
            skipped = self._follow(name, folder, key, build, on_all_ranks=on_all_ranks)
            mark = self._finished(folder, key)
        return self._add(name, mark, skipped=skipped)

    def reuse(self, name: str, *, config: Any = None, inputs: Iterable[str] = (), revision: int = 1) -> bool:
        """Take over a stage that is done with this key, without doing anything; else return False."""
        if not set(inputs) <= set(self.done):
            return False
        mark = self._finished(self.folder / name, links.stage_key(config, self._digests(inputs), revision))
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

    def _state(
        self, name: str, key: dict, *, protected: bool, keep_if_inputs_change: bool
    ) -> tuple[dict[str, Any] | None, str]:
        """(mark of a stage that need not be done or is kept, else None; why it is kept although it changed, or "")."""
        folder = self.folder / name
        mark = self._finished(folder, key)
        begun = links.begun_key(folder)
        if mark is not None or begun is None or not self._finished(folder, begun):
            return mark, ""
        if protected:
            if name in self.rerun or not links.only_revision_changed(begun, key):
                return None, ""
            again = f"--rerun {name} to train again (the old folder is renamed)"
            reason = "is trained already by a former revision of the code, and kept as it is"
        else:
            kept = [each for each in self.dependents_of(name) if each not in self.rerun]
            may_stay = keep_if_inputs_change or links.only_revision_changed(begun, key)
            if not kept or not may_stay or differences(begun.get("config"), key["config"]):
                return None, ""
            old, new = begun.get("inputs") or {}, key["inputs"]
            changed = sorted(each for each in {*old, *new} if old.get(each) != new.get(each))
            changed += ["revision"] if begun.get("revision", 1) != key.get("revision", 1) else []
            again = (
                f"--rerun {' '.join(kept)}{backup.untrained_note(self, kept)} to train again (old folders are renamed)"
            )
            why = f"because {' and '.join(kept)} was trained on it"
            reason = f"changed since ({', '.join(changed)}), and kept as it was, {why}"
        return read_json(folder / DONE_FILE), f"{reason}; give --name NEW for a run on what is there now, or {again}"

    def _make(self, request: StageRequest, build: Callable, *, on_all_ranks: bool) -> tuple[dict[str, Any], bool]:
        """(mark, whether another run has done it); `_follow` hears of it on the other ranks."""
        tell = self.world.broadcast if on_all_ranks else lambda _: None
        held, mark, trouble = None, None, None
        try:
            try:
                with refusals_named(request.name):
                    plan = plan_stage(self, request)
                    if plan.stored:
                        held = self._hold(request, plan.target, tell)
                        if self.remote is not None and request.name not in self.rerun:
                            self.remote.download(plan.target, meanwhile=lambda: tell(("wait", "")))
                    mark = self._begin(request, plan)
            except ValueError as error:
                trouble = error
            # ranks that take part must not start before the folder is theirs, nor wait where nothing comes
            tell(("trouble", str(trouble)) if trouble is not None else ("found" if mark else "build", ""))
            if trouble is not None:
                raise trouble
            if mark is not None:
                logger.info("%s: made by another run, linked", request.name)
                return mark, True
            return self._build(request, build), False
        finally:
            if held is not None:
                unlock(held)

    def _hold(self, request: StageRequest, target: Path, tell: Callable) -> int:
        """Hold the lock of a stored folder, after any other process; raises ValueError where that takes too long."""
        path = lock_path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        limit_s = TRAINING_TIMEOUT_S if request.protected else BUILD_TIMEOUT_S
        try:
            # the others wait in a collective, which would time out
            return wait_for_lock(path, what=request.name, timeout_s=limit_s, meanwhile=lambda: tell(("wait", "")))
        except TimeoutError as error:
            raise ValueError(str(error)) from None

    def _follow(self, name: str, folder: Path, key: dict, build: Callable, *, on_all_ranks: bool) -> bool:
        """On another rank: take part, or wait until rank 0 is done. Returns whether another run has done it."""
        word, text = self.world.broadcast(None) if on_all_ranks else ("", "")
        while word == "wait":
            word, text = self.world.broadcast(None)
        if word == "trouble":
            raise ValueError(text)
        if word == "build":
            build(folder)
        wait_for(
            lambda: self._finished(folder, key) is not None, run_folder=self.folder, what=name,
            timeout_s=BUILD_TIMEOUT_S if on_all_ranks else 2 * BUILD_TIMEOUT_S,
        )  # fmt: skip
        return word == "found"

    def _build(self, request: StageRequest, build: Callable) -> dict[str, Any]:
        start, folder = time.perf_counter(), request.folder
        stored = links.stored_target(folder)
        # as it was begun, perhaps by an earlier version: later stages know it by that name
        key = read_json(folder / STAGE_FILE)
        result = to_plain(build(folder) or {})
        mark = {"key": key, "digest": digest({"key": key, "fingerprint": result.get("fingerprint")})}
        mark |= {"result": result, "wall_s": round(time.perf_counter() - start, 3)}
        if request.output_names and (stored is not None or not request.protected):
            write_json(folder / FILE_LIST, backup.files_of_stage(folder, request.output_names))
        if stored is not None:
            ContentStore.finish(stored, mark)
            if self.remote is not None:
                self.remote.begin_upload(stored)
        else:
            write_json(folder / DONE_FILE, mark)
        logger.info("%s: done in %.1f s", request.name, mark["wall_s"])
        return mark

    def _begin(self, request: StageRequest, plan: StagePlan) -> dict[str, Any] | None:
        """Make a stage's folder ready for `build`, or return the mark of one that another process has finished."""
        name, folder, key, target = request.name, request.folder, request.key, plan.target
        wants_rerun = name in self.rerun
        found = self._finished(target, key) if plan.stored else None
        if found is None and plan.extends and (not plan.stored or links.begun_key(target) is None):
            self._extend(request, target)
        if plan.stored and found is None:
            self._begin_stored(request, target)
        old = None
        if plan.replaces and not (plan.extends and not plan.stored):
            old = self._replace(request, plan)
        if not wants_rerun:
            rerun_record(self.folder, name).unlink(missing_ok=True)
            (folder / RERUN_FILE).unlink(missing_ok=True)
        if not plan.stored:
            folder.mkdir(parents=True, exist_ok=True)
            if old is not None and request.protected:
                # before the key, without which the folder is not begun
                write_json(folder / RERUN_FILE, {"before": old.name})
            self._write_key(request, folder)
        elif not folder.is_symlink():
            links.link_to(folder, target, store=self.content.root)
        return found

    def _begin_stored(self, request: StageRequest, target: Path) -> None:
        target.mkdir(exist_ok=True)
        changes = links.key_changes(begun, request.key) if (begun := links.begun_key(target)) is not None else []
        if changes:
            text = backup.first_changes(changes)
            raise ValueError(f"{target} holds another stage than its name says ({text}): move it away")
        if begun is None:
            write_json(target / FILE_LIST, {"names": list(request.output_names)})
        elif not request.folder.is_symlink():
            logger.info("%s: was begun by another run, resumes", request.name)
        self._write_key(request, target)

    def _write_key(self, request: StageRequest, target: Path) -> None:
        if links.begun_key(target) is None:
            write_json(target / STAGE_FILE, deciding(request.key))
        # a mark that exists all the same was not whole
        (target / DONE_FILE).unlink(missing_ok=True)
        links.allow_writing(target)

    def _replace(self, request: StageRequest, plan: StagePlan) -> Path | None:
        """Take the present folder's name away, after the reason is told; returns the former folder's new path."""
        name, folder = request.name, request.folder
        if request.protected and backup.is_protected(folder):
            if plan.stored and not plan.extends:
                write_json(rerun_record(self.folder, name), {
                    "before": backup.backup_path(folder).name, "target": plan.target.name
                })  # fmt: skip
            old = backup.move_to_backup(folder)
        elif folder.is_symlink():
            old = backup.rename_link(folder)
        else:
            logger.info("%s: %s", name, plan.why)
            if others := backup.discard(folder, request.output_names):
                logger.warning("%s: files there that the pipeline did not make are kept in %s", name, others)
            return None
        logger.info("%s: %s%s", name, plan.why, f"; its old folder is kept as {old}" if old else "")
        return old

    def _extend(self, request: StageRequest, target: Path) -> None:
        """Fill a folder with what a stage continues from, and put it in place."""
        name, folder = request.name, request.folder
        fresh = target.with_name(f"{EXTENDING_PREFIX}{target.name}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            request.extend(folder, fresh)
        except ValueError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ProtectedStageError(backup.extension_refusal(self, name, str(error))) from error
        write_json(fresh / STAGE_FILE, deciding(request.key))
        if target != folder:
            write_json(fresh / FILE_LIST, {"names": list(request.output_names)})
            # of a folder that was made and not begun nothing else is there
            (target / FILE_LIST).unlink(missing_ok=True)
        else:
            old = backup.move_to_backup(folder)
            logger.info("%s: continues with more steps; its old folder is kept as %s", name, old)
        os.rename(fresh, target)

    def _digests(self, inputs: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        if missing := [name for name in inputs if name not in self.done]:
            raise ValueError(f"input {missing[0]!r} is not an earlier stage of {self.folder}: run that stage first")
        return {name: self.done[name].digest for name in inputs}

    @staticmethod
    def _finished(folder: Path, key: dict) -> dict[str, Any] | None:
        mark = read_json(folder / DONE_FILE)
        return mark if isinstance(mark, dict) and not links.key_changes(mark.get("key"), key) else None


def _input_names(path: Path) -> set[str]:
    begun = read_json(path)
    inputs = begun.get("inputs") if isinstance(begun, dict) else None
    return set(inputs) if isinstance(inputs, dict) else set()
