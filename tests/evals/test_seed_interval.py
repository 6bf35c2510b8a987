"""Intervals over seeds and cases: against the textbook where there is one, by simulation where there is none."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.statistics.crossed import CrossedDesign, simulate
from brine.evals.comparison.seed_variance import _leverage, crossed_variance
from brine.evals.measurement import Measurement, MeasureSpec
from brine.evals.seed_interval import holm, needed, needed_cases, needed_seeds, seed_difference

BITS = MeasureSpec("bits_per_byte")
GAIN = MeasureSpec("gain.image", lower_is_better=False, one_minus=True)
RIGHT = MeasureSpec("needle.2048.text", lower_is_better=False)


def measured(values, *, spec=BITS, sizes=None):
    """A Measurement for each row of (seeds, cases) rates."""
    values = np.atleast_2d(np.asarray(values, np.float64))
    sizes = np.ones(values.shape[1]) if sizes is None else np.asarray(sizes, np.float64)
    cases = tuple(f"c{number}" for number in range(values.shape[1]))
    return [Measurement(spec, cases, row * sizes, sizes) for row in values]


def settings(seeds, cases, *, shift=0.0, seed_sd=0.01, spec=BITS, seed=0):
    """(ours, theirs) whose rates differ by `shift` on the average."""
    rng = np.random.default_rng(seed)
    level, sizes = rng.normal(2, 0.3, cases), rng.integers(100, 900, cases)
    rates = [
        level + move + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, 0.02, (seeds, cases)) for move in (shift, 0.0)
    ]
    return [measured(each, spec=spec, sizes=sizes) for each in rates]


def test_terms_are_the_mean_squares_of_the_crossed_design():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(4, 1)) + rng.normal(size=(1, 7)) + rng.normal(size=(4, 7))
    ones = np.ones_like(table)
    found = crossed_variance(table, ones, np.zeros_like(table), ones)
    seeds, cases = table.shape
    by_seed, by_case, mean = table.mean(1, keepdims=True), table.mean(0, keepdims=True), table.mean()
    square_seed = cases * ((by_seed - mean) ** 2).sum() / (seeds - 1)
    square_case = seeds * ((by_case - mean) ** 2).sum() / (cases - 1)
    square_rest = ((table - by_seed - by_case + mean) ** 2).sum() / ((seeds - 1) * (cases - 1))
    assert found.value == pytest.approx(mean)
    for term, square in ((found.between_seeds[0], square_seed), (found.between_cases, square_case),
                         (found.interaction, square_rest)):  # fmt: skip
        assert term == pytest.approx(square / (seeds * cases))
    assert found.case_degrees == pytest.approx(cases - 1) and found.seed_degrees.tolist() == [seeds - 1]
    rest = square_case - square_rest
    degrees = (square_seed + rest) ** 2 / (square_seed**2 / (seeds - 1) + rest**2 / (cases - 1))
    assert found.degrees_of_freedom == pytest.approx(degrees)
    weights = np.array([square_seed, rest]) / (square_seed + rest)
    quantile = weights @ stats.t.ppf(0.975, [seeds - 1, cases - 1])
    assert found.half_width() == pytest.approx(quantile * np.sqrt((square_seed + rest) / (seeds * cases)))


def test_unequal_weights_are_unbiased_with_the_degrees_of_the_quadratic_form():
    rng = np.random.default_rng(2)
    sizes = np.exp(rng.normal(size=9))
    weight = sizes / sizes.sum()
    inverse, degrees = _leverage(weight)
    maker = np.eye(9) - np.outer(np.ones(9), weight)
    form = maker.T @ np.diag(weight**2 * inverse) @ maker
    # its expectation under equal variance is the variance of the weighted mean
    assert np.trace(form) == pytest.approx((weight**2).sum())
    assert degrees == pytest.approx(min(8, 1.5 * np.trace(form) ** 2 / np.trace(form @ form)))


def test_value_is_the_difference_of_pooled_ratios():
    rng = np.random.default_rng(3)
    tables = [(rng.uniform(1, 2, (3, 8)), rng.uniform(2, 4, (3, 8))) for _ in range(2)]
    cases = tuple("abcdefgh")
    ours, theirs = ([Measurement(GAIN, cases, *pair) for pair in zip(*table, strict=True)] for table in tables)
    found = seed_difference(ours, theirs)
    gains = [1 - above.sum() / below.sum() for above, below in tables]
    assert found.value == pytest.approx(gains[0] - gains[1])
    assert found.ours == pytest.approx([each.value for each in ours])
    assert found.low < found.value < found.high
    # the order of cases is no matter
    shuffled = [each.select(reversed(cases)) for each in ours]
    assert seed_difference(shuffled, theirs) == found


@pytest.mark.parametrize("side", ["paired", "unpaired"])
def test_one_case_is_the_textbook_test_over_seeds(side):
    rng = np.random.default_rng(4)
    ours, theirs = rng.normal(1.0, 0.1, (5, 1)), rng.normal(1.1, 0.3, (5 if side == "paired" else 3, 1))
    found = seed_difference(measured(ours), measured(theirs), paired=side == "paired")
    if side == "paired":
        expected = stats.ttest_rel(ours[:, 0], theirs[:, 0])
    else:
        expected = stats.ttest_ind(ours[:, 0], theirs[:, 0], equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert (found.p_value, found.low, found.high) == pytest.approx((expected.pvalue, low, high), rel=1e-6)
    assert found.degrees_of_freedom == pytest.approx(expected.df)
    half = expected.pvalue / 2
    assert (found.p_worse, found.p_better) == pytest.approx((half, 1 - half) if found.value > 0 else (1 - half, half))


def test_one_seed_has_values_and_an_interval_over_cases_and_no_verdict():
    ours, theirs = settings(1, 30, shift=-0.5)
    found = seed_difference(ours, theirs)
    assert found.outcome == "no verdict" and found.p_value is None and found.interval_of == "cases"
    assert found.high < 0 and needed(found) == "at least 3 seeds of each"
    assert needed_seeds(found) is None and needed_cases(found) is None
    equal = [measured(np.array([[1.0, 3.0, 2.5]])), measured(np.array([[1.5, 2.0, 4.0]]))]
    expected = stats.ttest_1samp([-0.5, 1.0, -1.5], 0).confidence_interval(0.95)
    assert (lambda each: (each.low, each.high))(seed_difference(*equal)) == pytest.approx(tuple(expected))
    one = seed_difference(measured([[1.0]]), measured([[2.0]]))
    assert (one.value, one.low, one.high, one.interval_of) == (-1.0, None, None, "nothing")


def test_a_setting_against_itself_is_undecided():
    ours, _ = settings(3, 40)
    found = seed_difference(ours, ours)
    assert (found.value, found.outcome, found.p_value, found.p_worse) == (0.0, "undecided", 1.0, 0.5)
    assert needed_seeds(found) is None and "near 0" in needed(found)
    assert abs(found.low) < 1e-10


@pytest.mark.parametrize("spec", [BITS, RIGHT, GAIN], ids=lambda spec: spec.name)
def test_direction_follows_the_measure(spec):
    higher, lower = settings(3, 40, shift=2.0, spec=spec)
    # 1 minus a larger ratio is less of a gain
    assert seed_difference(higher, lower).outcome == ("better" if spec is RIGHT else "worse")
    found = seed_difference(lower, higher)
    assert found.outcome == ("worse" if spec is RIGHT else "better")
    small, large = sorted((found.p_better, found.p_worse))
    assert small < 0.025 < large and (found.p_better == small) == (found.outcome == "better")
    assert needed(found) == "nothing more" and needed_seeds(found) == 0


def test_p_value_is_where_the_interval_ends_at_zero():
    ours, theirs = settings(3, 25, shift=-0.02)
    found = seed_difference(ours, theirs)
    assert 0.01 < found.p_value < 0.5
    touching = seed_difference(ours, theirs, confidence=1 - found.p_value)
    assert touching.high == pytest.approx(0, abs=1e-6 * abs(touching.value))


def test_every_seed_is_shown():
    ours, theirs = measured([[1.0, 1.0], [1.2, 1.2], [2.0, 2.2]]), measured([[1.1, 1.1], [1.1, 1.1], [2.5, 2.5]])
    found = seed_difference(ours, theirs)
    assert found.share_below_zero == pytest.approx(2 / 3) and found.ours == pytest.approx((1.0, 1.2, 2.1))
    assert seed_difference(ours, theirs, paired=False).share_below_zero == pytest.approx(5 / 9)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["ours"] == pytest.approx([1.0, 1.2, 2.1]) and told["outcome"] == "undecided"
    assert "variance" not in told and told["interval_of"] == "seeds and cases"


def test_missing_cases_are_named_and_excluded_only_on_request():
    ours, theirs = settings(3, 6)
    ours[1] = ours[1].select(["c0", "c1", "c2", "c3", "c4"])
    theirs[2] = theirs[2].select(["c1", "c2", "c3", "c4", "c5"])
    with pytest.raises(ValueError, match=r"1 in ours\[1\] \(such as c5\), 1 in theirs\[2\] \(such as c0\)"):
        seed_difference(ours, theirs)
    found = seed_difference(ours, theirs, common_cases=True)
    assert (found.num_cases, found.num_excluded) == (4, 2)
    with pytest.raises(ValueError, match="no case was measured under every seed"):
        seed_difference([ours[0].select(["c0"])], [ours[0].select(["c1"])], common_cases=True)


def test_what_cannot_be_compared_is_refused():
    ours, theirs = settings(3, 6)
    with pytest.raises(ValueError, match="3 seeds against 2 cannot be paired"):
        seed_difference(ours, theirs[:2])
    assert seed_difference(ours, theirs[:2], paired=False).num_seeds == (3, 2)
    with pytest.raises(ValueError, match="one measure is compared at a time"):
        seed_difference(ours, [replace(each, spec=GAIN) for each in theirs])
    with pytest.raises(ValueError, match="no measurements of theirs"):
        seed_difference(ours, [])
    with pytest.raises(ValueError, match=r"confidence = 95"):
        seed_difference(ours, theirs, confidence=95)
    nothing = [replace(each, denominator=np.zeros(6)) for each in ours]
    with pytest.raises(ValueError, match=r"denominators of ours\[0\] sum to 0"):
        seed_difference(nothing, theirs)


def test_what_is_needed_is_enough_where_it_is_added():
    """About so many more: on fresh data of that size the interval's half-width is below the value, roughly."""
    ours, theirs = settings(3, 40, shift=-0.012, seed_sd=0.01)
    found = seed_difference(ours, theirs)
    more = needed_seeds(found)
    assert found.outcome == "undecided" and 1 <= more <= 200
    grown = found.variance.with_more(seeds=(3 + more) / 3)
    before = found.variance.with_more(seeds=(2 + more) / 3)
    assert grown.half_width() < abs(found.value) <= before.half_width()
    assert str(more) in needed(found)


