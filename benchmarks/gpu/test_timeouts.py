"""A pytest plugin for tests on a GPU: one that hangs, or loses the GPU, costs itself and not all the others.

    python -m pytest -n 10 -p benchmarks.gpu.test_timeouts tests/kernels/attention/attention_triton_cases.py

*Time.* Who waits for a kernel that never ends is inside of the driver, where no exception and no Python signal handler
reaches. So a test that takes longer than `LIMIT_S` ends its process, from a thread of C's, and the stacks of all
threads go to stderr.

*A lost GPU.* After an illegal address nothing that a process asks of the GPU succeeds any more: every test after it
would fail as well. So after a test that failed the GPU is asked for a sign, and without one the process ends.

Under pytest-xdist another process takes over what is left, and the test counts as failed; without it the run ends.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Generator

import pytest

LIMIT_S = 60.0
"""For one test, what it compiles included."""
_stderr: int = 2
_failed: set[str] = set()


def pytest_configure() -> None:
    """Keep stderr, which is captured while tests run."""
    global _stderr
    _stderr = os.dup(sys.__stderr__.fileno())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note who failed."""
    if report.failed:
        _failed.add(report.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run one test, watched."""
    return (yield from watched(item))


def watched(item: pytest.Item) -> Generator[None, object, object]:
    """What a wrapper of `pytest_runtest_protocol` does around a test."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=_stderr)
    try:
        done = yield
        if item.nodeid in _failed and (lost := lost_gpu()):
            _end(f"{item.nodeid} lost the GPU: {lost}")
        return done
    finally:
        faulthandler.cancel_dump_traceback_later()


def lost_gpu() -> str | None:
    """What the GPU says where it does not answer this process any more."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
        float(torch.zeros(1, device="cuda"))
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    return None


def _end(why: str) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.exit(why, returncode=1)
    os.write(_stderr, f"{why}\n".encode())
    # a context that is lost cannot be taken down in order
    os._exit(1)
