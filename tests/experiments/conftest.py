"""A source of documents and frozen plans, for all tests of experiments."""

import pytest

from brine.experiments.planning.freeze import freeze
from tests.experiments.tiny import make_source, tiny_experiment


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A folder of short texts."""
    return make_source(tmp_path_factory.mktemp("texts") / "source")


@pytest.fixture
def make_plan(source, tmp_path, monkeypatch):
    """Factory of frozen plans without a snapshot of the code: `make_plan(seeds=Seeds((0, 1)))`."""
    snapshot = {"commit": "none", "digest": "none", "files": 0}
    monkeypatch.setattr("brine.experiments.planning.freeze.take_snapshot", lambda folder: dict(snapshot))

    def make(name="tiny", **changes):
        return freeze(name, tiny_experiment(source, **changes), runs=tmp_path / "runs", threads=1)

    make.runs = tmp_path / "runs"
    return make
