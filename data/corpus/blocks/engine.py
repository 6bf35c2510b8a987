"""What maps blocks over workers: `LocalEngine` by processes of this machine, `RayEngine` (extra [ray]) by a cluster."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from brine.common.processes import IMPORT_FOLDER, usable_cores
from brine.data.corpus.blocks.encode_block import BlockError, BlockJob, items_path, write_job

ATTEMPTS = 4
"""How often a block is tried whose worker dies."""
_LAST_WORDS = 2000


class BlockEngine(Protocol):
    """Runs `encode_block` for each job submitted, again where a worker dies."""

    num_decoders: int
    """Decoding processes of one block."""

    @property
    def slots(self) -> int:
        """Blocks that may be submitted before the first is finished."""

    def submit(self, job: BlockJob) -> None:
        """Have a block encoded."""

    def finished(self, timeout_s: float) -> list[int]:
        """Numbers of blocks that were finished since the last call; waits at most `timeout_s` for one.

        Raises BlockError when a block cannot be encoded, after `ATTEMPTS` where workers died.
        """

    def restart(self, number: int) -> None:
        """End the worker of a block that makes no progress, and count that as an attempt."""

    def close(self) -> None:
        """End all workers."""


@dataclass
class _Running:
    job: BlockJob
    process: subprocess.Popen
    stderr: IO[bytes]
    attempt: int = 1


class LocalEngine:
    """A process for each of `num_workers` blocks at a time, which ends with this one."""

    def __init__(self, num_workers: int = 0, *, num_decoders: int = 1):
        self.num_workers, self.num_decoders = num_workers or min(8, usable_cores()), num_decoders
        self.running: dict[int, _Running] = {}
        self._waiting: list[BlockJob] = []

    @property
    def slots(self) -> int:
        return 2 * self.num_workers

    def submit(self, job: BlockJob) -> None:
        self._waiting.append(job)
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self.running) < self.num_workers:
            job = self._waiting.pop(0)
            self.running[job.number] = self._launch(job, attempt=1)

    def _launch(self, job: BlockJob, *, attempt: int) -> _Running:
        path = items_path(Path(job.folder), job.number).with_suffix(".job.json")
        write_job(job, path)
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        # -P: a file called like a module in the current folder must not be imported instead of it
        command = [sys.executable, "-P", "-m", "brine.data.corpus.blocks.encode_block", str(path)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=worker_environment()
        )
        return _Running(job, process, stderr, attempt)

    def finished(self, timeout_s: float) -> list[int]:
        deadline = time.monotonic() + timeout_s
        while True:
            done = [number for number, running in list(self.running.items()) if self._is_done(running)]
            self._start()
            if done or not self.running or time.monotonic() > deadline:
                return done
            time.sleep(0.02)

    def _is_done(self, running: _Running) -> bool:
        if (status := running.process.poll()) is None:
            return False
        running.stderr.seek(0)
        words = running.stderr.read()[-_LAST_WORDS:].decode(errors="replace").strip()
        running.stderr.close()
        del self.running[running.job.number]
        if status == 0:
            return True
        last = words.splitlines()[-1] if words else f"it ended with status {status}"
        if status > 0:
            raise BlockError(f"block {running.job.number}: {last}")
        if running.attempt >= ATTEMPTS:
            raise BlockError(
                f"block {running.job.number} was begun {ATTEMPTS} times and its worker died each time (signal "
                f"{-status}): give the machine more memory, or fewer --workers"
            )
        self.running[running.job.number] = self._launch(running.job, attempt=running.attempt + 1)
        return False

    def restart(self, number: int) -> None:
        if number in self.running:
            self.running[number].process.kill()

    def close(self) -> None:
        for running in self.running.values():
            running.process.kill()
            running.process.wait()
            running.stderr.close()
        self.running.clear()
        self._waiting.clear()


def worker_environment() -> dict[str, str]:
    """The environment of a worker process: this one's, with the folder from which `brine` is imported."""
    paths = [IMPORT_FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))} | threads
