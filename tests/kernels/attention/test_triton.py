"""Runs `attention_triton_*cases.py`: on the GPU where there is one, else in Triton's interpreter.

On a card the child has ten processes of its own, to compile in, however this file itself is run: `pytest tests/kernels
-n 10` does with the project's `--dist loadfile`. The cases alone, each of them told: `pytest -n 10 --dist worksteal
tests/kernels/attention/attention_triton_*cases.py`, or stage `tests` of `benchmarks.gpu`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from brine.kernels.attention import Spans, attention
from tests.paths import ROOT

pytest.importorskip("triton", reason="triton has no wheel for this platform")

pytestmark = pytest.mark.slow

CASES = sorted(Path(__file__).parent.glob("attention_triton_*cases.py"))


def run_cases(*options: str) -> subprocess.CompletedProcess:
    # what this pytest has set is not for the child, but for where compiled kernels are kept
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == "TRITON_CACHE_DIR" or not name.startswith(("PYTEST_", "TRITON_"))
    }
    # deterministic matrix products on a GPU, which the fixtures ask for, want this
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # on a card most of the time goes to compiling some 300 kernels, on as many cores as there are
    workers = min(os.cpu_count() or 1, 10)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
        workers = 0
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-n", str(workers), "--dist", "worksteal", "-p", "no:cacheprovider"),
            *options,
            *map(str, CASES),
        ],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip


def test_triton_cases_pass():
    done = run_cases()
    assert done.returncode == 0, "\n".join(done.stdout.splitlines()[-60:])
    assert " passed" in done.stdout and " failed" not in done.stdout


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused_without_the_interpreter():
    x = torch.randn(1, 5, 1, 8)
    spans = Spans.packed(torch.zeros(1, 5, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"needs CUDA tensors, but q is on cpu.*TRITON_INTERPRET=1"):
        attention(x, x, x, spans, backend="triton")
