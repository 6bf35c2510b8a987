"""Two runs compared at equal steps and at equal cost: arithmetic that can be done on paper."""

import numpy as np
import pytest

from brine.evals.compare import at_equal_cost, at_equal_steps, compare_arms, cost_to_match, outcome, validation_curve_of
from brine.evals.config import EvalConfig, Interval
from brine.evals.loss import DocumentLosses
from brine.evals.run_files import format_interval

CONFIG = EvalConfig(bootstrap_resamples=300)
TOKENS = [10] * 40


def losses(per_token, *, spread=0.1, first=0):
    """40 documents of 10 tokens, of very different difficulty, `per_token` on average."""
    difficulty = np.linspace(-1, 1, 40)
    tokens = np.zeros((40, 4), np.int64)
    tokens[:, 1] = 10
    loss = np.zeros((40, 4))
    loss[:, 1] = 10 * (per_token + spread * difficulty)
    numbers = np.arange(first, first + 40)
    return DocumentLosses(numbers, np.zeros(40, int), np.ones(40, int), loss, tokens, tokens, ("screenshot",))


def metrics(points, *, teacher=0.0):
    """Lines of metrics.jsonl: {step: loss per token}, 100 FLOPs a step, a teacher's share beside."""
    return [
        {
            "step": step,
            "loss": value,
            "flops": {"total": 100 * step * (1 + teacher)},
            "validation": {"documents": [10 * value] * 40, "tokens": TOKENS},
        }
        for step, value in points.items()
    ]


def test_equal_steps_win_loss_undecided():
    better = at_equal_steps(losses(1.0), losses(1.1), CONFIG)
    assert better["outcome"] == "win" and better["difference"] == pytest.approx(-0.1)
    assert at_equal_steps(losses(1.1), losses(1.0), CONFIG)["outcome"] == "loss"
    noisy = losses(1.0)
    noisy.loss[:, 1] += np.random.default_rng(0).normal(0, 3, 40)
    assert at_equal_steps(noisy, losses(1.0), CONFIG)["outcome"] == "undecided"
    assert better["kinds"][0]["kind"] == "screenshot"
    with pytest.raises(ValueError, match="same documents"):
        at_equal_steps(losses(1.0), losses(1.0, first=1), CONFIG)


def test_a_verdict_needs_the_whole_interval():
    assert outcome(Interval(-0.1, -0.2, -0.01, 6)) == "win"
    assert outcome(Interval(-0.1, -0.2, 0.0, 6)) == "undecided"
    assert outcome(Interval(0.1, 0.01, 0.2, 6)) == "loss"
    assert outcome(Interval()) == "undecided"


def test_a_handful_of_documents_has_no_verdict():
    """Five documents of equal models all differ in one direction in 2 of 32 cases, more than 1 in 20."""
    assert outcome(Interval(-0.1, -0.2, -0.01, 5)) == outcome(Interval(0.1, 0.01, 0.2, 5)) == "undecided"
    one = CONFIG.interval(np.array([3.0]), np.array([2.0]))
    assert (one.value, one.low, one.high, one.num_documents) == (1.5, None, None, 1)
    assert format_interval(one.to_dict(), "value") == "1.500"


def test_equal_cost_reads_the_dearer_run_before_its_end():
    """Steps cost 25 % more with a teacher: at the baseline's end the other is at step 80, between 64 and 100."""
    ours = validation_curve_of(metrics({64: 2.0, 100: 1.0}, teacher=0.25))
    theirs = validation_curve_of(metrics({64: 2.0, 100: 1.6}))
    result = at_equal_cost(ours, theirs, CONFIG)
    # log(80 / 64) / log(100 / 64) is one half
    assert result["ours"] == pytest.approx(1.5) and result["theirs"] == pytest.approx(1.6)
    assert result["outcome"] == "win" and result["cost_flops"] == 10_000
    assert result["note"].startswith("SALT is interpolated from its validation curve")
    dear = at_equal_cost(ours, theirs, CONFIG, prior_flops=2_000)
    assert dear["ours"] == pytest.approx(2.0) and dear["outcome"] == "loss"


def test_equal_cost_never_extrapolates():
    ours, theirs = (
        validation_curve_of(metrics({50: 2.0, 100: 1.0}, teacher=0.25)),
        validation_curve_of(metrics({50: 2.0, 100: 1.5})),
    )
    result = at_equal_cost(ours, theirs, CONFIG, prior_flops=9_000)
    assert result["outcome"] is None and result["difference"] is None and "not been validated" in result["note"]


def test_cost_to_match():
    ours, theirs = (
        validation_curve_of(metrics({64: 2.0, 100: 1.0}, teacher=0.25)),
        validation_curve_of(metrics({64: 2.0, 100: 1.5})),
    )
    match = cost_to_match(ours, theirs)
    assert match["cost_fraction"] == pytest.approx(1.0) and match["step_fraction"] == pytest.approx(0.82)
    assert cost_to_match(ours, theirs, prior_flops=1_000)["cost_fraction"] == pytest.approx(1.1)
    assert cost_to_match(theirs, ours) == {"step_fraction": None, "cost_fraction": None}


def test_curve_takes_the_last_of_a_repeated_step_and_passes_lines_without_validation():
    lines = [{"step": 1, "loss": 3.0}, *metrics({10: 2.0, 20: 1.5}), *metrics({20: 1.4})]
    curve = validation_curve_of(lines)
    assert curve.step.tolist() == [10, 20] and curve.mean() == pytest.approx([2.0, 1.4])
    assert validation_curve_of([{"step": 1, "loss": 3.0}]) is None


def test_compare_arms_without_validations_compares_ends_only():
    assert set(compare_arms(losses(1.0), losses(1.1), [], [], CONFIG)) == {"equal_steps"}
    full = compare_arms(losses(1.0), losses(1.1), metrics({50: 2.0, 100: 1.0}), metrics({50: 2.0, 100: 1.1}), CONFIG,
                        teacher_training_flops=4_000.0)  # fmt: skip
    assert set(full) == {"equal_steps", "equal_cost", "cost_to_match"}
    arm_flops = full["equal_cost"]
    assert arm_flops["without_teacher_training"]["outcome"] == "win"
    assert arm_flops["with_teacher_training"]["ours"] > arm_flops["without_teacher_training"]["ours"]
