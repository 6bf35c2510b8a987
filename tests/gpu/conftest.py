"""Tests for one GPU: what a CPU cannot stand in for. Without CUDA each is skipped, and says so.

    python -m pytest -n 8 --dist load tests/gpu

Each has a limit of time, and one that loses the GPU takes its process along (`benchmarks.gpu.test_timeouts`).
"""

import os
import socket

import pytest
import torch
import torch.distributed as dist

from benchmarks.gpu.test_timeouts import pytest_configure, pytest_runtest_logreport, watched  # noqa: F401


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    # pytest asks this hook about the tests of all folders
    if item.path.parent.name != "gpu" or not torch.cuda.is_available():
        return (yield)
    return (yield from watched(item))


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def nccl(monkeypatch):
    """A process group of this process alone, by NCCL on the GPU and gloo on the host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    torch.cuda.set_device(0)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
        yield
    finally:
        # also where only a part of it came about
        if dist.is_initialized():
            dist.destroy_process_group()
