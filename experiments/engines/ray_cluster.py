"""A Ray cluster (extra `ray`): one task per trial; Ray finds a node with room and runs it again where a node dies.

Every node needs the same folder, interpreter and code: paths are absolute, and a worker under another interpreter
refuses. Under `uv run` Ray would copy the working tree and build an environment per worker; that is turned off.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from brine.common.formatting import counted
from brine.experiments.engines.process import TrialJob, run_job
from brine.experiments.trials.ending import Ending, last_line

UV_VARIABLE = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
MAX_RETRIES = 2
"""How often Ray runs a trial again whose node or worker died."""
GIB = 2**30
logger = logging.getLogger("brine.experiments")


class RayEngine:
    """Tasks of a Ray cluster."""

    def __init__(self, *, max_jobs: int = 4096, address: str | None = "auto"):
        """address: of the cluster, "auto" for the one that runs here, "local" to start one on this machine. Raises
        ValueError where Ray is missing or no cluster answers."""
        os.environ[UV_VARIABLE] = "0"
        try:
            import ray
        except ImportError as error:
            raise ValueError("ray is not installed: pip install brine-lm[ray]") from error
        self._ray, self.max_jobs = ray, max_jobs
        self._owns = not ray.is_initialized()
        if self._owns:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=None)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise ValueError(
                    f"no Ray cluster answers at {address!r} ({error}): start one with `ray start --head`"
                ) from error
        self._jobs: dict[str, tuple[TrialJob, Any, float | None]] = {}

    def submit(self, job: TrialJob) -> str:
        """Hand a job to Ray; returns its task's id. Raises ValueError for one that fits no node."""
        asked = {"CPU": float(job.cores), "GPU": float(job.gpus), "memory": job.memory_gib * GIB}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if nodes and not any(all(node.get(name, 0) >= least for name, least in asked.items()) for node in nodes):
            raise ValueError(
                f"{job.name} needs {counted(job.cores, 'core')}, {counted(job.gpus, 'GPU')} and "
                f"{job.memory_gib:.1f} GiB, which no node of the Ray cluster has"
            )
        job.stop_file.unlink(missing_ok=True)
        # the worker itself must find the code of the task
        environment = {UV_VARIABLE: "0", "PYTHONPATH": job.environment.get("PYTHONPATH", "")}
        task = self._ray.remote(run_job).options(
            name=job.name, num_cpus=job.cores, num_gpus=job.gpus, memory=int(job.memory_gib * GIB),
            max_retries=MAX_RETRIES, runtime_env={"env_vars": environment},
        )  # fmt: skip
        reference = task.remote(job)
        self._jobs[job.name] = (job, reference, None)
        return reference.hex()

    def poll(self, name: str) -> Ending | None:
        """How a job ended, or None while it waits or runs."""
        job, reference, asked = self._jobs[name]
        ready, _ = self._ray.wait([reference], timeout=0)
        if not ready:
            if asked is not None and time.monotonic() > asked + job.grace_s + 30:
                self._ray.cancel(reference, force=True)
                self._jobs[name] = (job, reference, None)
            return None
        del self._jobs[name]
        try:
            return Ending(self._ray.get(reference, timeout=10), last_line(job.log))
        except self._ray.exceptions.RayError as error:
            # all retries are used up, or the worker was killed for memory
            return Ending(None, f"Ray lost it: {str(error).strip().splitlines()[0]}")

    def cancel(self, name: str) -> None:
        """Ask a job to save and end; one that waits ends as soon as it starts."""
        job, reference, _ = self._jobs[name]
        job.stop_file.parent.mkdir(parents=True, exist_ok=True)
        job.stop_file.touch()
        self._jobs[name] = (job, reference, time.monotonic())

    def close(self) -> None:
        """Leave the cluster."""
        if self._owns:
            self._ray.shutdown()