def test_more_cases_do_not_help_where_seeds_differ():
    ours, theirs = settings(3, 40, shift=-0.012, seed_sd=0.05)
    assert needed_cases(seed_difference(ours, theirs)) is None
    # the other way round: what differs is single documents, the same under every seed
    own = np.random.default_rng(5).normal(0, 0.1, 30)
    rates = 2 + np.random.default_rng(6).normal(0, 0.001, (3, 30))
    found = seed_difference(measured(rates + own + 0.02 - own.mean()), measured(np.full((3, 30), 2.0)))
    assert needed_seeds(found) is None and 20 < needed_cases(found) < 200
    assert needed(found) == f"about {needed_cases(found)} more cases"


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    with pytest.raises(ValueError, match="must lie in"):
        holm([0.5, float("nan")])


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("form", ["bits", "gain", "unpaired"])
def test_coverage_in_a_small_simulation(seeds, form):
    """The whole grid is in `tests/acceptance/test_simulations.py`. What the two-way formula covers shows that the band
    can be missed."""
    design = CrossedDesign(seeds, 30, interaction_share=0.5, sizes="lognormal", form=form)
    cells = simulate(design, problems=1500, seed_shares=(0.0, 0.3, 0.9))
    # three standard errors of 1,500 problems
    assert all(0.933 <= cell["covered"] <= 0.992 for cell in cells), cells
    assert min(cell["covered_two_way"] for cell in cells) < 0.93
