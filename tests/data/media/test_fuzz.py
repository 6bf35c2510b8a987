"""Mutated media of every format through two decoding servers: no crash, no hang, no growth, no wrong success.

500 cases of the series 0; `python -m benchmarks.data.fuzz` runs 5,000 of any series, real files among them. A case that
fails is had again by `fuzz_media.mutant(seeds, seed, case)`. What fuzzing found is told in the regression tests below.
"""

import os

import pytest

pytest.importorskip("av", reason="PyAV makes the films")

from tests.data import fuzz_media, fuzz_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def seeds(tmp_path_factory):
    return fuzz_media.seeds(tmp_path_factory.mktemp("seeds"))


def test_mutants_are_a_function_of_seed_and_case(seeds):
    first = [fuzz_media.mutant(seeds, 3, case) for case in range(40)]
    assert first == [fuzz_media.mutant(seeds, 3, case) for case in range(40)]
    assert first != [fuzz_media.mutant(seeds, 4, case) for case in range(40)]
    assert len({case.operation for case in first}) > 6 and len({case.seed_name for case in first}) > 15


def test_fuzz(seeds, tmp_path, monkeypatch):
    """500 cases; refusals and acceptances both happen, and whatever is accepted is right."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    report = fuzz_run.run(seeds, 0, range(500), tmp_path)
    assert not report.problems, "\n".join(report.problems[:20])
    assert not report.deaths, "\n".join(report.deaths)
    total = sum(report.outcomes.values())
    accepted = sum(count for (_, outcome), count in report.outcomes.items() if outcome == "accepted")
    assert total == 500 and 50 < accepted < 350
    assert report.slowest_s < fuzz_run.CONFIG.decode_timeout_s
    assert report.peak_mib < fuzz_run.MAX_MEMORY_MIB and report.growth_mib < 256
