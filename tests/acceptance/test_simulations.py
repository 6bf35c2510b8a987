"""Intervals cover and the gate has power: the benchmarks' own commands, every cell with fewer problems."""

import pytest

from tests.acceptance.test_at_length import last_line


@pytest.mark.parametrize("seed", [11])
def test_intervals_cover_over_seeds_and_cases(tmp_path, seed):
    """0.93 to 0.98 from 5 seeds on, at least 0.91 with 3, false verdicts at most 5 %."""
    options = ("--problems", "4000", "--seed", str(seed), "--results", str(tmp_path))
    record = last_line("benchmarks.statistics.intervals", *options, timeout_s=3600)
    assert len(record["cases"]) == 162 and len(record["targets"]) == 12
    assert all(target["met"] for target in record["targets"]), record["targets"]


def test_the_gate_lets_through_and_refuses(tmp_path):
    """With 8 and 20 guards, 3 and 5 seeds, `decide` itself on 200 candidates of each sort."""
    options = ("--batches", "5", "--seed", "11", "--results", str(tmp_path))
    record = last_line("benchmarks.statistics.gate", *options, timeout_s=3600)
    assert len(record["cases"]) == 8 and all(target["met"] for target in record["targets"]), record["targets"]
    assert all(cell["decide"]["candidates"] == 200 for cell in record["cases"] if not cell["case_variance"])
