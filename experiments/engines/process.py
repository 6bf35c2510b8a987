"""A trial's process, as every engine starts it: a group of its own that ends with its parent and can be asked to stop.

`run_job` runs where the engine wants it (a node of a cluster) and waits there. To stop a job from afar its stop file is
made: the process gets SIGINT, saves a checkpoint and ends; one that does not is killed with its group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from brine.experiments.trials.ending import INTERRUPTED, REFUSED

GRACE_S = 90.0
"""Between SIGINT and SIGKILL: enough for a step and a checkpoint of most models."""
POLL_S = 0.2
PARENT_VARIABLE = "BRINE_TRIAL_PARENT"


@dataclass(frozen=True)
class TrialJob:
    """What an engine runs for one trial. All paths are absolute."""

    name: str
    command: tuple[str, ...]
    """The interpreter first."""
    environment: dict[str, str] = field(default_factory=dict)
    """Added to the environment of the machine that it runs on."""
    log: Path = Path("log")
    """Standard output and error are appended here."""
    cores: int = 1
    gpus: int = 0
    memory_gib: float = 1.0
    grace_s: float = GRACE_S
    """Seconds between being asked to stop and being killed."""

    @property
    def stop_file(self) -> Path:
        """Asks for a stop while it exists."""
        return self.log.with_suffix(".stop")


def start_process(job: TrialJob, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Start a job as a process group of its own."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    added = {**job.environment, PARENT_VARIABLE: str(os.getpid()), **(environment or {})}
    # Ray's workers block SIGINT, and a process inherits what its parent's thread blocks
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with open(job.log, "ab") as log:
            return subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=job.log.parent, env=os.environ | added,
            )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def kill_group(process: subprocess.Popen) -> None:
    """SIGKILL to what is left of a process's group, and wait for the process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)


def stop_process(process: subprocess.Popen, *, grace_s: float) -> int | None:
    """SIGINT, then after `grace_s` SIGKILL to the group; returns the exit code."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_s)
    kill_group(process)
    return process.poll()


def run_job(job: TrialJob, *, started: Callable[[subprocess.Popen], None] = lambda process: None) -> int:
    """Run a job here and wait for it; returns its exit code. started: called with the process.

    Refused (code 2) where the engine's worker runs under another interpreter than the job's, since then it is in
    another environment, and where the experiment's folder is not there."""
    if os.path.realpath(sys.executable) != os.path.realpath(job.command[0]):
        return _refuse(job, f"the worker runs under {sys.executable}, not under {job.command[0]}: start the cluster's "
                            "nodes in the same environment (RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 under uv)")  # fmt: skip
    if not job.log.is_absolute():
        return _refuse(job, f"the log {job.log} of a trial is not an absolute path")
    if not job.log.parent.parent.is_dir():
        return _refuse(job, f"{job.log.parent.parent} is not there: every node needs the same shared folder")
    if job.stop_file.exists():
        return INTERRUPTED
    process = start_process(job)
    started(process)
    try:
        while process.poll() is None:
            if job.stop_file.exists():
                stop_process(process, grace_s=job.grace_s)
                break
            time.sleep(POLL_S)
    except BaseException:
        stop_process(process, grace_s=job.grace_s)
        raise
    kill_group(process)
    return process.returncode


def _refuse(job: TrialJob, message: str) -> int:
    with contextlib.suppress(OSError), open(job.log, "a", encoding="utf-8") as log:
        log.write(f"error: {message}\n")
    print(f"error: {message}", file=sys.stderr)
    return REFUSED
