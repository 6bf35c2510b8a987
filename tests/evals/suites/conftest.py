"""A source of four modalities and a suite made from it, once for each file of tests."""

import pytest

from brine.evals.suites.making.make import make_suite
from tests.data.encode_here import Here
from tests.evals.suites.sources import SMALL, make_source


@pytest.fixture(scope="module", autouse=True)
def decoded_here():
    """Decoding has tests of its own; a server that decodes sound imports torch for two seconds. Commands that tests run
    in other processes have servers. (A fixture of the package would stay for the files of other folders.)"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brine.data.corpus.fill_shards.DecodePool", Here)
        patch.setattr("brine.evals.suites.making.choose.DecodePool", Here)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("source") / "birds")


@pytest.fixture(scope="module")
def suite(source, tmp_path_factory):
    """All held-out documents of the source: nothing is more than `per_cell`."""
    return make_suite("birds", [source], SMALL, root=tmp_path_factory.mktemp("suites"), workers=1)
