"""The benchmarks are no installed package: the repository's root has to be on the path. Threads are put back."""

import json

import pytest
import torch


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def last_line(capsys):
    """Gives the JSON on the last line printed."""
    return lambda: json.loads(capsys.readouterr().out.splitlines()[-1])
