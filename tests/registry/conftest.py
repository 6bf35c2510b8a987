"""A registry and a folder of runs, both empty."""

import pytest

from brine.registry.registry import Registry


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"
