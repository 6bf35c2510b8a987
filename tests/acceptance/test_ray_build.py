"""A corpus built on a Ray cluster of three node processes, one of which is killed: the bytes of a build by one process.

About 2 GiB and one to two minutes on two cores, most of it Ray's start.
"""

import os
import socket
import sys
import threading
import time

import pytest

from brine.data.corpus.store import build_corpus
from brine.data.tokenizer import train_tokenizer
from tests.data.corpus.test_blocks import files_of
from tests.data.media_files import line, manifest, picture

SHARDS = {"shard_documents": 5, "shard_mib": 0.2}


@pytest.fixture
def cluster():
    # read when ray is imported: else Ray makes an environment for each worker under `uv run`
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    ray = pytest.importorskip("ray", reason="the extra [ray]")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        made.spare = [made.add_node(**node) for _ in range(2)]
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def test_a_killed_node_changes_no_byte(cluster, tmp_path):
    from brine.data.corpus.blocks.ray_engine import RayEngine

    lines = []
    for number in range(60):
        picture(tmp_path / f"material/{number}.png", 300, 300, seed=number)
        lines.append(line(f"{number}", {"image": f"{number}.png"}, f"picture {number}"))
        if number % 11 == 0:
            lines.append(line(f"gone-{number}", {"image": "gone.png"}, "x"))
    source, tokenizer = manifest(tmp_path / "material", lines), train_tokenizer(["picture 0123456789 " * 20], 300)
    time.sleep(0.2)
    build_corpus(source, tmp_path / "alone", tokenizer=tokenizer, num_workers=1, **SHARDS)
    engine, killed = RayEngine(num_decoders=1), []

    def kill():
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            # all three nodes are at work
            if len(list((tmp_path / "c" / "blocks").glob("*.partial"))) >= 3:
                cluster.remove_node(cluster.spare[0], allow_graceful=False)
                killed.append(time.monotonic())
                return
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    build_corpus(source, tmp_path / "c", tokenizer=tokenizer, engine=engine, **SHARDS)
    assert killed and time.monotonic() > killed[0]
    thread.join(timeout=60)
    assert engine.executables == {(socket.gethostname(), sys.executable)}
    assert files_of(tmp_path / "c") == files_of(tmp_path / "alone")
