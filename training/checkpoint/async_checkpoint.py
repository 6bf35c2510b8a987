"""Asynchronous checkpointing: tensors are copied, written while the next steps run, and named when complete.

`begin` returns when everything may be changed, `wait` when it is on the disk. A thread writes each rank's part by
`torch.distributed.checkpoint.save`, over a separate process group, and hashes its files; rank 0 writes `state.json`,
renames the folder, and prunes old ones. Cost: host memory for one copy of the rank's part (from a GPU pinned, and
kept), and the same again while a file is assembled.
"""

import datetime
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from brine.common.files import file_digest, sync_folder, write_json
from brine.common.renamed import FORMAT
from brine.training.checkpoint.checkpoint import STATE, CheckpointError, prune_checkpoints, tensors_of
from brine.training.checkpoint.remote import RemoteCheckpoints
from brine.training.checkpoint.staging import HostStaging
from brine.training.optimizer import Optimizer
from brine.training.parallel.distributed import World
from brine.training.parallel.offload import StreamCopyEngine


class AsyncCheckpointer:
    """Writes the checkpoints of one run. All ranks make one, and call its methods in the same order."""

    def __init__(
        self, folder: Path, *, world: World | None = None, keep: int = 2, keep_checkpoint_steps: Iterable[int] = (),
        timeout_s: float = 1800.0, remote: str | None = None, on_event: Callable[..., None] = lambda *_, **__: None,
    ):  # fmt: skip
        """folder: the run's `checkpoints/`. keep, keep_checkpoint_steps: see `prune_checkpoints`. remote: URL to which
        finished checkpoints are uploaded as well (`RemoteCheckpoints`), with what happens there told to `on_event`."""
        self.folder, self.world = Path(folder), world or World()
        self.keep, self.keep_checkpoint_steps = keep, tuple(keep_checkpoint_steps)
        self.remote: RemoteCheckpoints | None = None
        self._has_remote = remote is not None
        if remote is not None and self.world.is_main:
            self.remote = RemoteCheckpoints(remote, self.folder.parent, keep=keep, on_event=on_event)
        # raised in a thread, where a context of warnings has no effect
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        timeout = datetime.timedelta(seconds=timeout_s)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if self.world.size > 1 else None
        self._staging: HostStaging | None = None
        self._finisher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self._step = 0

    def download_if_none(self) -> None:
        """Where the folder has no checkpoint, fetch the newest from the URL, if there is one. All ranks.

        Raises CheckpointError on every rank where the store fails.
        """
        if not self._has_remote:
            return
        trouble = None
        try:
            if self.remote is not None:
                self.remote.restore()
        except (ValueError, OSError) as error:
            trouble = str(error)
        if trouble := self.world.broadcast(trouble):
            raise CheckpointError(trouble)

    def begin(self, *, step: int, model: nn.Module, optimizer: Optimizer, state: dict, good: int | None = None) -> Path:
        """Copy the model and begin to write the checkpoint of `step`; returns the folder that it will have.

        An older checkpoint of the same step is replaced. state: plain JSON. good: see `prune_checkpoints`. Raises
        CheckpointError when the one before could not be written.
        """
        # imported in this thread, and late: it takes half a second
        import torch.distributed.checkpoint  # noqa: F401

        self.wait()
        self._step = step
        temporary = self._temporary()
        if self.world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir()
            except OSError as error:
                raise self._failed(error) from error
        self.world.barrier()
        if self._staging is None:
            device = next(model.parameters()).device
            self._staging = HostStaging(StreamCopyEngine(device) if device.type == "cuda" else None)
        staged = self._staging.copy(tensors_of(model, optimizer))
        target = self.folder / f"step_{step:08d}"
        self._pending = self._finisher.submit(self._finish, staged, temporary, target, {**state, "step": step}, good)
        return target

    def wait(self) -> None:
        """Return when the checkpoint that was begun is on the disk. All ranks.

        Raises CheckpointError on every rank when one could not write its part.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        # imported late, as in `begin`; by now it has been
        from torch.distributed.checkpoint.api import CheckpointException

        trouble = None
        try:
            pending.result()
        except (Exception, CheckpointException) as error:
            trouble = str(self._failed(error))
        troubles = [each for each in self.world.gather(trouble) if each]
        if troubles:
            if self.world.is_main:
                shutil.rmtree(self._temporary(), ignore_errors=True)
            raise CheckpointError(troubles[0])

    def close(self) -> None:
        """Let the thread finish what it began: an error elsewhere need not cost the checkpoint on its way."""
        self._finisher.shutdown(wait=True)
        if self.remote is not None:
            self.remote.close()

    def _temporary(self) -> Path:
        return self.folder / f".writing_{self._step:08d}"

    def _finish(self, staged: Callable, temporary: Path, target: Path, state: dict, good: int | None) -> None:
        import torch.distributed.checkpoint as dcp

        writer = dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        # nothing is left to copy ahead; on a GPU it would use a stream and wait for what is computed
        writer.per_thread_copy_ahead = 0
        dcp.save(staged(), storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        written = sorted(temporary.glob(f"shard-{self.world.rank + 1:05d}-*"))
        files = {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in written}
        every: list[Any] = [files] * self.world.size
        if self._group is not None:
            dist.all_gather_object(every, files, group=self._group)
        if not self.world.is_main:
            return
        files = {name: noted for part in every for name, noted in part.items()}
        write_json(temporary / STATE, {**state, "format": FORMAT, "files": files})
        # rename cannot replace a folder that holds files
        old = self.folder / f".replaced_{target.name}"
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(target, old)
        os.rename(temporary, target)
        shutil.rmtree(old, ignore_errors=True)
        sync_folder(self.folder)
        if self.remote is not None:
            self.remote.begin(target)
        prune_checkpoints(self.folder, keep=self.keep, keep_checkpoint_steps=self.keep_checkpoint_steps, good=good)

    def _failed(self, error: BaseException) -> CheckpointError:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return CheckpointError(
            f"the checkpoint of step {self._step} could not be written under {self.folder} ({reason[-1]}): free some "
            "space or choose another run folder; the checkpoints before it are untouched"
        )
