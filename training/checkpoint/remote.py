"""Checkpoints at a URL (extra [remote]), uploaded while training continues, for a machine that is lost with its disk.

    <url>/<stage>/<digest of the stage>/step_00000400.folder.json    and objects, by `brine.common.remote.folder_store`

One thread uploads, the newest checkpoint first; one that was replaced by a newer one before its turn is not sent. A
checkpoint is there whole or not at all. An upload that fails is an event `checkpoint_upload_failed` and a warning;
training goes on, and the next checkpoint, or the end of training, tries again. A stage begins from the newest one at
the URL where its own folder has none.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from brine.common.remote.folder_store import FolderStore
from brine.common.remote.object_store import RemoteError
from brine.training.checkpoint.checkpoint import DamagedCheckpointError, check, list_checkpoints

logger = logging.getLogger("brine.training")
CLOSE_S = 1800.0


class RemoteCheckpoints:
    """The checkpoints of one stage at a URL. Rank 0 alone has one."""

    def __init__(self, url: str, stage_folder: Path, *, keep: int, on_event: Callable[..., None]):
        """stage_folder: its last two names become the place below the URL. keep: so many stay there."""
        parent, name = stage_folder.resolve().parts[-2:]
        self.store = FolderStore(f"{url.rstrip('/')}/{parent}/{name}")
        self.folder, self.keep, self.on_event = stage_folder / "checkpoints", max(1, keep), on_event
        self._next: Path | None = None
        self._failed: Path | None = None
        self._lock, self._thread = threading.Lock(), threading.Thread()
        for leftover in self.folder.glob(".uploading_*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def restore(self) -> int | None:
        """Download the newest complete checkpoint where the folder has none; returns its step.

        One that is damaged is reported, and the one before it is taken. Raises RemoteError where the store fails.
        """
        if list_checkpoints(self.folder):
            return None
        for name in sorted(self.store.names(), reverse=True):
            stored = self.store.find(name)
            if stored is None or (self.folder / name).exists():
                continue
            try:
                self.store.download(stored, self.folder / name)
                found = check(self.folder / name)
            except DamagedCheckpointError as error:
                shutil.rmtree(self.folder / name)
                self.on_event("checkpoint_damaged", path=f"{self.store.url}/{name}", message=str(error))
            except RemoteError as error:
                if "is damaged" not in str(error):
                    raise
                self.on_event("checkpoint_damaged", path=f"{self.store.url}/{name}", message=str(error))
            else:
                self.on_event("checkpoint_downloaded", step=found.step, url=f"{self.store.url}/{name}")
                return found.step
        return None

    def begin(self, checkpoint: Path) -> None:
        """Have a finished checkpoint uploaded; returns at once. Its files may be deleted meanwhile."""
        held = checkpoint.with_name(f".uploading_{checkpoint.name}")
        shutil.rmtree(held, ignore_errors=True)
        shutil.copytree(checkpoint, held, copy_function=_link)
        with self._lock:
            dropped, self._next = self._next or self._failed, held
            self._failed = None
            if not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
                self._thread.start()
        if dropped is not None and dropped != held:
            shutil.rmtree(dropped, ignore_errors=True)

    def _run(self) -> None:
        while True:
            with self._lock:
                held, self._next = self._next, None
                if held is None:
                    # so that `begin` starts another one
                    self._thread = threading.Thread()
                    return
            self._upload(held)

    def _upload(self, held: Path) -> None:
        name = held.name.removeprefix(".uploading_")
        try:
            self.store.upload(held, name)
            names = self.store.names()
            for old in names[: -self.keep]:
                self.store.delete(old, among=names)
        # whatever it is, training goes on
        except Exception as error:
            logger.warning("checkpoint %s is not at %s (%s): the next one tries again", name, self.store.url, error)
            self.on_event("checkpoint_upload_failed", checkpoint=name, message=str(error))
            with self._lock:
                self._failed = held
            return
        shutil.rmtree(held, ignore_errors=True)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait for the upload on its way, and try the last one again if it failed."""
        self._thread.join(timeout_s) if self._thread.is_alive() else None
        with self._lock:
            failed, self._failed = self._failed, None
        if failed is not None and failed.is_dir():
            self._upload(failed)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
