"""Blocks on a Ray cluster (extra [ray]): a task for each, which Ray starts again where a worker or a node dies.

Nodes share the disk of source and corpus; nothing but job descriptions goes through Ray, whose object store stays
empty. Under `uv run` Ray would copy the tree and build a new environment for each worker; that is switched off, and a
worker on this host that runs another Python is an error. Whether other hosts have the same versions is checked by
`encode_block`.
"""

import os
import socket
import sys
import time
from dataclasses import asdict
from typing import Any

from brine.common.processes import usable_cores
from brine.data.corpus.blocks.encode_block import BlockError, BlockJob, encode_block
from brine.data.corpus.blocks.engine import ATTEMPTS, worker_environment

OBJECT_STORE_BYTES = 80 * 2**20
"""Of a cluster that is started here: the least that Ray takes."""
NODES_TIMEOUT_S = 20.0
_PASSED_ON = ("PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_block(fields: dict) -> dict:
    """The task: what `encode_block` returns, for the fields of a `BlockJob`."""
    return encode_block(BlockJob(**fields))


def _cpus_of_nodes(ray: Any) -> list[float]:
    """CPUs of each node, once there are any: those of a cluster that has only just started come a little later."""
    start = time.monotonic()
    while True:
        found = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        if any(found) or time.monotonic() - start > NODES_TIMEOUT_S:
            return found
        time.sleep(0.2)


class RayEngine:
    """Blocks as tasks of `num_decoders` CPUs each."""

    def __init__(self, address: str | None = None, *, num_decoders: int = 2):
        """address: "auto", "host:port" or "ray://..."; None starts a cluster of this machine alone.

        Raises ImportError without Ray, BlockError where no node has `num_decoders` CPUs or the address has no cluster.
        """
        # read when ray is imported
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        try:
            import ray
        except ImportError:
            raise ImportError("--engine ray needs Ray: pip install brine-lm[ray]") from None
        self._ray: Any = ray
        self.num_decoders = num_decoders
        self.executables: set[tuple[str, str]] = set()
        """(host, sys.executable) of the workers that finished a block."""
        self._began_cluster = not ray.is_initialized()
        if self._began_cluster:
            own = {} if address else {"num_cpus": usable_cores(), "object_store_memory": OBJECT_STORE_BYTES}
            try:
                ray.init(address=address, log_to_driver=False, logging_level="error", **own)
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = str(error).strip().splitlines()[0][:200]
                raise BlockError(
                    f"no Ray cluster answers at {address!r} ({reason}): start one, or leave --address out"
                ) from None
        self._slots = 2 * sum(int(cpus) // num_decoders for cpus in _cpus_of_nodes(ray))
        if not self._slots:
            self.close()
            raise BlockError(f"no node of the Ray cluster has {num_decoders} CPUs: give fewer --workers")
        environment = worker_environment()
        variables = {name: environment[name] for name in _PASSED_ON} | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        self._task = ray.remote(run_block).options(
            num_cpus=num_decoders, max_retries=ATTEMPTS - 1, runtime_env={"env_vars": variables}
        )
        self._jobs: dict[Any, BlockJob] = {}
        self._restarts: dict[int, int] = {}

    @property
    def slots(self) -> int:
        return self._slots

    def submit(self, job: BlockJob) -> None:
        self._jobs[self._task.remote(asdict(job))] = job

    def finished(self, timeout_s: float) -> list[int]:
        if not self._jobs:
            return []
        done, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=timeout_s)
        return [job.number for reference in done if (job := self._result(reference)) is not None]

    def _result(self, reference: Any) -> BlockJob | None:
        job, errors = self._jobs.pop(reference), self._ray.exceptions
        try:
            ran = self._ray.get(reference, timeout=60.0)
        except errors.TaskCancelledError:
            return None
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
            raise BlockError(f"block {job.number}: {cause}") from None
        except errors.RayError as error:
            raise BlockError(
                f"block {job.number} was begun {ATTEMPTS} times and its worker died each time "
                f"({type(error).__name__}): see the logs of Ray, and give nodes more memory or fewer --workers"
            ) from None
        self.executables.add((ran["host"], ran["executable"]))
        if ran["host"] == socket.gethostname() and ran["executable"] != sys.executable:
            raise BlockError(
                f"Ray's workers run {ran['executable']} instead of {sys.executable}: start the cluster from this "
                "environment"
            )
        return job

    def restart(self, number: int) -> None:
        for reference, job in list(self._jobs.items()):
            if job.number == number:
                self._restarts[number] = self._restarts.get(number, 0) + 1
                if self._restarts[number] >= ATTEMPTS:
                    raise BlockError(f"block {number} made no progress in {ATTEMPTS} attempts: see the disk it reads")
                self._ray.cancel(reference, force=True)
                self._jobs.pop(reference)
                self.submit(job)

    def close(self) -> None:
        if not self._ray.is_initialized():
            return
        for reference in getattr(self, "_jobs", {}):
            self._ray.cancel(reference, force=True)
        if self._began_cluster:
            self._ray.shutdown()
