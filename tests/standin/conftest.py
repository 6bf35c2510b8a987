"""The stand-in's tests have a process of their own: `pytest tests/standin`.

It changes torch for good (stand_in.py), and autograd serves only devices that were there at a process' first backward
pass. So it is registered before anything else runs, and only where nothing but this folder was asked for. Within the
whole suite `tests/test_standin.py` starts that process, and the files here are passed over.
"""

import sys
from pathlib import Path

import pytest
import stand_in
import torch

HERE = Path(__file__).parent
# the tiny model and rows of the loop's tests
sys.path[:0] = [str(HERE.parent / "training"), str(HERE.parent)]


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


def auto_is_the_card(monkeypatch) -> str:
    """From here on "auto" means the stand-in, as on a machine with a card; returns its name."""
    from model import device

    resolve = device.resolve_device

    def resolved(name="auto"):
        return torch.device(stand_in.NAME) if str(name).startswith(("auto", stand_in.NAME)) else resolve(name)

    # those that imported it by name as well
    for module in list(sys.modules.values()):
        if getattr(module, "resolve_device", None) is resolve:
            monkeypatch.setattr(module, "resolve_device", resolved)
    return stand_in.NAME


@pytest.fixture
def card(monkeypatch) -> str:
    """A machine whose card is the stand-in."""
    return auto_is_the_card(monkeypatch)
