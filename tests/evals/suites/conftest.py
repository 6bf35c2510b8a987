"""A source of four modalities and a suite made from it, once for each file of tests."""

import pytest

from brine.evals.suites.making.make import make_suite
from tests.evals.suites.sources import SMALL, make_source


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("source") / "birds")


@pytest.fixture(scope="module")
def suite(source, tmp_path_factory):
    """All held-out documents of the source: nothing is more than `per_cell`."""
    return make_suite("birds", [source], SMALL, root=tmp_path_factory.mktemp("suites"), workers=1)
