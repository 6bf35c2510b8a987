"""SLURM by submitit (extra `slurm`): one job per trial, which a time-out or a preemption requeues from its checkpoint.

submitit sends SIGUSR2 some time before the end of a job's time and calls `checkpoint`: the trial's process gets SIGINT,
saves and ends, and the job is put back into SLURM's queue under the same id.
"""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Any

from brine.experiments.engines.process import GRACE_S, TrialJob, run_job, stop_process
from brine.experiments.trials.ending import Ending, last_line

MAX_TIMEOUTS = 1000
"""How often a job may be requeued after a time-out: a trial that takes days in a partition of hours is no fault."""
logger = logging.getLogger("brine.experiments")


class SlurmTask:
    """What submitit pickles and calls on a node."""

    def __init__(self, job: TrialJob):
        self.job = job
        self._process: subprocess.Popen | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"job": self.job, "_process": None}

    def __call__(self) -> int:
        """Run the trial here; returns its exit code."""
        code = run_job(self.job, started=self._started)
        self._process = None
        return code

    def checkpoint(self) -> Any:
        """Called before the job loses its node: stop the trial's process, which saves, and ask to be requeued."""
        import submitit

        if self._process is not None:
            stop_process(self._process, grace_s=self.job.grace_s)
        return submitit.helpers.DelayedSubmission(self)

    def _started(self, process: subprocess.Popen) -> None:
        self._process = process


class SlurmEngine:
    """Jobs of SLURM, or with cluster="local" submitit's processes on this machine, for tests."""

    def __init__(
        self, folder: Path, *, max_jobs: int = 256, partition: str | None = None, hours: float = 24.0,
        cluster: str = "slurm", setup: tuple[str, ...] = (), more: dict[str, Any] | None = None,
    ):  # fmt: skip
        """folder: the experiment's, on a disk that all nodes share. hours: of one job before it is requeued. setup:
        shell commands before a trial. more: further parameters of `sbatch`. Raises ValueError where submitit or SLURM
        is missing."""
        try:
            import submitit
        except ImportError as error:
            raise ValueError("submitit is not installed: pip install brine-lm[slurm]") from error
        self.max_jobs, self._jobs = max_jobs, {}
        try:
            self._executor = submitit.AutoExecutor(
                folder=str(folder.absolute() / "slurm"), cluster=cluster,
                **{f"{cluster}_max_num_timeout": MAX_TIMEOUTS},
            )  # fmt: skip
        except RuntimeError as error:
            raise ValueError(f"there is no SLURM here ({error}): use --engine local or ray") from error
        self._cluster = cluster
        self._options: dict[str, Any] = {"timeout_min": max(1, round(60 * hours))}
        if cluster == "slurm":
            self._options |= {"slurm_signal_delay_s": round(GRACE_S) + 30, "slurm_setup": list(setup)}
            if partition is not None:
                self._options["slurm_partition"] = partition
            if more:
                self._options["slurm_additional_parameters"] = more

    def submit(self, job: TrialJob) -> str:
        """Put a job into SLURM's queue; returns its id."""
        import submitit

        job.stop_file.unlink(missing_ok=True)
        options: dict[str, Any] = dict(self._options, name=job.name, cpus_per_task=job.cores)
        if self._cluster == "slurm":
            options |= {"mem_gb": max(1, -(-job.memory_gib // 1)), "tasks_per_node": 1, "nodes": 1}
            options |= {"gpus_per_node": job.gpus} if job.gpus else {}
            # submitit's own process must find the code of the task
            path = f"export PYTHONPATH={job.environment.get('PYTHONPATH', '')}"
            options["slurm_setup"] = [path, *self._options["slurm_setup"]]
        try:
            self._executor.update_parameters(**options)
            submitted = self._executor.submit(SlurmTask(job))
        except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError, OSError) as error:
            raise ValueError(f"SLURM did not take the job of {job.name}: {error}") from error
        self._jobs[job.name] = (job, submitted)
        return str(submitted.job_id)

    def attach(self, job: TrialJob, handle: str) -> bool:
        """Take up a job that an earlier command submitted; False where this engine cannot."""
        if self._cluster != "slurm" or not handle.isdigit():
            return False
        import submitit

        self._jobs[job.name] = (job, submitit.SlurmJob(self._executor.folder, handle))
        return True

    def poll(self, name: str) -> Ending | None:
        """How a job ended, or None while it waits or runs."""
        job, submitted = self._jobs[name]
        if not submitted.done():
            return None
        del self._jobs[name]
        try:
            return Ending(submitted.result(), last_line(job.log))
        except Exception as error:
            # no result: the node died, or memory ran out
            state = str(getattr(submitted, "state", "unknown"))
            logger.debug("%s: %s", name, error)
            return Ending(None, f"SLURM lost the job ({state})")

    def cancel(self, name: str) -> None:
        """Ask a job to save and end; one that waits ends as soon as it starts."""
        job, submitted = self._jobs[name]
        job.stop_file.parent.mkdir(parents=True, exist_ok=True)
        job.stop_file.touch()
        # one that sacct does not show yet may run, and would die without a checkpoint: its stop file ends it
        if self._cluster == "slurm" and submitted.watcher.get_state(submitted.job_id, mode="force") == "PENDING":
            submitted.cancel(check=False)

    def close(self) -> None:
        """Nothing is held: jobs stay SLURM's."""
