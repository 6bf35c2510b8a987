"""A small Ray cluster on this machine: a head without cores and nodes of one core each, every one a process of its
own."""

import contextlib
import os

NODE_MEMORY, OBJECT_STORE = 3 * 2**30, 80 * 2**20
"""Bytes that a node says it has, and those that it takes for objects."""


@contextlib.contextmanager
def small_cluster(num_nodes, *, pythonpath):
    """The cluster, and its address for the engine; nodes are in `cluster.worker_nodes`."""
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = pythonpath
    # a dead node is noticed within seconds
    system = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    options = {"num_cpus": 0, "object_store_memory": OBJECT_STORE, "include_dashboard": False, "_system_config": system}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=options)
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=1, memory=NODE_MEMORY, object_store_memory=OBJECT_STORE)
        cluster.wait_for_nodes(timeout=60)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
