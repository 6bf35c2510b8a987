"""The stored stages of a run at a URL (extra [remote]): looked up there before they are built, uploaded afterwards.

A stage that nobody has made here is downloaded under the lock of its folder, if the URL has it; then it is like one
that another run made. One thread uploads what was built while the run goes on. When the run ends, what is missing at
the URL is uploaded, and the list of its stages last, so that `brine store pull NAME URL` finds them
(`brine.common.remote.stage_transfer`).

An upload that fails loses nothing: the stage is here, a warning says how to send it, the run goes on. A store that is
gone when a stage is looked up or comes is a warning too, since the stage can be built; a damaged stage is an error.
"""

from __future__ import annotations

import logging
import queue
import shlex
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from brine.common.content_store import ContentStore
from brine.common.formatting import counted
from brine.common.remote.folder_store import FolderStore
from brine.common.remote.object_store import ObjectStore, RemoteConfig, UnavailableError, is_url
from brine.common.remote.stage_transfer import download_stage, find_stage, push, upload_stage
from brine.pipeline.stages.run_lock import POLL_S, call_in_thread
from brine.training.parallel.distributed import World

logger = logging.getLogger("brine.pipeline")

MARKER = "stages/store.json"
"""An object that each run writes when it begins, to find out whether the URL can be written."""
CHECK_ATTEMPTS, CHECK_TIMEOUT_S = 3, 20.0


def check_remote(url: str) -> None:
    """Raise ValueError for a URL that cannot be written, before a run does anything slow."""
    if not is_url(url):
        raise ValueError(
            f"remote_store = {url!r} must be a URL such as s3://bucket/prefix; a folder is given by --store"
        )
    config = RemoteConfig.from_environment()
    attempts, timeout_s = min(config.attempts, CHECK_ATTEMPTS), min(config.timeout_s, CHECK_TIMEOUT_S)
    store = ObjectStore(url, replace(config, attempts=attempts, timeout_s=timeout_s))
    try:
        store.write(MARKER, b'{"format": 1}\n')
        store.read(MARKER)
    except OSError as error:
        raise ValueError(f"remote_store = {url} cannot be written ({error}): give another URL") from None


class RemoteStages:
    """The stages of one run at a URL; rank 0 alone uses it."""

    def __init__(self, url: str, content: ContentStore, run: Path, *, world: World | None = None):
        """content: where the stages lie here. run: the run folder, whose name is that of the list of its stages."""
        self.store, self.content, self.run, self.world = FolderStore(url), content, Path(run), world or World()
        self.poll_s = POLL_S
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    @property
    def url(self) -> str:
        """Where the stages are."""
        return self.store.url

    def download(self, target: Path, *, meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Have a stored stage here, if nothing of it is here and the URL has it; returns whether it came from there.

        The lock of `target` must be held. meanwhile: called every few seconds, as other ranks wait in a collective.
        Raises RemoteError where an object is damaged.
        """
        # what was begun here is continued here
        if target.exists():
            return False
        call = lambda: self._download(target)  # noqa: E731
        if self.world.size == 1:
            return call()
        return call_in_thread(call, meanwhile=meanwhile, poll_s=self.poll_s)

    def _download(self, target: Path) -> bool:
        stage = target.parent.name
        try:
            stored = find_stage(self.store, f"{stage}/{target.name}")
        except UnavailableError as error:
            logger.warning("%s: could not be looked up at %s, and is built here (%s)", stage, self.url, error)
            return False
        if stored is None:
            return False
        logger.info("%s: downloading %.2f GiB from %s", stage, stored.num_bytes / 2**30, self.url)
        try:
            download_stage(self.store, stored, target)
        except UnavailableError as error:
            # what came is used by the next download, or deleted by `brine store gc`
            logger.warning("%s: %s failed in the middle, and it is built here (%s)", stage, self.url, error)
            return False
        logger.info("%s: downloaded from %s", stage, self.url)
        return True

    def begin_upload(self, target: Path) -> None:
        """Have a finished stage uploaded; returns at once."""
        if self._thread is None:
            # not waited for where the run ends by an error or a signal
            self._thread = threading.Thread(target=self._upload_all, name="upload-stages", daemon=True)
            self._thread.start()
        self._queue.put(f"{target.parent.name}/{target.name}")

    def _upload_all(self) -> None:
        while (place := self._queue.get()) is not None and not self._stopped.is_set():
            try:
                if upload_stage(self.store, self.content.root, place, stopped=self._stopped.is_set):
                    logger.info("%s: uploaded to %s", place.partition("/")[0], self.url)
            # whatever it is, the run goes on
            except Exception as error:
                if not self._stopped.is_set():
                    when = "it is tried again when the run ends; later, `%s` sends it"
                    logger.warning(f"%s is here and not at %s; {when}: %s", place, self.url, self._push(), _text(error))

    def finish(self) -> None:
        """Wait for the uploads, send what is missing and the list of the run's stages; a failure is a warning."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(1.0)
            if self._thread.is_alive():
                logger.info("waiting until the stages are uploaded to %s", self.url)
                self._thread.join()
            self._thread = None
        try:
            done = push(self.run, self.content.root, self.url, stopped=self._stopped.is_set)
        except Exception as error:
            missing = "the run is done, but not whole at %s; `%s` sends what is missing: %s"
            logger.warning(missing, self.url, self._push(), _text(error))
        else:
            count = len(set(done.stages))
            logger.info(
                "%s: its %s %s at %s", self.run.name, counted(count, "stage"), "is" if count == 1 else "are", self.url
            )

    def stop(self) -> None:
        """End the uploads after the files on their way; what is missing then is sent by the next run of this name."""
        self._stopped.set()
        if self._thread is not None:
            self._queue.put(None)
            self._thread = None
            missing = "the run may not be whole at %s: the same command, or `%s`, sends what is missing"
            logger.warning(missing, self.url, self._push())

    def _push(self) -> str:
        return shlex.join(["brine", "store", "push", str(self.run), self.url, "--store", str(self.content.root)])


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
