"""The benchmarks are no installed package: the repository's root has to be on the path. Threads are put back."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def last_line(capsys):
    """Gives the JSON on the last line printed."""
    return lambda: json.loads(capsys.readouterr().out.splitlines()[-1])
