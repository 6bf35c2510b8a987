"""Intervals cover what they say, and pair what belongs together."""

import numpy as np
import pytest

from brine.evals.config import EvalConfig, EvalTargets, Interval, ratio_interval


@pytest.mark.slow
def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Ratios of paired sums with a known truth of 0.7: 95 % intervals of 200 samples, 60 documents each.

    The allowed band is the binomial 3-sigma band around 0.95, widened downwards by the percentile interval's own
    known shortfall at this size (about 2 points).
    """
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        length = generator.gamma(2.0, 50.0, size=60)
        own = length * 0.7 * np.exp(generator.normal(0, 0.3, size=60) - 0.045)
        interval = ratio_interval(own, length, num_resamples=400)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.88 <= covered / 200 <= 0.996


def test_pairing_makes_the_interval_narrow():
    """Documents of very different difficulty, each made a tenth harder: the ratio is known exactly."""
    difficulty = np.random.default_rng(0).gamma(1.0, 10.0, size=50)
    interval = ratio_interval(difficulty, difficulty * 1.1, one_minus=True)
    assert interval.value == pytest.approx(1 - 1 / 1.1)
    assert interval.high - interval.low < 1e-9


def test_same_seed_same_interval_and_lists_are_welcome():
    one = ratio_interval([1, 2, 3, 4], [2, 2, 4, 4], seed=3)
    assert one == ratio_interval(np.array([1.0, 2, 3, 4]), np.array([2, 2, 4, 4]), seed=3)
    assert one.value == pytest.approx(10 / 12) and one.low < one.value < one.high


def test_nothing_to_measure_is_none():
    assert ratio_interval([], []) == Interval()
    assert ratio_interval([1.0], [0.0]) == Interval()
    assert ratio_interval([float("nan")], [1.0]) == Interval()
    assert Interval().to_dict(name="gain") == {"gain": None, "low": None, "high": None, "num_documents": 0}
    with pytest.raises(ValueError, match="equal lengths"):
        ratio_interval([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"split": "train"}, "held out"),
        ({"seq_len": 0}, "seq_len"),
        ({"bootstrap_resamples": 5}, "100 or more"),
        ({"confidence": 95}, "confidence"),
        ({"transcripts_per_cell": -1}, "turns it off"),
    ],
)
def test_config_says_what_is_wrong(fields, words):
    with pytest.raises(ValueError, match=words):
        EvalConfig(**fields)


def test_targets_lie_between_zero_and_one():
    with pytest.raises(ValueError, match="image_gain"):
        EvalTargets(image_gain=40)
