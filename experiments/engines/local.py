"""A pool of processes on this machine. GPUs are handed out in turn; a trial that would not fit into memory beside the
others waits for one of them to end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time

from brine.experiments.engines.process import TrialJob, kill_group, start_process
from brine.experiments.trials.ending import Ending, last_line

MEMORY_MARGIN = 0.9
"""Of the machine's free memory at the start, the part that trials may fill."""


class LocalPool:
    """Up to `workers` processes at once, each the leader of a group that is killed with it."""

    def __init__(self, workers: int):
        """Raises ValueError for no workers."""
        if workers < 1:
            raise ValueError(f"workers = {workers}: give 1 or more")
        self.max_jobs = workers
        self._running: dict[str, tuple[TrialJob, subprocess.Popen]] = {}
        self._devices: dict[str, str] = {}
        self._deadlines: dict[str, float] = {}
        self._memory_gib = MEMORY_MARGIN * free_memory_gib()

    def has_room(self, job: TrialJob) -> bool:
        """Does the job fit beside those that run? The first always may try."""
        taken = sum(other.memory_gib for other, _ in self._running.values())
        return not self._running or taken + job.memory_gib <= self._memory_gib

    def submit(self, job: TrialJob) -> str:
        """Start a job; returns its process id."""
        environment = {}
        if job.gpus and (device := self._free_device()) is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[job.name] = device
        process = start_process(job, environment)
        self._running[job.name] = (job, process)
        return str(process.pid)

    def poll(self, name: str) -> Ending | None:
        """How a job ended, or None while it runs."""
        job, process = self._running[name]
        if process.poll() is None and time.monotonic() < self._deadlines.get(name, float("inf")):
            return None
        # its data workers, should they have outlived it, or all of one that did not stop
        kill_group(process)
        self._forget(name)
        return Ending(process.returncode, last_line(job.log))

    def cancel(self, name: str) -> None:
        """Ask a job to save and end; `poll` kills it when its time of grace is over."""
        job, process = self._running[name]
        if name not in self._deadlines:
            self._deadlines[name] = time.monotonic() + job.grace_s
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Kill what still runs; its parent ends anyway."""
        for name, (_, process) in list(self._running.items()):
            kill_group(process)
            self._forget(name)

    def _forget(self, name: str) -> None:
        del self._running[name]
        self._devices.pop(name, None)
        self._deadlines.pop(name, None)

    def _free_device(self) -> str | None:
        import torch

        taken = list(self._devices.values())
        devices = [str(index) for index in range(torch.cuda.device_count())]
        return min(devices, key=taken.count, default=None)


def free_memory_gib() -> float:
    """Memory that may be used without swapping, GiB; as /proc/meminfo has it, else no bound."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) / 2**20
    except OSError:
        pass
    return float("inf")
