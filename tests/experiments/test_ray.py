"""Ray for real: several nodes on this machine, one of which dies in the middle of a job."""

import sys
import time

import pytest

from brine.experiments.engines.process import TrialJob
from tests.experiments.ray_nodes import small_cluster
from tests.experiments.test_engines import COUNTER, wait_for, wait_until
from tests.paths import ROOT

pytest.importorskip("ray")
pytestmark = pytest.mark.acceptance


def test_a_job_moves_to_another_node_and_a_stop_lets_it_save(tmp_path):
    from brine.experiments.engines.ray_cluster import RayEngine

    (tmp_path / "experiment").mkdir()
    job = TrialJob(
        "one", (sys.executable, "-c", COUNTER, str(tmp_path)), {"PYTHONPATH": str(ROOT)},
        tmp_path / "experiment" / "logs" / "one.log", grace_s=20,
    )  # fmt: skip
    with small_cluster(2, pythonpath=str(ROOT)) as cluster:
        engine = RayEngine(address=cluster.address)
        with pytest.raises(ValueError, match="which no node of the Ray cluster has"):
            engine.submit(TrialJob("big", job.command, {}, job.log, cores=5))
        engine.submit(job)
        wait_until((tmp_path / "begun").exists)
        first = (tmp_path / "begun").read_text().splitlines()
        # the folder and the interpreter are this process's
        assert first[0].split()[1:] == [sys.executable, str(job.log.parent)]
        node = next(node for node in cluster.worker_nodes if has_worker(node, int(first[0].split()[0])))
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: len((tmp_path / "begun").read_text().splitlines()) == 2, 90)
        assert engine.poll("one") is None
        engine.cancel("one")
        ending = wait_for(engine, "one")
        assert (ending.code, ending.message) == (130, "saved")
        start = time.monotonic()
        engine.submit(job)
        assert wait_for(engine, "one").code == 0 and time.monotonic() - start < 60
        engine.close()


def has_worker(node, pid):
    """Is the process a descendant of the node's?"""
    import psutil

    raylet = node.all_processes["raylet"][0].process.pid
    parents = [parent.pid for parent in psutil.Process(pid).parents()]
    return raylet in parents
