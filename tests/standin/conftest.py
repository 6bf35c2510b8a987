"""The stand-in's tests have a process of their own: `pytest tests/standin`.

It changes torch for good (stand_in.py), and autograd serves only devices that were there at a process' first backward
pass. So it is registered before anything else runs, and only where nothing but this folder was asked for. Within the
whole suite `tests/test_standin.py` starts that process, and the files here are passed over.
"""

from pathlib import Path

import pytest
import torch

from tests.standin import stand_in
from tests.standin.machine import auto_is_the_card

HERE = Path(__file__).parent
# the tiny model and rows of the loop's tests


def is_alone(config) -> bool:
    """Was nothing asked for but what lies in this folder?"""
    asked = [(Path(config.invocation_params.dir) / str(one).partition("::")[0]).resolve() for one in config.args]
    return bool(asked) and all(path == HERE or HERE in path.parents for path in asked)


def pytest_configure(config):
    if is_alone(config):
        stand_in.register()


def pytest_ignore_collect(collection_path, config):
    return None if is_alone(config) else True


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tensors here are too small to share."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def deterministic():
    """As training sets it, and a test's own seed."""
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def card(monkeypatch) -> str:
    """A machine whose card is the stand-in."""
    return auto_is_the_card(monkeypatch)
